"""Scores of a network (accuracy, likelihood, calibration), batch-norm statistics.

Scores are sums over examples, made and added up on the device; the host waits once, at
the end. Shapes: B examples of a batch.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.data.resident import Weighted
from sup_tickets.statistics import reestimate_statistics
from sup_tickets.training.state import Network
from sup_tickets.training.steps import Form, Prepare, form_of

ECE_BINS = 15
"""Bins of the calibration error: equally wide, ((k - 1) / 15, k / 15] for k = 1 to 15.

As in Guo et al., On Calibration of Modern Neural Networks, 2017,
https://arxiv.org/abs/1706.04599; the Sup-tickets paper does not give its number.
"""

Predict = Callable[[Network, Weighted], jax.Array]
"""``(network, batch) -> [B, classes]`` log-probabilities, float32."""


class Scores(NamedTuple):
    """How well a network does on a split. Each is a mean over its examples."""

    accuracy: float  # share of the examples, in [0, 1]
    nll: float  # negative log-likelihood, nats
    ece: float  # |accuracy - top probability| of each of `ECE_BINS`, weighted; [0, 1]
    brier: float  # sum over the classes of squared differences, in [0, 2]
    examples: int  # how many were counted


class ScoreSums(NamedTuple):
    """Sums over examples, from which `Scores` are made; on the device."""

    right: jax.Array  # [ECE_BINS] int32, examples whose top class is the label
    counts: jax.Array  # [ECE_BINS] int32, examples by their top probability
    top: jax.Array  # [ECE_BINS] float32, of the top probabilities
    nll: jax.Array  # [] float32, nats
    brier: jax.Array  # [] float32


# --- Sums -----------------------------------------------------------------------------


def score_sums(log_p: jax.Array, labels: jax.Array, weights: jax.Array) -> ScoreSums:
    """The sums of one batch; may be traced.

    Args:
      log_p: [B, classes] float32 log-probabilities.
      labels: [B] integers.
      weights: [B], above 0 for the examples that count. What a batch was padded with is
        chosen away, not multiplied: NaN * 0 is NaN.
    """
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
    return ScoreSums(
        right=(in_bin & is_right[:, None]).sum(axis=0, dtype=jnp.int32),
        counts=in_bin.sum(axis=0, dtype=jnp.int32),
        top=jnp.where(in_bin, top[:, None], 0).sum(axis=0),
        nll=jnp.where(counted, nll, 0).sum(),
        brier=jnp.where(counted, brier, 0).sum(),
    )


class RunningSum:
    """The sum of a pytree over batches, on the device.

    Floats are added with what the earlier additions lost (Kahan), so that the error
    does not grow with the number of batches; integers exactly.
    """

    def __init__(self):
        self._total: Any = None
        self._lost: Any = None

    def add(self, part: Any) -> None:
        """Adds the sums of one more batch, without waiting for them."""
        if self._total is None:
            self._total, self._lost = part, jax.tree.map(jnp.zeros_like, part)
        else:
            self._total, self._lost = _add(self._total, self._lost, part)

    def result(self) -> Any:
        """The sums as NumPy arrays, float64 or int64; the host waits here.

        Raises:
          ValueError: if nothing was added.
        """
        if self._total is None:
            raise ValueError("batches must hold at least 1 batch, got none")
        total, lost = jax.device_get((self._total, self._lost))
        return jax.tree.map(_exactly, total, lost)


@jax.jit
def _add(total: Any, lost: Any, part: Any) -> tuple[Any, Any]:
    def one(total: Any, lost: Any, part: Any) -> tuple[Any, Any]:
        part = part + lost
        new = total + part
        lost = part - (new - total)
        # Infinity less infinity is no loss.
        return new, jnp.where(jnp.isfinite(lost), lost, jnp.zeros_like(lost))

    pairs = jax.tree.map(one, total, lost, part)
    return jax.tree.transpose(jax.tree.structure(total), None, pairs)


def _exactly(total: np.ndarray, lost: np.ndarray) -> np.ndarray:
    wide = np.int64 if np.issubdtype(total.dtype, np.integer) else np.float64
    return total.astype(wide) + lost.astype(wide)


def scores_from(sums: ScoreSums) -> Scores:
    """The scores that sums over all examples come to.

    Raises:
      ValueError: if no example was counted.
    """
    examples = int(np.sum(sums.counts))
    if examples == 0:
        raise ValueError("batches must hold at least 1 example of weight above 0")
    gaps = np.abs(np.asarray(sums.right, np.float64) - np.asarray(sums.top, np.float64))
    return Scores(
        accuracy=int(np.sum(sums.right)) / examples,
        nll=float(sums.nll) / examples,
        ece=float(gaps.sum()) / examples,
        brier=float(sums.brier) / examples,
        examples=examples,
    )


def scores_of(log_p: Any, labels: Any, weights: Any) -> Scores:
    """The scores of predictions; see `score_sums` for the arguments.

    Example:
      >>> p = jnp.array([[0.8, 0.2], [0.6, 0.4]])
      >>> scores = scores_of(jnp.log(p), jnp.array([0, 1]), jnp.ones(2))
      >>> scores.accuracy, round(scores.ece, 4), round(scores.brier, 4)
      (0.5, 0.4, 0.4)
    """
    return scores_from(jax.device_get(score_sums(log_p, labels, weights)))


# --- Networks -------------------------------------------------------------------------


def make_predict(
    model: nn.Module, normalize: Callable[[jax.Array], jax.Array]
) -> Predict:
    """The function ``(network, batch) -> [B, classes]`` log-probabilities, float32.

    Compiled once; batch norm uses its running statistics.

    Args:
      model: Linen module, called as ``model(inputs, train=False)``.
      normalize: from the images of a batch to inputs.
    """
    log_p = jax.jit(_log_probabilities(model, normalize))
    return lambda network, batch: log_p(
        network.params, network.batch_stats, batch.images
    )


def make_evaluate(
    model: nn.Module | Form, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[..., Scores]:
    """The function ``(network, batches[, step]) -> Scores``, compiled once.

    Args:
      model: Linen module, called as ``model(inputs, train=False)``; or the form of one,
        which is that at the step.
      normalize: from the images of a batch to inputs.
    """
    form = form_of(model)

    @jax.jit
    def sums(
        params: Any, batch_stats: Any, batch: Weighted, step: jax.Array
    ) -> ScoreSums:
        log_p = _log_probabilities(form(step), normalize)
        predicted = log_p(params, batch_stats, batch.images)
        return score_sums(predicted, batch.labels, batch.weights)

    def evaluate(
        network: Network, batches: Iterable[Weighted], step: int = 0
    ) -> Scores:
        total = RunningSum()
        for batch in batches:
            total.add(sums(network.params, network.batch_stats, batch, jnp.int32(step)))
        return scores_from(total.result())

    return evaluate


def _log_probabilities(model: nn.Module, normalize: Any) -> Any:
    def log_p(params: Any, batch_stats: Any, images: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        scores: Any = model.apply(variables, normalize(images), train=False)
        return jax.nn.log_softmax(scores.astype(jnp.float32))

    return log_p


def make_reestimate(
    model: nn.Module, prepare: Prepare
) -> Callable[[Network, Iterable[Any], jax.Array], Network]:
    """The function ``(network, batches, key) -> network`` with new statistics ("BU").

    One pass of training batches, augmented as in training, through the network at fixed
    weights; the statistics are their mean. A network without any is returned as it is.

    Args:
      model: Linen module; with the field ``bn_momentum`` if it has batch norm.
      prepare: from a batch and a key to inputs and labels.
    """

    @jax.jit
    def statistics(network: Network, batch: Any, key: jax.Array) -> Any:
        inputs, _ = prepare(batch, key)
        variables = {"params": network.params, "batch_stats": network.batch_stats}
        # With momentum 0 the running statistics become those of the batch.
        _, changed = model.clone(bn_momentum=0.0).apply(
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
