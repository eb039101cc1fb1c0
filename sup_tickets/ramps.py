"""What schedules are made of: blends and ratios that hit their corners exactly."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import (
    check_whole,
)
from sup_tickets.types import Number, Schedule


def integer(step: Number) -> jax.Array:
    """int32, in which whatever whole numbers decide is decided."""
    return jnp.asarray(step, jnp.int32)


def floating(value: Any) -> jax.Array:
    """float32, the dtype of all schedules."""
    return jnp.asarray(value, jnp.float32)


def ratio(part: jax.Array, whole: int) -> jax.Array:
    """``part / whole``, exactly 1 where they are equal.

    XLA compiles a division by a constant as a product with its reciprocal, which may
    miss 1 by a rounding; and LLVM then fuses it with what is added to it, and drops the
    corner as superfluous. The barrier keeps it a division.
    """
    divisor = jax.lax.optimization_barrier(floating(whole))
    return jnp.where(part == whole, 1.0, floating(part) / divisor)


def blend(low: float, high: float, part: jax.Array) -> jax.Array:
    """From ``low`` at part 0 to ``high`` at part 1, both exactly."""
    return (1 - part) * low + part * high


def join(
    schedules: Sequence[Callable[[Any], Any]], boundaries: Sequence[int]
) -> Callable[[Any], Any]:
    """``optax.join_schedules``, for schedules that pyright knows less of."""
    return optax.join_schedules(schedules, boundaries)


def cosine(initial: float, final: float, begin: int, end: int) -> Schedule:
    """Half a cosine from ``initial`` at ``begin`` to ``final`` at ``end``."""
    shape = optax.cosine_decay_schedule(1.0, end - begin)

    def schedule(step: Any) -> jax.Array:
        since = jnp.clip(step - begin, 0, end - begin)
        return blend(final, initial, floating(shape(floating(since))))

    return schedule


def polynomial(
    initial: float, final: float, power: float, begin: int, end: int
) -> Schedule:
    """``final + (initial - final) left ** power``, of the part of the span left."""

    # Not optax's polynomial schedule: in a compiled program its 1 - count / steps can
    # end below 0, and a power of that is NaN.
    def schedule(step: Number) -> jax.Array:
        left = jnp.clip(end - integer(step), 0, end - begin)
        return blend(final, initial, ratio(left, end - begin) ** power)

    return schedule


def check_span(begin_name: str, begin: int, end_name: str, end: int) -> None:
    """Raises unless ``end`` is a whole number above ``begin``."""
    if check_whole(end_name, end, 1) <= begin:
        raise ValueError(f"{end_name}={end} must be above {begin_name}={begin}")
