"""From a configuration to ToST: networks that are denser and smoother while young.

Jaiswal et al., Training Your Sparse Neural Network Better with Any Mask, 2022,
https://arxiv.org/abs/2206.12755
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from configs.common import TOST_PARTS
from experiments.config.fields import Config
from sup_tickets.counting import exact_portion
from sup_tickets.models.skips import GhostSkips
from sup_tickets.softening import fading, sharpening, softened
from sup_tickets.training.libraries.linen import Form, kernel_uses
from sup_tickets.trees import named_leaves
from sup_tickets.types import Number, Params

GHOSTS = {"soft", "skips"}
"""Parts of ToST that the network has while it is young."""


class Young(NamedTuple):
    """The network as it is at first."""

    form: Form  # with ghosts
    until: int  # completed steps after which it is the plain network
    text: str  # what it has

    def flops(self, params: Params, example: jax.Array) -> int:
        """Operations of training the ghosts to their end, by one example a step.

        Args:
          params: with ghosts, or their shapes.
          example: [1, ...] an input.
        """
        uses = kernel_uses(self.form(0), example)
        sizes = {name: leaf.size for name, leaf in named_leaves(params)}
        ghosts = [name for name in uses if "_ghost/" in name]
        return 3 * sum(2 * uses[name] * sizes[name] for name in ghosts) * self.until


def tost_parts(config: Config) -> tuple[str, ...]:
    """The parts of ToST that are on, of `configs.common.TOST_PARTS`.

    Raises:
      ValueError: for another.
    """
    parts = tuple(filter(None, config.tost.parts.split("+")))
    for part in parts:
        if part not in TOST_PARTS:
            raise ValueError(
                f"config.tost.parts must be some of {', '.join(TOST_PARTS)} with + "
                f"between, got {config.tost.parts!r}"
            )
    return parts


def with_tost(
    config: Config, model: nn.Module, *, phase1_steps: int, epoch_steps: int
) -> tuple[nn.Module, Young | None]:
    """The network in the end, and as it is at first if that differs.

    Args:
      config: of the run.
      model: without ghosts.
      phase1_steps: steps of phase 1.
      epoch_steps: of an epoch; ghosts go at the end of one, the first at the
        earliest.

    Raises:
      ValueError: if phase 1 would end before the ghosts are gone.
    """
    tost, parts = config.tost, tost_parts(config)
    if not GHOSTS & set(parts):
        return model, None
    if tost.released:  # Nothing is a ghost there: all of it stays.
        return _haunted(config, model, parts, sharpness=1.0, strength=1.0), None
    epochs = phase1_steps // epoch_steps
    haunted = max(1, exact_portion(epochs, tost.ghost_fraction))
    if not tost.ghost_fraction > 0 or haunted >= epochs:
        raise ValueError(
            f"config.tost.ghost_fraction={tost.ghost_fraction} of the {epochs} epochs "
            f"of phase 1 leaves ghosts for {haunted}; it must be above 0, and at least "
            "one epoch without them must follow"
        )
    until = haunted * epoch_steps
    sharpness = sharpening(
        until,
        start=tost.sharpness_start,
        end=tost.sharpness_end,
        shape=tost.sharpness_shape,
    )
    strength = fading(until, shape=tost.skip_shape)

    def form(step: Number) -> nn.Module:
        return _haunted(
            config, model, parts, sharpness=sharpness(step), strength=strength(step)
        )

    text = (
        f"ghosts: {' and '.join(p for p in parts if p in GHOSTS)}, gone after step "
        f"{until}, epoch {until // epoch_steps}"
    )
    return model, Young(form, until, text)


def _haunted(
    config: Config,
    model: nn.Module,
    parts: tuple[str, ...],
    *,
    sharpness: Number,
    strength: Number,
) -> nn.Module:
    """The model with soft neurons and extra skips, as far as they are on."""
    changes = {}
    if "soft" in parts:
        own: Any = model
        changes["activation"] = softened(own.activation, config.tost.soft, sharpness)
    if "skips" in parts:
        changes["bridge"] = GhostSkips(strength, project=config.tost.released)
    return model.clone(**changes)
