"""Evaluation of networks over a split, and statistics estimated anew.

What a task sums over the examples of a batch is added up on the device; the host waits
once, at the end.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.norm_statistics import reestimate_statistics
from sup_tickets.training.state import Network
from sup_tickets.training.task import Carried, Metrics, Task


def evaluate(
    task: Task, network: Network, batches: Iterable[Any], step: int = 0
) -> Metrics:
    """The metrics of a network on a split; one compilation for each task.

    Args:
      task: that the network was trained for.
      network: of that task.
      batches: all of one shape; in order, if the task carries state.
      step: completed by the network, for a task that changes on its way.

    Raises:
      ValueError: without a batch.
    """
    total = RunningSum()
    for part in _passed(task, task.metrics, network, batches, jnp.int32(step)):
        total.add(part)
    return task.summarize(total.result())


def predictions(task: Task, network: Network, batches: Iterable[Any]) -> Iterator[Any]:
    """The `Predictions` of a network for each batch; compiled once for each task.

    Args:
      task: that the network was trained for.
      network: of that task.
      batches: all of one shape; in order, if the task carries state.

    Raises:
      ValueError: if the task predicts nothing.
    """
    if task.predict is None:
        raise ValueError("the task has no predictions to compare")
    return _passed(task, task.predict, network, batches)


def _passed(
    task: Task,
    function: Callable[..., Any],
    network: Network,
    batches: Iterable[Any],
    *rest: Any,
) -> Iterator[Any]:
    """What a function of the task gives for each batch, without what is carried."""
    # Programs are kept with the function, which the task holds.
    compiled, carry = jax.jit(function), None
    for batch in batches:
        if task.carry is None:
            yield compiled(network.params, network.model_state, batch, *rest)
            continue
        carry = task.carry.start(batch) if carry is None else carry
        given = Carried(network.model_state, carry)
        found, carry = compiled(network.params, given, batch, *rest)
        yield found


def reestimate(
    task: Task, network: Network, batches: Iterable[Any], key: jax.Array
) -> Network:
    """The network with new statistics ("BU").

    One pass of training batches, prepared as in training, through the network at fixed
    weights; the statistics are their mean. A network without any is returned as it is.

    Args:
      task: that the network was trained for.
      network: of that task.
      batches: of training.
      key: consumed by the preparation.

    Raises:
      ValueError: if the network has statistics and the task does not say how to
        estimate them.
    """
    if not jax.tree.leaves(network.model_state):
        return network
    if task.statistics is None:
        raise ValueError("the task does not say how to estimate its model state anew")
    statistics = jax.jit(_statistics, static_argnums=0)

    def statistics_of(numbered: tuple[int, Any]) -> Any:
        number, batch = numbered
        return statistics(task, network, batch, jax.random.fold_in(key, number))

    mean = reestimate_statistics(statistics_of, enumerate(batches))
    return network.replace(model_state=mean)


def _statistics(task: Task, network: Network, batch: Any, key: jax.Array) -> Any:
    assert task.statistics is not None
    prepared = task.prepare(batch, key)
    return task.statistics(network.params, network.model_state, prepared, key)


# --- Sums -----------------------------------------------------------------------------


class RunningSum:
    """The sum of a pytree over batches, on the device.

    Floats are added with what the earlier additions lost (Kahan), so that the error
    does not grow with the number of batches; integers exactly.
    """

    def __init__(self):
        self._total: Any = None
        self._lost: Any = None

    def add(self, part: Any) -> None:
        """Adds the sums of one more batch, without waiting for them."""
        if self._total is None:
            self._total, self._lost = part, jax.tree.map(jnp.zeros_like, part)
        else:
            self._total, self._lost = _add(self._total, self._lost, part)

    def result(self) -> Any:
        """The sums as NumPy arrays, float64 or int64; the host waits here.

        Raises:
          ValueError: if nothing was added.
        """
        if self._total is None:
            raise ValueError("batches must hold at least 1 batch, got none")
        total, lost = jax.device_get((self._total, self._lost))
        return jax.tree.map(_exactly, total, lost)


@jax.jit
def _add(total: Any, lost: Any, part: Any) -> tuple[Any, Any]:
    def one(total: Any, lost: Any, part: Any) -> tuple[Any, Any]:
        part = part + lost
        new = total + part
        lost = part - (new - total)
        # Infinity less infinity is no loss.
        return new, jnp.where(jnp.isfinite(lost), lost, jnp.zeros_like(lost))

    pairs = jax.tree.map(one, total, lost, part)
    return jax.tree.transpose(jax.tree.structure(total), None, pairs)


def _exactly(total: np.ndarray, lost: np.ndarray) -> np.ndarray:
    wide = np.int64 if np.issubdtype(total.dtype, np.integer) else np.float64
    return total.astype(wide) + lost.astype(wide)
