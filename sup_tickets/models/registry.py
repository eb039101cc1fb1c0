"""Models by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from sup_tickets.checks import did_you_mean
from sup_tickets.models.conv import ConvNet
from sup_tickets.models.mlp import MLP

MODELS: dict[str, Callable[..., nn.Module]] = {"conv": ConvNet, "mlp": MLP}
"""Every model by its short name. All have the field ``bn_momentum``."""


def make_model(name: str, **options: Any) -> nn.Module:
    """The model with a short name.

    Args:
      name: "conv", for example.
      **options: fields of the model.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, MODELS)}")
    known = [
        field
        for field in MODELS[name].__dataclass_fields__  # pyright: ignore
        if field not in ("parent", "name")
    ]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"model {name!r} has no option {option!r}{hint}")
    return MODELS[name](**options)
