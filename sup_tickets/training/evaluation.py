"""Accuracy and likelihood of a network, and its batch-norm statistics."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sup_tickets.data.resident import Weighted
from sup_tickets.superposition import reestimate_statistics
from sup_tickets.training.state import Network
from sup_tickets.training.steps import Prepare, cross_entropy


class Scores(NamedTuple):
    """How well a network does on a split."""

    accuracy: float  # share of the examples, in [0, 1]
    nll: float  # mean negative log-likelihood, nats
    examples: int  # how many were counted


def make_evaluate(
    model: nn.Module, normalise: Callable[[jax.Array], jax.Array]
) -> Callable[[Network, Iterable[Weighted]], Scores]:
    """The function ``(network, batches) -> Scores``, compiled once.

    Args:
      model: Linen module, called as ``model(inputs, train=False)``.
      normalise: from the images of a batch to inputs.
    """

    @jax.jit
    def sums(params: Any, batch_stats: Any, batch: Weighted) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        scores: Any = model.apply(variables, normalise(batch.images), train=False)
        # Counted in integers, and padding is chosen away: NaN * 0 is NaN.
        counts = batch.weights > 0
        right = (jnp.argmax(scores, axis=-1) == batch.labels) & counts
        nll = jnp.where(counts, cross_entropy(scores, batch.labels), 0.0)
        return jnp.sum(right), jnp.sum(nll), jnp.sum(counts)

    def evaluate(network: Network, batches: Iterable[Weighted]) -> Scores:
        parts = [sums(network.params, network.batch_stats, batch) for batch in batches]
        right, nll, examples = (
            sum(map(float, part)) for part in zip(*parts, strict=True)
        )
        return Scores(right / examples, nll / examples, int(examples))

    return evaluate


def make_reestimate(
    model: nn.Module, prepare: Prepare
) -> Callable[[Network, Iterable[Any], jax.Array], Network]:
    """The function ``(network, batches, key) -> network`` with new statistics ("BU").

    One pass of training batches, augmented as in training, through the network at fixed
    weights; the statistics are their mean.

    Args:
      model: Linen module with the field ``bn_momentum``.
      prepare: from a batch and a key to inputs and labels.
    """
    # With momentum 0 the running statistics become those of the batch.
    forgetful = model.clone(bn_momentum=0.0)

    @jax.jit
    def statistics(network: Network, batch: Any, key: jax.Array) -> Any:
        inputs, _ = prepare(batch, key)
        variables = {"params": network.params, "batch_stats": network.batch_stats}
        _, changed = forgetful.apply(
            variables, inputs, train=True, mutable=["batch_stats"]
        )
        return changed["batch_stats"], inputs.shape[0]

    def reestimate(network: Network, batches: Iterable[Any], key: jax.Array) -> Network:
        if not jax.tree.leaves(network.batch_stats):
            return network

        def statistics_of(numbered: tuple[int, Any]) -> Any:
            number, batch = numbered
            return statistics(network, batch, jax.random.fold_in(key, number))

        mean = reestimate_statistics(statistics_of, enumerate(batches))
        return network.replace(batch_stats=mean)

    return reestimate
