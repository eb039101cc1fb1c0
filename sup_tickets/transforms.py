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
from sup_tickets.dynamic import Method, scheduled
from sup_tickets.masks import apply_masks, choose, difference
from sup_tickets.methods import METHODS, make_method
from sup_tickets.tickets import TicketPlan
from sup_tickets.types import Masks, Number, Params
from sup_tickets.updates import (
    MethodState,
    explore_topology,
    init_topology,
    observe_gradients,
    update_topology,
)


class SparseTrainingState(NamedTuple):
    """State of `sparse_training`."""

    step: jax.Array  # calls of update so far, int32 scalar
    method: MethodState  # masks and what else the method carries
    inner: Any  # state of the wrapped optimizer; slots of inactive weights are 0


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
    `optax.apply_updates` the parameters of inactive weights are exactly 0, and so is
    every slot of the optimizer shaped like a parameter, as long as the optimizer keeps
    at 0 what is 0 in gradient, slot and parameter (all do that add no noise).

    A topology update looks at the dense gradients given and comes before the weight
    step, which then uses them under the new masks. RigL's replaces the weight step:
    weights and slots stay, while step counters, and with them learning-rate schedules,
    go on. To leave the slots alone costs a copy of them on a CPU, at every step, so
    there an optimizer is some times slower under RigL; ``rigl(consumes_step=False)``
    costs no more than any other method.

    With ``tickets``, the first step of each cheap-ticket cycle explores (drops and
    regrows ``explore_fraction`` by the method's own scores, before the weight step) and
    the topology stays frozen in between. Collect a ticket for `superposition` wherever
    ``tickets.ticket_due(step)``; give the optimizer `cheap_ticket_schedule`.

    Args:
      tx: any Optax optimizer whose slots `optax.tree.map_params` can find (L-BFGS is
        not among them).
      method: a method of sparse training, or the name of a preset, `METHODS`.
      key: a random key, typed or raw, consumed; or a seed.
      tickets: the plan of the cheap-ticket phase, if there is one.
      explore_fraction: of each layer's active weights, in [0, 1].
      **options: of the preset, if ``method`` is a name.

    Raises:
      ValueError: for what is neither a method nor the name of one with its options; if
        the fraction is outside [0, 1]; by ``update`` without parameters.
    """
    method = _method(method, options)
    check_fraction(explore_fraction, "explore_fraction")
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> Any:
        state = init_topology(method, key, params)
        inner = tx.init(apply_masks(state.masks, params))
        return SparseTrainingState(
            jnp.int32(0), state, mask_slots(tx, state.masks, inner)
        )

    def update(
        updates: Params,  # Optax's name for what comes in; the dense gradients here
        state: Any,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("sparse_training needs update(gradients, state, params)")
        step, gradients = state.step, updates
        topology = state.method
        kept = topology.masks  # active before and now, with their values and slots
        replaced = jnp.zeros((), bool)
        if not method.fixed:
            due = scheduled(method, step, tickets)
            change = partial(update_topology, method)
            topology, kept = _change_if(due, change, topology, params, gradients, step)
            replaced = due & method.consumes_step
        if tickets is not None and tickets.cycles:
            explore = partial(explore_topology, method, fraction=explore_fraction)
            due = tickets.explore_due(step)
            topology, kept = _change_if(due, explore, topology, params, gradients, step)
        topology = observe_gradients(method, topology, gradients)
        masks = topology.masks
        # Masked going in, where it costs nothing: what is 0 for the optimizer stays 0.
        updates, inner = tx.update(
            apply_masks(masks, gradients),
            mask_slots(tx, kept, state.inner),
            apply_masks(kept, params),
            **extra,
        )
        if method.consumes_step and not method.fixed:
            inner = _restore_slots(
                tx, replaced, inner, mask_slots(tx, kept, state.inner)
            )
            updates = jax.tree.map(
                lambda u: jnp.where(replaced, jnp.zeros_like(u), u), updates
            )
        # Whatever finite value stood at an inactive weight, it is 0 after the update;
        # one that begins anew has come to its first update.
        anew = jax.tree.map(
            lambda u, p: u - p.astype(u.dtype), apply_masks(masks, updates), params
        )
        updates = choose(kept, updates, anew)
        return updates, SparseTrainingState(step + 1, topology, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def keep_sparse(params: Params, opt_state: Any) -> Params:
    """``params`` with exactly 0 at every weight that the optimizer's masks leave out.

    Call it once after ``init``; after each update it guards against transformations
    outside `sparse_training` that move inactive weights.

    Args:
      params: pytree of arrays.
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.
    """
    return apply_masks(masks_of(opt_state), params)


def masks_of(opt_state: Any) -> Masks:
    """The masks inside an optimizer state.

    Args:
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.

    Raises:
      ValueError: unless there is exactly one.
    """
    return method_state_of(opt_state).masks


def method_state_of(opt_state: Any) -> MethodState:
    """The method's state inside an optimizer state.

    Args:
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.

    Raises:
      ValueError: unless there is exactly one.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_ours)
    found = [leaf for leaf in leaves if _is_ours(leaf)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state must hold exactly one SparseTrainingState, found {len(found)}; "
            "wrap the whole optimizer in sparse_training"
        )
    return found[0].method


def mask_slots(tx: Any, masks: Masks, opt_state: Any) -> Any:
    """``opt_state`` with exactly 0 in every slot of an inactive weight.

    Args:
      tx: the Optax optimizer that the state belongs to.
      masks: the active weights.
      opt_state: its state. Slots shaped unlike their parameter stay as they are.
    """

    def clear(slot: Any, mask: Any) -> Any:
        if mask is None or getattr(slot, "shape", None) != mask.shape:
            return slot
        return apply_masks(mask, slot)

    return optax.tree.map_params(tx, clear, opt_state, masks, is_leaf=_is_placeholder)


def _restore_slots(tx: Any, replaced: jax.Array, new: Any, old: Any) -> Any:
    """The old slots if the weight step was replaced; counters are always new.

    Those of `optax.MultiSteps` excepted: it must not count what it did not accumulate.
    """
    is_slot = optax.tree.map_params(
        tx,
        lambda slot: slot if _is_placeholder(slot) else True,
        new,
        transform_non_params=lambda _: False,
        is_leaf=_is_placeholder,
    )
    is_slot = jax.tree.map(
        lambda state, flags: (
            jax.tree.map(lambda _: True, state) if _accumulates(state) else flags
        ),
        new,
        is_slot,
        is_leaf=_accumulates,
    )
    return jax.tree.map(
        lambda slot, n, o: jnp.where(replaced, o, n) if slot else n, is_slot, new, old
    )


def _change_if(
    due: Any,
    change: Any,
    topology: MethodState,
    params: Params,
    gradients: Params,
    step: jax.Array,
) -> tuple[MethodState, Masks]:
    """The topology after a change that is due, and which weights go on as they were.

    The ``cond`` returns masks alone.
    """

    def changed() -> tuple[Masks, Masks, Masks]:
        _, state, grown = change(topology, params, gradients, step)
        return state.masks, difference(state.masks, grown), state.ever_active

    masks, kept, ever_active = jax.lax.cond(
        due, changed, lambda: (topology.masks, topology.masks, topology.ever_active)
    )
    return topology._replace(masks=masks, ever_active=ever_active), kept


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


def _is_placeholder(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _accumulates(leaf: Any) -> bool:
    return isinstance(leaf, optax.MultiStepsState)


def _is_ours(leaf: Any) -> bool:
    return isinstance(leaf, SparseTrainingState)
