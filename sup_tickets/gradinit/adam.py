"""The Adam of GradInit's scales: two kinds of steps with averages of their own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class RescaleState(NamedTuple):
    """Scales and their moments. Row 0 is of the objective, row 1 of the norm."""

    scales: jax.Array  # [T] float32
    first: jax.Array  # [2, T] float32: averages of the slopes
    second: jax.Array  # [T] float32: average of their squares, of either kind
    counts: jax.Array  # [2] int32: updates of each kind


def rescale_state(tensors: int) -> RescaleState:
    """The state before the first update: all scales are 1.

    Args:
      tensors: T.
    """
    return RescaleState(
        scales=jnp.ones(tensors, jnp.float32),
        first=jnp.zeros((2, tensors), jnp.float32),
        second=jnp.zeros(tensors, jnp.float32),
        counts=jnp.zeros(2, jnp.int32),
    )


def rescale_update(
    state: RescaleState,
    slopes: jax.Array,
    *,
    constraint: bool,
    learning_rate: float,
    floors: Any = 0.0,
    clip: float = 1.0,
) -> RescaleState:
    """One update of the scales: GradInit's RescaleAdam; pure.

    Adam (β 0.9 and 0.999, ε 1e-8), but steps on the norm and on the objective have
    first moments and counts of their own. The second moment is shared, and corrected by
    the sum of both counts. A scale whose slopes were always 0 does not move, nor does
    one that is 0.

    Args:
      state: the state.
      slopes: [T] gradients of the scales.
      constraint: whether they are of the norm, and not of the objective.
      learning_rate: positive.
      floors: least scales, [T] or a number.
      clip: bound of the slopes, positive.

    Returns:
      The next state.

    Example:
      >>> import jax.numpy as jnp
      >>> state, slopes = rescale_state(2), jnp.array([0.5, 0.0])
      >>> for _ in range(3):
      ...     state = rescale_update(state, slopes, constraint=False, learning_rate=0.1)
      >>> [round(float(scale), 3) for scale in state.scales]
      [0.7, 1.0]
    """
    kind = int(constraint)
    slopes = jnp.clip(slopes, -clip, clip)
    average = _BETA1 * state.first[kind] + (1 - _BETA1) * slopes
    second = _BETA2 * state.second + (1 - _BETA2) * jnp.square(slopes)
    counts = state.counts.at[kind].add(1)
    mean = average / _correction(_BETA1, counts[kind])
    spread = jnp.sqrt(second / _correction(_BETA2, counts.sum()))
    moved = state.scales - learning_rate * mean / (spread + _EPSILON)
    return RescaleState(
        scales=jnp.where(state.scales > 0, jnp.maximum(moved, floors), 0),
        first=state.first.at[kind].set(average),
        second=second,
        counts=counts,
    )


def _correction(beta: float, updates: jax.Array) -> jax.Array:
    """``1 - beta ** updates``, without the loss of digits near 1."""
    return -jnp.expm1(updates.astype(jnp.float32) * float(np.log(beta)))
