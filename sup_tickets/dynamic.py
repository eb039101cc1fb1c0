"""A method of sparse training as a value: which weights, which scores, when.

Every method is one builder, `dynamic`, with other scores and schedules: a distribution
says how many weights each layer has, a drop and a grow score which of them change, a
window of steps how far the network is pruned on the way, and a predicate when. There
is no class to subclass; a new method is a call of ``dynamic``.

A topology update after t completed steps looks at the gradient of the next step. RigL's
*replaces* that weight step (``consumes_step``); the others come before it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_fraction, check_one_of, check_sparsity
from sup_tickets.distributions import allocate
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    density,
    difference,
    intersection,
    layer_counts,
    random_masks,
    union,
)
from sup_tickets.pruning import cubic_pruner, merged, without
from sup_tickets.saliency import ScoreFunction, Signals, by_gradient, by_magnitude
from sup_tickets.schedules import update_due
from sup_tickets.tickets import TicketPlan
from sup_tickets.topology import rewire
from sup_tickets.trees import RuleLike, default_rule, map_named, named_leaves
from sup_tickets.types import Masks, Number, Params, Schedule


class MethodState(NamedTuple):
    """What a method carries from step to step."""

    masks: Masks  # active weights
    key: jax.Array  # raw, uint32; an update at step t draws from fold_in(key, t)
    ever_active: Masks | None = None  # union of all masks so far (ITOP), if tracked
    momentum: Params | None = None  # running average of the dense gradients (SNFS)


class Change(NamedTuple):
    """The result of a topology update."""

    params: Params  # exactly 0 where inactive or newly grown, else as they were
    state: MethodState
    grown: Masks  # active now, not before: their optimizer slots must be 0


class Method(NamedTuple):
    """A method of sparse training: a name, numbers and pure functions."""

    name: str
    sparsity: float  # of all sparse leaves, at the end of the method's schedule
    init: Callable[[jax.Array, Params], MethodState]  # (key, params)
    update: Callable[..., Change]  # (state, params, gradients, step)
    explore: Callable[..., Change]  # (state, params, gradients, step, fraction)
    observe: Callable[[MethodState, Params], MethodState]  # (state, dense gradients)
    due: Callable[[Number], Any]  # completed steps -> does the topology change now?
    update_every: int  # steps; 0 if never
    consumes_step: bool  # the update replaces the next weight step (RigL)
    observes: bool  # whether `observe` does anything
    settled_step: int = 0  # of the update that meets the sparsity; 0 if from the start


def dynamic(
    name: str,
    *,
    sparsity: float,
    distribution: str | Callable[..., Any] = "erk",
    distribution_options: dict[str, Any] | None = None,
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
    update_every: int = 100,
    begin_step: int | None = None,
    end_step: int | None = None,
    drop_fraction: Number | Schedule = 0.3,
    drop_score: ScoreFunction = by_magnitude,
    grow_score: ScoreFunction = by_gradient,
    rounding: str = "floor",
    regrow_dropped: bool = True,
    redistribute: bool = False,
    track_exploration: bool = False,
    prefer_unexplored: bool = False,
    momentum_decay: float | None = None,
    initial_sparsity: float | None = None,
    prune_begin_step: int = 0,
    prune_end_step: int | None = None,
    prune_scope: str = "global",
    rewires: bool = True,
    consumes_step: bool = False,
) -> Method:
    """A method of dynamic sparse training from its parts.

    Args:
      name: what to call it in reports.
      sparsity: in [0, 1), of all sparse leaves together, at the end.
      distribution: how the active weights are shared out between layers at the start,
        see `allocate`.
      distribution_options: further arguments of the distribution.
      where: which leaves are sparse, see `sparse_leaves`.
      dense: expressions of sparse leaves that stay fully dense; they count in the
        sparsity and are never pruned by the method.
      update_every: steps between topology updates; 0 for never.
      begin_step: first step that may have an update; ``update_every`` by default.
      end_step: last step that may have an update; by default there is no end.
      drop_fraction: of each layer's active weights, in [0, 1], or a schedule of it.
      drop_score, grow_score: score functions of `saliency.Signals`.
      rounding: of the number dropped, "floor" (RigL, SET) or "ceil" (ITOP, GraNet).
      regrow_dropped: whether weights just dropped may be grown again, as in the
        reference implementations.
      redistribute: whether layers grow in proportion to the mean magnitude of the
        gradient average over their active weights (SNFS); needs ``momentum_decay``.
      track_exploration: whether to keep the union of all masks (ITOP).
      prefer_unexplored: whether never-active places grow first; implies tracking.
      momentum_decay: of a running average of the dense gradients, observed at every
        step; ``None`` keeps none.
      initial_sparsity: at the start, where the network is pruned on the way to
        ``sparsity`` along the cubic schedule; by default it starts at ``sparsity``.
      prune_begin_step, prune_end_step: the window of the cubic schedule; at the last
        update in it the target count is met exactly.
      prune_scope: "global" or "layer": what is compared when pruning, see
        `cubic_pruner`.
      rewires: whether updates drop and grow at all; if not they only prune.
      consumes_step: whether an update replaces the weight step, as RigL's does, or
        comes before it.

    Raises:
      ValueError: naming an argument outside its range.
    """
    check_sparsity(sparsity)
    if update_every < 0:
        raise ValueError(f"update_every must be 0 (never) or more, got {update_every}")
    if not callable(drop_fraction):
        check_fraction(drop_fraction, "drop_fraction")
    if redistribute and momentum_decay is None:
        raise ValueError("redistribute=True needs momentum_decay, got None")
    if momentum_decay is not None:
        check_fraction(momentum_decay, "momentum_decay")
    check_one_of("rounding", rounding, ("floor", "nearest", "ceil"))
    tracks = track_exploration or prefer_unexplored
    fraction_at = drop_fraction if callable(drop_fraction) else lambda _: drop_fraction
    if update_every:
        due = update_due(every=update_every, begin=begin_step, end=end_step)
    else:
        due = _never_due
    prune, settled = None, 0
    if initial_sparsity is not None:
        first = update_every if begin_step is None else begin_step
        ends = [end for end in (prune_end_step, end_step) if end is not None]
        settled = _last_update(update_every, first, prune_begin_step, ends)
        prune = cubic_pruner(
            initial_sparsity,
            sparsity,
            begin_step=prune_begin_step,
            last_step=settled,
            scope=prune_scope,
            dense=dense,
        )

    def init(key: jax.Array, params: Params) -> MethodState:
        if prune is not None:  # the end must be possible too
            allocate(
                params,
                sparsity=sparsity,
                distribution="uniform",
                where=where,
                dense=dense,
            )
        counts = allocate(
            params,
            sparsity=sparsity if initial_sparsity is None else initial_sparsity,
            distribution=distribution,
            where=where,
            dense=dense,
            **(distribution_options or {}),
        )
        draw, keep = jax.random.split(key)
        masks = random_masks(draw, params, counts)
        average = None
        if momentum_decay is not None:
            average = jax.tree.map(
                lambda w, m: None if m is None else jnp.zeros_like(w), params, masks
            )
        keep = jax.random.key_data(keep)  # savers know no typed keys
        return MethodState(masks, keep, masks if tracks else None, average)

    def observe(state: MethodState, gradients: Params) -> MethodState:
        if momentum_decay is None:
            return state
        decay, finite = momentum_decay, all_finite(gradients)
        average = jax.tree.map(
            lambda m, g: jnp.where(finite, _running_average(m, g, decay), m),
            state.momentum,
            _at_leaves_of(state.momentum, gradients),
        )
        return state._replace(momentum=average)

    def change(
        state: MethodState,
        params: Params,
        gradients: Params | None,
        step: Number,
        fraction: Number,
        rounding: Any,
    ) -> Change:
        key = jax.random.wrap_key_data(state.key)
        drop_key, grow_key = jax.random.split(jax.random.fold_in(key, step))
        signals = Signals(params, state.masks, gradients, state.momentum, drop_key)
        free = without(state.masks, dense)
        changed = rewire(
            params,
            free,
            drop_scores=drop_score(signals),
            grow_scores=grow_score(signals._replace(key=grow_key)),
            fraction=fraction,
            rounding=rounding,
            regrow_dropped=regrow_dropped,
            prefer=_never(state.ever_active) if prefer_unexplored else None,
            shares=_shares(free, state.momentum) if redistribute else None,
        )
        masks = merged(params, state.masks, changed.masks)
        grown = difference(masks, state.masks)
        return Change(changed.params, _with_masks(state, masks), grown)

    def update(
        state: MethodState, params: Params, gradients: Params | None, step: Number
    ) -> Change:
        check_masks(params, state.masks)
        pruned, now = params, state
        if prune is not None:
            pruned, masks = prune(params, state.masks, step)
            now = state._replace(masks=masks)
        if rewires:
            fraction = fraction_at(step)
            now = change(now, pruned, gradients, step, fraction, rounding).state
        # What is active before and after keeps its value, however it got there.
        grown = difference(now.masks, state.masks)
        kept = intersection(state.masks, now.masks)
        return Change(apply_masks(kept, params), now, grown)

    def explore(
        state: MethodState,
        params: Params,
        gradients: Params | None,
        step: Number,
        fraction: Number,
    ) -> Change:
        check_fraction(fraction)
        # Rounded up as in the Sup-tickets release, for every method alike.
        return change(state, params, gradients, step, fraction, "ceil")

    return Method(
        name=name,
        sparsity=sparsity,
        init=init,
        update=update,
        explore=explore,
        observe=observe,
        due=due,
        update_every=update_every,
        consumes_step=consumes_step,
        observes=momentum_decay is not None,
        settled_step=settled,
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether every value of every leaf is finite, bool scalar."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.ones((), bool)


def starting_from(state: MethodState, params: Params, masks: Masks) -> MethodState:
    """The state at the start, of a method that starts with given masks.

    Args:
      state: of the method's ``init``.
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
    average = state.momentum
    if average is not None:
        average = jax.tree.map(
            lambda w, m: None if m is None else jnp.zeros_like(w), params, whole
        )
    ever = None if state.ever_active is None else whole
    return state._replace(masks=whole, ever_active=ever, momentum=average)


def scheduled(method: Method, step: Number, tickets: TicketPlan | None = None) -> Any:
    """Whether the method's own schedule changes the topology after ``step`` steps.

    Cheap tickets train with frozen masks, so from their first step on it never does;
    nor shortly before (a quarter of the interval), because an exploration would drop
    first of all the weights that have only just been grown.

    Args:
      method: the method.
      step: number of completed steps, Python or traced.
      tickets: the plan of the cheap-ticket phase, if there is one.

    Raises:
      ValueError: if the method is still pruning when the tickets begin.
    """
    due = method.due(step)
    if tickets is None or not tickets.cycles:
        return due
    if method.settled_step >= tickets.phase1_steps:
        raise ValueError(
            f"method {method.name!r} prunes until step {method.settled_step}, but the "
            f"tickets begin at phase1_steps={tickets.phase1_steps}; "
            "prune_end_step must be below it"
        )
    last = max(method.settled_step, tickets.phase1_steps - method.update_every // 4 - 1)
    return due & (step <= last)


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


# --- Parts ----------------------------------------------------------------------------


def _with_masks(state: MethodState, masks: Masks) -> MethodState:
    ever = state.ever_active
    ever = None if ever is None else union(ever, masks)
    return state._replace(masks=masks, ever_active=ever)


def _never(ever_active: Masks | None) -> Masks:
    return jax.tree.map(jnp.logical_not, ever_active)


def _shares(masks: Masks, momentum: Params | None) -> Any:
    """Mean magnitude of the averaged gradient over each layer's active weights."""

    def share(mask: jax.Array, average: jax.Array, n: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.abs(apply_masks(mask, average)).astype(jnp.float32))
        return total / jnp.maximum(n, 1).astype(jnp.float32)

    average = _at_leaves_of(masks, momentum)
    return jax.tree.map(share, masks, average, layer_counts(masks))


def _last_update(every: int, first: int, begin: int, ends: Sequence[int]) -> int:
    """The last update of the pruning window: at or before all ``ends``."""
    if every < 1:
        raise ValueError(f"a method that prunes needs update_every >= 1, got {every}")
    end = min(ends, default=-1)
    last = first + (end - first) // every * every
    if end < first or last <= begin:
        raise ValueError(
            "prune_end_step must leave an update (every "
            f"{every} steps from {first}) after prune_begin_step={begin}, got "
            f"{ends[0] if ends else None}"
        )
    return last


def _running_average(average: jax.Array, new: jax.Array, decay: float) -> jax.Array:
    return (decay * average + (1 - decay) * new.astype(average.dtype)).astype(
        average.dtype
    )


def _at_leaves_of(tree: Any, other: Any) -> Any:
    """``other`` with ``None`` where ``tree`` has it."""
    return jax.tree.map(lambda o, t: None if t is None else o, other, tree)


def _never_due(step: Number) -> Any:
    return jnp.zeros(jnp.shape(step), bool) if isinstance(step, jax.Array) else False
