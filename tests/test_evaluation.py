import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.data.resident import Weighted
from sup_tickets.models import MLP
from sup_tickets.training.classification import image_classification
from sup_tickets.training.evaluation import RunningSum, evaluate, predict, reestimate
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.training.predictions import (
    ECE_BINS,
    Predictions,
    PredictionSums,
    metrics_of,
    prediction_metrics,
    prediction_sums,
)
from sup_tickets.training.state import Network
from tests.helpers import quick, traced


def log_softmax(scores):
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def reference(log_p, labels):
    """The scores example by example, in float64, bins by a search."""
    p = np.exp(log_p.astype(np.float64))
    n, classes = p.shape
    nll = -np.mean([log_p[i, labels[i]] for i in range(n)])
    brier = np.mean(
        [np.sum((p[i] - np.eye(classes)[labels[i]]) ** 2) for i in range(n)]
    )
    right = p.argmax(1) == labels
    edges = np.arange(1, ECE_BINS, dtype=np.float32) / np.float32(ECE_BINS)
    top = np.exp(log_p).max(1)
    bins = np.searchsorted(edges, top, side="left")  # closed on the right
    ece = sum(
        (bins == b).sum() / n * abs(right[bins == b].mean() - top[bins == b].mean())
        for b in np.unique(bins)
    )
    return right.mean(), nll, ece, brier


def values(metrics):
    return list(metrics.values())


def test_scores_by_hand():
    p = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])
    metrics = metrics_of(jnp.log(p), jnp.array([0, 2, 2]), jnp.ones(3))
    assert metrics["examples"] == 3
    np.testing.assert_allclose(metrics["accuracy"], 2 / 3)
    np.testing.assert_allclose(
        metrics["nll"], -np.log([0.7, 0.4, 0.4]).mean(), rtol=1e-6
    )
    # Each in a bin of its own: 0.7 right, 0.5 wrong, 0.4 right.
    np.testing.assert_allclose(metrics["ece"], (0.3 + 0.5 + 0.6) / 3, rtol=1e-6)
    brier = [0.09 + 0.04 + 0.01, 0.01 + 0.25 + 0.36, 0.09 + 0.09 + 0.36]
    np.testing.assert_allclose(metrics["brier"], np.mean(brier), rtol=1e-6)


def test_examples_of_one_bin_are_taken_together():
    p = jnp.array([[0.62, 0.38], [0.38, 0.62], [0.66, 0.34], [0.64, 0.36]])
    metrics = metrics_of(jnp.log(p), jnp.array([0, 0, 1, 0]), jnp.ones(4))
    np.testing.assert_allclose(
        metrics["ece"], (0.62 + 0.62 + 0.66 + 0.64) / 4 - 0.5, 1e-5
    )


@pytest.mark.parametrize("k", range(1, ECE_BINS + 1))
def test_bins_are_closed_on_the_right(k):
    edge = np.float32(k) / np.float32(ECE_BINS)
    if k > ECE_BINS // 2:  # the top probability of two
        log_p = jnp.log(jnp.array([[edge, 1 - edge]], jnp.float32))
        # The logarithm may round either way; only a probability above the edge moves.
        beyond = int(float(jnp.exp(log_p).max()) > edge)
        predictions = Predictions(log_p, jnp.array([0]), jnp.ones(1))
        counts = prediction_sums(predictions).counts
        assert int(jnp.argmax(counts)) == k - 1 + beyond


def test_certain_predictions():
    log_p = jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    metrics = metrics_of(log_p, jnp.array([0, 1]), jnp.ones(2))
    assert (metrics["accuracy"], metrics["ece"], metrics["brier"]) == (0.5, 0.5, 1.0)
    assert metrics["nll"] == np.inf


@quick
@given(
    n=st.sampled_from([1, 7, 40]),
    padding=st.sampled_from([0, 3]),
    classes=st.sampled_from([2, 10]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_scores_agree_with_numpy(n, padding, classes, scale, seed):
    rng = np.random.default_rng(seed)
    log_p = log_softmax(scale * rng.standard_normal((n, classes))).astype(np.float32)
    labels = rng.integers(0, classes, n).astype(np.int32)
    padded = np.pad(log_p, [(0, padding), (0, 0)], constant_values=np.nan)
    metrics = metrics_of(
        padded, np.pad(labels, (0, padding)), np.pad(np.ones(n), (0, padding))
    )
    assert metrics["examples"] == n
    np.testing.assert_allclose(
        values(metrics)[:4], reference(log_p, labels), 2e-5, 1e-6
    )


def test_a_nan_of_an_example_that_counts_is_not_hidden():
    log_p = jnp.array([[jnp.nan, jnp.nan], [0.0, -jnp.inf]])
    metrics = metrics_of(log_p, jnp.array([0, 0]), jnp.ones(2))
    assert np.isnan([metrics["nll"], metrics["ece"], metrics["brier"]]).all()


def test_the_running_sum_does_not_lose_small_parts():
    total = RunningSum()
    total.add({"x": jnp.float32(1e8), "n": jnp.int32(1)})
    for _ in range(1000):
        total.add({"x": jnp.float32(1.25), "n": jnp.int32(1)})
    result = total.result()
    assert result["x"] == 1e8 + 1250
    assert result["n"] == 1001


def test_the_running_sum_keeps_infinity():
    total = RunningSum()
    for value in (1.0, np.inf, 2.0):
        total.add(jnp.float32(value))
    assert total.result() == np.inf


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="at least 1 batch, got none"):
        RunningSum().result()
    zero = jnp.zeros(ECE_BINS, jnp.int32)
    none = PredictionSums(zero, zero, zero, jnp.float32(0), jnp.float32(0))
    with pytest.raises(ValueError, match="at least 1 example"):
        prediction_metrics(jax.device_get(none))


# --- Networks -------------------------------------------------------------------------


@functools.cache
def network(batch_norm=True):
    model = MLP(classes=5, features=(7,), batch_norm=batch_norm)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)), train=False)
    masks = jax.tree.map(lambda _: None, variables["params"])
    return model, Network(variables["params"], variables.get("batch_stats", {}), masks)


def task_of(model, prepare=lambda batch, key: batch, **options):
    network = linen_network(model, jnp.zeros((1, 3, 3, 1)))
    return image_classification(network, prepare=prepare, **options)


def batches(count=3, size=8):
    rng = np.random.default_rng(1)
    for i in range(count):
        images = rng.normal(size=(size, 3, 3, 1)).astype(np.float32)
        labels = rng.integers(0, 5, size).astype(np.int32)
        weights = np.ones(size, np.float32)
        if i == count - 1:
            images[-2:], weights[-2:] = np.nan, 0
        yield Weighted(images, labels, weights)


def test_evaluating_a_network_is_scoring_its_predictions():
    model, net = network()
    task = task_of(model)
    log_p = np.concatenate([predict(task, net, batch).log_p for batch in batches()])
    assert log_p.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_p[:-2]).sum(1), 1, rtol=1e-6)
    labels, weights = (
        np.concatenate([getattr(b, name) for b in batches()])
        for name in ("labels", "weights")
    )
    wanted = metrics_of(log_p, labels, weights)
    got = evaluate(task, net, batches())
    assert (got["accuracy"], got["examples"]) == (wanted["accuracy"], 22)
    np.testing.assert_allclose(values(got)[1:4], values(wanted)[1:4], rtol=1e-6)


def test_the_model_is_compiled_once():
    model, net = network()
    normalize, traces = traced(lambda images: images)
    task = task_of(model, normalize=normalize)
    evaluate(task, net, batches())
    evaluate(task, net, batches(5))
    assert len(traces) == 1


def test_a_split_over_devices_gives_the_same_scores():
    model, net = network()
    normalize, traces = traced(lambda images: images)
    task = task_of(model, normalize=normalize)
    place = data_shardings(data_mesh(), batch_size=8)
    over = [jax.device_put(batch, place.batch) for batch in batches()]
    got = evaluate(task, jax.device_put(net, place.replicated), over)
    assert len(traces) == 1
    wanted = evaluate(task, net, batches())
    assert (got["accuracy"], got["examples"]) == (
        wanted["accuracy"],
        wanted["examples"],
    )
    np.testing.assert_allclose(values(got), values(wanted), rtol=1e-5)


def test_half_precision_scores_are_widened():
    _, net = network()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), net.params)
    model = MLP(classes=5, features=(7,))
    net = Network(half, {}, net.masks)
    task = task_of(model, normalize=lambda images: images.astype(jnp.bfloat16))
    half.pop("bn1")
    half["dense1"]["bias"] = jnp.zeros(7, jnp.bfloat16)
    assert predict(task, net, next(batches())).log_p.dtype == jnp.float32


class Plain(nn.Module):
    """A model without batch norm, and without the field of it."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(5, name="out")(images.reshape(images.shape[0], -1))


def test_reestimating_needs_no_batch_norm():
    params = Plain().init(jax.random.key(0), jnp.zeros((1, 9)), train=False)["params"]
    net = Network(params, {}, jax.tree.map(lambda _: None, params))
    task = task_of(Plain(), prepare=lambda batch, key: (batch, batch))
    assert reestimate(task, net, [jnp.ones((2, 9))], jax.random.key(0)) is net


def test_reestimated_statistics_are_those_of_the_batch():
    model, net = network()
    task = task_of(model, prepare=lambda batch, key: (batch, batch))
    inputs = next(batches(2)).inputs
    new = reestimate(task, net, [inputs], jax.random.key(0))
    hidden = inputs.reshape(8, 9) @ np.asarray(net.params["dense1"]["kernel"])
    statistics = new.model_state["bn1"]
    np.testing.assert_allclose(statistics["mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], hidden.var(0, ddof=1), rtol=1e-4)
    assert new.params is net.params
