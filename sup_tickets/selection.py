"""Exact top-k masks: the one hot kernel of sparse training.

The largest ``k`` scores are found by bisection on the *bit pattern* of the score: read
as ordered integers, 32 bits need at most 32 counts of "how many are at least t", for
any values and for a traced ``k``. Nothing is sorted. Counting moves one scalar a
halving, so a selection over sharded arrays exchanges counts, never weights.

Everywhere: ties are broken by index (row-major within a leaf, leaves in tree order), so
a mask has exactly the count asked for; ``NaN`` ranks below ``-inf``; both are chosen
only when nothing better is left; where ``among`` is False nothing is ever chosen.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.checks import check_count
from sup_tickets.counting import MAX_COUNT, computed_once
from sup_tickets.tree_checks import check_counts, check_same_leaves
from sup_tickets.trees import map_named
from sup_tickets.types import Counts, Masks, Number, Scores

# XLA on a CPU turns `sum(key >= t)` into slow scalar code. Adding equal slices
# elementwise first makes it run at the memory's speed, six times faster.
_FOLD = 16

Predicate = Callable[[jax.Array, jax.Array], jax.Array]


def select(scores: Scores, counts: Counts, *, among: Masks | None = None) -> Masks:
    """In each leaf, the exact top-k: its ``counts`` largest scores.

    Args:
      scores: pytree of floating point arrays.
      counts: pytree of integers (Python or traced int32 scalars) with the structure of
        ``scores``; ``None`` where a leaf is never pruned. More than there are
        candidates choose all of them. Values of JAX arrays are clipped to what there
        is; others are checked.
      among: candidates, a pytree of bool arrays or ``None``; by default all.

    Returns:
      Masks: True at the chosen places; ``None`` where ``counts`` is ``None``.

    Raises:
      ValueError: if ``among`` has other leaves or shapes than ``scores``, or if a
        count is no whole number in [0, size of its leaf].
      TypeError: if a score is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> select({"w": jnp.array([0.5, 0.1, 0.5, 0.9])}, {"w": 2})["w"].tolist()
      [True, False, False, True]
    """
    check_counts("counts", counts, "scores", scores)
    if among is None:
        among = jax.tree.map(lambda _: None, scores)
    else:
        check_same_leaves("among", among, "scores", scores)

    def choose(name: str, turn: Turn, score: jax.Array, count: Any, candidates: Any):
        if count is None:
            return None, turn
        return top_k(name, turn, score, count, candidates)

    return map_in_turn(choose, scores, counts, among)


def select_globally(
    scores: Scores, count: Number, *, among: Masks | None = None
) -> Masks:
    """Over all leaves together, the exact top-k: the ``count`` largest scores.

    Args:
      scores: pytree of floating point arrays; compared in the widest of their dtypes.
      count: integer scalar; the value of a JAX array is clipped, another is checked.
      among: candidates, a pytree of bool arrays; ``None`` at a leaf leaves it out of
        the selection, and its mask is ``None``. By default all places of all leaves.

    Returns:
      Masks with ``min(count, candidates)`` places True in all.

    Raises:
      ValueError: if ``among`` has other leaves or shapes than ``scores``, if the count
        is no whole number in [0, number of places], or if more than 2**31 - 1 scores
        are compared.
      TypeError: if a score is not floating point.
    """
    if among is None:
        among = jax.tree.map(lambda s: jnp.ones(s.shape, bool), scores)
    else:
        check_same_leaves("among", among, "scores", scores)
    taking_part = jax.tree.map(lambda s, m: None if m is None else s, scores, among)
    leaves = jax.tree.leaves(taking_part)
    check_count("count", count, sum(leaf.size for leaf in jax.tree.leaves(scores)))
    if not leaves:
        return taking_part
    with jax.numpy_dtype_promotion("standard"):
        widest = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves])
    keys = map_named(
        lambda name, s, m: ordered_keys(name, s.astype(widest), m), taking_part, among
    )
    leaves, structure = jax.tree.flatten(keys)
    return jax.tree.unflatten(structure, largest(leaves, count)[0])


# --- One leaf after another -----------------------------------------------------------

Turn = jax.Array | None
"""Waits for the leaf before: an int32 scalar, 0, that only its selection can tell."""


def map_in_turn(
    function: Callable[..., tuple[Any, Turn]], tree: Any, *rest: Any
) -> Any:
    """`map_named` that works on one leaf at a time, so that one leaf's keys are live.

    Args:
      function: ``(name, turn, leaf, *leaves) -> (result, turn)``, handing ``turn`` to
        and on from `top_k`.
      tree: pytree.
      *rest: pytrees with its structure, which may have ``None`` at its leaves.
    """
    turn = None

    def step(name: str, *leaves: Any) -> Any:
        nonlocal turn
        result, turn = function(name, turn, *leaves)
        return result

    return map_named(step, tree, *rest)


def top_k(
    name: str, turn: Turn, score: jax.Array, k: Number, candidates: jax.Array | None
) -> tuple[jax.Array, Turn]:
    """Mask of the ``k`` largest scores of one array.

    Args:
      name: what to call the array in an error.
      turn: from the selection that must come first, or ``None``.
      score: floating point array.
      k: integer scalar, Python or traced; clipped to [0, number of candidates].
      candidates: bool array shaped like ``score``, or ``None`` for all.

    Returns:
      The mask and the turn for the next selection.
    """
    keys = ordered_keys(name, score, candidates)
    if turn is not None:
        keys = keys + turn.astype(keys.dtype)
    (mask,), cut = largest([keys], k)
    # Never negative, so always 0, but the compiler cannot know and keeps the order.
    return mask, jnp.minimum(cut, 0)


# --- Ordered integer keys -------------------------------------------------------------


def ordered_keys(name: str, score: jax.Array, candidates: Any) -> jax.Array:
    """Signed integers in the order of the scores, as wide as they are.

    The smallest integer marks what must not be chosen and the next one NaN; no other
    score maps to either (they would be NaN patterns), nor to the largest integer.
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
    return _ordered(score, candidates)


@functools.partial(jax.jit, inline=True)
def _ordered(score: jax.Array, candidates: jax.Array | None) -> jax.Array:
    info = integer_info(score.dtype.itemsize)
    bits = lax.bitcast_convert_type(score, info.dtype)
    lowest, highest = info.dtype.type(info.min), info.dtype.type(info.max)
    # -0 and +0 are equal scores with different bits. `score == 0` would also be true of
    # the smallest numbers, which some devices take for zeros.
    bits = jnp.where(bits == lowest, info.dtype.type(0), bits)
    keys = jnp.where(bits < 0, bits ^ highest, bits)
    keys = jnp.where(jnp.isnan(score), info.dtype.type(info.min + 1), keys)
    return keys if candidates is None else jnp.where(candidates, keys, lowest)


def integer_info(itemsize: int) -> Any:
    """Of the signed integers of so many bytes."""
    return np.iinfo({2: np.int16, 4: np.int32, 8: np.int64}[itemsize])


# --- The largest k --------------------------------------------------------------------


# Compiled as a unit, so that a call outside jit compiles once for each shape; inlined
# inside one, where the boundary would keep the keys of a leaf twice.
@functools.partial(jax.jit, inline=True)
def largest(leaves: list[jax.Array], k: Number) -> tuple[list[jax.Array], jax.Array]:
    """Masks of the ``k`` largest keys of all the leaves together, ties by index.

    Returns:
      The masks, and the index before which ties were chosen.
    """
    total = sum(leaf.size for leaf in leaves)
    if total > MAX_COUNT:
        raise ValueError(
            f"at most 2**31 - 1 scores can be compared at once, got {total}; "
            "select per leaf, or split the leaf"
        )
    if total == 0:
        return [jnp.zeros(leaf.shape, bool) for leaf in leaves], jnp.int32(0)
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, total)
    threshold, at_least, above = _threshold(leaves, k)
    leaves, k = computed_once((leaves, k), never=at_least < 0)
    cut = _index_cut(leaves, threshold, k - above, at_least > k)
    lowest = threshold.dtype.type(integer_info(threshold.dtype.itemsize).min)

    def mask(keys: jax.Array, start: int) -> jax.Array:
        tied = (keys == threshold) & (_index(keys.shape) < cut - start)
        return ((keys > threshold) | tied) & (keys != lowest)

    return [mask(*pair) for pair in zip(leaves, _starts(leaves), strict=True)], cut


def _threshold(
    leaves: list[jax.Array], k: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest key that at least ``k`` keys reach, or one that exactly ``k`` reach.

    Returns:
      The threshold, how many keys are at least it, and how many are above it (which is
      right whenever more than ``k`` are at least it).
    """
    info = integer_info(leaves[0].dtype.itemsize)
    unsigned = np.dtype(f"uint{info.bits}")
    total = sum(leaf.size for leaf in leaves)

    def undecided(state: tuple[jax.Array, ...]) -> jax.Array:
        step, _, at_least, _ = state
        return (step > 0) & (at_least != k)

    def halve(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        step, low, at_least, above = state
        # Unsigned addition: the first step goes from the smallest integer to 0.
        trial = lax.bitcast_convert_type(
            lax.bitcast_convert_type(low, unsigned) + step, info.dtype
        )
        n = _count(leaves, lambda keys, _: keys >= trial)
        reached = n >= k
        return (
            step >> 1,
            jnp.where(reached, trial, low),
            jnp.where(reached, n, at_least),
            jnp.where(reached, above, n),
        )

    start = (
        jnp.asarray(1 << (info.bits - 1), unsigned),
        jnp.asarray(info.min, info.dtype),
        jnp.int32(total),
        jnp.int32(0),
    )
    _, low, at_least, above = lax.while_loop(undecided, halve, start)
    return low, at_least, above


def _index_cut(
    leaves: list[jax.Array], threshold: jax.Array, wanted: jax.Array, tied: jax.Array
) -> jax.Array:
    """The index before which exactly ``wanted`` keys equal the threshold.

    A bisection on the index, which over sharded leaves exchanges counts alone, where a
    running count would gather the leaf. Without ties all indices lie before the cut.
    """
    total = sum(leaf.size for leaf in leaves)

    def halve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, cut = state
        trial = cut + step
        n = _count(leaves, lambda keys, before: (keys == threshold) & before, trial)
        return step >> 1, jnp.where(n <= wanted, trial, cut)

    start = (
        jnp.where(tied, jnp.int32(1 << (total.bit_length() - 1)), 0),
        jnp.where(tied, 0, jnp.int32(total)),
    )
    return lax.while_loop(lambda state: state[0] > 0, halve, start)[1]


# --- Counting -------------------------------------------------------------------------


def count_true(mask: jax.Array) -> jax.Array:
    """How many places are True, int32 scalar, without an integer copy of the mask."""
    return _count([mask], lambda places, _: places)


def _count(leaves: list[jax.Array], predicate: Predicate, cut: Number = 0) -> jax.Array:
    """How many keys satisfy ``predicate(keys, index < cut)``; int32 scalar."""
    count = _folded_count if _may_fold(leaves) else _plain_count
    pairs = zip(leaves, _starts(leaves), strict=True)
    return sum((count(k, predicate, cut - s) for k, s in pairs), start=jnp.int32(0))


def _plain_count(keys: jax.Array, predicate: Predicate, cut: Number) -> jax.Array:
    # The dtype is spelled out: with 64 bits enabled int32 would be summed as int64.
    return jnp.sum(predicate(keys, _index(keys.shape) < cut), dtype=jnp.int32)


def _folded_count(keys: jax.Array, predicate: Predicate, cut: Number) -> jax.Array:
    flat = keys.reshape(-1)
    width = flat.size // _FOLD
    # One short index for all slices: the compiler keeps it, and a long one would be as
    # large as the leaf.
    index = _index((width,))
    slices = [
        predicate(flat[i * width : (i + 1) * width], index < cut - i * width)
        for i in range(_FOLD)
    ]
    folded = functools.reduce(jnp.add, [s.astype(jnp.int32) for s in slices])
    done = _FOLD * width
    rest = _plain_count(flat[done:], predicate, cut - done)
    return jnp.sum(folded, dtype=jnp.int32) + rest


def _may_fold(leaves: list[jax.Array]) -> bool:
    """Whether slicing is free: on one CPU device. A sharded leaf keeps its shape."""
    spread = any(_mesh_size(leaf) > 1 for leaf in leaves)
    return jax.default_backend() == "cpu" and not spread


def _mesh_size(array: jax.Array) -> int:
    sharding = getattr(jax.typeof(array), "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return 1 if mesh is None or mesh.empty else mesh.size


def _index(shape: tuple[int, ...]) -> jax.Array:
    """The row-major index of every place, int32, without a reshape."""
    index = jnp.zeros(shape, jnp.int32)
    for axis, size in enumerate(shape):
        if size > 1:
            stride = math.prod(shape[axis + 1 :])
            index = index + lax.broadcasted_iota(jnp.int32, shape, axis) * stride
    return index


def _starts(leaves: list[jax.Array]) -> list[int]:
    sizes = [leaf.size for leaf in leaves]
    return [sum(sizes[:i]) for i in range(len(sizes))]
