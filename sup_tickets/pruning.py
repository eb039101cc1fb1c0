"""Pruning to an exact number of active weights: of all layers, of each, of groups."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_count, check_one_of, check_sparsity
from sup_tickets.counting import (
    MAX_COUNT,
    active_count,
    in_64_bits,
    portion,
    share_out,
)
from sup_tickets.groups import GroupsLike, checked_splits, splits_of
from sup_tickets.masks import apply_masks, check_masks, count, layer_counts, size
from sup_tickets.saliency import magnitude
from sup_tickets.selection import (
    Selecting,
    map_selecting,
    select,
    select_globally,
    top_k,
)
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import map_named, matching_names, named_leaves
from sup_tickets.types import Masks, Number, Params, Scores

Scope = Literal["global", "layer"]


def prune_to(
    params: Params,
    masks: Masks,
    *,
    sparsity: Number,
    scope: Scope = "global",
    scores: Scores | None = None,
    groups: GroupsLike = None,
) -> tuple[Params, Masks]:
    """Keeps the highest-scoring active weights, so many that the sparsity is met.

    Pruning never activates: where fewer weights are active than the target, all stay.

    Args:
      params: pytree of arrays.
      masks: the active weights.
      sparsity: in [0, 1), of all sparse leaves together or of each; may be traced. A
        Python number is resolved exactly, a traced one as finely as float32 can.
      scope: "global" compares the weights of all layers, "layer" within each.
      scores: pytree of floating point arrays; the magnitude of ``params`` by default.
      groups: who competes with whom, see `select`, where the scope is "layer"; the
        sparsity is then that of each group.

    Returns:
      Parameters, exactly 0 where inactive, and masks.

    Raises:
      ValueError: if the sparsity is outside [0, 1), the scope unknown or "global" with
        groups, the trees differ, or a leaf cannot be split into its groups.
    """
    check_sparsity(sparsity)
    check_one_of("scope", scope, get_args(Scope))
    if scope == "global":
        if groups is not None:
            raise ValueError("groups= are compared with scope='layer', got 'global'")
        return prune_to_counts(
            params, masks, _target(size(masks), sparsity), scores=scores
        )
    targets = jax.tree.map(
        lambda m, s: _target(m.size if s is None else s.members, sparsity),
        masks,
        splits_of(groups, masks, masks),
    )
    return prune_to_counts(params, masks, targets, scores=scores, groups=groups)


def prune_to_counts(
    params: Params,
    masks: Masks,
    counts: Any,
    *,
    scores: Scores | None = None,
    groups: GroupsLike = None,
) -> tuple[Params, Masks]:
    """`prune_to` an exact number of active weights.

    Args:
      params: pytree of arrays.
      masks: the active weights.
      counts: an integer for all layers together, or a pytree of integers, ``None`` at
        dense leaves, for each; may be traced. Where a leaf has groups, of each of
        them, see `select`.
      scores: pytree of floating point arrays; the magnitude of ``params`` by default.
      groups: who competes with whom, see `select`, where ``counts`` is a pytree.

    Raises:
      ValueError: if the trees differ, or if a count that is no JAX array is no whole
        number in [0, number of places].
    """
    check_masks(params, masks)
    together = jax.tree_util.treedef_is_leaf(jax.tree.structure(counts))
    if together:
        check_count("counts", counts, size(masks))
        if groups is not None:
            raise ValueError("groups= need a count for each leaf, got one for all")
    else:
        checked_splits("counts", counts, "masks", masks, groups)
    if scores is not None:
        check_same_leaves("scores", scores, "params", params)
    scores = magnitude(params) if scores is None else scores
    if together:
        kept = select_globally(scores, counts, among=masks)
    else:
        kept = select(scores, counts, among=masks, groups=groups)
    return apply_masks(kept, params), kept


def prune_to_total(
    params: Params,
    masks: Masks,
    total: Number,
    *,
    scope: Scope = "global",
    held: Sequence[str] | str = (),
    splits: Any = None,
) -> Masks:
    """Masks of the largest active weights, ``total`` in all, of leaves held or not.

    Args:
      params: pytree of arrays.
      masks: the active weights; where no more than ``total`` are active all stay.
      total: number of weights that stay, those of the held leaves included.
      scope: "global" compares the weights of all leaves; "layer" gives every leaf the
        same density as far as it has the weights, and the same exact total.
      held: expressions of leaves that are not pruned; the others pay for them.
      splits: pytree of `groups.Split`; every group of a leaf then keeps as many weights
        as come nearest to what the leaf would keep, and at least one.

    Raises:
      ValueError: if the scope is "layer", of more than 2**31 - 1 places.
    """
    free = without(masks, held)
    places = size(free)
    if scope == "layer" and places > MAX_COUNT:
        raise ValueError(
            f"scope='layer' shares out at most 2**31 - 1 places, got {places}"
        )
    active = count(free)

    def keep_largest(free: Masks) -> Masks:
        counts = wanted
        if scope == "layer":
            sizes = jax.tree.map(lambda mask: float(mask.size), free)
            counts = share_out(sizes, wanted, layer_counts(free))
        if splits is None:
            return prune_to_counts(params, free, counts)[1]
        if scope == "global":
            counts = layer_counts(prune_to_counts(params, free, counts)[1])
        return _evenly(params, free, counts, splits)

    with in_64_bits(size(masks) > MAX_COUNT):
        wanted = jnp.maximum(total - (size(masks) - places), 0).astype(active.dtype)
        kept = jax.lax.cond(active > wanted, keep_largest, lambda m: m, free)
    return merged(params, masks, kept)


def _evenly(params: Params, masks: Masks, counts: Any, splits: Any) -> Masks:
    """Masks with as many weights in each group of a leaf, the nearest to ``counts``."""

    def keep(name: str, w: jax.Array, mask: Any, n: Any, split: Any) -> Selecting:
        if mask is None:
            return None
        each = jnp.maximum((n + split.number // 2) // split.number, 1)
        return (yield top_k(name, jnp.abs(w), each, mask, split))

    return map_selecting(keep, params, masks, counts, splits)


def without(masks: Masks, expressions: Sequence[str] | str) -> Masks:
    """``masks`` with ``None`` at the leaves that the expressions match."""
    if not expressions:
        return masks
    names = [name for name, _ in named_leaves(masks)]
    held = matching_names(expressions, names, "keep_dense: expression")
    return map_named(lambda name, mask: None if name in held else mask, masks)


def merged(params: Params, masks: Masks, changed: Masks) -> Masks:
    """``changed``, and ``masks`` where it is ``None``."""
    return jax.tree.map(
        lambda _, mask, new: mask if new is None else new, params, masks, changed
    )


def _target(total: int, sparsity: Number) -> Number:
    if isinstance(sparsity, jax.Array):
        return portion(total, 1 - sparsity, "nearest")
    return active_count(total, sparsity)
