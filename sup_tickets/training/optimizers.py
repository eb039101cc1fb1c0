"""Optax chains without a learning rate, which the training step multiplies on."""

from collections.abc import Callable
from typing import Any

import optax

from sup_tickets.checks import check_one_of
from sup_tickets.iterate_averaging import iterate_averaging
from sup_tickets.types import Params

AVERAGING = ("none", "restart", "plain")
"""Ways to average the weights over the steps."""


def make_optimizer(
    name: str,
    *,
    weight_decay: float = 0.0,
    decay: Callable[[Params], Any] | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    clip_norm: float | None = None,
    averaging: str = "none",
    patience: int = 5,
) -> optax.GradientTransformation:
    """An Optax chain without a learning rate; its updates are to be subtracted.

    Args:
      name: "sgd" (momentum as in PyTorch, weight decay added to the gradient) or
        "adamw" (weight decay added to the update).
      weight_decay: strength.
      decay: ``params -> pytree of bool``, which leaves have weight decay; by default
        every parameter, biases and norms included, as in the release.
      momentum: of SGD.
      nesterov: of SGD.
      clip_norm: largest global norm of the gradient of the active weights, before the
        weight decay; ``None`` for no limit.
      averaging: of `AVERAGING`: whether the weights are averaged, see
        `sup_tickets.iterate_averaging`; "restart" is SNT-ASGD, "plain" NT-ASGD.
      patience: of the averaging.

    Raises:
      ValueError: for another name, or a number out of its range.
    """
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    check_one_of("averaging", averaging, AVERAGING)
    averages = []
    if averaging != "none":
        averages = [
            iterate_averaging(patience=patience, restart=averaging == "restart")
        ]
    decayed = optax.add_decayed_weights(weight_decay, mask=decay)
    if name == "sgd":
        # Without momentum there is nothing to keep, nor to pass over at every step.
        trace = [optax.trace(decay=momentum, nesterov=nesterov)] if momentum else []
        return optax.chain(*clip, decayed, *trace, *averages)
    if name == "adamw":
        return optax.chain(*clip, optax.scale_by_adam(), decayed, *averages)
    raise ValueError(f"optimizer must be 'sgd' or 'adamw', got {name!r}")
