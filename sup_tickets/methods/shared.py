"""What presets share: their options, and schedules over the steps of a training."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypedDict

from sup_tickets.checks import check_options, check_sparsity, check_whole
from sup_tickets.dynamic import Method, Stairs
from sup_tickets.trees import RuleLike
from sup_tickets.types import Schedule

Drop = float | Stairs | Schedule

LAST_DROP = 0.005  # drop fraction at the end, in the releases in PyTorch
_PRUNING = Fraction(110, 160)  # of the training, in GraNet's release


class Leaves(TypedDict, total=False):
    """Which leaves are sparse and how dense each is: fields of `Method`."""

    distribution: str | Callable[..., Any]
    where: RuleLike
    keep_dense: Sequence[str] | str


class Updates(Leaves, total=False):
    """When topology updates are and what they drop; those of `Leaves` too."""

    total_steps: int | None
    """Of the training; may be left out where the others say what follows from it."""
    update_every: int | None
    """Steps between updates; the method's own number by default."""
    end_step: int | None
    """Last step that may have an update; by default a share of ``total_steps``."""
    drop_fraction: Drop | None
    """At the start; the method's own by default, which then falls along a cosine to
    ``end_step``. With neither it nor ``total_steps`` it must be given and stays."""


def rewiring(
    name: str,
    options: Mapping[str, Any],
    *,
    every: int,
    drop: float,
    last_drop: float = LAST_DROP,
    part: Fraction = Fraction(1),
    **fields: Any,
) -> Method:
    """The method of a preset whose updates drop and grow.

    Args:
      name: of the method.
      options: `Updates`.
      every: steps between updates by default.
      drop: drop fraction at the start by default.
      last_drop: where it ends; ``drop`` for one that stays.
      part: of the training that has updates by default.
      **fields: of `Method`, which ``options`` may replace.
    """
    check_sparsity(fields["sparsity"])  # the first thing to say
    options = options_of(name, options, Updates)
    every, end = _span(name, options, every, part)
    fraction = options.get("drop_fraction")
    if last_drop == drop:
        fields["drop_fraction"] = drop if fraction is None else fraction
    else:
        fields |= _annealed(name, fraction, end, drop, last_drop)
    fields |= {k: v for k, v in options.items() if k in Leaves.__optional_keys__}
    return Method(name, update_every=every, end_step=end, **fields)


def options_of(name: str, options: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The options of a preset, if it takes them all.

    Raises:
      ValueError: see `check_known`.
    """
    check_known(name, options, kind.__optional_keys__)
    return dict(options)


def check_known(name: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises unless a preset knows all options.

    Raises:
      ValueError: naming the method and the option; that it is a field of `Method`, or
        the nearest option that the preset takes.
    """
    known = sorted(known)
    fields = {field.name for field in dataclasses.fields(Method)}
    for option in options:
        if known and option not in known and option in fields:
            raise ValueError(
                f"method {name!r} has no option {option!r}, which is a field of "
                f"Method; set it by replace({option}=...) of the method"
            )
    check_options(f"method {name!r}", options, known)


def _span(
    name: str, options: dict[str, Any], default: int, part: Fraction
) -> tuple[int, int | None]:
    """The interval of updates and the last step that may have one."""
    total_steps, update_every, end_step = (
        options.get(key) for key in ("total_steps", "update_every", "end_step")
    )
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


def _annealed(
    name: str, fraction: Drop | None, end: int | None, initial: float, final: float
) -> dict[str, Any]:
    """The fields of a drop fraction that falls along a cosine."""
    if end is None and fraction is None:
        raise ValueError(
            f"{name} needs total_steps, the steps of the training, over which its "
            "drop fraction falls; or end_step; or a drop_fraction that stays"
        )
    if end is None or callable(fraction) or isinstance(fraction, tuple):
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
