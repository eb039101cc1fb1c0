"""The state of a training run: everything that a step reads and writes."""

from typing import Any

import flax.struct
import jax

from sup_tickets.superposition import SuperpositionState
from sup_tickets.types import Params
from sup_tickets.updates import MethodState


class TrainState(flax.struct.PyTreeNode):
    """One pytree; the steps of `make_steps` donate it.

    Invariant: weights, and optimizer slots shaped like them, are exactly 0 wherever
    ``method.masks`` is False.
    """

    step: jax.Array  # [] int32, completed steps; a step RigL consumed is one of them
    params: Params
    batch_stats: Any  # running statistics of batch norm, {} without
    opt_state: Any
    method: MethodState  # masks, and what else the method carries
    key: jax.Array  # never changes; step t draws from fold_in(key, t)


class RunState(flax.struct.PyTreeNode):
    """All that a run carries from step to step, and all that a checkpoint holds.

    The position in the data is not in it: a batch is a function of the step.
    """

    train: TrainState
    average: SuperpositionState | None = None  # from the end of phase 1 on


class Network(flax.struct.PyTreeNode):
    """A trained network, live or superposed: what is evaluated and saved."""

    params: Params
    batch_stats: Any
    masks: Any


def network_of(state: TrainState) -> Network:
    """The live network; its buffers are donated with the state at the next step."""
    return Network(
        params=state.params, batch_stats=state.batch_stats, masks=state.method.masks
    )
