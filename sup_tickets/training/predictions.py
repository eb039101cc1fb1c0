"""Predictions of classes, and how good they are: accuracy, likelihood, calibration.

Of images, words, anything: [...] is [B] where an example has one prediction, [B, T]
where it has T. Sums over examples are made on the device.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.training.task import Metrics

ECE_BINS = 15
"""Bins of the calibration error: equally wide, ((k - 1) / 15, k / 15] for k = 1 to 15.

As in Guo et al., On Calibration of Modern Neural Networks, 2017,
https://arxiv.org/abs/1706.04599; the Sup-tickets paper does not give its number.
"""


class Predictions(NamedTuple):
    """What a network thinks of a batch."""

    log_p: Any  # [..., classes] float32 log-probabilities
    labels: Any  # [...] integers
    weights: Any  # [...] above 0 for the examples that count


class PredictionSums(NamedTuple):
    """Sums over examples, from which metrics are made; on the device."""

    right: jax.Array  # [ECE_BINS] int32, examples whose top class is the label
    counts: jax.Array  # [ECE_BINS] int32, examples by their top probability
    top: jax.Array  # [ECE_BINS] float32, of the top probabilities
    nll: jax.Array  # [] float32, nats
    brier: jax.Array  # [] float32


def prediction_sums(predictions: Predictions) -> PredictionSums:
    """The sums of one batch; may be traced.

    What a batch was padded with is chosen away, not multiplied: NaN * 0 is NaN.
    """
    log_p, labels, weights = _flat(predictions)
    counted = weights > 0
    p = jnp.exp(log_p)
    top = p.max(axis=-1)
    # By comparisons, so that the bins are closed on the right and NaN is in the first.
    edges = jnp.arange(1, ECE_BINS, dtype=jnp.float32) / ECE_BINS
    bins = (top[:, None] > edges[None]).sum(axis=1)
    is_right = jnp.argmax(log_p, axis=-1) == labels
    target = jax.nn.one_hot(labels, log_p.shape[-1], dtype=jnp.float32)
    nll = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    brier = jnp.square(p - target).sum(axis=-1)
    in_bin = counted[:, None] & (bins[:, None] == jnp.arange(ECE_BINS)[None])
    return PredictionSums(
        right=(in_bin & is_right[:, None]).sum(axis=0, dtype=jnp.int32),
        counts=in_bin.sum(axis=0, dtype=jnp.int32),
        top=jnp.where(in_bin, top[:, None], 0).sum(axis=0),
        nll=jnp.where(counted, nll, 0).sum(),
        brier=jnp.where(counted, brier, 0).sum(),
    )


def _flat(predictions: Predictions) -> Predictions:
    """[...] as one axis."""
    log_p, labels, weights = map(jnp.asarray, predictions)
    return Predictions(
        log_p.reshape(-1, log_p.shape[-1]), labels.reshape(-1), weights.reshape(-1)
    )


def prediction_metrics(sums: PredictionSums) -> Metrics:
    """What sums over all examples come to, means over the examples each.

    Returns:
      "accuracy" in [0, 1]; "nll", the negative log-likelihood in nats; "ece", the
      difference of accuracy and top probability of each of `ECE_BINS`, weighted, in
      [0, 1]; "brier", the sum over the classes of squared differences, in [0, 2]; and
      how many "examples" were counted.

    Raises:
      ValueError: if no example was counted.
    """
    examples = int(np.sum(sums.counts))
    if examples == 0:
        raise ValueError("batches must hold at least 1 example of weight above 0")
    gaps = np.abs(np.asarray(sums.right, np.float64) - np.asarray(sums.top, np.float64))
    return {
        "accuracy": int(np.sum(sums.right)) / examples,
        "nll": float(sums.nll) / examples,
        "ece": float(gaps.sum()) / examples,
        "brier": float(sums.brier) / examples,
        "examples": examples,
    }


def metrics_of(log_p: Any, labels: Any, weights: Any) -> Metrics:
    """The metrics of predictions; see `Predictions` for the arguments.

    Example:
      >>> p = jnp.array([[0.8, 0.2], [0.6, 0.4]])
      >>> metrics = metrics_of(jnp.log(p), jnp.array([0, 1]), jnp.ones(2))
      >>> metrics["accuracy"], round(metrics["ece"], 4), round(metrics["brier"], 4)
      (0.5, 0.4, 0.4)
    """
    sums = prediction_sums(Predictions(log_p, labels, weights))
    return prediction_metrics(jax.device_get(sums))
