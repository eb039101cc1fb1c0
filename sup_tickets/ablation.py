"""SRigL's update: a constant fan-in, and neurons that few salient weights reach end."""

from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.counting import Rounding, computed_once, portion
from sup_tickets.groups import Split
from sup_tickets.masks import apply_masks, check_masks, difference, intersection
from sup_tickets.place_counts import count_true
from sup_tickets.selection import Selecting, Wanted, map_selecting, top_k
from sup_tickets.selection_groups import largest_of_groups
from sup_tickets.sort_keys import check_scores, lowest_of, ordered_keys
from sup_tickets.structures import Structure
from sup_tickets.topology import Rewired
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import named_leaves
from sup_tickets.types import Counts, Masks, Number, Params, Scores


def rewire_neurons(
    params: Params,
    masks: Masks,
    structure: Structure,
    budgets: Counts,
    *,
    drop_scores: Scores,
    grow_scores: Scores,
    fraction: Number,
    rounding: Rounding = "floor",
) -> Rewired:
    """Drops and grows so that all neurons that stay have the same fan-in.

    In every leaf, of n neurons with a fan-in of k = budget // n at first: of the active
    weights all but the fraction that scores lowest are kept. Salient are these, and as
    many places as were dropped, those that score highest for growth, active or not.
    Neurons with fewer than ``max(1, ablate_below * k)`` salient places are ablated, but
    so many stay that the budget has room. The budget is shared out between those that
    stay: each has the same number, rounded down, of what was kept the largest and, as
    far as that does not reach, the places that score highest for growth.

    Args:
      params: pytree of arrays, 0 where inactive.
      masks: the active weights.
      structure: with ``ablate_below``.
      budgets: pytree of integers, active weights of each leaf before any ablation.
      drop_scores: pytree of floating point arrays of at least 0; NaN counts as 0.
      grow_scores: likewise.
      fraction: of the active weights of each leaf, in [0, 1]; may be traced.
      rounding: of the number dropped.

    References:
      Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024, section 3,
      https://arxiv.org/abs/2305.02299. In the release the weights that a neuron has too
      many are taken away in the order of a sort of its boolean mask, which says nothing
      of their size; here the smallest go. It also fills up what ablated neurons had
      been kept with the next largest weights, here it is grown.
    """
    check_masks(params, masks)
    check_same_leaves("drop_scores", drop_scores, "params", params)
    check_same_leaves("grow_scores", grow_scores, "params", params)
    names = [name for name, _ in named_leaves(masks)]
    ablated = structure.ablates(names)
    share = structure.ablate_below
    assert share is not None

    def change(name: str, w: Any, mask: Any, *rest: Any) -> Selecting:
        if mask is None:
            return None
        drop_score, grow_score, split, budget = rest
        active = count_true(mask)
        dropped = portion(active, fraction, rounding)
        dropped = computed_once(dropped, never=dropped < 0)
        kept = yield top_k(name, drop_score, active - dropped, mask)
        alive = jnp.ones(split.counts, bool)
        if name in ablated:
            wanted = yield top_k(name, grow_score, dropped, None)
            alive = _alive(count_true(kept | wanted, split), budget, share, split)
        each = budget // jnp.maximum(count_true(alive), 1)
        fan_in = jnp.where(alive, jnp.minimum(each, split.members), 0)
        check_scores(name, grow_score, None)
        sources = (kept, drop_score, grow_score)
        return (yield Wanted(_kept_before_grown, sources, fan_in, split))

    splits = structure.splits(params, masks)
    trees = (masks, drop_scores, grow_scores, splits, budgets)
    new_masks = map_selecting(change, params, *trees)
    return Rewired(
        params=apply_masks(intersection(masks, new_masks), params),
        masks=new_masks,
        grown=difference(new_masks, masks),
    )


def _alive(
    salient: jax.Array, budget: jax.Array, share: float, split: Split
) -> jax.Array:
    """The neurons with enough salient places, and as many as the budget needs."""
    least = jnp.maximum(portion(budget // split.number, share, "floor"), 1)
    needed = jnp.maximum(-(-budget // split.members), 1)
    # Ranked exactly as scores are: int32 keys, of which none is the smallest integer.
    parts = tuple((size, False, axis) for axis, size in enumerate(salient.shape))
    all_neurons = Split(salient.shape, parts)
    first, _ = largest_of_groups(salient, needed, jnp.int32(0), split=all_neurons)
    return (salient >= least) | first


def _kept_before_grown(
    kept: jax.Array, drop_score: jax.Array, grow_score: jax.Array
) -> jax.Array:
    """Keys of which all of ``kept`` are larger than all others, in one selection.

    Scores of at least 0 have keys from 0 on; those of growth go to the negative ones.
    """
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(drop_score.dtype, grow_score.dtype)
    drop_key, grow_key = (
        jnp.maximum(ordered_keys(score.astype(dtype)), 0) + 1
        for score in (drop_score, grow_score)
    )
    return jnp.where(kept, drop_key, grow_key + lowest_of(grow_key))
