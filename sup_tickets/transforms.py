"""Sparse training in anybody's Optax loop.

    tx = sparse_training(optax.sgd(0.1, momentum=0.9), rigl(sparsity=0.9))
    state = tx.init(params)
    params = keep_sparse(params, state)
    ...
    updates, state = tx.update(gradients, state, params)  # dense gradients, as always
    params = optax.apply_updates(params, updates)
    params = keep_sparse(params, state)

The masks live in the optimizer's state, so that whatever saves the state saves them.
The topology update is part of the jitted step; its ``cond`` returns the masks alone,
because one that returned the moments would copy them at every step.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import check_fraction
from sup_tickets.clocks import only_time_goes_on
from sup_tickets.dynamic import Method
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    choose,
    difference,
    intersection,
)
from sup_tickets.method_state import MethodState, init_topology
from sup_tickets.methods import METHODS, make_method
from sup_tickets.slots import check_optimizer, reset_slots, step_with_slots
from sup_tickets.tickets import TicketPlan
from sup_tickets.timing import scheduled
from sup_tickets.tree_checks import check_same_names
from sup_tickets.trees import map_named, named_leaves
from sup_tickets.types import Masks, Number, Params
from sup_tickets.updates import (
    all_finite,
    explore_topology,
    observe_gradients,
    update_topology,
)


class SparseTrainingState(NamedTuple):
    """State of `sparse_training`: arrays alone, no two of them in one buffer."""

    step: jax.Array  # calls of update so far, int32 scalar
    method: MethodState  # masks and what else the method carries
    inner: Any  # state of the wrapped optimizer; slots of inactive weights are as new
    update_waits: jax.Array  # [] bool: an update waits for gradients that are finite
    explore_waits: jax.Array  # [] bool: so does an exploration


def sparse_training(
    tx: optax.GradientTransformation,
    method: Method | str,
    *,
    key: jax.Array | int = 0,
    tickets: TicketPlan | None = None,
    explore_fraction: Number = 0.5,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Trains sparsely with any Optax optimizer and any method.

    Give ``update`` the dense gradients at parameters that are 0 where inactive. After
    `optax.apply_updates` the parameters of inactive weights are exactly 0. After every
    update each per-weight slot of theirs is what ``tx.init`` gives, see `reset_slots`,
    so that grown weights start with new ones. What several weights share (factors,
    rows, norms, step counters) goes on.

    A topology update looks at the dense gradients given and comes before the weight
    step, which then uses them under the new masks. RigL's *replaces* the weight step,
    as in the official code: time goes on, the optimizer does not. The step, and with
    it every learning-rate schedule of Optax (`optax.inject_hyperparams` too), advances;
    weights, slots and the optimizer's own counters, such as the bias correction of
    Adam, stay. To leave the slots alone costs a copy of them on a CPU, at every step,
    so there an optimizer is some times slower under RigL; ``rigl(consumes_step=False)``
    costs no more than any other method.

    Gradients with a value that is not finite are not observed (SNFS), and the topology
    does not change by them: what is due waits for the next that are finite. The weight
    step is the optimizer's affair; `optax.apply_if_finite` may be within or around.

    With ``tickets``, the first step of each cheap-ticket cycle explores (drops and
    regrows ``explore_fraction`` by the method's own scores, before the weight step) and
    the topology stays frozen in between. Collect a ticket for `superposition` wherever
    ``tickets.ticket_due(step)``; give the optimizer `cheap_ticket_schedule`.

    Where only a part is trained, the method's ``where`` should name no frozen leaf; or
    wrap the optimizer of that part alone, within `optax.partition` or `optax.masked`.

    Two optimizers with the same key draw the same masks, and so do all members of
    ``jax.vmap(tx.init)``. Members that differ are drawn by::

        jax.vmap(lambda key: sparse_training(tx, method, key=key).init(params))(keys)

    Args:
      tx: any Optax optimizer but the few that ``init`` refuses.
      method: a method of sparse training, or the name of a preset, `METHODS`.
      key: a random key, typed or raw, consumed; or a seed; may be traced.
      tickets: the plan of the cheap-ticket phase, if there is one.
      explore_fraction: of each layer's active weights, in [0, 1].
      **options: of the preset, if ``method`` is a name.

    Raises:
      ValueError: for what is neither a method nor the name of one with its options, or
        no optimizer, or no plan; if the fraction is outside [0, 1]; by ``init`` for an
        optimizer that cannot be wrapped, with what to do instead; by ``update`` without
        parameters, with a state of another optimizer, or with gradients or masks that
        are not those of the parameters.
    """
    _check_optimizer_and_plan(tx, tickets)
    method = _method(method, options)
    check_fraction(explore_fraction, "explore_fraction")
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> Any:
        _check_params(params)
        topology = init_topology(method, key, params)
        live = apply_masks(topology.masks, params)
        inner = tx.init(live)
        check_optimizer(tx, topology.masks, inner, params)
        _check_innermost(inner)
        never = jnp.zeros((), bool)
        state = SparseTrainingState(jnp.int32(0), topology, inner, never, never)
        return _in_own_buffers(state, params)

    def update(
        updates: Params,  # Optax's name for what comes in; the dense gradients here
        state: Any,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("sparse_training needs update(gradients, state, params)")
        _check_arguments(updates, state, params)
        gradients = updates
        after, kept, replaced = _topology_step(
            method, tickets, explore_fraction, state, params, gradients
        )
        masks = after.method.masks
        # Masked going in, where it costs nothing: weights that have just been dropped
        # must not enter norms and factors that others share.
        before = reset_slots(tx, kept, state.inner, params)
        updates, inner = step_with_slots(
            tx,
            masks,
            apply_masks(masks, gradients),
            before,
            apply_masks(kept, params),
            **extra,
        )
        if method.consumes_step and not method.fixed:
            inner = only_time_goes_on(replaced, inner, before)
            updates = jax.tree.map(
                lambda u: jnp.where(replaced, jnp.zeros_like(u), u), updates
            )
        # Whatever finite value stood at an inactive weight, it is 0 after the update;
        # one that begins anew has come to its first update.
        anew = jax.tree.map(
            lambda u, p: u - p.astype(u.dtype), apply_masks(masks, updates), params
        )
        updates = choose(kept, updates, anew)
        return updates, after._replace(inner=inner)

    return optax.GradientTransformationExtraArgs(init, update)


def keep_sparse(params: Params, opt_state: Any) -> Params:
    """``params`` with exactly 0 at every weight that the optimizer's masks leave out.

    Call it once after ``init``; after each update it guards against transformations
    outside `sparse_training` that move inactive weights. The masks are found by the
    names of the leaves, so the state may be of another container: ``params`` may be a
    whole Equinox model, and with Flax NNX it is done in place by::

        nnx.update(model, keep_sparse(nnx.state(model, nnx.Param), optimizer.opt_state))

    Args:
      params: pytree of arrays, or the `optax.LookaheadParams` of two.
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.

    Raises:
      ValueError: see `masks_of`.
    """
    if isinstance(params, optax.LookaheadParams):
        return optax.LookaheadParams(*(keep_sparse(p, opt_state) for p in params))
    return apply_masks(masks_of(opt_state, like=params), params)


def masks_of(opt_state: Any, like: Params | None = None) -> Masks:
    """The masks inside an optimizer state.

    Args:
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.
      like: parameters. With them the masks have their structure, leaf by leaf of the
        same name: for Flax NNX, whose optimizer renames the containers, and for
        `optax.partition`, where each part may hold masks of its own; a leaf that no
        part masks has ``None``.

    Raises:
      ValueError: if there is no such state; if there are several, without ``like`` or
        with masks of the same leaf; if ``like`` lacks a leaf that has a mask.
    """
    if like is None:
        return method_state_of(opt_state).masks
    found: dict[str, Any] = {}
    for state in _states_in(opt_state):
        for name, mask in named_leaves(state.method.masks):
            if name in found:
                raise ValueError(f"opt_state holds two masks of leaf {name!r}")
            found[name] = mask
    masks = map_named(lambda name, _: found.pop(name, None), like)
    if found:
        raise ValueError(
            f"opt_state has a mask of leaf {min(found)!r} that params lacks"
        )
    check_masks(like, masks)
    return masks


def method_state_of(opt_state: Any) -> MethodState:
    """The method's state inside an optimizer state.

    Args:
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.

    Raises:
      ValueError: unless there is exactly one.
    """
    found = _states_in(opt_state)
    if len(found) > 1:
        raise ValueError(
            "opt_state must hold exactly one SparseTrainingState, found "
            f"{len(found)}; ask masks_of(opt_state, like=params) for all their masks"
        )
    return found[0].method


def _states_in(opt_state: Any) -> list[SparseTrainingState]:
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_ours)
    found = [leaf for leaf in leaves if _is_ours(leaf)]
    if not found:
        raise ValueError(
            "opt_state must hold exactly one SparseTrainingState, found 0; "
            "wrap the whole optimizer in sparse_training"
        )
    return found


# --- Parts ----------------------------------------------------------------------------


def _topology_step(
    method: Method,
    tickets: TicketPlan | None,
    explore_fraction: Number,
    state: SparseTrainingState,
    params: Params,
    gradients: Params,
) -> tuple[SparseTrainingState, Masks, jax.Array]:
    """The state before the optimizer's step; what is kept; if it replaces the step.

    What is kept has its value and its slots. They are those of the active weights, but
    for what an update pruned and grew again as new.
    """
    step, topology = state.step, state.method
    kept = topology.masks
    waits, explore_waits = state.update_waits, state.explore_waits
    replaced = jnp.zeros((), bool)
    if not method.fixed:
        due = waits | scheduled(method, step, tickets)
        change = partial(update_topology, method, topology, params, gradients, step)
        topology, kept, done = _change_if(
            due, change, topology, gradients, restarts=method.restarts
        )
        waits = due & ~done
        replaced = done & method.consumes_step
    if tickets is not None and tickets.cycles:
        due = explore_waits | tickets.explore_due(step)
        change = partial(
            explore_topology,
            method,
            topology,
            params,
            gradients,
            step,
            explore_fraction,
        )
        restarted = kept
        topology, kept, done = _change_if(due, change, topology, gradients)
        if method.restarts:
            kept = intersection(restarted, kept)
        explore_waits = due & ~done
    topology = observe_gradients(method, topology, gradients)
    after = SparseTrainingState(step + 1, topology, state.inner, waits, explore_waits)
    return after, kept, replaced


def _change_if(
    due: jax.Array,
    change: Any,
    topology: MethodState,
    gradients: Params,
    *,
    restarts: bool = False,
) -> tuple[MethodState, Masks, jax.Array]:
    """The topology after a change that is due; what goes on as before; if it changed.

    Without finite gradients there is none. The ``cond`` returns masks alone, and as few
    as it can: at every step they are copied.
    """
    masks = topology.masks
    before = masks, masks if restarts else None, topology.ever_active

    def changed() -> tuple[Any, jax.Array]:
        _, state, grown = change()
        kept = difference(state.masks, grown) if restarts else None
        after = state.masks, kept, state.ever_active
        finite = all_finite(gradients)
        return jax.tree.map(partial(jnp.where, finite), after, before), finite

    def same() -> tuple[Any, jax.Array]:
        return before, jnp.zeros((), bool)

    (new, kept, ever_active), done = jax.lax.cond(due, changed, same)
    # Weights that were inactive are as new already: their slots, and 0 themselves.
    kept = kept if restarts else new
    topology = topology._replace(masks=new, ever_active=ever_active)
    return topology, kept, done


def _method(method: Any, options: dict[str, Any]) -> Method:
    """The method that was named or given."""
    if isinstance(method, str):
        return make_method(method, **options)
    for name, preset in METHODS.items():
        if method is preset:
            raise ValueError(
                f"method must be a Method or a name, got the function {name!r}; call "
                f"it, or give {name!r} and its options"
            )
    if not isinstance(method, Method):
        raise ValueError(f"method must be a Method or a name, got {method!r}")
    if options:
        raise ValueError(
            f"options are for a method given by its name, got {sorted(options)} "
            f"with {method.name!r}; use Method.replace"
        )
    return method


def _in_own_buffers(state: Any, params: Params) -> Any:
    """``state`` as it is, copied where it shares an array with itself or the params.

    What is shared cannot be donated.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def own(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, state)


def _check_optimizer_and_plan(tx: Any, tickets: Any) -> None:
    if isinstance(tx, type) or not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ValueError(
            f"tx must be an optimizer, such as optax.sgd(0.1), got a "
            f"{type(tx).__name__}"
        )
    if not (tickets is None or isinstance(tickets, TicketPlan)):
        raise ValueError(f"tickets must be a TicketPlan or None, got {tickets!r}")


def _check_arguments(gradients: Any, state: Any, params: Params) -> None:
    if not _is_ours(state):
        raise ValueError(
            "sparse_training needs the state that its own init gives, got a "
            f"{type(state).__name__}"
        )
    given, wanted = check_same_names("gradients", gradients, "params", params)
    for name, leaf in wanted.items():
        shapes = [getattr(x, "shape", None) for x in (given[name], leaf)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"gradients has shape {shapes[0]} at leaf {name!r}, where params has "
                f"{shapes[1]}"
            )
    check_masks(params, state.method.masks)


def _check_params(params: Params) -> None:
    if isinstance(params, optax.LookaheadParams):
        raise ValueError(
            "sparse_training cannot wrap optax.lookahead, which has two copies of "
            "every parameter; put it outside: "
            "optax.lookahead(sparse_training(tx, method), sync_period, slow_step_size)"
        )


def _check_innermost(inner: Any) -> None:
    if any(_is_ours(leaf) for leaf in jax.tree.leaves(inner, is_leaf=_is_ours)):
        raise ValueError(
            "sparse_training cannot wrap sparse_training; one of the two is enough"
        )


def _is_ours(leaf: Any) -> bool:
    return isinstance(leaf, SparseTrainingState)
