"""Exact integer counts of weights from fractions.

Floating point truncates: ``int(100 * 0.29)`` is 28. Counts known before tracing are
computed in exact rational arithmetic from the decimal that the caller wrote; counts
inside a traced program by an exact 64-bit product of 32-bit integers.

A target is rounded to the *nearest* integer (half up), so it is never further than half
a weight from ``density * size``, and agrees with the RigL and ToST releases; the
Sup-tickets release truncates, which gives one weight fewer in about half of the cases.
"""

import contextlib
from fractions import Fraction
from math import ceil, floor
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from sup_tickets.checks import (
    check_fraction,
    check_one_of,
    check_sparsity,
    check_whole,
)
from sup_tickets.types import Counts, Number

Rounding = Literal["floor", "nearest", "ceil"]

MAX_COUNT = 2**31 - 1
"""The largest number of weights that one selection can count (int32)."""

_ONE = 1 << 30  # fixed-point one: a fraction is held as an integer number of 2**-30


def exact(number: float) -> Fraction:
    """The decimal that was written: ``exact(0.1) == Fraction(1, 10)``."""
    return Fraction(str(number))


def active_count(total: int, sparsity: float) -> int:
    """The number of active weights among ``total`` at a sparsity, rounded to nearest.

    Args:
      total: number of weights.
      sparsity: in [0, 1).

    Raises:
      ValueError: if the sparsity is outside [0, 1) or NaN, or if ``total`` is no whole
        number of at least 0.

    Example:
      >>> active_count(100, 0.71), active_count(8, 0.8), active_count(30, 0.1)
      (29, 2, 27)
    """
    check_whole("total", total, 0)
    check_sparsity(sparsity)
    return floor((1 - exact(sparsity)) * total + Fraction(1, 2))


def exact_portion(count: int, fraction: float, rounding: Rounding = "nearest") -> int:
    """``fraction`` of ``count`` in Python integers: for steps, epochs, whole plans.

    Args:
      count: whole number of at least 0.
      fraction: in [0, 1]; stands for the decimal that was written.
      rounding: "floor", "nearest" (half up) or "ceil".

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> int(0.57 * 10000), exact_portion(10000, 0.57, "floor")
      (5699, 5700)
    """
    check_whole("count", count, 0)
    check_fraction(fraction)
    check_one_of("rounding", rounding, get_args(Rounding))
    part = exact(fraction) * int(count)
    if rounding == "nearest":
        return floor(part + Fraction(1, 2))
    return floor(part) if rounding == "floor" else ceil(part)


def portion(count: Number, fraction: Number, rounding: Rounding) -> jax.Array:
    """``fraction`` of ``count`` as an integer, computed alike traced or not.

    The fraction is taken in float32 and stands for the decimal next to it: a product
    within a relative 2**-22 of an integer (and at most a quarter from it) counts as
    that integer, so 0.1 of 10 is 1 whichever way it is rounded.

    Args:
      count: integers in [0, 2**31), a scalar or an array; a Python one may be larger.
      fraction: in [0, 1], likewise; values outside are clipped.
      rounding: "floor", "nearest" (half up) or "ceil".

    Returns:
      int32, a scalar or an array; int64 of a larger count.

    Example:
      >>> int(portion(10, 0.3, "ceil")), int(portion(3, 0.5, "ceil"))
      (3, 2)
    """
    check_one_of("rounding", rounding, get_args(Rounding))
    clipped = jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0)
    part = jnp.round(clipped * jnp.float32(_ONE)).astype(jnp.uint32)
    if isinstance(count, int) and count > MAX_COUNT:
        add = {"floor": 0, "nearest": _ONE // 2, "ceil": _ONE - 1}[rounding]
        with in_64_bits(True):
            return ((part.astype(jnp.uint64) * count + add) >> 30).astype(jnp.int64)
    count = jnp.asarray(count).astype(jnp.uint32)
    # Below 2**-8 the fixed point is what rounds, by up to half a unit.
    slack = jnp.maximum(part >> 22, jnp.uint32(1))
    slack = jnp.minimum(slack, jnp.uint32(_ONE // 4) // jnp.maximum(count, 1))
    slack = jnp.where((part == 0) | (part == _ONE), jnp.uint32(0), slack)
    if rounding == "ceil":
        part, add = part - slack, _ONE - 1
    else:
        part = jnp.minimum(part + slack, jnp.uint32(_ONE))
        add = _ONE // 2 if rounding == "nearest" else 0
    return _multiply_and_shift(count, part, add)


def in_64_bits(needed: bool) -> contextlib.AbstractContextManager[Any]:
    """Where integers of 64 bits are allowed, which JAX has to be told."""
    return jax.enable_x64(True) if needed else contextlib.nullcontext()


def share_out(shares: Any, dropped: Counts, room: Counts) -> Counts:
    """Shares the total of ``dropped`` out between layers, exactly, within their room.

    Every round gives each layer with room its share of what is left, rounded down; what
    rounding leaves over goes one by one to the largest shares.

    Args:
      shares: pytree of non-negative scalars, one a layer; need not sum to 1. Where all
        open layers have share 0 they share alike.
      dropped: pytree of integers of the same structure, or their total.
      room: likewise: at most this many for each layer; in total at least ``dropped``.

    Returns:
      Pytree of int32 scalars with the sum of ``dropped``.

    References:
      Dettmers and Zettlemoyer, Sparse Networks from Scratch, 2019, section 3.2,
      https://arxiv.org/abs/1907.04840. The release rounds every layer up, caps at 99%
      of the room and corrects the surplus in later updates; here the sum is exact.
    """
    leaves, structure = jax.tree.flatten(shares)
    if not leaves:
        return shares
    share = jnp.stack([jnp.maximum(jnp.asarray(s, jnp.float32), 0) for s in leaves])
    limit = jnp.stack([jnp.asarray(r, jnp.int32) for r in jax.tree.leaves(room)])
    total = sum(jax.tree.leaves(dropped), start=jnp.int32(0))
    total = jnp.asarray(total, jnp.int32)
    return jax.tree.unflatten(structure, list(parted(share, total, limit)))


def parted(share: jax.Array, total: jax.Array, limit: jax.Array) -> jax.Array:
    """`share_out` of vectors: ``total`` by shares [L], at most ``limit`` [L] each."""

    def add_up(counts: jax.Array) -> jax.Array:
        return jnp.sum(counts, dtype=jnp.int32)  # int64 if 64 bits are enabled

    def give(given: jax.Array) -> jax.Array:
        left, free = total - add_up(given), limit - given
        open_share = jnp.where(free > 0, share, 0.0)
        alike = (free > 0).astype(jnp.float32)
        # A run that diverged may come with NaN or infinite shares.
        whole = jnp.sum(open_share)
        open_share = jnp.where((whole > 0) & (whole < jnp.inf), open_share, alike)
        part = open_share / jnp.sum(open_share)
        each = jnp.floor(part * left.astype(jnp.float32) * (1 + 2.0**-22))
        each = jnp.minimum(each.astype(jnp.int32), free)
        each = computed_once(each, never=left < 0)
        # float32 may round the parts up past what is left; clip them in order.
        before = jnp.cumsum(each, dtype=jnp.int32) - each
        each = jnp.clip(left - before, 0, each)
        over, free = left - add_up(each), free - each
        order = jnp.argsort(-jnp.where(free > 0, open_share, -1.0), stable=True)
        one = (jnp.arange(share.size, dtype=jnp.int32) < over) & (free[order] > 0)
        return given + each + jnp.zeros_like(each).at[order].set(one.astype(jnp.int32))

    return jax.lax.while_loop(
        lambda given: add_up(given) < jnp.minimum(total, add_up(limit)),
        give,
        jnp.zeros_like(limit),
    )


def _multiply_and_shift(count: jax.Array, part: jax.Array, add: int) -> jax.Array:
    """``(count * part + add) >> 30`` for uint32 scalars, through 16-bit limbs."""
    count_high, count_low = count >> 16, count & 0xFFFF
    part_high, part_low = part >> 16, part & 0xFFFF
    # part <= 2**30, so part_high <= 2**14 and the sum below stays under 2**32.
    middle = count_high * part_low + count_low * part_high
    low = count_low * part_low
    with_middle = low + (middle << 16)
    with_add = with_middle + jnp.uint32(add)
    carries = (with_middle < low).astype(jnp.uint32) + (with_add < with_middle).astype(
        jnp.uint32
    )
    high = count_high * part_high + (middle >> 16) + carries
    return ((high << 2) | (with_add >> 30)).astype(jnp.int32)


def computed_once(values: Any, *, never: jax.Array) -> Any:
    """The same values, which all that reads them from here on finds in one buffer.

    XLA may compute a value once more in each fusion that reads it, rounded differently
    each time: then a mask would not have the count of its threshold, nor would as many
    weights be grown as were dropped. It expands `lax.optimization_barrier` before it
    fuses, so that one forbids nothing. But what a loop returns cannot be computed
    elsewhere, and neither can what it starts from. This one makes no step, which only
    we know; the values stay where they are and nothing is copied.

    Args:
      values: pytree of arrays.
      never: bool scalar that is False, which the compiler must not be able to tell;
        where it is True after all, the values become 0.
    """
    return jax.lax.while_loop(
        lambda state: state[0],
        lambda state: jax.tree.map(jnp.zeros_like, state),
        (never, values),
    )[1]
