"""Training and evaluating small networks, each of its own shape, by one function each.

SGD with momentum, weight decay in the gradient. What is compiled is kept by shapes:
networks that are equally wide share it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.losses import cross_entropy


class Trained(NamedTuple):
    """A network in training."""

    params: Any
    model_state: Any
    trace: Any  # the momentum, like the parameters


class Recipe(NamedTuple):
    """How a network is trained; a learning rate is given with each step."""

    momentum: float
    weight_decay: float


def first_trained(params: Any, model_state: Any) -> Trained:
    """A network before its first step."""
    trace = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params)
    return Trained(params, model_state, trace)


def train_step(
    network: PureNetwork,
    recipe: Recipe,
    state: Trained,
    rate: Any,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> tuple[Trained, jax.Array]:
    """One step, and the loss before it in nats.

    Args:
      network: that takes any widths.
      recipe: of the training.
      state: before.
      rate: of learning.
      inputs: [B, ...], normalized.
      labels: [B] integers.
      key: of dropout, consumed.
    """

    def loss(params: Any) -> Any:
        logits, changed = network.apply(params, state.model_state, inputs, True, key, 0)
        return cross_entropy(logits, labels).mean(), changed

    (value, changed), slopes = jax.value_and_grad(loss, has_aux=True)(state.params)
    trace = jax.tree.map(
        lambda m, g, p: recipe.momentum * m + g + recipe.weight_decay * p,
        state.trace,
        slopes,
        state.params,
    )
    params = jax.tree.map(lambda p, m: p - rate * m, state.params, trace)
    return Trained(params, changed, trace), value


def correct(
    network: PureNetwork,
    params: Any,
    model_state: Any,
    inputs: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """How many of a batch are labelled right, int32; labels below 0 never are."""
    key = jax.random.key(0)  # of dropout, which evaluation has none of
    logits, _ = network.apply(params, model_state, inputs, False, key, 0)
    return (logits.argmax(-1).astype(labels.dtype) == labels).sum(dtype=jnp.int32)


def accuracy(
    counts: Callable[[Any, Any], Any], images: np.ndarray, labels: np.ndarray, size: int
) -> float:
    """The share of a split that is labelled right.

    Args:
      counts: `correct` of images [size, ...] and labels [size].
      images: [N, ...].
      labels: [N].
      size: of a batch; the last is filled up with labels of -1.
    """
    total = 0
    for start in range(0, len(labels), size):
        part, known = images[start : start + size], labels[start : start + size]
        missing = size - len(known)
        part = np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1))
        known = np.pad(known, (0, missing), constant_values=-1)
        total += int(counts(part, known))
    return total / len(labels)
