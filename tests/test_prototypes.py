"""Classes known by the means of their features, and sessions that train a part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets.models.conv import ConvNet
from sup_tickets.training.libraries.linen import linen_features, linen_network
from sup_tickets.training.prototypes import (
    class_means,
    moving,
    nearness,
    normalized,
    seen_with,
    session_loss,
    session_step,
    soft_masks,
    with_session,
)
from sup_tickets.views import edge_popup, softnet

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([3, 2, 3, 2, 3, 2], np.int32)
OLD = RNG.normal(size=(4, 4)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def new_means():
    return np.stack([unit(FEATURES)[c == LABELS].mean(0) for c in (2, 3)])


# --- Prototypes -----------------------------------------------------------------------


def test_means_are_of_normalized_features():
    found = class_means(FEATURES, LABELS - 2, 2)
    np.testing.assert_allclose(found, new_means(), rtol=1e-5)
    table = with_session(OLD, FEATURES, LABELS, np.int32(2), 2)
    np.testing.assert_allclose(table[2:], new_means(), rtol=1e-5)
    np.testing.assert_array_equal(table[:2], OLD[:2])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_nearest_mean_among_the_classes_seen(metric):
    found = np.asarray(nearness(FEATURES, OLD, np.int32(3), metric))
    assert (found[:, 3] == -np.inf).all()
    distance = ((unit(FEATURES)[:, None] - OLD[None]) ** 2).sum(-1)
    wanted = unit(FEATURES) @ unit(OLD).T if metric == "cosine" else -distance
    np.testing.assert_allclose(found[:, :3], wanted[:, :3], rtol=1e-4, atol=1e-5)


def test_the_loss_is_over_minus_cosine_distances():
    both = np.concatenate([OLD[:2], new_means()])
    minus = -(1 - unit(FEATURES) @ unit(both).T)
    log_p = minus - np.log(np.exp(minus).sum(-1, keepdims=True))
    wanted = -log_p[np.arange(6), LABELS].mean()
    found = session_loss(FEATURES, LABELS, OLD, np.int32(2), 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # Old prototypes are constants; features of 0 have a gradient.
    gradient = jax.grad(session_loss, 2)(FEATURES, LABELS, OLD, np.int32(2), 2)
    assert not gradient.any()
    assert jnp.isfinite(jax.grad(lambda x: normalized(x).sum())(jnp.zeros(3))).all()


def test_features_are_what_the_head_is_given():
    model, images = ConvNet(classes=3, features=(3, 4)), jnp.ones((2, 4, 4, 1))
    net = linen_network(model, images)
    params, state = jax.jit(net.init)(jax.random.key(0))
    found = linen_features(model)(params, state, images)
    head = params["classifier"]
    logits, _ = net.apply(params, state, images, False, jax.random.key(0), 0)
    np.testing.assert_allclose(found @ head["kernel"] + head["bias"][None], logits)


# --- Sessions -------------------------------------------------------------------------

PARAMS = {
    "a": {"kernel": jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32)},
    "b": {"kernel": jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)},
    "bn": {"scale": jnp.ones(5)},
}


def features(params, inputs):
    hidden = jax.nn.relu(inputs @ params["a"]["kernel"]) * params["bn"]["scale"][None]
    return hidden @ params["b"]["kernel"]


def after_session(view, rule):
    """Masks, what moves, and the weights after one step."""
    covers = softnet(density=1).covers
    extra = view.init(jax.random.key(1), PARAMS)
    masks = soft_masks(view, PARAMS, extra, covers)
    moves = moving(rule, masks, lambda name: name.startswith("b/"))
    step = session_step(features, 2)
    rate = np.float32(0.5)
    params, loss = step(PARAMS, masks, moves, OLD, FEATURES, LABELS, np.int32(2), rate)
    assert np.isfinite(loss)
    return masks, moves, params


def test_minor_weights_move_by_the_rule_of_the_paper():
    """By -rate * (gradient of what is seen) * (soft mask at minor places)."""
    masks, _, params = after_session(softnet(density=0.5), "minor-block")
    seen = seen_with(PARAMS, masks)
    gradient = jax.grad(
        lambda seen: session_loss(features(seen, FEATURES), LABELS, OLD, np.int32(2), 2)
    )(seen)
    mask = masks["b"]["kernel"]
    minor = jnp.where(mask < 1, mask, 0)
    assert 0 < (mask < 1).sum() < mask.size
    wanted = PARAMS["b"]["kernel"] - 0.5 * gradient["b"]["kernel"] * minor
    np.testing.assert_allclose(params["b"]["kernel"], wanted, rtol=1e-5)
    # It is not 0, as it is where a release multiplies disjoint supports.
    assert (params["b"]["kernel"] != PARAMS["b"]["kernel"]).any()
    for name in ("a", "bn"):
        jax.tree.map(np.testing.assert_array_equal, params[name], PARAMS[name])


def test_rules_say_which_weights_move():
    masks, minor, params = after_session(softnet(density=0.5), "minor")
    np.testing.assert_array_equal(minor["a"]["kernel"], masks["a"]["kernel"] < 1)
    major = masks["a"]["kernel"] == 1
    np.testing.assert_array_equal(
        params["a"]["kernel"][major], PARAMS["a"]["kernel"][major]
    )
    _, everything, params = after_session(softnet(density=0.5), "all")
    assert everything["a"]["kernel"].all() and everything["bn"]["scale"] is None
    assert (params["a"]["kernel"] != PARAMS["a"]["kernel"])[major].any()
    _, nothing, params = after_session(softnet(density=0.5), "frozen")
    assert not any(leaf.any() for leaf in jax.tree.leaves(nothing))
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


def test_a_hardnet_has_no_minor_weights_to_train():
    hard = edge_popup(density=0.5, train_weights=True)
    _, moves, params = after_session(hard, "minor")
    assert not any(leaf.any() for leaf in jax.tree.leaves(moves))
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
