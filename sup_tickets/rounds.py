"""Masks from scores that are computed anew in every round of pruning.

`prune_in_rounds` turns any score of `sup_tickets.foresight` into masks, and `resample`
keeps of masks only how many weights each layer has.

    loss = st.classification_loss(apply)
    scores = lambda params, masks: st.snip(loss, params, batches, masks=masks)
    masks = st.prune_in_rounds(scores, params, sparsity=0.98)
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.checks import (
    check_one_of,
    check_sparsity,
    check_whole,
)
from sup_tickets.counting import active_count, exact, share_out
from sup_tickets.distributions import uniform
from sup_tickets.groups import GroupsLike
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    full_masks,
    layer_counts,
    random_masks,
    size,
)
from sup_tickets.pruning import Scope, merged, prune_to_counts, without
from sup_tickets.structures import Structure, check_left, group_counts
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import RuleLike, default_rule, is_none, named_leaves
from sup_tickets.types import Counts, Masks, Params, Scores

ScoreOfMasks = Callable[[Params, Masks], Scores]
"""``(params, masks) -> scores``; pruned weights are exactly 0 in ``params``."""


def prune_in_rounds(
    score: ScoreOfMasks,
    params: Params,
    *,
    sparsity: float,
    rounds: int = 1,
    spacing: str = "exponential",
    scope: str = "global",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
    masks: Masks | None = None,
    structure: Structure | None = None,
) -> Masks:
    """Masks of the weights with the largest scores, computed anew in every round.

    After round i of n the density is ``d ** (i / n)`` ("exponential") or
    ``1 - (1 - d) i / n`` ("linear"), in exact counts; what was pruned stays pruned.

    Args:
      score: computes the scores; compiled if it is the caller's ``jax.jit``.
      params: pytree of arrays.
      sparsity: in [0, 1), of all sparse leaves together, met exactly.
      rounds: at least 1; 100 for SynFlow, 1 for the others.
      spacing: "exponential" or "linear".
      scope: "global" compares all leaves; "layer" gives each the same density.
      where: which leaves are sparse, see `sparse_leaves`.
      keep_dense: expressions of sparse leaves that are never pruned; the others pay.
        They are dense if ``masks`` is not given.
      masks: to begin with; by default all weights of the sparse leaves. What has a mask
        is sparse then, and ``where`` is not used. With ``scope="layer"`` a leaf that
        has too few active weights for the common density keeps them all, and the
        others share out what it lacks.
      structure: that the masks have after every round. With N:M, whose sparsity must be
        the one asked for, leaves of ``keep_dense`` have no masks; with a constant
        fan-in the sparsity is met as nearly as whole neurons allow.

    Raises:
      ValueError: naming the argument out of its range; if the count cannot be met,
        because the leaves of ``keep_dense`` have more active weights, or ``masks`` has
        fewer; or the leaf and the round whose scores are NaN or infinite; or the round
        in which all of them are 0.
    """
    check_sparsity(sparsity)
    check_whole("rounds", rounds, 1)
    check_one_of("scope", scope, get_args(Scope))
    check_one_of("spacing", spacing, ("exponential", "linear"))
    masks = full_masks(params, where=where) if masks is None else masks
    check_masks(params, masks)
    if structure is not None and structure.of is not None:
        check_left("sparsity", sparsity, structure, structure.kept)
        masks, keep_dense = without(masks, keep_dense), ()
    held = sum(_active(masks)) - sum(_active(without(masks, keep_dense)))
    _check_reachable(masks, sparsity, held)
    for number in range(1, rounds + 1):
        pruned = apply_masks(masks, params)
        scores = score(pruned, masks)
        _check_scores(scores, masks, number)
        at = _sparsity_after(number, rounds, sparsity, spacing)
        free = without(masks, keep_dense)
        # Early rounds may ask for more than masks of one's own have.
        counts: Any = min(active_count(size(masks), at) - held, sum(_active(free)))
        if scope == "layer":
            counts = _layer_counts(params, masks, at, keep_dense, counts)
        groups = None
        if structure is not None:
            counts = _of_groups(structure, pruned, free, scores, counts, at)
            groups = structure.groups
        _, kept = prune_to_counts(pruned, free, counts, scores=scores, groups=groups)
        masks = merged(params, masks, kept)
    return masks


def resample(key: jax.Array, masks: Masks, *, groups: GroupsLike = None) -> Masks:
    """As many active weights in each leaf, at random places: "ratios only".

    Args:
      key: a random key, consumed; the draw of a leaf depends on its name alone.
      masks: of which only the counts matter.
      groups: in each of which as many are active too, see `select`.

    References:
      Su et al., Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot,
      2020, https://arxiv.org/abs/2009.11094
    """
    counts = layer_counts(masks, groups=groups)
    return random_masks(key, masks, counts, groups=groups)


def dead_layers(masks: Masks) -> list[str]:
    """The names of the leaves that have no active weight; masks must be concrete."""
    return [name for name, mask in named_leaves(masks) if not mask.any()]


# --- Parts ----------------------------------------------------------------------------


def _active(masks: Masks) -> list[int]:
    """Active weights of each leaf, on the host: nothing is compiled for it."""
    return [int(np.count_nonzero(mask)) for mask in jax.tree.leaves(masks)]


def _check_reachable(masks: Masks, sparsity: float, held: int) -> None:
    target, active = active_count(size(masks), sparsity), sum(_active(masks))
    wanted = f"sparsity={sparsity} of {size(masks)} weights leaves {target} active"
    if held > target:
        raise ValueError(f"{wanted}, but the leaves of keep_dense= have {held}")
    if active < target:
        raise ValueError(f"{wanted}, but masks has only {active}")


def _layer_counts(
    params: Params, masks: Masks, sparsity: float, keep_dense: Any, total: int
) -> Counts:
    """Of the free leaves, the same density as far as they have the weights."""
    free = without(masks, keep_dense)
    active_leaves = _active(free)
    active = jax.tree.unflatten(jax.tree.structure(free), active_leaves)
    sizes = jax.tree.map(lambda mask: float(mask.size), free)
    held = size(masks) - size(free)
    if sum(_active(masks)) - sum(active_leaves) != held:  # dense, but not full
        return share_out(sizes, jnp.int32(total), active)
    sparse = {name for name, _ in named_leaves(masks)}
    counts = uniform(
        params,
        sparsity=sparsity,
        where=lambda name, _: name in sparse,
        keep_dense=keep_dense,
    )
    counts = jax.tree.map(
        lambda mask, n: None if mask is None else n, free, counts, is_leaf=is_none
    )
    has_them = jax.tree.map(lambda wanted, n: wanted <= n, counts, active)
    if all(jax.tree.leaves(has_them)) and sum(jax.tree.leaves(counts)) == total:
        return counts
    return share_out(sizes, jnp.int32(total), active)


def _of_groups(
    structure: Structure,
    params: Params,
    masks: Masks,
    scores: Scores,
    counts: Any,
    sparsity: float,
) -> Counts:
    """How many weights each group keeps, by its leaf's count or by the common one."""
    if structure.of is not None and structure.kept is not None:
        left = max(round((1 - sparsity) * structure.of), structure.kept)
        return jax.tree.map(lambda _: left, masks)
    if isinstance(counts, int):
        kept = prune_to_counts(params, masks, counts, scores=scores)[1]
        counts = layer_counts(kept)
    return group_counts(structure, masks, jax.tree.map(int, counts))


def _sparsity_after(number: int, rounds: int, sparsity: float, spacing: str) -> float:
    if number == rounds:
        return sparsity
    density = 1 - exact(sparsity)
    if spacing == "linear":
        return float((1 - density) * Fraction(number, rounds))
    return 1 - float(density) ** (number / rounds)


def _check_scores(scores: Scores, masks: Masks, number: int) -> None:
    check_same_leaves("masks", masks, "scores", scores)
    largest = 0.0
    for (name, mask), (_, score) in zip(
        named_leaves(masks, keep_none=True), named_leaves(scores), strict=True
    ):
        if mask is None:
            continue
        most = float(jnp.abs(score).max(initial=0.0, where=mask).astype(jnp.float32))
        if not np.isfinite(most):
            raise ValueError(f"round {number}: the scores of leaf {name!r} have {most}")
        largest = max(largest, float(jnp.abs(score).max(initial=0.0, where=mask)))
    if largest == 0 and sum(_active(masks)):
        raise ValueError(
            f"round {number}: the scores of all weights are 0; nothing tells them apart"
        )
