"""Methods whose masks never change."""

from collections.abc import Mapping
from typing import Any, Unpack

from sup_tickets.checks import check_whole
from sup_tickets.dynamic import Method
from sup_tickets.methods.shared import Leaves, options_of


def dense() -> Method:
    """No sparsity: every mask is ``None``. The baseline of all."""
    return Method("dense", sparsity=0.0, where=None, update_every=0)


def static(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int = 0,
    distribution_options: Mapping[str, Any] | None = None,
    **leaves: Unpack[Leaves],
) -> Method:
    """A random mask that never changes (random pruning).

    Exploring a cheap ticket drops by magnitude and grows by gradient; the paper leaves
    open what it did there.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training, as every sparse method takes it.
      update_every: 0, for never.
      distribution_options: see `Method`.
      **leaves: `Leaves`.
    """
    if update_every:
        raise ValueError(
            "method 'static' never updates; it has no option 'update_every', got "
            f"{update_every}"
        )
    if total_steps is not None:
        check_whole("total_steps", total_steps, 1)
    return Method(
        "static",
        sparsity=sparsity,
        update_every=0,
        distribution_options=distribution_options,
        **options_of("static", leaves, Leaves),
    )
