"""The state of a training run: everything that a step reads and writes."""

import functools
from typing import Any, NamedTuple

import chex
import flax.struct
import jax

from sup_tickets.iterate_averaging import averaged_params, is_averaging
from sup_tickets.superposition import SuperpositionState
from sup_tickets.types import Masks, Number, Params
from sup_tickets.updates import MethodState
from sup_tickets.views.view import (
    View,
    seen_network,
    trainable,
    with_trained,
)


class TrainState(flax.struct.PyTreeNode):
    """One pytree; the compiled steps donate it.

    Invariant: weights are exactly 0, and their optimizer slots as at the start,
    wherever ``method.masks`` is False.
    """

    step: jax.Array  # [] int32, completed steps; a step RigL consumed is one of them
    params: Params
    model_state: chex.ArrayTree  # of the network: running statistics; {} without
    opt_state: Any
    method: MethodState  # masks, and what else the method carries
    key: jax.Array  # never changes; step t draws from fold_in(key, t)
    carry: Any = None  # from batch to batch, if the task says so: a hidden state
    view: Any = None  # the `Extra` that a view keeps beside the weights


class RunState(flax.struct.PyTreeNode):
    """All that a run carries from step to step, and all that a checkpoint holds.

    The position in the data is not in it: a batch is a function of the step.
    """

    train: TrainState
    average: SuperpositionState | None = None  # from the end of phase 1 on


class Network(flax.struct.PyTreeNode):
    """A trained network, live or superposed: what is evaluated and saved."""

    params: Params
    model_state: chex.ArrayTree
    masks: Masks


class Start(NamedTuple):
    """What a run starts with, where that is not all drawn from its key."""

    params: Params  # dense; what the task has besides is drawn
    model_state: Any
    masks: Masks | None  # by default the method's own
    step: Number = 0  # completed already


def network_of(state: TrainState, view: View | None = None) -> Network:
    """The live network, of averaged weights where the optimizer has them.

    With a view it is what the forward pass sees, masked where that is 0.

    Its buffers are donated with the state at the next step.

    Args:
      state: of the run.
      view: that it is trained with.
    """
    params, masks = state.params, state.method.masks
    if view is not None:
        params, masks = _seen(view, state)
    elif is_averaging(state.opt_state):
        params = jax.jit(averaged_params)(params, state.opt_state)
    return Network(params=params, model_state=state.model_state, masks=masks)


@functools.partial(jax.jit, static_argnums=0)
def _seen(view: View, state: TrainState) -> tuple[Params, Masks]:
    params, extra = state.params, state.view
    if is_averaging(state.opt_state):
        trained = trainable(view, params, extra)
        trained = averaged_params(trained, state.opt_state)
        params, extra = with_trained(params, extra, trained)
    return seen_network(view, params, extra, state.method.masks)


def as_trees(network: Network) -> tuple[Any, Any]:
    """Weights with their masks, and model state, which has none, as one network."""
    none = jax.tree.map(lambda _: None, network.model_state)
    return (
        {"params": network.params, "model_state": network.model_state},
        {"params": network.masks, "model_state": none},
    )


def from_trees(tree: Any, masks: Any) -> Network:
    """The inverse of `as_trees`."""
    return Network(
        params=tree["params"], model_state=tree["model_state"], masks=masks["params"]
    )


def completed(tree: Any, drawn: Any) -> Any:
    """``tree`` with what only ``drawn`` has; nested dicts.

    Args:
      tree: part of a network.
      drawn: of the whole network.
    """
    if not isinstance(drawn, dict) or not isinstance(tree, dict):
        return tree
    both = dict(tree)
    for name, part in drawn.items():
        both[name] = completed(tree[name], part) if name in tree else part
    return both
