"""The plain training step: a task and an optimizer, without masks that change.

For short trainings of which there are many (tasks, sessions): every step is a function
of the state and of its index alone, so that whatever stops it can go on bit for bit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sup_tickets.training.task import Report, Task
from sup_tickets.trees import map_named
from sup_tickets.types import Params, Schedule


class Learned(NamedTuple):
    """What a training step changes."""

    params: Params
    model_state: Any
    opt_state: Any


Step = Callable[..., tuple[Learned, Report]]
"""``(state, batch, key, index, rate) -> (state, report)``; draws are those of
fold_in(key, index), and the rate is that of this step, so that all have one program."""


def begin(
    params: Params, model_state: Any, tx: optax.GradientTransformation
) -> Learned:
    """The state before the first step; see `step_of` for the optimizer."""
    return Learned(params, model_state, tx.init(params))


def step_of(task: Task, tx: optax.GradientTransformation) -> Step:
    """The compiled step.

    Args:
      task: what is trained; of a `PureNetwork`, nothing is carried.
      tx: its updates, times the rate, are subtracted.
    """

    def step(
        state: Learned, batch: Any, key: jax.Array, index: Any, rate: Any
    ) -> tuple[Learned, Report]:
        key = jax.random.fold_in(key, index)
        prepared = task.prepare(batch, key)
        loss = jax.value_and_grad(task.loss, has_aux=True)
        (value, (report, model_state)), gradient = loss(
            state.params,
            state.model_state,
            prepared,
            jax.random.fold_in(key, 1),
            index,
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(
            lambda p, u: p - (jnp.float32(rate) * u).astype(p.dtype),
            state.params,
            updates,
        )
        return Learned(params, model_state, opt_state), {"loss": value} | dict(report)

    return jax.jit(step)


def rates_of(schedule: Schedule, steps: int) -> np.ndarray:
    """The rate of every step: [steps] float32."""
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float32)


def scaled(rates: Callable[[str], float]) -> optax.GradientTransformation:
    """Updates times a factor of each leaf, so that leaves have rates of their own.

    Args:
      rates: factor by the leaf's name.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return map_named(lambda name, u: rates(name) * u, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
