"""What is trained, as a value: pure functions, whatever the model, the data, the loss.

Nothing else in this package knows a model library, an image or a label. A task of one's
own is two functions:

    Task(init=init, loss=loss)

    def init(key): ...  # -> (params, model_state)
    def loss(params, model_state, batch, key, step): ...
        # -> (scalar, (report, model_state))

`sup_tickets.training.classification` makes one from a network that labels images, in
any of the libraries of `sup_tickets.training.libraries`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from sup_tickets.checks import did_you_mean
from sup_tickets.types import Number, Params

Report = dict[str, jax.Array]
"""Scalars by name that a training step tells; "loss" is among them."""

Metrics = dict[str, float]
"""How well a network does on a split, by name."""


class Carried(NamedTuple):
    """The model state of a task that carries something from batch to batch."""

    own: chex.ArrayTree  # the network's: saved with it, averaged in superpositions
    carry: chex.ArrayTree  # a hidden state, say: of this run and this batch


class Carry(NamedTuple):
    """What a task carries from each batch to the next, as the state of a recurrent net.

    The task's functions then take a `Carried` for the model state; ``loss`` gives one
    back, and ``metrics`` gives ``(sums, carry)``. It is in the train state and in
    checkpoints. Every pass over a split starts with ``start``.
    """

    start: Callable[[Any], chex.ArrayTree]  # (batch) -> before a first batch like it
    restarts: Callable[[Number], Any] = lambda step: False
    """``(step) -> whether`` the batch of that step is a first one; may be traced."""


def _as_is(batch: Any, key: jax.Array) -> Any:
    del key
    return batch


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is trained. All functions are pure and traceable.

    Two tasks are the same if they are one object; what was compiled is kept with the
    functions.

    Raises:
      TypeError: naming the first field that is not a function.
    """

    init: Callable[[jax.Array], tuple[Params, Any]]
    """``(key) -> (params, model_state)``; model state is ``{}`` if there is none."""

    loss: Callable[..., tuple[jax.Array, tuple[Mapping[str, Any], Any]]]
    """``(params, model_state, batch, key, step) -> (scalar, (report, model_state))``.

    Differentiable in ``params``; ``report`` has scalars by name. If "loss" is not among
    them, it is the scalar. The batch is a prepared one.
    """

    prepare: Callable[[Any, jax.Array], Any] = _as_is
    """``(batch, key) -> batch`` within a training step: gathers, augments. Arrays of
    what it gives have the examples along their first axis."""

    metrics: Callable[..., Any] = None  # type: ignore[assignment]
    """``(params, model_state, batch, step) -> sums`` over the examples of a batch to
    evaluate, a pytree; by default the loss of each batch, and their number."""

    summarize: Callable[[Any], Metrics] = None  # type: ignore[assignment]
    """``(sums over all batches, on the host) -> metrics``; by default every sum of a
    dict over its "weight"."""

    statistics: Callable[..., tuple[Any, Any]] | None = None
    """``(params, model_state, prepared batch, key) -> (model_state, weight)``: what the
    model state is by this batch alone, and how much it counts; ``None`` if there is
    nothing to estimate. See `sup_tickets.training.evaluation.reestimate`."""

    predict: Callable[..., Any] | None = None
    """``(params, model_state, batch) -> Predictions``, of tasks that predict classes;
    see `sup_tickets.training.predictions`."""

    carry: Carry | None = None

    objective: str = "loss"
    """The metric that is the loss: watched, and shown along paths."""

    headline: str = ""
    """The metric by which the best checkpoint is known, the largest; by default the
    least ``objective``."""

    def __post_init__(self) -> None:
        """Fills in what follows from the loss."""
        if self.metrics is None:
            object.__setattr__(self, "metrics", functools.partial(_mean_loss, self))
        if self.summarize is None:
            object.__setattr__(self, "summarize", weighted_means)
        for name in ("init", "loss", "prepare", "metrics", "summarize"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"{name} of a task must be a function, got {getattr(self, name)!r}"
                )

    def value_of(self, metrics: Mapping[str, float], name: str = "") -> float:
        """A metric, by default the objective.

        Raises:
          ValueError: if there is no such metric.
        """
        name = name or self.objective
        if name not in metrics:
            raise ValueError(
                f"the task has no metric {name!r}{did_you_mean(name, metrics)}; it has "
                f"{', '.join(metrics)}"
            )
        return float(metrics[name])

    def rank(self, metrics: Mapping[str, float]) -> float:
        """The higher, the better the network."""
        if self.headline:
            return self.value_of(metrics, self.headline)
        return -self.value_of(metrics)

    def leading(self, metrics: Mapping[str, float]) -> str:
        """The metric by which networks are ranked, in words."""
        name = self.headline or self.objective
        value = self.value_of(metrics, name)
        return f"{100 * value:.1f}%" if name == "accuracy" else f"{name} {value:.4g}"


def weighted_means(sums: Mapping[str, Any]) -> Metrics:
    """Every sum over that of the weights.

    Args:
      sums: scalars by name; "weight" among them, above 0.

    Raises:
      ValueError: if there is no weight.

    Example:
      >>> weighted_means({"loss": 6.0, "weight": 4})
      {'loss': 1.5}
    """
    weight = float(sums["weight"])
    if not weight > 0:
        raise ValueError("batches must hold at least 1 example of weight above 0")
    means = {name: float(total) / weight for name, total in sums.items()}
    del means["weight"]
    return means


def _mean_loss(
    task: Task, params: Params, model_state: Any, batch: Any, step: Number
) -> Any:
    """The sums of `Task.metrics` where only a loss is given."""
    key = jax.random.key(0)
    prepared = task.prepare(batch, key)
    value, (report, new) = task.loss(params, model_state, prepared, key, step)
    sums = {"loss": value} | dict(report)
    sums = {name: jnp.asarray(x, jnp.float32) for name, x in sums.items()}
    sums["weight"] = jnp.float32(1)
    return sums if task.carry is None else (sums, new.carry)
