"""Scores: what each criterion looks at, worked by hand."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets import saliency
from sup_tickets.saliency import Signals

W = {"w": jnp.array([2.0, -3.0, 0.0]), "bias": None}
G = {"w": jnp.array([-1.0, 0.5, 4.0]), "bias": None}
M = {"w": jnp.array([-0.25, 0.0, 1.0]), "bias": None}
MASKS = {"w": jnp.array([True, True, False]), "bias": None}


def signals(**parts):
    return Signals(params=W, masks=MASKS, **parts)


def test_hand_table():
    assert saliency.magnitude(W)["w"].tolist() == [2, 3, 0]
    assert saliency.gradient(G)["w"].tolist() == [1, 0.5, 4]
    assert saliency.momentum(M)["w"].tolist() == [0.25, 0, 1]
    assert saliency.taylor(W, G)["w"].tolist() == [2, 1.5, 0]
    assert saliency.magnitude(W)["bias"] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scores_keep_shape_and_dtype(dtype):
    tree = {"w": jnp.ones((2, 3), dtype)}
    for scores in (
        saliency.magnitude(tree),
        saliency.gradient(tree),
        saliency.momentum(tree),
        saliency.taylor(tree, tree),
    ):
        assert scores["w"].shape == (2, 3) and scores["w"].dtype == dtype


def test_score_functions_look_at_their_part(key):
    everything = signals(gradients=G, momentum=M, key=key)
    wanted = {
        saliency.by_magnitude: saliency.magnitude(W),
        saliency.by_gradient: saliency.gradient(G),
        saliency.by_momentum: saliency.momentum(M),
        saliency.by_taylor: saliency.taylor(W, G),
        saliency.by_random: saliency.random_scores(key, W),
    }
    for function, scores in wanted.items():
        helpers.assert_same(function(everything), scores)
        helpers.assert_same(jax.jit(function)(everything), scores)


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (saliency.by_gradient, "gradients"),
        (saliency.by_taylor, "gradients"),
        (saliency.by_momentum, "momentum"),
        (saliency.by_random, "key"),
    ],
)
def test_a_missing_part_is_named(function, part):
    with pytest.raises(ValueError, match=f"needs Signals.{part}, which is None"):
        function(signals())
    saliency.by_magnitude(signals())


def test_random_scores_depend_on_key_and_name(key):
    tree = {"a": jnp.zeros((20, 50), jnp.bfloat16), "b": jnp.zeros((20, 50))}
    scores = saliency.random_scores(key, tree)
    assert scores["a"].dtype == jnp.float32
    assert (scores["a"] != scores["b"]).any()
    alone = saliency.random_scores(key, {"a": jnp.ones((20, 50))})
    helpers.assert_same(alone["a"], scores["a"])
    other = saliency.random_scores(jax.random.key(1), tree)
    assert (other["a"] != scores["a"]).any()
    np.testing.assert_allclose(scores["a"].mean(), 0.5, atol=0.05)
