"""Batches of a data set that lives on the devices: only row numbers are fed.

A training batch is a function of its step alone, so that a run can be resumed, or a
single step looked at, from (key, step). All batches of one kind have one shape. With
several processes each has the whole set, and all draw the same rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding


class Rows(NamedTuple):
    """A training batch: the whole data set, and which rows of it. [N], [B]."""

    examples: Any  # pytree of arrays [N, ...], on every device
    rows: jax.Array  # [B] int32, shared out between the devices


class Weighted(NamedTuple):
    """A batch to evaluate. What it was padded with has weight 0."""

    inputs: Any  # [B, ...]
    labels: Any  # [B]
    weights: Any  # [B] float32, 1 or 0


class Shardings(NamedTuple):
    """Where arrays go."""

    replicated: Sharding  # a copy on every device
    batch: Sharding  # the first axis shared out


class Source(NamedTuple):
    """Training batches by step; ``source(step)`` is ``source.batch(step)``."""

    batch: Callable[[int], Rows]  # (step)
    block: Callable[[int, int], Rows]  # (first step, count K) -> rows are [K, B]
    at: Callable[[Rows, jax.Array], Rows]  # (block, i) -> its i-th batch; traceable

    def __call__(self, step: int) -> Rows:
        """The batch of a step."""
        return self.batch(step)


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
    examples: Any,
    *,
    key: jax.Array,
    batch_size: int,
    shardings: Shardings,
) -> Source:
    """Batches by step; the data go to the devices once, here.

    Args:
      examples: pytree of NumPy arrays [N, ...].
      key: a random key, consumed.
      batch_size: B, a multiple of the number of devices.
      shardings: where to.
    """
    size = len(jax.tree.leaves(examples)[0])
    whole = jax.tree.map(lambda a: to_devices(a, shardings.replicated), examples)
    per_epoch = steps_per_epoch(size, batch_size)

    @functools.lru_cache(maxsize=2)
    def rows_of(epoch: int) -> np.ndarray:
        return epoch_rows(key, epoch, size, batch_size)

    def rows_at(step: int) -> np.ndarray:
        return rows_of(step // per_epoch)[step % per_epoch]

    def batch(step: int) -> Rows:
        rows = to_devices(rows_at(step), shardings.batch)
        return Rows(whole, rows)

    def block(first: int, count: int) -> Rows:
        rows = np.stack([rows_at(step) for step in range(first, first + count)])
        rows = to_devices(rows, stacked(shardings.batch))
        return Rows(whole, rows)

    def at(block: Rows, i: jax.Array) -> Rows:
        return block._replace(rows=jnp.take(block.rows, i, 0))

    return Source(batch, block, at)


def evaluation_batches(
    inputs: np.ndarray, labels: np.ndarray, *, batch_size: int, shardings: Shardings
) -> list[Weighted]:
    """Every example exactly once with weight 1, the last batch padded with weight 0.

    Args:
      inputs: [N, ...].
      labels: [N, ...].
      batch_size: B, a multiple of the number of devices.
      shardings: where to.
    """
    missing = -len(labels) % batch_size
    weights = np.ones(len(labels), np.float32)
    padded = [
        np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        for array in (inputs, labels, weights)
    ]
    batches = []
    for start in range(0, len(labels), batch_size):
        parts = (array[start : start + batch_size] for array in padded)
        on_devices = (to_devices(part, shardings.batch) for part in parts)
        batches.append(Weighted(*on_devices))
    return batches


def take(batch: Rows) -> Any:
    """The examples of a batch, [B, ...] each; inside a jitted step."""
    return jax.tree.map(lambda array: jnp.take(array, batch.rows, 0), batch.examples)


def to_devices(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every process has, on the devices of all.

    Args:
      array: the same on every process.
      sharding: over the devices of all processes.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # device_put would first make sure, in every step, that all processes have the same.
    return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


def stacked(sharding: Sharding) -> Sharding:
    """The sharding of several arrays on a new first axis."""
    if not isinstance(sharding, NamedSharding):
        return sharding  # of one device
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
