"""Learning rates: stairs, cosines, and the cycles of cheap tickets.

Each is a schedule, see `sup_tickets.schedules`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import (
    check_number,
    check_one_of,
    check_whole,
    is_number,
)
from sup_tickets.ramps import (
    blend,
    check_span,
    cosine,
    floating,
    integer,
    join,
    ratio,
)
from sup_tickets.types import Number, Schedule

CYCLE_FORMS = ("paper", "release", "restart", "constant")


def step_lr(
    base_lr: float,
    *,
    milestones: Sequence[int],
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_every: int = 1,
) -> Schedule:
    """A learning rate that is multiplied by ``factor`` at every milestone.

    The warm-up is a staircase: with ``W = warmup_steps / warmup_every`` stairs, stair
    ``e = step // warmup_every`` multiplies by ``(e + 1) / (W + 1)``.

    Args:
      base_lr: positive.
      milestones: steps from which each further factor holds, in any order. A step named
        twice counts twice.
      factor: positive.
      warmup_steps: length of the warm-up; 0 is none.
      warmup_every: steps of one stair, a divisor of ``warmup_steps``.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> lr = step_lr(0.1, milestones=[100, 200])
      >>> [round(float(lr(step)), 6) for step in (0, 99, 100, 199, 200)]
      [0.1, 0.1, 0.01, 0.01, 0.001]
      >>> lr = step_lr(0.6, milestones=[], warmup_steps=10, warmup_every=5)
      >>> [round(float(lr(step)), 6) for step in (0, 4, 5, 9, 10)]
      [0.2, 0.2, 0.4, 0.4, 0.6]

    References:
      Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017,
      https://arxiv.org/abs/1706.02677 (a warm-up in stairs of one epoch)
    """
    check_number("base_lr", base_lr, 0, above=True)
    check_number("factor", factor, 0, above=True)
    if not isinstance(milestones, Iterable):
        raise ValueError(f"milestones must be a sequence of steps, got {milestones!r}")
    drops = sorted(check_whole("milestones", step, 0) for step in milestones)
    # Levels, not repeated products: each is the float32 next to the true value.
    levels = [base_lr * factor**i for i in range(len(drops) + 1)]
    stairs = join([optax.constant_schedule(level) for level in levels], drops)
    return _warmed_up(stairs, warmup_steps, warmup_every)


def cosine_lr(
    base_lr: float,
    *,
    total_steps: int,
    final_lr: float = 0.0,
    warmup_steps: int = 0,
    warmup_every: int = 1,
) -> Schedule:
    """A learning rate that falls along half a cosine from the end of the warm-up.

    Args:
      base_lr: positive; reached at step ``warmup_steps``.
      total_steps: step at which ``final_lr`` is reached; it stays there.
      final_lr: in [0, base_lr].
      warmup_steps: length of the warm-up, below ``total_steps``; as in `step_lr`.
      warmup_every: as in `step_lr`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> lr = cosine_lr(0.2, total_steps=100)
      >>> [round(float(lr(step)), 6) for step in (0, 50, 100, 101)]
      [0.2, 0.1, 0.0, 0.0]

    References:
      Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017,
      https://arxiv.org/abs/1608.03983
    """
    check_number("base_lr", base_lr, 0, above=True)
    if not (is_number(final_lr) and 0 <= final_lr <= base_lr):
        raise ValueError(
            f"final_lr must be in [0, base_lr={base_lr}], got {final_lr!r}"
        )
    check_whole("warmup_steps", warmup_steps, 0)
    check_span("warmup_steps", warmup_steps, "total_steps", total_steps)
    fall = cosine(base_lr, final_lr, warmup_steps, total_steps)
    return _warmed_up(fall, warmup_steps, warmup_every)


def cheap_ticket_schedule(
    base: Schedule,
    *,
    phase1_steps: int,
    cycle_steps: int,
    cycles: int,
    lr_min: float,
    lr_max: float,
    form: str = "paper",
) -> Schedule:
    """``base`` through phase 1, then one triangle a cycle, low to high to low.

    Step ``j`` of a cycle of ``C`` steps, counted from 0, is at ``t = (j + 1) / C``: the
    last step of a cycle, after which its ticket is collected, has exactly ``lr_min``.
    The release has ``t = j / C``: the same triangle one step later. The forms that the
    paper compares with are a fall from ``lr_max`` to ``lr_min`` in each cycle
    ("restart": SWA's, and with a large ``lr_max`` that of warm restarts), and
    ``lr_max`` throughout ("constant").

    Args:
      base: the schedule of phase 1.
      phase1_steps: length of phase 1.
      cycle_steps: length of a cycle, ``C``.
      cycles: number of cycles; with 0 there is no phase 2 and ``base`` never ends.
      lr_min: lowest rate, at the ends of a cycle and after the last.
      lr_max: highest rate, in the middle of a cycle. (For odd ``C`` the triangle has no
        step exactly there.)
      form: "paper", "release", "restart" or "constant".

    Raises:
      ValueError: if a length is not positive, if not 0 <= lr_min <= lr_max, or if the
        form is unknown.

    Example:
      >>> lr = cheap_ticket_schedule(
      ...     lambda step: 0.1,
      ...     phase1_steps=10, cycle_steps=8, cycles=3, lr_min=0.001, lr_max=0.005,
      ... )
      >>> [round(float(lr(step)), 6) for step in range(9, 19)]
      [0.1, 0.002, 0.003, 0.004, 0.005, 0.004, 0.003, 0.002, 0.001, 0.002]

    References:
      Yin et al., Superposing Many Tickets into One, 2022, eq. (3), tables 4 and 7,
      https://arxiv.org/abs/2205.15322
    """
    check_whole("phase1_steps", phase1_steps, 1)
    check_whole("cycle_steps", cycle_steps, 1)
    check_whole("cycles", cycles, 0)
    if not (is_number(lr_min) and is_number(lr_max) and 0 <= lr_min <= lr_max):
        raise ValueError(
            f"lr_min={lr_min!r} and lr_max={lr_max!r} must be finite, "
            "0 <= lr_min <= lr_max"
        )
    check_one_of("form", form, CYCLE_FORMS)
    if not callable(base):
        raise ValueError(f"base must be a schedule, step -> value, got {base!r}")
    shift = 0 if form == "release" else 1

    def cycle(step: Any) -> jax.Array:
        i = (step + shift) % cycle_steps
        if form == "restart":
            above = (cycle_steps - i) % cycle_steps
        elif form == "constant":
            above = jnp.full_like(i, cycle_steps)
        else:  # Twice the distance from the nearer end of the cycle, in whole steps.
            above = 2 * jnp.minimum(i, cycle_steps - i)
        inside = (step >= 0) & (step < cycles * cycle_steps)
        height = ratio(above, cycle_steps)
        return blend(lr_min, lr_max, jnp.where(inside, height, 0.0))

    joined = join([base, cycle], [phase1_steps]) if cycles else base
    return lambda step: floating(joined(integer(step)))


def _warmed_up(schedule: Schedule, warmup_steps: int, every: int) -> Schedule:
    check_whole("warmup_every", every, 1)
    if check_whole("warmup_steps", warmup_steps, 0) % every:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be a multiple of warmup_every={every}"
        )
    stairs = warmup_steps // every + 1

    def warmed(step: Number) -> jax.Array:
        stair = jnp.minimum(integer(step) // every + 1, stairs)
        return floating(schedule(integer(step))) * ratio(stair, stairs)

    return warmed
