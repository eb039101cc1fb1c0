"""Exact masks with a structure that hardware can use: N:M groups, and blocks."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sup_tickets.checks import check_count, check_whole, is_number
from sup_tickets.counting import computed_once
from sup_tickets.selection import integer_info, largest, ordered_keys
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
    check_whole("m", m, 0)
    if not isinstance(n, jax.Array) and not (is_number(n) and 0 <= n <= m):
        raise ValueError(f"n must be in [0, m={m}], got {n!r}")
    check_count("n", n, m)

    def choose(name: str, score: jax.Array, sparse: bool) -> Any:
        if not sparse:
            return None
        size = score.shape[axis] if -score.ndim <= axis < score.ndim else 0
        if m < 1 or size % m or not size:
            raise ValueError(
                f"m={m} does not divide axis {axis} of leaf {name!r}, of size {size}"
            )
        keys = jnp.moveaxis(ordered_keys(name, score, None), axis, -1)
        # No score has the largest integer as its key.
        never = jnp.any(keys == integer_info(keys.dtype.itemsize).max)
        keys = computed_once(keys, never=never)
        groups = keys.reshape((*keys.shape[:-1], size // m, m))
        chosen = _ranks_in_groups(groups) < n
        return jnp.moveaxis(chosen.reshape(keys.shape), -1, axis)

    return map_named(choose, scores, sparse_leaves(scores, where=where))


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
    blocks = math.prod(max(side, 1) for side in block)
    check_counts("counts", counts, "scores", scores, lambda leaf: leaf.size // blocks)

    def blocked(name: str, leaf: jax.Array) -> jax.Array:
        shape = leaf.shape[leaf.ndim - len(block) :]
        if leaf.ndim < len(block) or any(
            b < 1 or s % b for s, b in zip(shape, block, strict=True)
        ):
            raise ValueError(
                f"block={block} does not divide leaf {name!r} of shape {leaf.shape}"
            )
        lead = leaf.shape[: leaf.ndim - len(block)]
        split = [p for s, b in zip(shape, block, strict=True) for p in (s // b, b)]
        return leaf.reshape((*lead, *split))

    def choose(name: str, score: jax.Array, count: Any, candidates: Any) -> Any:
        if count is None:
            return None
        parts = blocked(name, score)
        inside = tuple(range(parts.ndim - 2 * len(block) + 1, parts.ndim, 2))
        if candidates is not None:
            candidates = jnp.all(blocked(name, candidates), axis=inside)
        keys = ordered_keys(name, jnp.sum(parts, axis=inside), candidates)
        (chosen,), _ = largest([keys], count)
        chosen = jnp.expand_dims(chosen, inside)
        return jnp.broadcast_to(chosen, parts.shape).reshape(score.shape)

    if among is None:
        among = jax.tree.map(lambda _: None, scores)
    else:
        check_same_leaves("among", among, "scores", scores)
    return map_named(choose, scores, counts, among)


def _ranks_in_groups(groups: jax.Array) -> jax.Array:
    """The rank of every key in its group, the last axis; 0 is the largest."""
    m = groups.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1)

    def beaten_by(j: int) -> jax.Array:
        other = groups[..., j : j + 1]
        return ((other > groups) | ((other == groups) & (place > j))).astype(jnp.int32)

    return functools.reduce(jnp.add, [beaten_by(j) for j in range(m)])
