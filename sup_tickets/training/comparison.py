"""How different networks are in what they predict, and how good they are together.

Shapes: M networks, B examples of a batch.

References:
  Yin et al., Superposing Many Tickets into One, 2022, https://arxiv.org/abs/2205.15322,
  Table 6 (disagreement and Kullback-Leibler divergence between tickets); the same
  measures as in Fort et al., Deep Ensembles: A Loss Landscape Perspective, 2019,
  https://arxiv.org/abs/1912.02757.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.data.resident import Weighted
from sup_tickets.training.evaluation import (
    Predict,
    RunningSum,
    Scores,
    ScoreSums,
    score_sums,
    scores_from,
)
from sup_tickets.training.state import Network


class Comparison(NamedTuple):
    """Several networks on one split."""

    ensemble: Scores  # of the mean of their probabilities
    disagreement: np.ndarray  # [M, M] share of examples with different top classes
    kl: np.ndarray  # [M, M] mean KL(p_i || p_j) over the examples, nats


class PairSums(NamedTuple):
    """Sums over examples of what is compared in pairs; on the device."""

    different: jax.Array  # [M, M] int32
    kl: jax.Array  # [M, M] float32, nats


def compare(
    predict: Predict, networks: Sequence[Network], batches: Iterable[Weighted]
) -> Comparison:
    """Compares networks in one pass over the batches.

    Args:
      predict: of `make_predict`.
      networks: M of one model; all are on the device at once.
      batches: the split; examples of weight 0 do not count.

    Raises:
      ValueError: without a network, or without an example.
    """
    if not networks:
        raise ValueError("networks must hold at least 1 network, got none")
    total = RunningSum()
    for batch in batches:
        log_p = [predict(network, batch) for network in networks]
        total.add(_sums(log_p, batch.labels, batch.weights))
    ensemble, pairs = total.result()
    scores = scores_from(ensemble)
    # A mean of rounded terms that cancel may end below 0.
    return Comparison(
        ensemble=scores,
        disagreement=pairs.different / scores.examples,
        kl=np.maximum(pairs.kl / scores.examples, 0.0),
    )


def ensemble_log_probabilities(log_p: jax.Array) -> jax.Array:
    """The logarithm of the mean of the probabilities, [B, classes].

    Args:
      log_p: [M, B, classes] log-probabilities.
    """
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(jnp.float32(log_p.shape[0]))


def pair_sums(log_p: jax.Array, weights: jax.Array) -> PairSums:
    """Disagreement and divergence of every pair, summed over examples; may be traced.

    Args:
      log_p: [M, B, classes] float32 log-probabilities.
      weights: [B], above 0 for the examples that count.
    """
    counted = (weights > 0)[None, None]
    top = jnp.argmax(log_p, axis=-1)  # [M, B]
    different = (top[:, None] != top[None]) & counted

    def against(one: jax.Array) -> jax.Array:  # [B, classes] -> [M, B]
        p = jnp.exp(one)[None]
        # What has no probability adds nothing: 0 log 0 = 0.
        terms = jnp.where(p > 0, p * (one[None] - log_p), 0)
        return jnp.where(p.max(axis=-1) >= 0, terms.sum(axis=-1), jnp.nan)

    kl = jax.lax.map(against, log_p)  # one network at a time: M^2 B classes is a lot
    return PairSums(
        different=different.sum(axis=-1, dtype=jnp.int32),
        kl=jnp.where(counted, kl, 0).sum(axis=-1),
    )


@jax.jit
def _sums(
    log_p: list[jax.Array], labels: jax.Array, weights: jax.Array
) -> tuple[ScoreSums, PairSums]:
    stacked = jnp.stack(log_p)
    ensemble = ensemble_log_probabilities(stacked)
    return score_sums(ensemble, labels, weights), pair_sums(stacked, weights)
