import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.data.resident import Weighted
from sup_tickets.training.comparison import compare
from sup_tickets.training.predictions import Predictions, metrics_of
from sup_tickets.training.state import Network
from tests.helpers import quick


def predict(network, batch):
    """A network is a table: the images are rows of it."""
    log_p = network.params["table"][batch.inputs]
    return Predictions(log_p, batch.labels, batch.weights)


def table(log_p):
    return Network({"table": jnp.asarray(log_p, jnp.float32)}, {}, {"table": None})


def values(metrics):
    return list(metrics.values())


def batches_of(labels, size=4):
    """Rows 0, 1, 2, ... padded to whole batches with rows of weight 0."""
    missing = -len(labels) % size
    rows = np.pad(np.arange(len(labels)), (0, missing), constant_values=len(labels))
    padded = np.pad(labels, (0, missing)).astype(np.int32)
    weights = np.pad(np.ones(len(labels), np.float32), (0, missing))
    for i in range(0, len(rows), size):
        cut = slice(i, i + size)
        yield Weighted(rows[cut], padded[cut], weights[cut])


def tables(rng, count, n, classes, scale=2.0):
    """Log-probabilities of n examples, and a row of NaN that only padding looks at."""
    scores = scale * rng.standard_normal((count, n, classes))
    log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return np.pad(log_p, [(0, 0), (0, 1), (0, 0)], constant_values=np.nan)


def test_two_networks_by_hand():
    p = np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.8, 0.2]]])
    got = compare(predict, [table(x) for x in np.log(p)], batches_of(np.array([1, 0])))
    # The first example is a tie in the first network: the first class counts.
    np.testing.assert_array_equal(got.disagreement, [[0, 0.5], [0.5, 0]])
    forth = (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) + (
        0.9 * np.log(9 / 8) + 0.1 * np.log(1 / 2)
    )
    back = (0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)) + (
        0.8 * np.log(8 / 9) + 0.2 * np.log(2)
    )
    np.testing.assert_allclose(got.kl, [[0, forth / 2], [back / 2, 0]], atol=1e-7)
    assert got.ensemble["accuracy"] == 1
    nll = -(np.log(0.625) + np.log(0.85)) / 2
    np.testing.assert_allclose(got.ensemble["nll"], nll, rtol=1e-6)


@quick
@given(
    count=st.sampled_from([1, 3]),
    n=st.sampled_from([1, 4, 9]),
    classes=st.sampled_from([2, 6]),
    seed=st.integers(0, 2**16),
)
def test_comparisons_agree_with_numpy(count, n, classes, seed):
    rng = np.random.default_rng(seed)
    log_p, labels = tables(rng, count, n, classes), rng.integers(0, classes, n)
    got = compare(predict, [table(x) for x in log_p], batches_of(labels))
    log_p, top = log_p[:, :n], log_p[:, :n].argmax(-1)
    p = np.exp(log_p)
    for i in range(count):
        for j in range(count):
            assert got.disagreement[i, j] == np.mean(top[i] != top[j])
            kl = (p[i] * (log_p[i] - log_p[j])).sum(-1).mean()
            np.testing.assert_allclose(got.kl[i, j], kl, rtol=1e-4, atol=1e-6)
    wanted = metrics_of(np.log(p.mean(0)).astype(np.float32), labels, np.ones(n))
    np.testing.assert_allclose(
        values(got.ensemble), values(wanted), rtol=1e-4, atol=1e-6
    )


def test_the_order_of_networks_is_the_order_of_rows(key):
    rng = np.random.default_rng(3)
    nets, labels = [table(x) for x in tables(rng, 3, 8, 4)], rng.integers(0, 4, 8)
    one = compare(predict, nets, batches_of(labels))
    two = compare(predict, nets[::-1], batches_of(labels, size=8))
    np.testing.assert_allclose(one.kl, two.kl[::-1, ::-1], rtol=1e-6)
    np.testing.assert_array_equal(one.disagreement, two.disagreement[::-1, ::-1])
    np.testing.assert_array_equal(one.disagreement, one.disagreement.T)
    np.testing.assert_allclose(values(one.ensemble), values(two.ensemble), rtol=1e-6)


def test_no_probability_is_no_nan():
    certain = np.log(
        np.array([[1.0, 0.0]]), where=[[True, False]], out=np.array([[0, -np.inf]])
    )
    other = np.log(np.array([[0.5, 0.5]]))
    got = compare(predict, [table(certain), table(other)], batches_of(np.array([0])))
    np.testing.assert_allclose(got.kl, [[0, np.log(2)], [np.inf, 0]])


def test_a_network_that_broke_is_not_hidden():
    broken, other = np.full((2, 3), np.nan), np.log(np.full((2, 3), 1 / 3))
    got = compare(predict, [table(broken), table(other)], batches_of(np.array([0, 1])))
    assert np.isnan(got.kl[0, 1]) and np.isnan(got.ensemble["nll"])
    assert got.kl[1, 1] == 0


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="at least 1 network"):
        compare(predict, [], batches_of(np.array([0])))
    with pytest.raises(ValueError, match="at least 1 batch"):
        compare(predict, [table(np.zeros((2, 2)))], [])


def test_the_host_waits_once(monkeypatch):
    """Nothing is fetched while the batches are looped over."""
    fetched = []
    real = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(1) or real(x))
    nets = [table(x) for x in tables(np.random.default_rng(0), 2, 20, 3)]
    compare(predict, nets, batches_of(np.zeros(20)))
    assert len(fetched) == 1
