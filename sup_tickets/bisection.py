"""Exact top-k in the groups of a leaf by bisection, and counting.

The largest ``k`` keys are found by bisection on the *bit pattern* of the score: read as
ordered integers, 32 bits need at most 32 counts of "how many are at least t", for any
values and for a traced ``k``. Nothing is sorted. Where an array is split into groups
there is a threshold for each, all bisected at once. Counting moves one number a group a
halving, so a selection over sharded arrays exchanges counts, never weights.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.counting import MAX_COUNT, computed_once
from sup_tickets.groups import Split
from sup_tickets.types import Number

# XLA on a CPU turns `sum(key >= t)` into slow scalar code. Adding equal slices
# elementwise first makes it run at the memory's speed, six times faster.
_FOLD = 16
_ROW = 256
_UNSPLIT = 32
# Groups of smaller leaves are not worth the time of compiling slices.
_SMALL = 1 << 12
# In a block of so many places comparing all pairs is faster than up to 32 counts.
_FEW = 16

Predicate = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""``(keys, value, index < cut) -> bool``, the value that of each key's group."""


def integer_info(itemsize: int) -> Any:
    """Of the signed integers of so many bytes."""
    return np.iinfo({2: np.int16, 4: np.int32, 8: np.int64}[itemsize])


# --- The largest k --------------------------------------------------------------------


# Compiled as a unit, so that a call outside jit compiles once for each shape; inlined
# inside one, where the boundary would keep the keys of a leaf twice.
@functools.partial(jax.jit, inline=True, static_argnames="split")
def largest(
    leaves: list[jax.Array], k: Number | jax.Array, split: Split | None = None
) -> tuple[list[jax.Array], jax.Array]:
    """Masks of the ``k`` largest keys of all the leaves together, ties by index.

    Args:
      leaves: keys; with groups, of one leaf.
      k: integer; with groups, one for all of them or an array of shape `Split.counts`.
      split: the groups, each with its own ``k`` largest.

    Returns:
      The masks, and the index before which ties were chosen, or one for each group.
    """
    total = sum(leaf.size for leaf in leaves)
    if total > MAX_COUNT:
        raise ValueError(
            f"at most 2**31 - 1 scores can be compared at once, got {total}; "
            "select per leaf, or split the leaf"
        )
    if total == 0:
        return [jnp.zeros(leaf.shape, bool) for leaf in leaves], jnp.int32(0)
    members = total if split is None else split.members
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, members)
    if split is not None:
        if split.block is not None and members <= _FEW:
            return _best_of_few(leaves[0], k, split)
        k = jnp.broadcast_to(k, split.counts)
    threshold, at_least, above = _threshold(leaves, k, members, split)
    leaves, k = computed_once((leaves, k), never=jnp.any(at_least < 0))
    cut = _index_cut(leaves, threshold, k - above, at_least > k, split)
    lowest = threshold.dtype.type(integer_info(threshold.dtype.itemsize).min)
    of_key, before = (_spread(values, split) for values in (threshold, cut))

    def mask(keys: jax.Array, start: int) -> jax.Array:
        tied = (keys == of_key) & (_index(keys.shape) < before - start)
        return ((keys > of_key) | tied) & (keys != lowest)

    return [mask(*pair) for pair in zip(leaves, _starts(leaves), strict=True)], cut


def _threshold(
    leaves: list[jax.Array], k: jax.Array, members: int, split: Split | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest key that at least ``k`` keys reach, or one that exactly ``k`` reach.

    Args:
      leaves: keys.
      k: int32, a scalar or one for each group.
      members: keys that there are, or that each group has.
      split: the groups.

    Returns:
      The threshold, how many keys are at least it, and how many are above it (which is
      right whenever more than ``k`` are at least it), all of the shape of ``k``.
    """
    info = integer_info(leaves[0].dtype.itemsize)
    unsigned = np.dtype(f"uint{info.bits}")

    def undecided(state: tuple[jax.Array, ...]) -> jax.Array:
        step, _, at_least, _ = state
        return (step > 0) & jnp.any(at_least != k)

    def halve(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        step, low, at_least, above = state
        # Unsigned addition: the first step goes from the smallest integer to 0.
        trial = lax.bitcast_convert_type(
            lax.bitcast_convert_type(low, unsigned) + step, info.dtype
        )
        n = _count(leaves, lambda keys, at, _: keys >= at, trial, 0, split)
        reached = n >= k
        return (
            step >> 1,
            jnp.where(reached, trial, low),
            jnp.where(reached, n, at_least),
            jnp.where(reached, above, n),
        )

    start = (
        jnp.asarray(1 << (info.bits - 1), unsigned),
        jnp.full(k.shape, info.min, info.dtype),
        jnp.full(k.shape, members, jnp.int32),
        jnp.zeros(k.shape, jnp.int32),
    )
    _, low, at_least, above = lax.while_loop(undecided, halve, start)
    return low, at_least, above


def _index_cut(
    leaves: list[jax.Array],
    threshold: jax.Array,
    wanted: jax.Array,
    tied: jax.Array,
    split: Split | None,
) -> jax.Array:
    """The index before which exactly ``wanted`` keys equal the threshold.

    A bisection on the index, which over sharded leaves exchanges counts alone, where a
    running count would gather the leaf. Without ties all indices lie before the cut.
    """
    total = sum(leaf.size for leaf in leaves)

    def halve(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        step, cut, level = state
        trial = cut + step

        def ties(keys: jax.Array, at: jax.Array, before: jax.Array) -> jax.Array:
            return (keys == at) & before

        n = _count(leaves, ties, level, trial, split)
        # The level stays, but the compiler does not know that steps are positive. It
        # would compare all keys with it before the loop, and keep what it finds.
        level = level + (step < 0).astype(level.dtype)
        return step >> 1, jnp.where(tied & (n <= wanted), trial, cut), level

    start = (
        jnp.where(jnp.any(tied), jnp.int32(1 << (total.bit_length() - 1)), 0),
        jnp.where(tied, 0, jnp.int32(total)),
        threshold,
    )
    return lax.while_loop(lambda state: state[0] > 0, halve, start)[1]


def _best_of_few(
    keys: jax.Array, k: jax.Array, split: Split
) -> tuple[list[jax.Array], jax.Array]:
    """`largest` in blocks of few places, by the rank of every key in its block."""
    assert split.block is not None
    axis, size = split.block
    info = integer_info(keys.dtype.itemsize)
    # No score has the largest integer as its key.
    never = jnp.any(keys == info.max)
    keys = computed_once(keys, never=never)
    lead, wide, rest = keys.shape[:axis], keys.shape[axis], keys.shape[axis + 1 :]
    shape = (*lead, wide // size, size, *rest)
    blocks = keys.reshape(shape)
    place = lax.broadcasted_iota(jnp.int32, shape, axis + 1)

    def beaten_by(j: int) -> jax.Array:
        other = lax.slice_in_dim(blocks, j, j + 1, axis=axis + 1)
        return ((other > blocks) | ((other == blocks) & (place > j))).astype(jnp.int32)

    rank = functools.reduce(jnp.add, [beaten_by(j) for j in range(size)])
    # An axis may have several parts apart, and a count for each of them.
    best = k.reshape(*lead, wide // size, 1, *rest) if k.ndim else k
    chosen = (rank < best) & (blocks != info.min)
    return [chosen.reshape(keys.shape)], -never.astype(jnp.int32)


# --- Counting -------------------------------------------------------------------------


def count_true(mask: jax.Array, split: Split | None = None) -> jax.Array:
    """How many places are True, int32, without an integer copy; one for each group."""
    return _count([mask], lambda places, *_: places, jnp.int32(0), 0, split)


@functools.partial(jax.jit, inline=True)
def count_each(masks: list[jax.Array]) -> jax.Array:
    """[L] int32, how many places of each mask are True.

    On one CPU device the work of all is compiled once, but for the first step.
    """
    if not any(mask.size for mask in masks) or not on_one_cpu(masks):
        return jnp.array([count_true(mask) for mask in masks], jnp.int32)
    rows = [-(-mask.size // (_FOLD * _ROW)) for mask in masks]
    ends = np.cumsum(rows)
    room = jnp.zeros(int(ends[-1]) * _ROW, jnp.uint8)
    for mask, row in zip(masks, ends - rows, strict=True):
        flat, width = mask.reshape(-1), mask.size // _FOLD
        done, start = width * _FOLD, int(row) * _ROW
        # Adding along a short axis that is not the last is fast, and soon compiled.
        few = jnp.sum(flat[:done].reshape(_FOLD, width), axis=0, dtype=jnp.uint8)
        room = lax.dynamic_update_slice(room, few, (start,))
        if done < mask.size:
            rest = jnp.sum(flat[done:], dtype=jnp.uint8)[None]
            room = lax.dynamic_update_slice(room, rest, (start + width,))
    of_rows = jnp.sum(room.reshape(-1, _FOLD, _ROW // _FOLD), axis=1, dtype=jnp.int32)
    of_rows = jnp.sum(of_rows, axis=1, dtype=jnp.int32)
    owner = np.repeat(np.arange(len(masks)), rows)
    found = jnp.zeros(len(masks), jnp.int32).at[owner]
    return found.add(of_rows, indices_are_sorted=True, mode="promise_in_bounds")


def _count(
    leaves: list[jax.Array],
    predicate: Predicate,
    value: jax.Array,
    cut: Number,
    split: Split | None,
) -> jax.Array:
    """How many keys satisfy ``predicate(keys, value, index < cut)``; int32.

    Of all leaves together, a scalar; with groups, of each, and so are value and cut.
    """
    count = _folded_count if on_one_cpu(leaves) else _plain_count
    if split is not None:
        if leaves[0].size < _SMALL:
            count = _plain_count
        values = jnp.broadcast_to(value, split.counts)
        return count(leaves[0], predicate, values, cut, split)
    pairs = zip(leaves, _starts(leaves), strict=True)
    counts = (count(keys, predicate, value, cut - s, None) for keys, s in pairs)
    return sum(counts, start=jnp.int32(0))


def _plain_count(
    keys: jax.Array,
    predicate: Predicate,
    value: jax.Array,
    cut: Number,
    split: Split | None,
) -> jax.Array:
    value, cut = _spread(value, split), _spread(cut, split)
    places = predicate(keys, value, _index(keys.shape) < cut)
    if split is not None:
        return split.summed(places)
    # The dtype is spelled out: with 64 bits enabled int32 would be summed as int64.
    return jnp.sum(places, dtype=jnp.int32)


def _folded_count(
    keys: jax.Array,
    predicate: Predicate,
    value: jax.Array,
    cut: Number,
    split: Split | None,
) -> jax.Array:
    """Sums in slices along the longest axis that lies within the groups."""
    shape, inside = ((keys.size,), (0,)) if split is None else split.merged
    if split is not None:
        value = split.beside(value)
        cut = split.beside(cut) if isinstance(cut, jax.Array) and cut.ndim else cut
    whole = keys.reshape(shape)
    axis = max(inside, key=lambda i: shape[i])
    stride = math.prod(shape[axis + 1 :])
    fold = _FOLD if split is None else _slices(shape[axis])
    width = shape[axis] // fold

    def places(start: int, length: int) -> jax.Array:
        # One short index for all slices: the compiler keeps it, and a long one would be
        # as large as the leaf.
        index = _index((*shape[:axis], length, *shape[axis + 1 :]), shape)
        part = lax.slice_in_dim(whole, start, start + length, axis=axis)
        return predicate(part, value, index < cut - start * stride).astype(jnp.int32)

    slices = [places(i * width, width) for i in range(fold)]
    counts = jnp.sum(functools.reduce(jnp.add, slices), axis=inside, dtype=jnp.int32)
    if done := shape[axis] - fold * width:
        rest = places(fold * width, done)
        counts = counts + jnp.sum(rest, axis=inside, dtype=jnp.int32)
    return counts if split is None else counts.reshape(split.counts)


def _slices(length: int) -> int:
    """Into how many slices an axis is folded.

    What is left of it must not be summed in steps of 2 to 32: XLA on a CPU would fuse
    such a sum with the comparisons into slow scalar code again.
    """
    if length <= 2 * _UNSPLIT:
        return max(1, length)
    return min(_FOLD, length // (_UNSPLIT + 1))


def _spread(values: Any, split: Split | None) -> Any:
    """One number a group, to be compared with a leaf; others as they are."""
    return values if split is None or not jnp.ndim(values) else split.spread(values)


def on_one_cpu(leaves: list[jax.Array]) -> bool:
    """Whether slicing is free: on one CPU device. A sharded leaf keeps its shape."""
    spread = any(_mesh_size(leaf) > 1 for leaf in leaves)
    return jax.default_backend() == "cpu" and not spread


def _mesh_size(array: jax.Array) -> int:
    sharding = getattr(jax.typeof(array), "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return 1 if mesh is None or mesh.empty else mesh.size


def _index(shape: tuple[int, ...], within: tuple[int, ...] | None = None) -> jax.Array:
    """The row-major index of every place, int32, without a reshape.

    Args:
      shape: of the places.
      within: shape of the array that they are the first corner of; by default all.
    """
    index = jnp.zeros(shape, jnp.int32)
    for axis, size in enumerate(shape):
        if size > 1:
            stride = math.prod((within or shape)[axis + 1 :])
            index = index + lax.broadcasted_iota(jnp.int32, shape, axis) * stride
    return index


def _starts(leaves: list[jax.Array]) -> list[int]:
    sizes = [leaf.size for leaf in leaves]
    return [sum(sizes[:i]) for i in range(len(sizes))]
