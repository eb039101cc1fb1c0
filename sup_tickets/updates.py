"""What a method does to masks: pure functions that take a `Method` first.

A topology update after t completed steps looks at the gradient of the next step. RigL's
*replaces* that weight step (``consumes_step``); the others come before it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.ablation import rewire_neurons
from sup_tickets.checks import check_fraction
from sup_tickets.counting import (
    MAX_COUNT,
    Rounding,
    active_count,
    in_64_bits,
    portion,
)
from sup_tickets.dynamic import Method
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    density,
    difference,
    intersection,
    size,
    union,
)
from sup_tickets.method_state import MethodState, typed_key
from sup_tickets.pruning import merged, prune_to_total, without
from sup_tickets.redistribution import momentum_shares, spared_fractions
from sup_tickets.saliency import Signals
from sup_tickets.schedules import inverse_power_fraction
from sup_tickets.topology import rewire
from sup_tickets.types import Masks, Number, Params


class Change(NamedTuple):
    """The result of a topology update."""

    params: Params  # exactly 0 where inactive or newly grown, else as they were
    state: MethodState
    grown: Masks  # active now, and new or begun anew: their slots must be reset


def all_finite(tree: Any) -> jax.Array:
    """Whether every value of every leaf is finite, bool scalar."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.ones((), bool)


def observe_gradients(
    method: Method, state: MethodState, gradients: Params
) -> MethodState:
    """The state after a look at the dense gradients of a step.

    Args:
      method: the method.
      state: before it.
      gradients: pytree of arrays, dense: also where the weight is inactive. If a value
        is not finite they are not observed.
    """
    if method.momentum_decay is None:
        return state
    decay, finite = method.momentum_decay, all_finite(gradients)
    average = jax.tree.map(
        lambda m, g: jnp.where(finite, _running_average(m, g, decay), m),
        state.momentum,
        _at_leaves_of(state.momentum, gradients),
    )
    return state._replace(momentum=average)


def update_topology(
    method: Method,
    state: MethodState,
    params: Params,
    gradients: Params | None,
    step: Number,
) -> Change:
    """Prunes as far as the method's schedule asks for, then drops and grows.

    Args:
      method: the method.
      state: before the update.
      params: pytree of arrays, 0 where inactive.
      gradients: dense; may be ``None`` unless ``method.update_needs_gradients``.
      step: number of completed steps; may be traced.

    Raises:
      ValueError: if the trees differ.
    """
    check_masks(params, state.masks)
    now, live = state, params
    if method.prunes:
        now = _with_masks(now, _pruned(method, state.masks, params, step))
        live = apply_masks(now.masks, params)
    before = state.masks
    if not method.keep_pruned:
        before = intersection(before, now.masks)
    if method.rewires:
        fraction = method.drop_fraction_at(step)
        now = _rewired(
            method,
            now,
            live,
            gradients,
            step,
            fraction,
            method.rounding,
            ablates=now.budgets is not None,
        )
    return _change(params, before, now)


def explore_topology(
    method: Method,
    state: MethodState,
    params: Params,
    gradients: Params | None,
    step: Number,
    fraction: Number,
) -> Change:
    """Drops a fraction of every layer and regrows as many, by the method's own scores.

    Args:
      method: the method.
      state: before the exploration.
      params: pytree of arrays, 0 where inactive.
      gradients: dense; may be ``None`` unless ``method.explore_needs_gradients``.
      step: number of completed steps; may be traced.
      fraction: of each layer's active weights, in [0, 1], rounded up as in the
        Sup-tickets release, for every method alike; may be traced.

    Raises:
      ValueError: if the fraction is outside [0, 1], or the trees differ.
    """
    check_fraction(fraction)
    now = _rewired(method, state, params, gradients, step, fraction, "ceil")
    return _change(params, state.masks, now)


def exploration_rate(state: MethodState) -> jax.Array:
    """R_s of ITOP: share of the sparse places that were ever active, float32.

    Raises:
      ValueError: if the method does not track it.
    """
    if state.ever_active is None:
        raise ValueError(
            "this method keeps no union; make it with track_exploration=True"
        )
    return density(state.ever_active)


# --- Change ---------------------------------------------------------------------------


def _change(params: Params, before: Masks, now: MethodState) -> Change:
    """What was active in ``before`` and is now keeps its value; the rest is 0."""
    kept = intersection(before, now.masks)
    return Change(apply_masks(kept, params), now, difference(now.masks, before))


def _pruned(method: Method, masks: Masks, params: Params, step: Number) -> Masks:
    """All weights in a dense stair; else the largest, as many as the schedule asks."""
    total = size(masks)
    wanted = _wanted(method, total, step)
    if method.sparsity_stairs:
        with in_64_bits(total > MAX_COUNT):
            is_dense = wanted == total
        masks = jax.tree.map(lambda mask: mask | is_dense, masks)
    structure, scope, splits = method.structure, method.prune_scope, None
    if structure is not None:
        splits = structure.splits(params, masks)
        if structure.of is not None:  # the same of every group, whatever the leaf
            scope = "layer"
    return prune_to_total(
        params, masks, wanted, scope=scope, held=_held(method), splits=splits
    )


def _held(method: Method) -> Any:
    """Expressions of dense leaves; with N:M these have no mask."""
    structure = method.structure
    no_masks = structure is not None and structure.of is not None
    return () if no_masks else method.keep_dense


def _wanted(method: Method, total: int, step: Number) -> jax.Array:
    """The number of active weights by the schedule at a step, as wide as it may be."""
    wide = total > MAX_COUNT
    dtype = jnp.int64 if wide else jnp.int32
    if method.sparsity_stairs:
        begins, sparsities = zip(*method.sparsity_stairs, strict=True)
        stair = jnp.searchsorted(jnp.asarray(begins), step, side="right") - 1
        counts = [active_count(total, s) for s in sparsities]
        with in_64_bits(wide):
            return jnp.asarray(counts, dtype)[stair]
    low = active_count(total, method.sparsity)
    high = active_count(total, method.start_sparsity)
    left = inverse_power_fraction(
        1.0,
        begin_step=method.prune_begin_step,
        end_step=method.settled_step,
        power=3,
    )
    # Both ends are exact integers; only the way between them is rounded.
    with in_64_bits(wide):
        return low + portion(high - low, left(step), "nearest").astype(dtype)


def _rewired(
    method: Method,
    state: MethodState,
    params: Params,
    gradients: Params | None,
    step: Number,
    fraction: Number,
    rounding: Rounding,
    *,
    ablates: bool = False,
) -> MethodState:
    """After a rewire; by SRigL's rule, which may take neurons away, if it ablates."""
    signals, grow_key = _signals(state, params, gradients, step)
    free = without(state.masks, _held(method))
    scores: dict[str, Any] = {
        "drop_scores": method.drop_score(signals),
        "grow_scores": method.grow_score(signals._replace(key=grow_key)),
        "rounding": rounding,
    }
    if ablates:
        assert method.structure is not None
        budgets = _at_leaves_of(free, state.budgets)
        changed = rewire_neurons(
            params, free, method.structure, budgets, fraction=fraction, **scores
        )
        return _with_masks(state, merged(params, state.masks, changed.masks))
    shares = None
    if method.redistribute:
        shares = momentum_shares(free, _at_leaves_of(free, state.momentum))
    if method.spare_dense:
        fraction = spared_fractions(free, shares, fraction)
    changed = rewire(
        params,
        free,
        fraction=fraction,
        regrow_dropped=method.regrow_dropped,
        prefer=_never(state.ever_active) if method.prefer_unexplored else None,
        shares=shares,
        groups=None if method.structure is None else method.structure.groups,
        grow_groups=method.grow_groups,
        **scores,
    )
    return _with_masks(state, merged(params, state.masks, changed.masks))


def _signals(
    state: MethodState, params: Params, gradients: Params | None, step: Number
) -> tuple[Signals, jax.Array]:
    """What the drop score may look at, and the key of the grow score."""
    key = jax.random.fold_in(typed_key(state.key), step)
    drop_key, grow_key = jax.random.split(key)
    return Signals(params, state.masks, gradients, state.momentum, drop_key), grow_key


def _with_masks(state: MethodState, masks: Masks) -> MethodState:
    ever = state.ever_active
    ever = None if ever is None else union(ever, masks)
    return state._replace(masks=masks, ever_active=ever)


def _never(ever_active: Masks | None) -> Masks:
    return jax.tree.map(jnp.logical_not, ever_active)


# --- SNFS -----------------------------------------------------------------------------


def _running_average(average: jax.Array, new: jax.Array, decay: float) -> jax.Array:
    return (decay * average + (1 - decay) * new.astype(average.dtype)).astype(
        average.dtype
    )


def _at_leaves_of(tree: Any, other: Any) -> Any:
    """``other`` with ``None`` where ``tree`` has it."""
    return jax.tree.map(lambda o, t: None if t is None else o, other, tree)
