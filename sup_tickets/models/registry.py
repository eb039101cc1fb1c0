"""Models by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn

from sup_tickets.checks import check_options, check_whole, did_you_mean
from sup_tickets.models.conv import ConvNet
from sup_tickets.models.language import Recurrent, Transformer
from sup_tickets.models.lenet import LeNet5, LeNet300
from sup_tickets.models.mlp import MLP
from sup_tickets.models.mobilenet import MobileNetV1, MobileNetV2
from sup_tickets.models.onlstm import OrderedLSTMLayer
from sup_tickets.models.resnet import ResNet
from sup_tickets.models.rhn import HighwayLayer
from sup_tickets.models.vgg import STAGES_19, VGG
from sup_tickets.models.vit import ViT
from sup_tickets.models.wide_resnet import WideResNet

_small = partial(ResNet, conv_init="fan_out", widths=(16, 32, 64))
_double = partial(
    ResNet, conv_init="fan_out", dense_init="normal", widths=(32, 64, 128)
)
_bottleneck50 = partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "conv": ConvNet,
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "mlp": MLP,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    # ToST's depth 6n + 2. Its code takes bottlenecks from depth 54 on, so that its
    # "104" has 155 layers; here only that one does, and 56 is He et al.'s.
    "resnet104": partial(_small, blocks=(17, 17, 17), bottleneck=True),
    "resnet18": ResNet,
    "resnet20": partial(_small, blocks=(3, 3, 3)),
    "resnet32": partial(_small, blocks=(5, 5, 5)),
    "resnet32x2": partial(_double, blocks=(5, 5, 5)),
    "resnet34": partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet50": _bottleneck50,  # Sup-tickets': classifier_bias=False
    "resnet50_imagenet": partial(
        _bottleneck50, classes=1000, small_images=False, conv_init="fan_out"
    ),
    "resnet56": partial(_small, blocks=(9, 9, 9)),
    "resnet56x2": partial(_double, blocks=(9, 9, 9)),
    "vgg16": VGG,  # Sup-tickets' "VGG-like"
    "vgg19": partial(VGG, stages=STAGES_19, hidden=(), last_maximum=False),  # ToST's
    "vit_s16": partial(ViT, classes=1000),
    "wrn22x2": partial(WideResNet, blocks=3, widths=(32, 64, 128)),
    "wrn28x10": WideResNet,
}
"""Every network of images by its short name. All have the fields ``activation``,
``bridge`` and ``dtype``; all but LeNet and ViT ``bn_momentum`` and ``bn_unbiased``."""

LANGUAGE_MODELS: dict[str, Callable[..., nn.Module]] = {
    "lstm": Recurrent,
    "onlstm": partial(Recurrent, layer=OrderedLSTMLayer),
    "rhn": partial(Recurrent, layer=HighwayLayer, features=(200,)),
    "transformer": Transformer,
}
"""Every network of texts by its short name; see `sup_tickets.models.language`."""

_ALL = MODELS | LANGUAGE_MODELS


def make_model(name: str, *, of_text: bool = False, **options: Any) -> nn.Module:
    """The model with a short name.

    Args:
      name: "conv", for example.
      of_text: whether it is one of `LANGUAGE_MODELS`, not of `MODELS`.
      **options: fields of the model, instead of their defaults.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest; for a number
        of classes that is none.
    """
    models, what = (LANGUAGE_MODELS, "texts") if of_text else (MODELS, "images")
    if name in _ALL and name not in models:
        raise ValueError(f"model {name!r} is not one of {what}, {', '.join(models)}")
    if name not in models:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, models)}")
    check_options(f"model {name!r}", options, model_options(name))
    if "classes" in options:
        check_whole("classes", options["classes"], 1)
    return models[name](**options)


def model_options(name: str) -> list[str]:
    """The names of the fields of a model, without Flax's own."""
    maker = _ALL[name]
    fields = getattr(maker, "func", maker).__dataclass_fields__
    return [field for field in fields if field not in ("parent", "name")]
