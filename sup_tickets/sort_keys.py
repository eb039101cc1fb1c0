"""Scores as integers in their order, which can be counted and searched exactly."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.counting import MAX_COUNT


def check_scores(name: str, score: jax.Array, candidates: Any) -> None:
    """Raises unless these are scores and their candidates.

    Raises:
      TypeError: naming the leaf.
      ValueError: likewise, if it has more than 2**31 - 1 places.
    """
    if not jnp.issubdtype(score.dtype, jnp.floating) or score.dtype.itemsize < 2:
        raise TypeError(
            f"scores must be floating point of 16 bits or more, got {score.dtype} "
            f"at leaf {name!r}"
        )
    if candidates is not None and candidates.dtype != np.bool_:
        raise TypeError(
            f"candidates must be bool, got {candidates.dtype} at leaf {name!r}"
        )
    if score.size > MAX_COUNT:
        raise ValueError(
            "at most 2**31 - 1 scores of one leaf can be compared, got "
            f"{score.size} at leaf {name!r}; split the leaf"
        )


@functools.partial(jax.jit, inline=True)
def ordered_keys(score: jax.Array, candidates: jax.Array | None = None) -> jax.Array:
    """Signed integers in the order of the scores: int32, or int64 of 64 bits.

    The smallest integer marks what must not be chosen, and NaN is below all others; no
    score maps to the smallest integer (it would be a NaN pattern), nor to the largest.
    """
    info = np.iinfo({2: np.int16, 4: np.int32, 8: np.int64}[score.dtype.itemsize])
    bits = lax.bitcast_convert_type(score, info.dtype)
    lowest, highest = info.dtype.type(info.min), info.dtype.type(info.max)
    # -0 and +0 are equal scores with different bits. `score == 0` would also be true of
    # the smallest numbers, which some devices take for zeros.
    bits = jnp.where(bits == lowest, info.dtype.type(0), bits)
    keys = jnp.where(bits < 0, bits ^ highest, bits)
    keys = jnp.where(jnp.isnan(score), info.dtype.type(info.min + 1), keys)
    if info.bits == 16:
        keys = keys.astype(jnp.int32)
    return keys if candidates is None else jnp.where(candidates, keys, lowest_of(keys))


def lowest_of(keys: jax.Array) -> Any:
    """The key of what must not be chosen."""
    return keys.dtype.type(np.iinfo(keys.dtype).min)


def index_of(shape: tuple[int, ...]) -> jax.Array:
    """The row-major index of every place, int32, without a reshape."""
    index = jnp.zeros(shape, jnp.int32)
    stride = 1
    for axis, size in reversed(list(enumerate(shape))):
        if size > 1:
            index = index + lax.broadcasted_iota(jnp.int32, shape, axis) * stride
        stride *= size
    return index
