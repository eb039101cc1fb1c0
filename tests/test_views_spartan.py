"""Spartan, a view added by one value in one file: its goldens and its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sup_tickets as st
from sup_tickets.views.spartan import soft_top_k


def reference(values, k, beta):
    """By bisection, in float64."""
    low, high = -1e3, 1e3
    for _ in range(200):
        mu = (low + high) / 2
        m = 1 / (1 + np.exp(-np.clip(beta * values + mu, -500, 500)))
        low, high = (mu, high) if m.sum() < k else (low, mu)
    return m


def test_golden():
    """Section 4 of other_systems_2.md."""
    values = jnp.array([0.1, 0.2, 0.5, 1.0])
    for beta, wanted in (
        (1.0, [0.413923, 0.438372, 0.513054, 0.634652]),
        (20.0, [0.006249, 0.0444, 0.949353, 0.999998]),
    ):
        found = soft_top_k(values, 2, beta)
        np.testing.assert_allclose(found, wanted, atol=2e-6)
        np.testing.assert_allclose(found.sum(), 2, rtol=1e-6)


@pytest.mark.parametrize(("k", "beta"), [(1, 0.5), (30, 20.0), (127, 5.0), (64, 1e3)])
def test_it_sums_to_k(k, beta):
    values = np.abs(np.random.default_rng(0).normal(size=128)).astype(np.float32)
    found = np.asarray(soft_top_k(jnp.asarray(values), k, beta))
    np.testing.assert_allclose(
        found, reference(values.astype(float), k, beta), atol=2e-5
    )


def test_it_is_1_where_nothing_is_left_to_choose():
    values = jnp.array([0.0, 0.5, 0.0, 2.0])
    for k in (2, 3, 4):
        assert soft_top_k(values, k, 1.0).tolist() == [1, 1, 1, 1]
    found = soft_top_k(values, 1, 1.0)  # of the two that are not 0
    assert found[0] == found[2] == 1 and abs(found[1] + found[3] - 1) < 1e-5
    assert soft_top_k(jnp.zeros(3), 1, 1.0).tolist() == [1, 1, 1]
    alike = soft_top_k(jnp.ones(4), 2, 3.0)
    np.testing.assert_allclose(alike, 0.5, rtol=1e-6)


def view_at(step, weights):
    view = st.spartan(density=0.25, total_steps=100, where=lambda name, leaf: True)
    params = {"w": jnp.asarray(weights, jnp.float32)}
    extra = view.init(jax.random.key(0), params)
    return view, params, view.after_step(params, extra, None, jnp.int32(step))


def test_counts_and_sharpness_over_the_steps():
    weights = np.random.default_rng(1).normal(size=40)
    counts, betas = [], []
    for step in (0, 5, 10, 20, 80):
        view, params, extra = view_at(step, weights)
        own: Any = extra.untrained["w"]
        counts.append(int(own["count"]))
        betas.append(round(float(own["beta"]), 4))
        assert int((view.apply(params, extra)["w"] != 0).sum()) == counts[-1]
        assert bool(own["frozen"]) == (step == 80)
    assert counts == [40, 33, 25, 10, 10]
    assert betas == [1, 2.1875, 3.375, 5.75, 20]


def test_the_mask_is_a_constant_from_four_fifths_on():
    weights = np.linspace(0.1, 0.8, 8)
    view, params, extra = view_at(80, weights)
    mask = extra.untrained["w"]["mask"]
    wanted = reference(weights, 2, 20.0) * (np.arange(8) > 5)
    np.testing.assert_allclose(mask, wanted, atol=1e-5)
    other = {"w": params["w"][::-1]}
    later = view.after_step(other, extra, None, jnp.int32(81))
    seen, pull = jax.vjp(lambda p: view.apply(p, later), other)
    np.testing.assert_allclose(seen["w"], mask * other["w"], rtol=1e-6)
    np.testing.assert_allclose(pull({"w": jnp.ones(8)})[0]["w"], mask)
    sooner = view.after_step(other, extra, None, jnp.int32(79))
    assert np.flatnonzero(sooner.untrained["w"]["mask"]).tolist() == [0, 1]


def test_the_gradient_is_that_of_the_soft_mask_mu_included():
    rng = np.random.default_rng(2)
    w, g = rng.normal(size=24), rng.normal(size=24)
    view, params, extra = view_at(50, w)
    own: Any = extra.untrained["w"]
    k, beta = int(own["count"]), float(own["beta"])
    seen, pull = jax.vjp(lambda p: view.apply(p, extra), params)
    (found,) = pull({"w": jnp.asarray(g, jnp.float32)})

    def soft(w):
        return w * reference(np.abs(w), k, beta)

    hard = np.argsort(-np.abs(w))[:k]
    np.testing.assert_allclose(
        np.asarray(seen["w"])[hard], soft(w)[hard], rtol=1e-4, atol=1e-6
    )
    each = [(g @ (soft(w + 1e-5 * e) - soft(w - 1e-5 * e))) / 2e-5 for e in np.eye(24)]
    np.testing.assert_allclose(found["w"], each, rtol=1e-3, atol=1e-4)


def test_bad_options_are_one_line():
    for options, words in (
        ({"density": 1.5, "total_steps": 10}, r"density must be in \(0, 1\], got 1.5"),
        (
            {"density": 0.5, "total_steps": 0},
            "total_steps must be a whole number of at",
        ),
        (
            {"density": 0.5, "total_steps": 9, "beta_start": 0},
            "beta_start must be positive and finite, got 0",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            st.make_view("spartan", **options)
