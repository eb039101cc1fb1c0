"""Batches of a data set that lives on the devices: only row numbers are fed.

A training batch is a function of its step alone, so that a run can be resumed, or a
single step looked at, from (key, step). All batches of one kind have one shape.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rows(NamedTuple):
    """A training batch: the whole data set, and which rows of it. [N], [B]."""

    images: jax.Array  # [N, ...] uint8, on every device
    labels: jax.Array  # [N] int32, on every device
    rows: jax.Array  # [B] int32, shared out between the devices


class Weighted(NamedTuple):
    """A batch to evaluate. What it was padded with has weight 0."""

    images: Any  # [B, ...] uint8
    labels: Any  # [B] int32
    weights: Any  # [B] float32, 1 or 0


class Placement(NamedTuple):
    """Where arrays go."""

    everywhere: jax.sharding.Sharding  # a copy on every device
    by_example: jax.sharding.Sharding  # the first axis shared out


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches in which every example comes at least once: the ratio rounded up."""
    return -(-examples // batch_size)


def epoch_rows(key: jax.Array, epoch: int, examples: int, batch_size: int):
    """The rows of each batch of an epoch.

    Every example once in a random order; the last batch is filled up from the start of
    the same order. (Filling it with rows of weight 0 would keep them from the loss, but
    not from the statistics of batch norm.)

    Args:
      key: a random key; the epoch is folded in.
      epoch: counted from 0.
      examples: N.
      batch_size: B.

    Returns:
      [ceil(N / B), B] int32 NumPy array.
    """
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    batches = steps_per_epoch(examples, batch_size)
    filled = np.resize(np.asarray(order, np.int32), batches * batch_size)
    return filled.reshape(batches, batch_size)


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    batch_size: int,
    placement: Placement,
) -> Callable[[int], Rows]:
    """The function ``step -> batch``; the data go to the devices once, here.

    Args:
      images: [N, ...].
      labels: [N].
      key: a random key, consumed.
      batch_size: B, a multiple of the number of devices.
      placement: where to.
    """
    all_images, all_labels = jax.device_put((images, labels), placement.everywhere)
    per_epoch = steps_per_epoch(len(labels), batch_size)

    @functools.lru_cache(maxsize=2)
    def rows_of(epoch: int) -> np.ndarray:
        return epoch_rows(key, epoch, len(labels), batch_size)

    def batch(step: int) -> Rows:
        rows = rows_of(step // per_epoch)[step % per_epoch]
        rows = jax.device_put(rows, placement.by_example)
        return Rows(all_images, all_labels, rows)

    return batch


def evaluation_batches(
    images: np.ndarray, labels: np.ndarray, *, batch_size: int, placement: Placement
) -> list[Weighted]:
    """Every example exactly once with weight 1, the last batch padded with weight 0.

    Args:
      images: [N, ...].
      labels: [N].
      batch_size: B, a multiple of the number of devices.
      placement: where to.
    """
    missing = -len(labels) % batch_size
    weights = np.ones(len(labels), np.float32)
    padded = [
        np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        for array in (images, labels, weights)
    ]
    batches = []
    for start in range(0, len(labels), batch_size):
        parts = (array[start : start + batch_size] for array in padded)
        batches.append(jax.device_put(Weighted(*parts), placement.by_example))
    return batches


def take(batch: Rows) -> tuple[jax.Array, jax.Array]:
    """The images and labels of a batch; inside a jitted step."""
    return jnp.take(batch.images, batch.rows, 0), jnp.take(batch.labels, batch.rows, 0)
