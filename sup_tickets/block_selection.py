"""Exact masks with a structure that hardware can use: N:M groups, and blocks."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_count, check_whole, is_number
from sup_tickets.groups import Groups, Part, Split, per_block, split_of
from sup_tickets.selection import Selecting, map_selecting, select, top_k
from sup_tickets.tree_checks import check_counts, check_same_leaves
from sup_tickets.trees import RuleLike, default_rule, map_named, sparse_leaves
from sup_tickets.types import Counts, Masks, Number, Scores


def select_n_m(
    scores: Scores, n: Number, m: int, *, axis: int = -2, where: RuleLike = default_rule
) -> Masks:
    """The ``n`` largest of every ``m`` consecutive scores along an axis (N:M sparsity).

    Args:
      scores: pytree of floating point arrays.
      n: how many of each group are kept, in [0, m]; may be traced.
      m: size of a group, static.
      axis: the grouped axis; -2, the default, is the input axis of Flax kernels, along
        which hardware for 2:4 sparsity multiplies.
      where: which leaves are sparse, see `sparse_leaves`; the others get ``None``.

    Raises:
      ValueError: if ``m`` does not divide the axis of a sparse leaf, or if ``n`` is
        outside [0, m].
    """
    check_whole("m", m, 1)
    if not isinstance(n, jax.Array) and not (is_number(n) and 0 <= n <= m):
        raise ValueError(f"n must be in [0, m={m}], got {n!r}")
    check_count("n", n, m)
    sparse = sparse_leaves(scores, where=where)
    counts = jax.tree.map(lambda is_sparse: n if is_sparse else None, sparse)
    groups = per_block(m, axis=axis)
    map_named(
        lambda name, leaf, has: has and split_of(groups, name, leaf.shape, f"m={m}"),
        scores,
        sparse,
    )
    return select(scores, counts, groups=groups)


def select_blocks(
    scores: Scores, counts: Counts, block: Sequence[int], *, among: Masks | None = None
) -> Masks:
    """In each leaf, the exact top-k of its blocks, by the sum of a block's scores.

    Args:
      scores: pytree of floating point arrays.
      counts: pytree of integers: how many *blocks* of each leaf are kept; ``None``
        where a leaf is never pruned.
      block: shape of a block over the last axes, ``(4, 4)``; leading axes count 1.
      among: candidates; a block is a candidate if all its places are.

    Returns:
      Masks that are constant on every block.

    Raises:
      ValueError: if a block does not divide the shape of a sparse leaf, or if a count
        is no whole number in [0, blocks of its leaf].
    """
    if not isinstance(block, Sequence):
        raise ValueError(f"block must be a shape, such as (4, 4), got {block!r}")
    block = tuple(check_whole("block", side, 0) for side in block)
    places = prod(max(side, 1) for side in block)
    check_counts("counts", counts, "scores", scores, lambda leaf: leaf.size // places)

    def blocks_of(name: str, leaf: jax.Array) -> Split:
        axes = range(-len(block), 0)
        try:
            sides = zip(axes, block, strict=True)
            tiles = {
                axis: [Part(None, True), Part(side, False)] for axis, side in sides
            }
            tiles = tiles or {-1: [Part(None, True)]}  # blocks of one place
            return split_of(Groups(tiles, others_apart=True), name, leaf.shape)
        except ValueError:
            raise ValueError(
                f"block={block} does not divide leaf {name!r} of shape {leaf.shape}"
            ) from None

    if among is None:
        among = jax.tree.map(lambda _: None, scores)
    else:
        check_same_leaves("among", among, "scores", scores)

    def choose(name: str, score: jax.Array, count: Any, candidates: Any) -> Selecting:
        if count is None:
            return None
        split = blocks_of(name, score)
        shape, inside = split.merged
        if candidates is not None:
            candidates = jnp.all(candidates.reshape(shape), axis=inside)
        sums = jnp.sum(score.reshape(shape), axis=inside)
        chosen = yield top_k(name, sums, count, candidates)
        return jnp.broadcast_to(split.spread(chosen), score.shape)

    return map_selecting(choose, scores, counts, among)
