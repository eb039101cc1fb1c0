"""How different networks are in what they predict, and how good they are together.

Of tasks that predict classes. Shapes: M networks, N predictions of a batch.

References:
  Yin et al., Superposing Many Tickets into One, 2022, https://arxiv.org/abs/2205.15322,
  Table 6 (disagreement and Kullback-Leibler divergence between tickets); the same
  measures as in Fort et al., Deep Ensembles: A Loss Landscape Perspective, 2019,
  https://arxiv.org/abs/1912.02757.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.training.evaluation import RunningSum
from sup_tickets.training.predictions import (
    Predictions,
    PredictionSums,
    prediction_metrics,
    prediction_sums,
)
from sup_tickets.training.state import Network
from sup_tickets.training.task import Metrics

Predict = Callable[[Network, Iterable[Any]], Iterable[Predictions]]
"""``(network, batches) -> predictions`` for each of them in order, of
`sup_tickets.training.evaluation.predictions`."""


class Comparison(NamedTuple):
    """Several networks on one split."""

    ensemble: Metrics  # of the mean of their probabilities
    disagreement: np.ndarray  # [M, M] share of examples with different top classes
    kl: np.ndarray  # [M, M] mean KL(p_i || p_j) over the examples, nats


class PairSums(NamedTuple):
    """Sums over examples of what is compared in pairs; on the device."""

    different: jax.Array  # [M, M] int32
    kl: jax.Array  # [M, M] float32, nats


def compare(
    predict: Predict,
    networks: Sequence[Network],
    batches: Iterable[Any],
    *,
    summarize: Callable[[PredictionSums], Metrics] = prediction_metrics,
) -> Comparison:
    """Compares networks in one pass over the batches.

    Args:
      predict: of one task.
      networks: M of one model; all are on the device at once.
      batches: the split; examples of weight 0 do not count.
      summarize: of the task: what the sums of an ensemble come to.

    Raises:
      ValueError: without a network, or without an example.
    """
    if not networks:
        raise ValueError("networks must hold at least 1 network, got none")
    total = RunningSum()
    copies = itertools.tee(batches, len(networks))
    streams = [predict(n, copy) for n, copy in zip(networks, copies, strict=True)]
    for predicted in zip(*streams, strict=True):
        total.add(_sums(list(predicted)))
    ensemble, pairs = total.result()
    metrics = summarize(ensemble)
    # A mean of rounded terms that cancel may end below 0.
    return Comparison(
        ensemble=metrics,
        disagreement=pairs.different / metrics["examples"],
        kl=np.maximum(pairs.kl / metrics["examples"], 0.0),
    )


def ensemble_log_probabilities(log_p: jax.Array) -> jax.Array:
    """The logarithm of the mean of the probabilities, [N, classes].

    Args:
      log_p: [M, N, classes] log-probabilities.
    """
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(jnp.float32(log_p.shape[0]))


def pair_sums(log_p: jax.Array, weights: jax.Array) -> PairSums:
    """Disagreement and divergence of every pair, summed over examples; may be traced.

    Args:
      log_p: [M, N, classes] float32 log-probabilities.
      weights: [N], above 0 for the examples that count.
    """
    counted = (weights > 0)[None, None]
    top = jnp.argmax(log_p, axis=-1)  # [M, N]
    different = (top[:, None] != top[None]) & counted

    def against(one: jax.Array) -> jax.Array:  # [N, classes] -> [M, N]
        p = jnp.exp(one)[None]
        # What has no probability adds nothing: 0 log 0 = 0.
        terms = jnp.where(p > 0, p * (one[None] - log_p), 0)
        return jnp.where(p.max(axis=-1) >= 0, terms.sum(axis=-1), jnp.nan)

    kl = jax.lax.map(against, log_p)  # one network at a time: M^2 N classes is a lot
    return PairSums(
        different=different.sum(axis=-1, dtype=jnp.int32),
        kl=jnp.where(counted, kl, 0).sum(axis=-1),
    )


@jax.jit
def _sums(predicted: list[Predictions]) -> tuple[PredictionSums, PairSums]:
    classes = predicted[0].log_p.shape[-1]
    stacked = jnp.stack([one.log_p.reshape(-1, classes) for one in predicted])
    labels, weights = (jnp.ravel(x) for x in predicted[0][1:])
    ensemble = ensemble_log_probabilities(stacked)
    sums = prediction_sums(Predictions(ensemble, labels, weights))
    return sums, pair_sums(stacked, weights)
