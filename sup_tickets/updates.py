"""What a method does to masks: pure functions that take a `Method` first.

A topology update after t completed steps looks at the gradient of the next step. RigL's
*replaces* that weight step (``consumes_step``); the others come before it.
"""

from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.checks import check_fraction
from sup_tickets.counting import Rounding, active_count, portion
from sup_tickets.distributions import allocate
from sup_tickets.dynamic import Method
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    density,
    difference,
    intersection,
    random_masks,
    size,
    union,
)
from sup_tickets.pruning import merged, prune_to_total, without
from sup_tickets.redistribution import momentum_shares, spared_fractions
from sup_tickets.saliency import Signals
from sup_tickets.schedules import inverse_power_fraction
from sup_tickets.topology import rewire
from sup_tickets.trees import map_named, named_leaves
from sup_tickets.types import Masks, Number, Params

_KEYS = {2: "threefry2x32", 4: "rbg"}  # implementation by the words of a raw key


class MethodState(NamedTuple):
    """What a method carries from step to step: plain arrays, no two the same buffer."""

    masks: Masks  # active weights
    key: jax.Array  # raw, uint32; an update at step t draws from fold_in(key, t)
    ever_active: Masks | None = None  # union of all masks so far (ITOP), if tracked
    momentum: Params | None = None  # running average of the dense gradients (SNFS)


class Change(NamedTuple):
    """The result of a topology update."""

    params: Params  # exactly 0 where inactive or newly grown, else as they were
    state: MethodState
    grown: Masks  # active now, and new or begun anew: their slots must be reset


def init_topology(
    method: Method, key: jax.Array | np.ndarray | int, params: Params
) -> MethodState:
    """The state that a method starts with.

    Args:
      method: the method.
      key: a random key, typed or raw, consumed; or a seed.
      params: pytree of arrays, of which only names, shapes and dtypes are read.

    Raises:
      ValueError: if the sparsity cannot be met, at the start or at the end.
    """
    draw, keep = jax.random.split(_typed(key))
    keep = jax.random.key_data(keep)
    if method.where is None:
        return MethodState(jax.tree.map(lambda _: None, params), keep)
    shared: Any = {"where": method.where, "keep_dense": method.keep_dense}
    if method.prunes:  # the end must be possible too
        allocate(params, sparsity=method.sparsity, distribution="uniform", **shared)
    counts = allocate(
        params,
        sparsity=method.start_sparsity,
        distribution=method.distribution,
        **shared,
        **(method.distribution_options or {}),
    )
    masks = random_masks(draw, params, counts)
    state = MethodState(masks, keep)
    return _begun(state, params, tracks=method.tracks, observes=method.observes)


def starting_from(state: MethodState, params: Params, masks: Masks) -> MethodState:
    """The state at the start, of a method that starts with given masks.

    Args:
      state: of `init_topology`.
      params: pytree of arrays.
      masks: nested like ``params``, of which leaves and whole branches without masks
        may be missing.

    Raises:
      ValueError: if a mask is of a leaf that ``params`` lacks, or has another shape.
    """
    given = {name: mask for name, mask in named_leaves(masks)}
    whole = map_named(lambda name, _: given.pop(name, None), params)
    if given:
        raise ValueError(f"masks has a leaf {min(given)!r} that params lacks")
    check_masks(params, whole)
    return _begun(
        state._replace(masks=whole),
        params,
        tracks=state.ever_active is not None,
        observes=state.momentum is not None,
    )


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
        now = _rewired(method, now, live, gradients, step, fraction, method.rounding)
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


# --- Start ----------------------------------------------------------------------------


def _begun(
    state: MethodState, params: Params, *, tracks: bool, observes: bool
) -> MethodState:
    # A copy: a step may donate the state, which no buffer may be in twice.
    ever = jax.tree.map(jnp.copy, state.masks) if tracks else None
    average = None
    if observes:
        average = jax.tree.map(
            lambda w, m: None if m is None else jnp.zeros_like(w), params, state.masks
        )
    return state._replace(ever_active=ever, momentum=average)


def _typed(key: Any) -> jax.Array:
    """A typed key, of one, of its raw words, or of a seed."""
    try:
        if isinstance(key, Integral):
            return jax.random.key(int(key))
        key = jnp.asarray(key)
    except (TypeError, ValueError, OverflowError):  # no array, or beyond 64 bits
        raise ValueError(f"key must be a random key or a seed, got {key!r}") from None
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if key.dtype == jnp.uint32 and key.shape in {(words,) for words in _KEYS}:
        return jax.random.wrap_key_data(key, impl=_KEYS[key.size])
    if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key)
    raise ValueError(
        f"key must be a random key or a seed, got {key.dtype} of shape {key.shape}"
    )


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
        masks = jax.tree.map(lambda mask: mask | (wanted == total), masks)
    return prune_to_total(
        params, masks, wanted, scope=method.prune_scope, held=method.keep_dense
    )


def _wanted(method: Method, total: int, step: Number) -> jax.Array:
    """The number of active weights by the schedule at a step."""
    if method.sparsity_stairs:
        begins, sparsities = zip(*method.sparsity_stairs, strict=True)
        counts = jnp.asarray([active_count(total, s) for s in sparsities], jnp.int32)
        stair = jnp.searchsorted(jnp.asarray(begins), step, side="right") - 1
        return counts[stair]
    low = active_count(total, method.sparsity)
    high = active_count(total, method.start_sparsity)
    left = inverse_power_fraction(
        1.0,
        begin_step=method.prune_begin_step,
        end_step=method.settled_step,
        power=3,
    )
    # Both ends are exact integers; only the way between them is rounded.
    return low + portion(high - low, left(step), "nearest")


def _rewired(
    method: Method,
    state: MethodState,
    params: Params,
    gradients: Params | None,
    step: Number,
    fraction: Number,
    rounding: Rounding,
) -> MethodState:
    key = jax.random.fold_in(_typed(state.key), step)
    drop_key, grow_key = jax.random.split(key)
    signals = Signals(params, state.masks, gradients, state.momentum, drop_key)
    free = without(state.masks, method.keep_dense)
    shares = None
    if method.redistribute:
        shares = momentum_shares(free, _at_leaves_of(free, state.momentum))
    changed = rewire(
        params,
        free,
        drop_scores=method.drop_score(signals),
        grow_scores=method.grow_score(signals._replace(key=grow_key)),
        fraction=spared_fractions(free, shares, fraction)
        if method.spare_dense
        else fraction,
        rounding=rounding,
        regrow_dropped=method.regrow_dropped,
        prefer=_never(state.ever_active) if method.prefer_unexplored else None,
        shares=shares,
        grow_groups=method.grow_groups,
    )
    return _with_masks(state, merged(params, state.masks, changed.masks))


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
