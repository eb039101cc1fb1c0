"""Schedules of the presets over the steps of a training."""

from fractions import Fraction
from typing import Any

from sup_tickets.checks import check_sparsity, check_whole
from sup_tickets.dynamic import Stairs
from sup_tickets.types import Schedule

Drop = float | Stairs | Schedule


LAST_DROP = 0.005  # drop fraction at the end, in the releases in PyTorch


def update_span(
    name: str,
    sparsity: float,
    total_steps: int | None,
    update_every: int | None,
    end_step: int | None,
    *,
    default: int,
    part: Fraction = Fraction(1),
) -> tuple[int, int | None]:
    """The interval of updates and the last step that may have one."""
    check_sparsity(sparsity)  # the first thing to say
    every = default if update_every is None else update_every
    check_whole("update_every", every, 1)
    if end_step is not None:
        if check_whole("end_step", end_step, 0) < every:
            raise ValueError(
                f"{name} would never change the topology: update_every={every} leaves "
                f"no update up to end_step={end_step}"
            )
        return every, end_step
    if total_steps is None:
        if update_every is None:
            raise ValueError(
                f"{name} needs total_steps, the steps of the training, or update_every "
                f"(it is {default} by default)"
            )
        return every, None
    end = int(part * check_whole("total_steps", total_steps, 1))
    if every > end:
        raise ValueError(
            f"{name} would never change the topology: update_every={every} and "
            f"total_steps={total_steps} leave no update up to step {end}"
        )
    return every, end


def annealed(
    name: str, fraction: Drop | None, end: int | None, *, initial: float, final: float
) -> dict[str, Any]:
    """The fields of a drop fraction that falls along a cosine."""
    if end is None:
        if fraction is None:
            raise ValueError(
                f"{name} needs total_steps, the steps of the training, over which its "
                "drop fraction falls; or end_step; or a drop_fraction that stays"
            )
        return {"drop_fraction": fraction}
    if callable(fraction) or isinstance(fraction, tuple):
        return {"drop_fraction": fraction}
    return {
        "drop_fraction": initial if fraction is None else fraction,
        "drop_decay": "cosine",
        "drop_final": final,
    }


def prune_end(name: str, total_steps: int | None, prune_end_step: int | None) -> int:
    """The end of the pruning window, by default as in GraNet's release."""
    if prune_end_step is not None:
        return check_whole("prune_end_step", prune_end_step, 0)
    if total_steps is None:
        raise ValueError(
            f"{name} needs total_steps, the steps of the training, or prune_end_step"
        )
    return int(_PRUNING * check_whole("total_steps", total_steps, 1))


_PRUNING = Fraction(110, 160)  # of the training, in GraNet's release
