"""Methods whose masks never change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sup_tickets.checks import check_whole
from sup_tickets.dynamic import Method
from sup_tickets.trees import RuleLike, default_rule


def dense() -> Method:
    """No sparsity: every mask is ``None``. The baseline of all."""
    return Method("dense", sparsity=0.0, where=None, update_every=0)


def static(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int = 0,
    distribution: str | Callable[..., Any] = "erk",
    distribution_options: Mapping[str, Any] | None = None,
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """A random mask that never changes (random pruning).

    Exploring a cheap ticket drops by magnitude and grows by gradient; the paper leaves
    open what it did there.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training, as every sparse method takes it.
      update_every: 0, for never.
      distribution, distribution_options, where, keep_dense: see `Method`.
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
        distribution=distribution,
        distribution_options=distribution_options,
        where=where,
        keep_dense=keep_dense,
    )
