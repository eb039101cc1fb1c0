"""Schedules: learning rates, drop fractions, sparsities, and when to do what.

A schedule is a closure ``step -> float32 scalar``; a predicate is ``step -> bool``.
Both take a Python int or a traced integer (of any shape, elementwise), so that a
training step compiled once serves every step. ``step`` counts from 0.

Whatever is decided by whole numbers (stairs, cycles, updates) is computed in integers:
corners fall exactly where they are asked for, at any step below 2**31.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import (
    check_fraction,
    check_number,
    check_sparsity,
    check_whole,
)
from sup_tickets.ramps import check_span, cosine, floating, integer, join, polynomial
from sup_tickets.types import Number, Schedule

Predicate = Callable[[Number], bool | jax.Array]
"""``step -> is it due``: a bool for a Python number, a bool array for an array."""


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
    joined = join([optax.constant_schedule(v) for v in values], steps[1:])
    return lambda step: floating(joined(integer(step)))


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
    fall = cosine(initial, final, begin_step, end_step)
    return lambda step: fall(integer(step))


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
    return polynomial(initial, final, 1, begin_step, end_step)


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
    return polynomial(initial, 0.0, power, begin_step, end_step)


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
    cube = polynomial(initial, final, 3, 0, updates)
    return lambda step: cube((integer(step) - begin_step) // every)


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


def _check_fractions(initial: float, final: float, begin: int, end: int) -> None:
    check_fraction(initial, "initial")
    check_fraction(final, "final")
    check_whole("begin_step", begin, 0)
    check_span("begin_step", begin, "end_step", end)
