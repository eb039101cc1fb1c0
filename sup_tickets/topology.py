"""Topology: drop, grow, rewire, prune.

One `rewire` serves the whole family of dynamic sparse training: in every layer, drop
the weights that score lowest, then grow as many where the growth score is highest. SET
grows at random, RigL by the dense gradient, SNFS by its running average with the growth
shared out between layers, ITOP at places that were never active.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from sup_tickets.checks import (
    check_count,
    check_fraction,
    check_one_of,
    check_sparsity,
)
from sup_tickets.counting import (
    Rounding,
    active_count,
    computed_once,
    portion,
    share_out,
)
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    count,
    difference,
    intersection,
    layer_counts,
    size,
    union,
)
from sup_tickets.saliency import magnitude
from sup_tickets.selection import (
    Turn,
    count_true,
    map_in_turn,
    select,
    select_globally,
    top_k,
)
from sup_tickets.tree_checks import (
    check_counts,
    check_same_containers,
    check_same_leaves,
    check_same_names,
)
from sup_tickets.trees import map_named, matching_names, named_leaves
from sup_tickets.types import Counts, Masks, Number, Params, Scores

Scope = Literal["global", "layer"]


class Rewired(NamedTuple):
    """What a rewire leaves: a consistent pair, and what is new in it."""

    params: Params  # exactly 0 where inactive or newly grown
    masks: Masks  # as many active weights as before
    grown: Masks  # active now, not before: reset their optimizer slots


def drop(
    masks: Masks, scores: Scores, fraction: Number, *, rounding: Rounding = "floor"
) -> Masks:
    """In each layer, deactivates a fraction of the active weights, the lowest scores.

    Args:
      masks: the active weights.
      scores: pytree of floating point arrays; the largest are kept.
      fraction: of the active weights of each layer, in [0, 1]; may be traced.
      rounding: how the number dropped is rounded; RigL takes the floor, the PyTorch
        family (ITOP, GraNet, Sup-tickets) the ceiling.

    Returns:
      Masks of the weights that stay.

    Raises:
      ValueError: if the fraction is outside [0, 1], or the trees differ.
    """
    check_fraction(fraction)
    check_one_of("rounding", rounding, get_args(Rounding))
    check_masks(scores, masks, "scores")
    kept = jax.tree.map(
        lambda active: active - portion(active, fraction, rounding),
        layer_counts(masks),
    )
    return select(scores, kept, among=masks)


def grow(masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """In each layer, activates the ``counts`` inactive weights that score highest.

    Args:
      masks: the active weights, which all stay active.
      scores: pytree of floating point arrays.
      counts: pytree of integers, ``None`` at dense leaves; more than there are inactive
        weights activate all.

    Raises:
      ValueError: if the trees differ, or if a count that is no JAX array is no whole
        number in [0, size of its leaf].
    """
    check_masks(scores, masks, "scores")
    check_counts("counts", counts, "masks", masks)
    inactive = jax.tree.map(jnp.logical_not, masks)
    return union(masks, select(scores, counts, among=inactive))


def rewire(
    params: Params,
    masks: Masks,
    *,
    drop_scores: Scores,
    grow_scores: Scores,
    fraction: Any,
    rounding: Rounding = "floor",
    regrow_dropped: bool = True,
    prefer: Masks | None = None,
    shares: Any | None = None,
) -> Rewired:
    """Drops and grows the same number of weights: one step of dynamic sparse training.

    A weight dropped and grown again in the same rewire keeps its value and its
    optimizer state, as in the reference implementations; any other grown weight starts
    at 0.

    Args:
      params: pytree of arrays, 0 where inactive.
      masks: the active weights.
      drop_scores: pytree of floating point arrays; the lowest active ones are dropped.
      grow_scores: likewise; the highest candidates are grown.
      fraction: of the active weights of each layer, in [0, 1]; a scalar, which may be
        traced, or a pytree of one for each layer, ``None`` at dense leaves.
      rounding: of the number dropped, see `drop`.
      regrow_dropped: whether the weights just dropped are candidates for growth, as in
        the references. If not, a layer with fewer inactive weights than it would drop
        drops only as many.
      prefer: masks of places to be grown first, whatever their score (ITOP: those
        never active).
      shares: how the total that was dropped is shared out between layers: a pytree of
        non-negative scalars with ``None`` at dense leaves (SNFS). By default each
        layer grows what it dropped.

    Returns:
      The new parameters and masks, and the newly grown places. Each layer's count of
      active weights is kept, or, with ``shares``, the total.

    Raises:
      ValueError: if the fraction is outside [0, 1], or the trees differ.

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, Algorithm 1,
      https://arxiv.org/abs/1911.11134
    """
    check_one_of("rounding", rounding, get_args(Rounding))
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(fraction)):
        check_fraction(fraction)
        fraction = jax.tree.map(lambda _: fraction, masks)
    check_same_names("fraction", fraction, "masks", masks)
    check_same_containers("fraction", fraction, "masks", masks)
    check_masks(params, masks)
    check_same_leaves("drop_scores", drop_scores, "params", params)
    check_same_leaves("grow_scores", grow_scores, "params", params)
    if prefer is not None:
        check_masks(params, prefer, masks_name="prefer")
    if shares is not None:
        check_same_names("shares", shares, "masks", masks)
        check_same_containers("shares", shares, "masks", masks)
    active = layer_counts(masks)
    dropped = jax.tree.map(lambda n, f: portion(n, f, rounding), active, fraction)
    if not regrow_dropped:
        dropped = jax.tree.map(
            lambda d, n, m: jnp.minimum(d, m.size - n), dropped, active, masks
        )
    if first := jax.tree.leaves(dropped)[:1]:  # as many are grown as are dropped
        dropped = computed_once(dropped, never=first[0] < 0)
    kept = jax.tree.map(jnp.subtract, active, dropped)
    if shares is None:
        added = dropped
    else:
        before = kept if regrow_dropped else active
        room = jax.tree.map(lambda n, m: m.size - n, before, masks)
        added = share_out(shares, dropped, room)
    if prefer is None:
        prefer = jax.tree.map(lambda _: None, masks)

    def change(name: str, turn: Turn, w: Any, mask: Any, *rest: Any):
        if mask is None:
            return None, turn
        drop_score, grow_score, keep, add, first = rest
        staying, turn = top_k(name, turn, drop_score, keep, mask)
        candidates = ~staying if regrow_dropped else ~mask
        new, turn = _grown(name, turn, grow_score, add, candidates, first)
        return staying | new, turn

    new_masks = map_in_turn(
        change, params, masks, drop_scores, grow_scores, kept, added, prefer
    )
    return Rewired(
        params=apply_masks(intersection(masks, new_masks), params),
        masks=new_masks,
        grown=difference(new_masks, masks),
    )


def prune_to(
    params: Params,
    masks: Masks,
    *,
    sparsity: Number,
    scope: Scope = "global",
    scores: Scores | None = None,
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

    Returns:
      Parameters, exactly 0 where inactive, and masks.

    Raises:
      ValueError: if the sparsity is outside [0, 1), the scope unknown, or the trees
        differ.
    """
    check_sparsity(sparsity)
    check_one_of("scope", scope, get_args(Scope))
    if scope == "global":
        targets: Any = _target(size(masks), sparsity)
    else:
        targets = jax.tree.map(lambda mask: _target(mask.size, sparsity), masks)
    return prune_to_counts(params, masks, targets, scores=scores)


def prune_to_counts(
    params: Params, masks: Masks, counts: Any, *, scores: Scores | None = None
) -> tuple[Params, Masks]:
    """`prune_to` an exact number of active weights.

    Args:
      params: pytree of arrays.
      masks: the active weights.
      counts: an integer for all layers together, or a pytree of integers, ``None`` at
        dense leaves, for each; may be traced.
      scores: pytree of floating point arrays; the magnitude of ``params`` by default.

    Raises:
      ValueError: if the trees differ, or if a count that is no JAX array is no whole
        number in [0, number of places].
    """
    check_masks(params, masks)
    together = jax.tree_util.treedef_is_leaf(jax.tree.structure(counts))
    if together:
        check_count("counts", counts, size(masks))
    else:
        check_counts("counts", counts, "masks", masks)
    if scores is not None:
        check_same_leaves("scores", scores, "params", params)
    scores = magnitude(params) if scores is None else scores
    choose = select_globally if together else select
    kept = choose(scores, counts, among=masks)
    return apply_masks(kept, params), kept


def prune_to_total(
    params: Params,
    masks: Masks,
    total: Number,
    *,
    scope: Scope = "global",
    held: Sequence[str] | str = (),
) -> Masks:
    """Masks of the largest active weights, ``total`` in all, of leaves held or not.

    Args:
      params: pytree of arrays.
      masks: the active weights; where no more than ``total`` are active all stay.
      total: number of weights that stay, those of the held leaves included.
      scope: "global" compares the weights of all leaves; "layer" gives every leaf the
        same density as far as it has the weights, and the same exact total.
      held: expressions of leaves that are not pruned; the others pay for them.
    """
    free = without(masks, held)
    wanted = jnp.maximum(total - (size(masks) - size(free)), 0)

    def keep_largest(free: Masks) -> Masks:
        counts = wanted
        if scope == "layer":
            sizes = jax.tree.map(lambda mask: float(mask.size), free)
            counts = share_out(sizes, wanted, layer_counts(free))
        return prune_to_counts(params, free, counts)[1]

    kept = jax.lax.cond(count(free) > wanted, keep_largest, lambda m: m, free)
    return merged(params, masks, kept)


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


def _grown(
    name: str,
    turn: Turn,
    score: jax.Array,
    k: jax.Array,
    candidates: jax.Array,
    first: jax.Array | None,
) -> tuple[jax.Array, Turn]:
    """The ``k`` highest candidates, those in ``first`` before all others."""
    if first is None:
        return top_k(name, turn, score, k, candidates)
    chosen, turn = top_k(name, turn, score, k, candidates & first)
    rest = k - count_true(chosen)
    others, turn = top_k(name, turn, score, rest, candidates & ~first)
    return chosen | others, turn
