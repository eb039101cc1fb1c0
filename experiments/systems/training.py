"""Trainings that are one phase of an experiment."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.runs.phases import Phases
from sup_tickets.data.files import Split
from sup_tickets.data.resident import epoch_rows, steps_per_epoch
from sup_tickets.training.learner import Learned, Step


def rows_by_step(
    key: jax.Array, examples: int, batch_size: int
) -> Callable[[int], np.ndarray]:
    """``step -> [B]``, the rows of a batch; see `epoch_rows`."""
    per_epoch = steps_per_epoch(examples, batch_size)

    @functools.lru_cache(maxsize=1)
    def rows_of(epoch: int) -> np.ndarray:
        return epoch_rows(key, epoch, examples, batch_size)

    return lambda step: rows_of(step // per_epoch)[step % per_epoch]


def train(
    phases: Phases,
    name: str,
    begin: Callable[[], Learned],
    step: Step,
    data: Split,
    *,
    batch_size: int,
    order: jax.Array,
    draws: jax.Array,
    rates: np.ndarray,
    first: int = 0,
) -> Learned:
    """The state after a phase of training steps.

    Args:
      phases, name, begin: see `Phases.run`.
      step: of `sup_tickets.training.learner.step_of`.
      data: images and labels.
      batch_size: of a batch.
      order: the key of the order of the examples.
      draws: the key of all else that is random.
      rates: of learning, by step, to the last.
      first: the step with which the phase begins.

    Raises:
      ValueError: if the loss is not finite after an epoch.
    """
    rows_at = rows_by_step(order, len(data.labels), batch_size)
    per_epoch = steps_per_epoch(len(data.labels), batch_size)

    def one(state: Learned, notes: Any, done: int) -> Any:
        index = first + done
        rows = rows_at(index)
        batch = data.images[rows], data.labels[rows]
        state, report = step(state, batch, draws, np.int32(index), rates[index])
        ends = (index + 1) % per_epoch == 0
        if ends and not np.isfinite(loss := float(report["loss"])):
            raise ValueError(
                f"training diverged: the loss of {name} is {loss} at step {index}; try "
                "a lower learning rate"
            )
        return state, notes

    return phases.run(name, begin, len(rates) - first, one)[0]
