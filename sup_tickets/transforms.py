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
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import check_fraction
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
from sup_tickets.sparse_state import SparseTrainingState, in_own_buffers, is_ours
from sup_tickets.tickets import TicketPlan
from sup_tickets.tree_checks import check_auto_axes, check_same_names
from sup_tickets.types import Masks, Number, Params
from sup_tickets.update_times import scheduled
from sup_tickets.updates import (
    all_finite,
    explore_topology,
    observe_gradients,
    update_topology,
)


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
    Adam, stay. It is chosen inside the optimizer's step whether they do, so RigL costs
    what any other method does.

    What a step costs over the plain optimizer is a byte a weight for each array that is
    written, and on a CPU nothing else between topology updates: 1.1 to 1.2 times plain
    SGD or Adam, whatever the method. A few optimizers whose slots do not start at 0 and
    are not computed weight by weight (`optax.contrib.dog`, ``madgrad``) copy them at
    each step. Donate state and parameters, as without `sparse_training`.

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
        return in_own_buffers(state, params)

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
            replaced=replaced if method.consumes_step and not method.fixed else None,
            **extra,
        )
        # Whatever finite value stood at an inactive weight, it is 0 after the update;
        # one that begins anew has come to its first update.
        anew = jax.tree.map(
            lambda u, p: u - p.astype(u.dtype), apply_masks(masks, updates), params
        )
        updates = choose(kept, updates, anew)
        return updates, after._replace(inner=inner)

    return optax.GradientTransformationExtraArgs(init, update)


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


def _check_optimizer_and_plan(tx: Any, tickets: Any) -> None:
    if isinstance(tx, type) or not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ValueError(
            f"tx must be an optimizer, such as optax.sgd(0.1), got a "
            f"{type(tx).__name__}"
        )
    if not (tickets is None or isinstance(tickets, TicketPlan)):
        raise ValueError(f"tickets must be a TicketPlan or None, got {tickets!r}")


def _check_arguments(gradients: Any, state: Any, params: Params) -> None:
    if not is_ours(state):
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
    check_auto_axes("params", params)


def _check_innermost(inner: Any) -> None:
    if any(is_ours(leaf) for leaf in jax.tree.leaves(inner, is_leaf=is_ours)):
        raise ValueError(
            "sparse_training cannot wrap sparse_training; one of the two is enough"
        )
