"""Statistics of batch norm, estimated anew by a pass over data ("BU")."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.running_averages import averaged, is_inexact, running_mean, wide_dtype


def reestimate_statistics(
    statistics_of: Callable[[Any], tuple[Any, Any]], batches: Iterable[Any]
) -> Any:
    """The weighted mean over batches of a tree of statistics ("BU"), on the host.

    For batch norm, ``statistics_of`` runs the superposed network in training mode and
    returns the statistics of *this batch*, not a moving average. Variances are averaged
    as they are, like in the release's ``bn_update``: the spread between the means of
    the batches is not added.

    Args:
      statistics_of: ``batch -> (statistics, weight)``, a pytree of arrays and a
        non-negative scalar, the batch size for example; jit it yourself. A batch of
        weight 0 is left out, whatever its statistics.
      batches: any finite iterable; one pass is made.

    Returns:
      Pytree with the structure, shapes and dtypes of the statistics; the mean is taken
      in at least float32. Leaves that are not floating point have the latest value.

    Raises:
      ValueError: if there is no batch, or the weights do not sum to more than 0.

    Example:
      >>> batches = [jnp.array([1.0, 3.0]), jnp.array([8.0])]
      >>> mean = reestimate_statistics(lambda x: ({"mean": x.mean()}, x.size), batches)
      >>> float(mean["mean"])
      4.0
    """
    mean, total, statistics = None, jnp.float32(0), None
    for batch in batches:
        statistics, weight = statistics_of(batch)
        if mean is None:
            mean = jax.tree.map(_wide_zeros, statistics)
        mean, total = _accumulate(mean, total, statistics, jnp.float32(weight))
    if mean is None:
        raise ValueError("batches must hold at least 1 batch, got none")
    if not float(total) > 0:
        raise ValueError(
            "the weights of statistics_of must sum to more than 0 over the batches, "
            f"got {float(total)}"
        )
    return jax.tree.map(lambda m, like: m.astype(like.dtype), mean, statistics)


def _wide_zeros(leaf: jax.Array) -> jax.Array:
    return jnp.zeros_like(leaf, wide_dtype(leaf.dtype) if is_inexact(leaf) else None)


# Nobody else holds the running mean: it is donated, and never more than one is live.
@functools.partial(jax.jit, donate_argnums=(0, 1))
def _accumulate(
    mean: Any, total: jax.Array, statistics: Any, weight: jax.Array
) -> tuple[Any, jax.Array]:
    total = total + weight

    def step(old: jax.Array, new: jax.Array) -> jax.Array:
        stepped = averaged(running_mean, old, new.astype(old.dtype), total / weight)
        # A batch of weight 0 may hold NaN, the mean of nothing.
        return jnp.where(weight > 0, stepped, old)

    return jax.tree.map(step, mean, statistics), total
