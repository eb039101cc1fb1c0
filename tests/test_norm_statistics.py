"""Statistics of batch norm, estimated anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets.norm_statistics import reestimate_statistics
from tests.helpers import assert_same


def test_reestimated_statistics_are_the_weighted_mean():
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((n, 5)).astype(np.float32) for n in (8, 8, 3)]

    def statistics_of(x: Any) -> Any:
        x = jnp.asarray(x)
        return {"mean": x.mean(0), "bn": [x.var(0)], "n": jnp.int32(len(x))}, len(x)

    got = reestimate_statistics(statistics_of, (batch for batch in batches))
    weights = np.array([8, 8, 3]) / 19
    mean = sum(w * b.mean(0, dtype=np.float64) for w, b in zip(weights, batches))  # noqa: B905
    var = sum(w * b.var(0, dtype=np.float64) for w, b in zip(weights, batches))  # noqa: B905
    np.testing.assert_allclose(got["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["bn"][0], var, rtol=1e-5, atol=1e-6)
    assert got["n"].dtype == jnp.int32 and int(got["n"]) == 3


def test_reestimation_of_one_batch_is_that_batch_and_leaves_it_alive():
    statistics = {"mean": jnp.array([0.1, -3.0]), "n": jnp.int32(2)}
    once = reestimate_statistics(lambda _: (statistics, 0.3), [0])
    assert_same(once, statistics)
    many = reestimate_statistics(lambda w: (statistics, w), [1, 2.5, jnp.int32(4)])
    assert_same(many, statistics)
    assert not any(x.is_deleted() for x in jax.tree.leaves((statistics, once)))


def test_reestimation_of_narrow_statistics_does_not_stall():
    batches = [jnp.bfloat16(i >= 500) for i in range(1000)]
    mean = reestimate_statistics(lambda x: (x, 1), batches)
    assert mean.dtype == jnp.bfloat16 and float(mean) == 0.5


def test_batches_of_weight_zero_do_not_count():
    values = [(5.0, 0), (jnp.nan, 0), (1.0, 1), (9.0, 0), (3.0, 1)]
    # Even a NaN: an empty batch has no mean.
    mean = reestimate_statistics(lambda v: (jnp.float32(v[0]), v[1]), values)
    assert float(mean) == 2.0


def test_reestimation_needs_batches():
    with pytest.raises(ValueError, match="batches must hold at least 1 batch"):
        reestimate_statistics(lambda x: (x, 1), [])
    with pytest.raises(ValueError, match="must sum to more than 0"):
        reestimate_statistics(lambda x: (x, 0), [jnp.float32(1)])
    with pytest.raises(ValueError, match="must sum to more than 0"):
        reestimate_statistics(lambda x: (x, jnp.nan), [jnp.float32(1)])
