"""The gradient of a task at a batch, whole or in parts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.training.state import TrainState
from sup_tickets.training.task import Carried, Report, Task
from sup_tickets.types import Params


class Told(NamedTuple):
    """What a loss gives besides its gradient."""

    report: Report
    model_state: Any
    carry: Any


def dense_gradient(
    task: Task, state: TrainState, batch: Any, *, accumulate: int = 1
) -> tuple[Params, Told]:
    """The gradient of all weights at a batch, and what the loss gave besides.

    Args:
      task: what is trained.
      state: before the step.
      batch: of training, not prepared.
      accumulate: parts in which the batch goes through the network one after the other;
        the gradient is their mean.

    Raises:
      ValueError: when traced, if the loss gives no scalar, or another model state than
        it takes, or the batch cannot be cut into equal parts.
    """
    key = jax.random.fold_in(state.key, state.step)
    batch = task.prepare(batch, key)
    loss_key = jax.random.fold_in(key, 1)
    one = jax.value_and_grad(functools.partial(_checked_loss, task), has_aux=True)
    one = written_out(one, state.params)
    if accumulate > 1:
        return _accumulated(accumulate, one, state, batch, loss_key)
    given = state.model_state
    if task.carry is not None:
        fresh = task.carry.start(batch)
        restarts = jnp.asarray(task.carry.restarts(state.step))
        carry = jax.tree.map(
            lambda new, old: jnp.where(restarts, new, old), fresh, state.carry
        )
        given = Carried(given, carry)
    (value, (report, new)), dense = one(
        state.params, given, batch, loss_key, state.step
    )
    own, carry = (new, None) if task.carry is None else new
    return dense, Told({"loss": value} | report, own, carry)


def _checked_loss(task: Task, *arguments: Any) -> Any:
    """The loss of a task, with a clear error where it is not one; when traced."""
    value, (report, model_state) = task.loss(*arguments)
    for name, scalar in {"the loss": value, **report}.items():
        if jnp.shape(scalar) != ():
            raise ValueError(
                f"loss of a task must give scalars, but {name} has shape "
                f"{jnp.shape(scalar)}"
            )
    wanted = jax.tree.structure(arguments[1])
    if jax.tree.structure(model_state) != wanted:
        raise ValueError(
            "loss of a task must give the model state that it takes, but for "
            f"{wanted} it gave {jax.tree.structure(model_state)}"
        )
    return value, (dict(report), model_state)


def _accumulated(
    parts: int, one: Any, state: TrainState, batch: Any, key: jax.Array
) -> tuple[Params, Told]:
    """The mean gradient of the parts of a batch, one after the other."""

    def add(carry: Any, part: Any) -> Any:
        total, model_state = carry
        i, examples = part
        part_key = jax.random.fold_in(key, i)
        (value, (report, model_state)), new = one(
            state.params, model_state, examples, part_key, state.step
        )
        total = jax.tree.map(jnp.add, total, new)
        return (total, model_state), {"loss": value} | report

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (total, model_state), reports = jax.lax.scan(
        add,
        (zeros, state.model_state),
        (jnp.arange(parts), jax.tree.map(lambda leaf: _cut(leaf, parts), batch)),
        unroll=unrolled(parts, state.params),
    )
    mean = jax.tree.map(lambda leaf: leaf / parts, total)
    report = {name: values.mean() for name, values in reports.items()}
    return mean, Told(report, model_state, None)


def _cut(array: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...], every device's examples staying on it."""
    if array.shape[0] % parts:
        raise ValueError(
            f"accumulate={parts} does not divide the batch of {array.shape[0]}"
        )
    # Part i has the examples i, i + parts, ...: a slice of what each device holds.
    return jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)


def unrolled(steps: int, params: Params) -> int:
    """How far to unroll a loop over steps.

    On a CPU a convolution within a loop is 38 times slower than outside; matrix
    products are not, and neither are convolutions on accelerators.
    """
    return steps if _convolves_on_cpu(params) else 1


def written_out(function: Callable[..., Any], params: Params) -> Callable[..., Any]:
    """The function, which `jax.vmap` is to write out, one replica after the other.

    Over the kernel of a convolution ``vmap`` makes a grouped one, five times slower on
    a CPU than as many single ones. Of other networks, and elsewhere, the function as it
    is.

    Args:
      function: not to be differentiated.
      params: of the network.
    """
    return side_by_side(function) if _convolves_on_cpu(params) else function


def side_by_side(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which `jax.vmap` writes out, one replica after the other."""
    ours = jax.custom_batching.custom_vmap(function)

    @ours.def_vmap
    def written(size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        def of(i: int) -> Any:
            return jax.tree.map(
                lambda leaf, is_own: leaf[i] if is_own else leaf,
                arguments,
                tuple(batched),
            )

        given = [function(*of(i)) for i in range(size)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
        return stacked, jax.tree.map(lambda _: True, stacked)

    return ours


def _convolves_on_cpu(params: Params) -> bool:
    convolves = any(leaf.ndim > 2 for leaf in jax.tree.leaves(params))
    return convolves and jax.default_backend() == "cpu"
