"""Exact top-k in the groups of a leaf, all of them at once.

There is a threshold for each group, and one loop searches them all. On one CPU device a
pass counts how many keys reach three trial keys of their group, in three fields of the
bits of one integer, where the keys lie. Elsewhere it counts how many reach seven, and a
selection over sharded arrays exchanges counts, never weights.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.counting import MAX_COUNT, computed_once
from sup_tickets.groups import Split
from sup_tickets.place_counts import Fold, fold_of, folds_well
from sup_tickets.sort_keys import lowest_of
from sup_tickets.thresholds import search_with_ties, whole_range

_TRIALS = 3  # on one CPU device
_MORE_TRIALS = 7
_FIELD = 10  # bits of a count of one trial key
_SAMPLED = 1 << 8  # keys of a leaf
_SAMPLE_DEVIATIONS = 2.0
# In a block of so many places comparing all pairs is faster than counting.
_FEW = 16


@functools.partial(jax.jit, inline=True, static_argnames="split")
def largest_of_groups(
    keys: jax.Array, k: Any, turn: jax.Array, split: Split
) -> tuple[jax.Array, jax.Array]:
    """The mask of the ``k`` largest keys of each group, ties by index.

    Args:
      keys: of one leaf.
      k: integer, one for all groups or an array of one for each, of shape
        `Split.counts`.
      turn: int32, 0; waits for the selection before.
      split: the groups.

    Returns:
      The mask, and the turn for the next selection.

    Raises:
      ValueError: if the leaf has more than 2**31 - 1 places.
    """
    if keys.size > MAX_COUNT:
        raise ValueError(
            f"at most 2**31 - 1 scores can be compared at once, got {keys.size}; "
            "select per leaf, or split the leaf"
        )
    if not keys.size:
        return jnp.zeros(keys.shape, bool), turn
    keys = keys + turn.astype(keys.dtype)
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, split.members)
    if split.block is not None and split.members <= _FEW:
        return _best_of_few(keys, k, split)
    k = jnp.broadcast_to(k, split.counts).reshape(-1)
    members = jnp.full_like(k, split.members)
    start, search = whole_range(members, keys.dtype), search_with_ties
    if folds_well(keys):
        count = functools.partial(_folded_counts, keys, split)
        first = _guessed(keys, k, split.members)
        cut = search(count, k, start, places=members, trials=_TRIALS, first=first)
    else:
        count = functools.partial(_plain_counts, keys, split)
        cut = search(count, k, start, places=members, trials=_MORE_TRIALS, guesses=0)
    keys = computed_once(keys, never=cut.never)
    level, last = (split.spread(each) for each in (cut.level, cut.last))
    # Their keys are the complements of their indices.
    tied = (keys == level) & (~split.index.astype(keys.dtype) >= last)
    mask = ((keys > level) | tied) & (keys != lowest_of(keys))
    # Never positive, so always 0, but the compiler cannot know and keeps the order.
    turn = jnp.maximum(jnp.max(cut.last), 0).astype(jnp.int32)
    return computed_once((mask, turn), never=turn > 0)


# --- Parts ----------------------------------------------------------------------------


def _plain_counts(
    keys: jax.Array, split: Split, level: jax.Array, last: jax.Array, tied: jax.Array
) -> jax.Array:
    """See `_folded_counts`; anywhere, and the leaf keeps its shape."""
    del tied

    def of_one(level: jax.Array, last: jax.Array) -> jax.Array:
        backwards = ~split.index.astype(keys.dtype) < split.spread(last)
        # No score has the largest key, so that there is room for one more.
        reach = split.spread(level) + backwards.astype(keys.dtype)
        return split.summed(keys >= reach).reshape(-1)

    return jax.vmap(of_one)(level, last)


def _folded_counts(
    keys: jax.Array, split: Split, level: jax.Array, last: jax.Array, tied: jax.Array
) -> jax.Array:
    """[T, C] how many keys are above levels of their groups, or ties up to an index.

    Args:
      keys: of one leaf.
      split: its C groups.
      level: [T, C] keys.
      last: [T, C] complements of indices within the group.
      tied: [] bool, whether any index decides; if not, all ties count.
    """
    fold = fold_of(split, keys.shape)
    trials = len(level)

    def beside(values: jax.Array) -> jax.Array:
        return jnp.expand_dims(split.beside(values), fold.axis)

    def packed(among_ties: bool) -> list[jax.Array]:
        sums = []
        # Here and not before the loop, which then would be given a copy.
        for view, index in zip(fold.views(keys), _indices(fold), strict=True):
            hits = []
            for j in range(trials):
                reach = beside(level[j])
                if among_ties:
                    # Two short indices: a long one would be as large as the keys.
                    row, column = index
                    later = column.astype(keys.dtype) > row.astype(keys.dtype) - beside(
                        last[j]
                    )
                    # No score has the largest key: there is room for one more.
                    reach = reach + later.astype(keys.dtype)
                field = jnp.int32(1 << (_FIELD * j))
                hits.append(jnp.where(view >= reach, field, jnp.int32(0)))
            sums.append(fold.short_sum(functools.reduce(jnp.add, hits)))
        return sums

    sums = lax.cond(tied, lambda: packed(True), lambda: packed(False))
    shifts = np.arange(trials, dtype=np.int32) * _FIELD
    shifts = shifts.reshape(-1, *(1,) * len(fold.shape))
    axes, field = tuple(axis + 1 for axis in fold.inside), (1 << _FIELD) - 1
    counts = [
        jnp.sum((each[None] >> shifts) & field, axis=axes, dtype=jnp.int32)
        for each in sums
    ]
    return functools.reduce(jnp.add, counts).reshape(level.shape)


def _indices(fold: Fold) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of every view, two parts of the index within the group: ``-1 - row``, ``column``.

    They are to be added, and vary along other axes.
    """
    strides, stride, axes = {}, 1, len(fold.shape) + 1
    for axis in reversed(fold.inside):
        strides[axis], stride = stride, stride * fold.shape[axis]
    row = np.full((1,) * axes, -1)
    for axis in fold.inside:
        if axis != fold.axis:
            place = np.arange(fold.shape[axis]) * strides[axis]
            at = axis + (axis > fold.axis)
            row = row - place.reshape((1,) * at + (-1,) + (1,) * (axes - 1 - at))
    for piece in fold.pieces:
        column = np.arange(piece.start, piece.stop) * strides[fold.axis]
        two = fold.folded(len(column))
        ones = (1,) * fold.axis, (1,) * (axes - 2 - fold.axis)
        yield row, column.reshape(*ones[0], *two, *ones[1])


def _guessed(keys: jax.Array, k: jax.Array, members: int) -> jax.Array:
    """[T, C] trial keys around the thresholds, from a sample of the whole leaf.

    They are the same for all groups, which are mostly alike.
    """
    # An odd distance, for powers of two would lead to the same group again and again.
    sample = keys.reshape(-1)[:: (keys.size // _SAMPLED) | 1]
    number = sample.size
    share = k.astype(jnp.float32) / members
    # The deviation of the sample, and that of a group.
    scale = np.float32(number * (1 + number / members))
    spread = _SAMPLE_DEVIATIONS * jnp.sqrt(scale * share * (1 - share)) + 1
    rank = share * number
    above = jnp.sum(sample[:, None] > sample[None], axis=0, dtype=jnp.int32)
    above = above.astype(jnp.float32)
    highest = keys.dtype.type(np.iinfo(keys.dtype).max)
    # Between what is no candidate and the least of those there is nothing to guess.
    there = sample > lowest_of(keys)
    low, high = (
        jnp.min(jnp.where(there & (above < end), sample, highest - 2))
        for end in (jnp.max(rank + spread), jnp.min(rank - spread))
    )
    one = keys.dtype.type(1)
    # The mean of two integers, which their sum may be too large for.
    middle = jnp.maximum((low >> 1) + (high >> 1), low + one)
    trials = jnp.stack([low, middle, jnp.maximum(high, middle + one)])
    return jnp.broadcast_to(trials[:, None], (_TRIALS, k.size))


def _best_of_few(
    keys: jax.Array, k: jax.Array, split: Split
) -> tuple[jax.Array, jax.Array]:
    """The mask in blocks of few places, by the rank of every key in its block."""
    assert split.block is not None
    axis, size = split.block
    # No score has the largest integer as its key.
    never = jnp.any(keys == np.iinfo(keys.dtype).max)
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
    chosen = (rank < best) & (blocks != lowest_of(keys))
    return chosen.reshape(keys.shape), never.astype(jnp.int32)
