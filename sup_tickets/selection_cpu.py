"""Selection on one CPU: the keys of several leaves as rows of one array.

Rows belong to one comparison each, so one loop over one array finds the thresholds of
all. A pass counts how many keys reach three trial keys, in three fields of the bits of
one integer: it costs no more than one, for reading the keys is what takes the time.
"""

import functools
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.counting import computed_once
from sup_tickets.sort_keys import index_of, lowest_of
from sup_tickets.thresholds import search, search_with_ties, whole_range

_TRIALS = 3
_FIELD = 10  # bits of a count of one trial key
# XLA on a CPU sums slowly, but not along a short axis that is not the last.
_LONG, _FOLD = 1 << 12, 16
_SHORT = 1 << 8
_SAMPLED = 16  # keys of every row
_SAMPLE_DEVIATIONS = 2.0


class Rows(NamedTuple):
    """Which rows of an array hold what; static."""

    width: int  # of a row, a power of two
    number: int  # of rows
    sizes: tuple[int, ...]  # of the leaves, which lie one after the other
    comparison: tuple[int, ...]  # of each leaf
    comparisons: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first row of each leaf, and the first after it."""
        ends = list(accumulate(-(-size // self.width) for size in self.sizes))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @property
    def owner(self) -> np.ndarray:
        """[rows] the comparison of each row; of unused ones the last."""
        owner = np.full(self.number, self.comparisons - 1, np.int32)
        for (row, end), of in zip(self.spans, self.comparison, strict=True):
            owner[row:end] = of
        return owner


def rows_needed(sizes: list[int], width: int) -> int:
    """Rows for leaves of these sizes, each in rows of its own."""
    return sum(-(-size // width) for size in sizes)


def width_for(largest: int) -> int:
    """The width of rows for leaves up to a size."""
    return _LONG if largest >= 4 * _LONG else _SHORT


@functools.partial(jax.jit, inline=True, static_argnames="rows")
def largest_of_rows(
    leaves: list[jax.Array], k: jax.Array, turn: jax.Array, rows: Rows
) -> tuple[list[jax.Array], jax.Array]:
    """Masks of the ``k`` largest keys of each comparison, ties by index.

    Args:
      leaves: keys of one dtype.
      k: [C] int32, at least 0, clipped to the number of places.
      turn: int32, 0; waits for the selection before.
      rows: where the keys lie.

    Returns:
      The masks, and the turn for the next selection.
    """
    room = _filled(leaves, turn, rows)
    members = np.bincount(rows.owner, minlength=rows.comparisons) * rows.width
    members = jnp.asarray(members, jnp.int32)
    k = jnp.minimum(k, members)
    cut = search_with_ties(
        functools.partial(_counts, room, rows),
        k,
        whole_range(members, room.dtype),
        places=jnp.full_like(k, room.size),
        trials=_TRIALS,
        first=_guessed(room, k, members, rows),
    )
    room = computed_once(room, never=cut.never)
    level, last, low = cut.level, cut.last.astype(jnp.int32), lowest_of(room)

    def mask(leaf: jax.Array, row: int, of: int) -> jax.Array:
        start = row * rows.width
        own = lax.slice(room, (start,), (start + leaf.size,)).reshape(leaf.shape)
        # Their keys are the complements of their indices.
        tied = (own == level[of]) & (index_of(leaf.shape) <= ~last[of] - start)
        return ((own > level[of]) | tied) & (own != low)

    places = zip(leaves, rows.spans, rows.comparison, strict=True)
    masks = [mask(leaf, row, of) for leaf, (row, _), of in places]
    # Never positive, so always 0, but the compiler cannot know and keeps the order. The
    # masks too have to be there before other keys take the room.
    turn = jnp.maximum(jnp.max(last), 0)
    return computed_once((masks, turn), never=turn > 0)


# --- Parts ----------------------------------------------------------------------------


def _filled(leaves: list[jax.Array], turn: jax.Array, rows: Rows) -> jax.Array:
    """The keys in their rows, and what never is chosen in the rest of these."""
    size, dtype = rows.number * rows.width, leaves[0].dtype
    if leaves[0].size == size:
        return leaves[0].reshape(-1) + turn.astype(dtype)
    room = jnp.full(size, lowest_of(leaves[0]), dtype) + turn.astype(dtype)
    for leaf, (row, _) in zip(leaves, rows.spans, strict=True):
        room = lax.dynamic_update_slice(room, leaf.reshape(-1), (row * rows.width,))
    return room


def _counts(
    room: jax.Array, rows: Rows, level: jax.Array, last: jax.Array, tied: jax.Array
) -> jax.Array:
    """[T, C] how many keys are above levels [T, C], or are ties up to an index.

    Args:
      room: the keys.
      rows: where they lie.
      level: keys.
      last: [T, C] complements of indices.
      tied: [] bool, whether any index decides; if not, all ties count.
    """
    fold = _FOLD if rows.width >= _LONG else 1
    width = rows.width // fold
    level, last = (_of_rows(each, rows)[..., None, None] for each in (level, last))

    def packed(hit: Callable[[jax.Array, int], jax.Array]) -> jax.Array:
        # Here and not before the loop, which then would be given a copy.
        keys = room.reshape(rows.number, fold, width)
        hits = [
            jnp.where(hit(keys, j), jnp.int32(1 << (_FIELD * j)), jnp.int32(0))
            for j in range(len(level))
        ]
        return jnp.sum(functools.reduce(jnp.add, hits), axis=1, dtype=jnp.int32)

    def among_ties(keys: jax.Array, j: int) -> jax.Array:
        # Two short indices: the compiler keeps them, and a long one would be as large
        # as the keys.
        row = np.arange(rows.number)[:, None, None] * rows.width
        start = ~(row + np.arange(fold)[:, None] * width).astype(keys.dtype)
        column = np.arange(width, dtype=keys.dtype)[None, None]
        # No score has the largest key, so that there is room for one more.
        return keys >= level[j] + (column > start - last[j]).astype(keys.dtype)

    sums = lax.cond(
        tied,  # which takes more than twice as long
        lambda: packed(among_ties),
        lambda: packed(lambda keys, j: keys >= level[j]),
    )
    # As many as the fields have room for.
    group = 1 << (((1 << _FIELD) - 1) // fold).bit_length() - 1
    sums = sums.reshape(rows.number, -1, min(group, width))
    sums = jnp.sum(sums, axis=2, dtype=jnp.int32)
    shifts = np.arange(len(level), dtype=np.int32).reshape(-1, 1, 1) * _FIELD
    each = (sums[None] >> shifts) & ((1 << _FIELD) - 1)
    return _per_comparison(jnp.sum(each, axis=2, dtype=jnp.int32), rows)


def _per_comparison(numbers: Any, rows: Rows) -> jax.Array:
    """Sums [..., C] of numbers of rows [..., rows]."""
    if rows.comparisons == 1:
        return jnp.sum(numbers, axis=-1, keepdims=True, dtype=jnp.int32)
    owned = np.arange(rows.comparisons)[:, None] == rows.owner[None]
    owned = owned.reshape((1,) * (numbers.ndim - 1) + owned.shape)
    each = jnp.where(owned, jnp.expand_dims(numbers, -2), 0)
    return jnp.sum(each, axis=-1, dtype=jnp.int32)


def _guessed(
    room: jax.Array, k: jax.Array, members: jax.Array, rows: Rows
) -> jax.Array:
    """Trial keys around the threshold of a sample, some deviations to both sides."""
    row = np.arange(rows.number, dtype=np.int32)
    apart = rows.width // _SAMPLED
    place = np.arange(_SAMPLED, dtype=np.int32)[:, None]
    # Other places in every row, for rows may be alike.
    sample = row * rows.width + apart * place + (37 * row + 101 * place) % apart
    sample = room.at[sample].get(mode="promise_in_bounds")
    number = members // apart
    share = k.astype(jnp.float32) / jnp.maximum(members, 1).astype(jnp.float32)
    rank = share * number.astype(jnp.float32)
    spread = _SAMPLE_DEVIATIONS * jnp.sqrt(rank * (1 - share)) + 1
    # Both sides are comparisons, of the same rows.
    twice = jnp.concatenate([number, number])
    ranks = jnp.concatenate([jnp.ceil(rank + spread), jnp.floor(rank - spread)])

    def counts(trial: jax.Array) -> jax.Array:
        reach = _of_rows(trial.reshape(2 * _TRIALS, -1), rows)
        hits = (sample[None] >= reach[:, None]).astype(jnp.int32)
        hits = jnp.sum(hits, axis=1, dtype=jnp.int32)
        return _per_comparison(hits, rows).reshape(trial.shape)

    ranks = jnp.clip(ranks.astype(jnp.int32), 0, twice)
    start = whole_range(twice, room.dtype)
    found = search(counts, ranks, start, trials=_TRIALS, guesses=0).low
    low, high = jnp.split(found, 2)
    one = low.dtype.type(1)
    # The mean of two integers, which their sum may be too large for.
    middle = jnp.maximum((low >> 1) + (high >> 1), low + one)
    return jnp.stack([low, middle, jnp.maximum(high, middle + one)])


def _of_rows(values: jax.Array, rows: Rows) -> jax.Array:
    """[..., rows] of each row that of its comparison."""
    return values.at[..., rows.owner].get(mode="promise_in_bounds")
