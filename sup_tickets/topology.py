"""Topology: drop, grow, rewire.

One `rewire` serves the whole family of dynamic sparse training: in every layer, drop
the weights that score lowest, then grow as many where the growth score is highest. SET
grows at random, RigL by the dense gradient, SNFS by its running average with the growth
shared out between layers, ITOP at places that were never active.
"""

from itertools import combinations
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.checks import (
    check_fraction,
    check_one_of,
)
from sup_tickets.counting import (
    Rounding,
    computed_once,
    parted,
    portion,
    share_out,
)
from sup_tickets.groups import GroupsLike, Split, checked_splits, splits_of
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    difference,
    intersection,
    layer_counts,
    union,
)
from sup_tickets.place_counts import count_true
from sup_tickets.selection import Selecting, map_selecting, select, top_k
from sup_tickets.sort_keys import check_scores
from sup_tickets.tree_checks import (
    check_same_containers,
    check_same_leaves,
    check_same_names,
)
from sup_tickets.trees import named_leaves
from sup_tickets.types import Counts, Masks, Number, Params, Scores


class Rewired(NamedTuple):
    """What a rewire leaves: a consistent pair, and what is new in it."""

    params: Params  # exactly 0 where inactive or newly grown
    masks: Masks  # as many active weights as before
    grown: Masks  # active now, not before: reset their optimizer slots


def drop(
    masks: Masks,
    scores: Scores,
    fraction: Number,
    *,
    rounding: Rounding = "floor",
    groups: GroupsLike = None,
) -> Masks:
    """In each layer, deactivates a fraction of the active weights, the lowest scores.

    Args:
      masks: the active weights.
      scores: pytree of floating point arrays; the largest are kept.
      fraction: of the active weights of each layer, in [0, 1]; may be traced.
      rounding: how the number dropped is rounded; RigL takes the floor, the PyTorch
        family (ITOP, GraNet, Sup-tickets) the ceiling.
      groups: who competes with whom, see `select`; the fraction is of each group.

    Returns:
      Masks of the weights that stay.

    Raises:
      ValueError: if the fraction is outside [0, 1], the trees differ, or a leaf has
        more than 2**31 - 1 places.
    """
    check_fraction(fraction)
    check_one_of("rounding", rounding, get_args(Rounding))
    check_masks(scores, masks, "scores")
    _check_scores(masks, scores)
    kept = jax.tree.map(
        lambda active: active - portion(active, fraction, rounding),
        layer_counts(masks, groups=groups),
    )
    return select(scores, kept, among=masks, groups=groups)


def grow(
    masks: Masks, scores: Scores, counts: Counts, *, groups: GroupsLike = None
) -> Masks:
    """In each layer, activates the ``counts`` inactive weights that score highest.

    Args:
      masks: the active weights, which all stay active.
      scores: pytree of floating point arrays.
      counts: pytree of integers, ``None`` at dense leaves; more than there are inactive
        weights activate all. Where a leaf has groups, of each of them, see `select`.
      groups: who competes with whom, see `select`.

    Raises:
      ValueError: if the trees differ, or if a count that is no JAX array is no whole
        number in [0, size of its leaf].
    """
    check_masks(scores, masks, "scores")
    checked_splits("counts", counts, "masks", masks, groups)
    inactive = jax.tree.map(jnp.logical_not, masks)
    return union(masks, select(scores, counts, among=inactive, groups=groups))


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
    groups: GroupsLike = None,
    grow_groups: GroupsLike = None,
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
      groups: who competes with whom for growth, see `select`; the leaf drops its
        fraction as a whole (of a few weights a group would drop none), and every group
        grows what it lost, so that its count is kept. Where the weights just dropped
        are no candidates, they are all the same for a group that has no others left.
      grow_groups: groups between which the growth of a leaf that drops as a whole is
        shared out, in equal parts as far as they have room: the gates of a recurrent
        matrix (Selfish-RNN).

    Returns:
      The new parameters and masks, and the newly grown places. Each layer's count of
      active weights is kept, or, with ``shares``, the total.

    Raises:
      ValueError: if the fraction is outside [0, 1], the trees differ, a leaf has more
        than 2**31 - 1 places, cannot be split into its groups, or has two of
        ``shares``, ``groups``, ``grow_groups``.

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
    _check_scores(masks, drop_scores, grow_scores)
    if prefer is not None:
        check_masks(params, prefer, masks_name="prefer")
    if shares is not None:
        check_same_names("shares", shares, "masks", masks)
        check_same_containers("shares", shares, "masks", masks)
    splits = splits_of(groups, masks, masks)
    grown_in = splits_of(grow_groups, masks, masks, "grow_groups")
    _check_one_rule(shares, splits, grown_in)
    kept, added = _numbers(masks, fraction, rounding, regrow_dropped, shares)
    if prefer is None:
        prefer = jax.tree.map(lambda _: None, masks)

    def change(name: str, w: Any, mask: Any, *rest: Any) -> Selecting:
        if mask is None:
            return None
        drop_score, grow_score, keep, add, first, split, growing = rest
        staying = yield top_k(name, drop_score, keep, mask)
        candidates = ~staying if regrow_dropped else ~mask
        if split is not None:
            add = count_true(mask, split) - count_true(staying, split)
        if growing is not None:
            split = growing
            has = count_true(candidates, split)
            add = parted(jnp.ones(split.number), add, has.reshape(-1))
            add = add.reshape(split.counts)
        new = yield from _grown(name, grow_score, add, candidates, first, split)
        if split is not None and not regrow_dropped:
            left = add - count_true(new, split)
            again = yield top_k(name, grow_score, left, mask & ~staying, split)
            new = new | again
        return staying | new

    trees = (masks, drop_scores, grow_scores, kept, added, prefer, splits, grown_in)
    new_masks = map_selecting(change, params, *trees)
    return Rewired(
        params=apply_masks(intersection(masks, new_masks), params),
        masks=new_masks,
        grown=difference(new_masks, masks),
    )


# --- Parts ----------------------------------------------------------------------------


def _grown(
    name: str,
    score: jax.Array,
    k: jax.Array,
    candidates: jax.Array,
    first: jax.Array | None,
    split: Split | None,
) -> Selecting:
    """The ``k`` highest candidates, those in ``first`` before all others."""
    if first is None:
        return (yield top_k(name, score, k, candidates, split))
    chosen = yield top_k(name, score, k, candidates & first, split)
    rest = k - count_true(chosen, split)
    others = yield top_k(name, score, rest, candidates & ~first, split)
    return chosen | others


def _numbers(
    masks: Masks,
    fraction: Any,
    rounding: Rounding,
    regrow_dropped: bool,
    shares: Any | None,
) -> tuple[Counts, Counts]:
    """How many are kept and grown, of each leaf."""
    active, structure = jax.tree.flatten(layer_counts(masks))
    if not active:
        return masks, masks
    sizes = np.array([mask.size for mask in jax.tree.leaves(masks)], np.int32)
    fractions = [jnp.asarray(f, jnp.float32) for f in jax.tree.leaves(fraction)]
    # One vector: what is computed leaf by leaf is compiled leaf by leaf.
    had = jnp.stack(active)
    lost = portion(had, jnp.stack(fractions), rounding)
    if not regrow_dropped:
        lost = jnp.minimum(lost, sizes - had)
    lost = computed_once(lost, never=had[0] < 0)  # as many are grown as are dropped
    kept, dropped = (
        jax.tree.unflatten(structure, list(each)) for each in (had - lost, lost)
    )
    if shares is None:
        return kept, dropped
    room = sizes - (had - lost if regrow_dropped else had)
    room = jax.tree.unflatten(structure, list(room))
    return kept, share_out(shares, dropped, room)


def _check_scores(masks: Masks, *scores: Scores) -> None:
    """Before anything is counted, where there are masks."""
    candidates = dict(named_leaves(masks))
    for tree in scores:
        for name, score in named_leaves(tree):
            if name in candidates:
                check_scores(name, score, candidates[name])


def _check_one_rule(shares: Any, splits: Any, grown_in: Any) -> None:
    """Raises where two arguments say how many weights a leaf grows."""
    given = {"shares": shares, "groups": splits, "grow_groups": grown_in}
    found = {name: dict(named_leaves(tree)) for name, tree in given.items()}
    for one, other in combinations(found, 2):
        both = sorted(found[one].keys() & found[other].keys())
        if both:
            raise ValueError(
                f"{one} and {other} both say how many weights leaf {both[0]!r} grows; "
                "give one"
            )
