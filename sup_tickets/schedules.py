"""Schedules: learning rates, drop fractions, sparsities, and when to do what.

A schedule is a closure ``step -> float32 scalar``; a predicate is ``step -> bool``.
Both take a Python int or a traced integer (of any shape, elementwise), so that a
training step compiled once serves every step. ``step`` counts from 0.

Whatever is decided by whole numbers (stairs, cycles, updates) is computed in integers:
corners fall exactly where they are asked for, at any step below 2**31.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import (
    check_fraction,
    check_number,
    check_one_of,
    check_sparsity,
    check_whole,
    is_number,
)
from sup_tickets.types import Number, Schedule

Predicate = Callable[[Number], bool | jax.Array]
"""``step -> is it due``: a bool for a Python number, a bool array for an array."""

_CYCLE_FORMS = ("paper", "release", "restart", "constant")


# --- Learning rates -------------------------------------------------------------------


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
    stairs = _joined([optax.constant_schedule(level) for level in levels], drops)
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
    _check_span("warmup_steps", warmup_steps, "total_steps", total_steps)
    fall = _cosine(base_lr, final_lr, warmup_steps, total_steps)
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
    check_one_of("form", form, _CYCLE_FORMS)
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
        height = _ratio(above, cycle_steps)
        return _blend(lr_min, lr_max, jnp.where(inside, height, 0.0))

    joined = _joined([base, cycle], [phase1_steps]) if cycles else base
    return lambda step: _float(joined(_integer(step)))


# --- Drop fractions -------------------------------------------------------------------


def constant(value: float) -> Schedule:
    """The same value at every step.

    Raises:
      ValueError: if the value is not finite.

    Example:
      >>> round(float(constant(0.3)(1000)), 6)
      0.3
    """
    check_number("value", value)
    return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def stairs(pairs: Sequence[tuple[int, float]]) -> Schedule:
    """The value of the last ``(step, value)`` pair whose step has come.

    Args:
      pairs: in the order of their steps; the first value holds before its step too.

    Example:
      >>> fraction = stairs([(0, 0.2), (100, 0.1), (150, 0.0)])
      >>> [round(float(fraction(step)), 6) for step in (0, 99, 100, 150)]
      [0.2, 0.2, 0.1, 0.0]
    """
    steps, values = zip(*pairs, strict=True)
    joined = _joined([optax.constant_schedule(v) for v in values], steps[1:])
    return lambda step: _float(joined(_integer(step)))


def cosine_fraction(
    initial: float, *, end_step: int, begin_step: int = 0, final: float = 0.0
) -> Schedule:
    """A drop fraction that falls along half a cosine, constant before and after.

    Args:
      initial: value up to ``begin_step``, in [0, 1].
      end_step: step from which it is ``final``, after ``begin_step``.
      begin_step: RigL's code measures the step from 0 against ``end - begin``, and so
        reaches 0 too early where ``begin_step`` is positive; here the whole span is
        used.
      final: 0 in RigL; 0.005 in the PyTorch family (ITOP, GraNet, Sup-tickets).

    Raises:
      ValueError: if a fraction is outside [0, 1], or the span is empty.

    Example:
      >>> fraction = cosine_fraction(0.3, end_step=75000)
      >>> [round(float(fraction(step)), 6) for step in (0, 18750, 37500, 75000, 90000)]
      [0.3, 0.256066, 0.15, 0.0, 0.0]

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, section 3,
      https://arxiv.org/abs/1911.11134
    """
    _check_fractions(initial, final, begin_step, end_step)
    fall = _cosine(initial, final, begin_step, end_step)
    return lambda step: fall(_integer(step))


def linear_fraction(
    initial: float, *, end_step: int, begin_step: int = 0, final: float = 0.0
) -> Schedule:
    """A drop fraction that changes in a straight line, constant before and after.

    Args:
      initial: value up to ``begin_step``, in [0, 1].
      end_step: step from which it is ``final``, after ``begin_step``.
      begin_step: where the change begins.
      final: in [0, 1].

    Raises:
      ValueError: if a fraction is outside [0, 1], or the span is empty.

    Example:
      >>> fraction = linear_fraction(0.5, begin_step=10, end_step=20)
      >>> [round(float(fraction(step)), 6) for step in (0, 10, 15, 20, 30)]
      [0.5, 0.5, 0.25, 0.0, 0.0]
    """
    _check_fractions(initial, final, begin_step, end_step)
    return _polynomial(initial, final, 1, begin_step, end_step)


def inverse_power_fraction(
    initial: float, *, end_step: int, power: float, begin_step: int = 0
) -> Schedule:
    """A drop fraction ``initial * (1 - progress) ** power``, clipped to the span.

    Args:
      initial: value up to ``begin_step``, in [0, 1].
      end_step: step from which it is 0, after ``begin_step``.
      power: positive; 1 is linear, 3 is RigL's alternative to the cosine.
      begin_step: where the fall begins.

    Raises:
      ValueError: if the fraction is outside [0, 1], the span is empty, or the power is
        not positive.

    Example:
      >>> fraction = inverse_power_fraction(0.8, end_step=100, power=3)
      >>> [round(float(fraction(step)), 6) for step in (0, 50, 100)]
      [0.8, 0.1, 0.0]

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134
    """
    _check_fractions(initial, 0.0, begin_step, end_step)
    check_number("power", power, 0, above=True)
    return _polynomial(initial, 0.0, power, begin_step, end_step)


# --- Sparsity -------------------------------------------------------------------------


def cubic_sparsity(
    initial: float, final: float, *, begin_step: int, every: int, updates: int
) -> Schedule:
    """The sparsity of gradual pruning: fast at first, slow near the end.

    ``s = final + (initial - final) * (1 - k / updates) ** 3``, where
    ``k = (step - begin_step) // every``, clipped to [0, updates], counts the updates
    done: the sparsity changes at updates alone. (GraNet's code stops at
    ``k = updates - 1``, short of ``final``.)

    Args:
      initial: sparsity before the first update, in [0, 1).
      final: sparsity from the last update on, in [initial, 1).
      begin_step: step of update ``k = 0``.
      every: steps between two updates.
      updates: number of updates from ``initial`` to ``final``.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> sparsity = cubic_sparsity(0.5, 0.9, begin_step=0, every=100, updates=10)
      >>> [round(float(sparsity(step)), 6) for step in (0, 99, 100, 500, 1000, 2000)]
      [0.5, 0.5, 0.6084, 0.85, 0.9, 0.9]

    References:
      Zhu and Gupta, To prune, or not to prune, 2017, eq. (1),
      https://arxiv.org/abs/1710.01878
    """
    check_sparsity(initial, "initial")
    check_sparsity(final, "final")
    if final < initial:
        raise ValueError(
            f"final={final} must be at least initial={initial}; "
            "both are sparsities, not densities"
        )
    check_whole("begin_step", begin_step, 0)
    check_whole("every", every, 1)
    check_whole("updates", updates, 1)
    cube = _polynomial(initial, final, 3, 0, updates)
    return lambda step: cube((_integer(step) - begin_step) // every)


# --- When -----------------------------------------------------------------------------


def update_due(
    *, every: int, begin: int | None = None, end: int | None = None
) -> Predicate:
    """Whether the topology is updated at a step.

    Due at ``begin``, ``begin + every``, ... up to and including ``end``.

    Args:
      every: steps between two updates.
      begin: first update; by default ``every``, as the PyTorch family counts. RigL
        begins at 0.
      end: no update after this step; by default they never end. With ``end`` before
        ``begin`` there is none.

    Raises:
      ValueError: if ``every`` is below 1, or ``begin`` or ``end`` below 0.

    Example:
      >>> [step for step in range(12) if update_due(every=3, end=9)(step)]
      [3, 6, 9]
      >>> [step for step in range(12) if update_due(every=3, begin=0, end=8)(step)]
      [0, 3, 6]
    """
    check_whole("every", every, 1)
    first = every if begin is None else check_whole("begin", begin, 0)
    if end is not None:
        check_whole("end", end, 0)

    def due(step: Number) -> bool | jax.Array:
        on_beat = (step >= first) & ((step - first) % every == 0)
        return on_beat if end is None else on_beat & (step <= end)

    return due


# --- Parts ----------------------------------------------------------------------------


def _integer(step: Number) -> jax.Array:
    return jnp.asarray(step, jnp.int32)


def _float(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def _ratio(part: jax.Array, whole: int) -> jax.Array:
    """``part / whole``, exactly 1 where they are equal.

    XLA compiles a division by a constant as a product with its reciprocal, which may
    miss 1 by a rounding.
    """
    return jnp.where(part == whole, 1.0, _float(part) / whole)


def _blend(low: float, high: float, part: jax.Array) -> jax.Array:
    """From ``low`` at part 0 to ``high`` at part 1, both exactly."""
    return (1 - part) * low + part * high


def _joined(
    schedules: Sequence[Callable[[Any], Any]], boundaries: Sequence[int]
) -> Callable[[Any], Any]:
    return optax.join_schedules(schedules, boundaries)


def _cosine(initial: float, final: float, begin: int, end: int) -> Schedule:
    shape = optax.cosine_decay_schedule(1.0, end - begin)

    def schedule(step: Any) -> jax.Array:
        since = jnp.clip(step - begin, 0, end - begin)
        return _blend(final, initial, _float(shape(_float(since))))

    return schedule


def _polynomial(
    initial: float, final: float, power: float, begin: int, end: int
) -> Schedule:
    # Not optax's polynomial schedule: in a compiled program its 1 - count / steps can
    # end below 0, and a power of that is NaN.
    def schedule(step: Number) -> jax.Array:
        left = jnp.clip(end - _integer(step), 0, end - begin)
        return _blend(final, initial, _ratio(left, end - begin) ** power)

    return schedule


def _warmed_up(schedule: Schedule, warmup_steps: int, every: int) -> Schedule:
    check_whole("warmup_every", every, 1)
    if check_whole("warmup_steps", warmup_steps, 0) % every:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be a multiple of warmup_every={every}"
        )
    stairs = warmup_steps // every + 1

    def warmed(step: Number) -> jax.Array:
        stair = jnp.minimum(_integer(step) // every + 1, stairs)
        return _float(schedule(_integer(step))) * _ratio(stair, stairs)

    return warmed


def _check_fractions(initial: float, final: float, begin: int, end: int) -> None:
    check_fraction(initial, "initial")
    check_fraction(final, "final")
    check_whole("begin_step", begin, 0)
    _check_span("begin_step", begin, "end_step", end)


def _check_span(begin_name: str, begin: int, end_name: str, end: int) -> None:
    if check_whole(end_name, end, 1) <= begin:
        raise ValueError(f"{end_name}={end} must be above {begin_name}={begin}")
