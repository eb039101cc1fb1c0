r"""KSM on the 20 superclasses of CIFAR-100, at 16 x 16 pixels: a reduced protocol.

Yang et al., KSM: Fast Multiple Task Adaption via Kernel-wise Soft Mask Learning, 2021,
https://arxiv.org/abs/2009.05668. Its release has these tasks and trains nothing on
them; the numbers are not comparable with the paper's.

    python -m experiments.prepare_data cifar10 cifar100 --data_dir=DATA
    python -m experiments.ksm --workdir=runs/ksm_cifar --seeds=0,1,2 \
        --config=configs/ksm_cifar.py --config.data.dir=DATA

The backbone is ResNet-14 of width 16, 20 epochs of CIFAR-10: other classes of the same
domain. Tasks have 5 classes, about 2,250 training images and 500 test images. A seed
takes two hours of processor time, 23 minutes of it for the backbone, 14 for each method
that goes through the network backward; ``ksm.first_tasks=10`` with
``ksm.methods=(head,norms,kernel,ksm)`` takes 50 minutes. Choose anything by
``evaluate=validation``.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, ksm


def get_config(argument: str = "") -> ConfigDict:
    """The backbone, and eight ways to learn 20 tasks.

    Args:
      argument: as of `configs.ksm`.
    """
    config: Any = ksm.default()
    config.data.name = "cifar10"
    config.data.shrink = 2
    config.data.validation_examples = 5000
    config.data.batch_size = 128
    config.data.crop_padding = 2
    config.data.flip = True
    config.model.name = "resnet20"
    config.model.options = ConfigDict({"blocks": (2, 2, 2)})  # ResNet-14
    config.train.epochs = 20
    config.train.learning_rate = 0.1
    config.train.validate_every_epochs = 5.0

    config.ksm.data = "cifar100"
    config.ksm.tasks = ("coarse",)
    config.ksm.epochs = 12
    config.ksm.batch_size = 64
    config.ksm.learning_rate = 2e-4
    config.ksm.head_rate = 1e-3
    config.ksm.weights_rate = 1e-3
    return common.with_argument(config, argument)
