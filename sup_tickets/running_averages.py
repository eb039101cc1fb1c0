"""How a new value enters a running average: a `Rule` for each kind, in a wide dtype.

The rules step from one towards the other instead of weighting both, so that equal
values give themselves exactly.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Rule = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""``(average, ticket, number of tickets) -> average``, all of one dtype."""


def averaged(
    rule: Rule, old: jax.Array, new: jax.Array, number: jax.Array
) -> jax.Array:
    """The rule applied in at least float32; the result in the dtype of ``old``."""
    if not is_inexact(new):
        return jnp.array(new)  # a copy: the state must not hold the caller's buffer
    wide = wide_dtype(new.dtype)
    average = rule(old.astype(wide), new.astype(wide), number.astype(wide))
    return average.astype(old.dtype)


def running_mean(old: jax.Array, new: jax.Array, number: jax.Array) -> jax.Array:
    """Eq. (4). The first step, from 0, is exact."""
    return old + (new - old) / number


def moving_mean(decay: float) -> Rule:
    """``decay old + (1 - decay) new``, from the nearer: decays 0 and 1 are exact."""

    def rule(old: jax.Array, new: jax.Array, number: jax.Array) -> jax.Array:
        first, dtype = number == 1, number.dtype
        if decay < 0.5:
            return new + jnp.where(first, 0.0, decay).astype(dtype) * (old - new)
        return old + jnp.where(first, 1.0, 1 - decay).astype(dtype) * (new - old)

    return rule


def is_inexact(leaf: Any) -> bool:
    """Whether it is floating point or complex, so that a mean is one of its kind."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def wide_dtype(dtype: Any) -> Any:
    """The dtype to compute in; ``promote_types`` would refuse where JAX is strict."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
