"""Channels: found in a program, gated, and removed."""

import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.channels import (
    ChannelAxis,
    ChannelGroup,
    channel_flops,
    gate_channels,
    slice_channels,
)
from sup_tickets.models import make_model
from sup_tickets.training.flops import dense_flops
from sup_tickets.training.libraries.linen import kernel_uses, linen_network
from sup_tickets.training.libraries.linen_channels import (
    channel_means,
    channel_uses,
    check_follows,
    following,
    following_network,
    linen_channels,
)
from sup_tickets.trees import named_leaves
from sup_tickets.wiring import channel_groups
from tests.helpers import quick

A = ChannelGroup("a", 3, (ChannelAxis("a", 1),), (ChannelAxis("b", 0, 2, 2),))
TREE = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(12.0)[:, None]}

# A VGG-like, a residual and a pre-activation network, and one that flattens pixels.
MODELS = {
    "vgg16": ({"stages": ((4, 4), (6,)), "hidden": (5,), "last_maximum": False}, 3),
    "resnet20": ({"blocks": (2, 1), "widths": (4, 6)}, 2 + 1 + 2),
    "resnet50": ({"blocks": (1, 1), "widths": (4, 4)}, 1 + 3 + 3),
    "conv": ({"features": (4, 4)}, 2),
    "mobilenet_v1": ({}, None),
    "wrn22x2": ({"blocks": 2, "widths": (4,), "stem_width": 4}, None),
}


def made(name):
    """A model with parameters none of which is what it is at first: wrong ones show."""
    model = make_model(name, classes=3, **MODELS[name][0])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    shapes = jax.eval_shape(
        lambda k: dict(model.init(k, x, train=False)), jax.random.key(0)
    )

    def filled(leaf):
        return rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32)

    return model, jax.tree.map(filled, shapes), x


def halves(groups, seed=0):
    """Of each group a random half, rounded up."""
    rng = np.random.default_rng(seed)
    return {g.name: rng.permutation(g.size) < (g.size + 1) // 2 for g in groups}


@pytest.mark.parametrize("name", [*MODELS][:4])
def test_a_sliced_network_is_the_gated_network(name):
    model, variables, x = made(name)
    wiring = linen_channels(model, x)
    kept = halves(wiring.groups)
    gates = {name: jnp.asarray(k, jnp.float32) for name, k in kept.items()}
    gated = gate_channels(variables, wiring.groups, gates)
    small = slice_channels(variables, wiring.groups, kept)
    check_follows(model, small["params"], x)

    @jax.jit
    def outputs(trees):
        found = []
        for tree in trees:
            with following(tree["params"]):
                found.append(model.apply(tree, x, train=False))
        return found

    got, wanted, whole = outputs([small, gated, variables])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(whole - wanted).max()) > 1e-3  # the gates do something
    sizes = {n: leaf.size for n, leaf in named_leaves(small["params"])}
    assert sum(sizes.values()) < sum(a.size for a in jax.tree.leaves(variables)) / 2


@pytest.mark.parametrize("name", [*MODELS])
def test_groups_of_models(name):
    options, count = MODELS[name]
    model = make_model(name, classes=3, **options)
    wiring = linen_channels(model, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    if count is not None:
        assert len(wiring.groups) == count + (name == "vgg16")
    assert wiring.outputs is not None
    assert {axis.leaf for axis in wiring.outputs.made} == {
        "params/classifier/bias",
        "params/classifier/kernel",
    }
    seen = [axis[:2] for group in wiring.groups for axis in group.axes]
    assert len(seen) == len(set(seen))  # an axis is of one group


def test_channels_that_are_added_are_one_group():
    model = make_model("resnet20", blocks=(2, 1), widths=(4, 6))
    wiring = linen_channels(model, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    first, *_ = wiring.groups
    made = {axis.leaf for axis in first.made if axis.leaf.endswith("kernel")}
    assert made == {
        "params/conv/kernel",
        "params/stage1/block1/conv2/kernel",
        "params/stage1/block2/conv2/kernel",
    }
    assert {axis.leaf for axis in first.read} == {
        "params/stage1/block1/conv1/kernel",
        "params/stage1/block2/conv1/kernel",
        "params/stage2/block1/conv1/kernel",
        "params/stage2/block1/conv_shortcut/kernel",
    }


def test_depthwise_convolutions_follow():
    model, variables, x = made("mobilenet_v1")
    wiring = linen_channels(model, x)
    kept = {wiring.groups[0].name: np.arange(32) % 2 == 0}
    small = slice_channels(variables, wiring.groups, kept)
    check_follows(model, small["params"], x)
    with following(small["params"]):
        shape = jax.eval_shape(lambda v: model.apply(v, x, train=False), small).shape
    assert shape == (2, 3)


def test_what_a_program_mixes_is_not_removed():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3)), "c": jnp.ones((3, 2))}

    def groups_of(between):
        def apply(t, x):
            return between(x @ t["a"], t) @ t["c"]

        return [g.name for g in channel_groups(apply, tree, jnp.ones((4, 2))).groups]

    assert groups_of(lambda h, t: jax.nn.relu(h)) == ["a"]
    assert groups_of(lambda h, t: jax.nn.gelu(h) * 2) == ["a"]
    assert groups_of(lambda h, t: h @ t["b"]) == ["a", "b"]
    assert groups_of(lambda h, t: h @ t["b"] + h) == ["a"]  # one group, named by a
    assert groups_of(lambda h, t: h @ t["b"] @ t["b"]) == ["a"]
    assert groups_of(lambda h, t: h @ t["b"] @ t["b"].T) == []  # made and read
    assert groups_of(lambda h, t: h - h.mean(-1, keepdims=True)) == []  # a layer norm
    assert groups_of(lambda h, t: jax.nn.softmax(h)) == []
    assert groups_of(lambda h, t: jnp.cumsum(h, -1)) == []  # not known
    assert groups_of(lambda h, t: h + jnp.arange(3.0)[None]) == []  # a constant of them
    assert groups_of(lambda h, t: h @ h.T @ h) == []  # activations with each other
    assert groups_of(lambda h, t: h.reshape(2, 6).reshape(4, 3)) == []


def test_places_in_a_flattened_image():
    kept = {"a": np.array([True, False, True])}
    small = slice_channels(TREE, [A], kept)
    np.testing.assert_array_equal(small["a"], [[0, 2], [3, 5]])
    # Of [2, 3, 2] the middle channel goes.
    np.testing.assert_array_equal(small["b"][:, 0], [0, 1, 4, 5, 6, 7, 10, 11])
    gated = gate_channels(
        jax.tree.map(jnp.float32, TREE), [A], {"a": jnp.array([1.0, 0.0, 0.5])}
    )
    wanted = [0, 1, 0, 0, 2, 2.5, 6, 7, 0, 0, 5, 5.5]
    np.testing.assert_array_equal(gated["b"][:, 0], wanted)
    np.testing.assert_array_equal(gated["a"], TREE["a"])


def test_places_keep_their_order():
    small = slice_channels(TREE, [A], {"a": np.array([2, 0])})
    np.testing.assert_array_equal(small["a"], [[2, 0], [5, 3]])
    assert slice_channels(TREE, [A], {})["a"].shape == (2, 3)
    masks = {"a": None, "b": np.ones((12, 1), bool)}
    with pytest.raises(ValueError, match="leaf 'a', which is not in the tree"):
        slice_channels(masks, [A], {"a": np.array([2, 0])})


@quick
@given(st.permutations(range(5)), st.integers(1, 5), st.integers(0, 9))
def test_slicing_is_a_reference(order, count, seed):
    group = ChannelGroup("g", 5, (ChannelAxis("x", 0),), (ChannelAxis("y", 1, 3),))
    x = np.random.default_rng(seed).normal(size=(5, 2))
    y = np.random.default_rng(seed + 1).normal(size=(2, 15))
    places = np.array(order[:count])
    small = slice_channels({"x": x, "y": y}, [group], {"g": places})
    np.testing.assert_array_equal(small["x"], x[places])
    np.testing.assert_array_equal(
        small["y"], y.reshape(2, 3, 5)[:, :, places].reshape(2, -1)
    )


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ({"a": np.zeros(3, bool)}, "'a' removes all 3 channels, a whole layer"),
        ({"a": np.zeros(0, int)}, "'a' removes all 3 channels"),
        ({"a": np.ones(2, bool)}, "must be 3 booleans, or different places below 3"),
        ({"a": np.array([0, 3])}, "different places below 3, got int64 of shape (2,)"),
        ({"a": np.array([0, 0])}, "different places below 3"),
        ({"a": np.array([0.5])}, "got float64 of shape (1,)"),
        ({"b": np.ones(3, bool)}, "no group of channels 'b'; there are 'a'"),
    ],
)
def test_what_cannot_be_kept(kept, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        slice_channels(TREE, [A], kept)


def test_leaves_and_gates_of_other_shapes():
    with pytest.raises(ValueError, match=r"3 entries on axis 1 .* shape is \(2, 4\)"):
        slice_channels({**TREE, "a": np.ones((2, 4))}, [A], {})
    with pytest.raises(ValueError, match=r"of 'a' must be of shape \(3,\), got \(2,\)"):
        gate_channels(TREE, [A], {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="no group of channels 'c'"):
        gate_channels(TREE, [A], {"c": jnp.ones(2)})


def test_a_model_that_chooses_layers_by_widths_is_refused():
    model, variables, x = made("wrn22x2")
    wiring = linen_channels(model, x)
    added = wiring.groups[0]  # all that is added to each other
    small = slice_channels(variables, wiring.groups, {added.name: np.arange(3)})
    with pytest.raises(ValueError, match="the model cannot have these channels: "):
        check_follows(model, small["params"], x)
    inner = next(g for g in wiring.groups if g.name.endswith("block2/conv1"))
    small = slice_channels(variables, wiring.groups, {inner.name: np.arange(3)})
    check_follows(model, small["params"], x)
    small["params"].pop("bn")
    with pytest.raises(ValueError, match=r"its leaf 'bn/bias' would be \(4,\), and is"):
        check_follows(model, small["params"], x)


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "conv"])
def test_flops_of_shares_are_those_of_the_sliced_network(name):
    model, variables, x = made(name)
    wiring, uses = linen_channels(model, x), channel_uses(model, x)
    shapes = {n: leaf.shape for n, leaf in named_leaves(variables)}
    kept = halves(wiring.groups)
    shares = {n: Fraction(int(k.sum()), k.size) for n, k in kept.items()}
    small = slice_channels(variables, wiring.groups, kept)
    found = channel_flops(uses, shapes, wiring.groups, shares)
    assert found == dense_flops(kernel_uses(model, x), small["params"])
    whole = channel_flops(uses, shapes, wiring.groups, {})
    assert whole == dense_flops(kernel_uses(model, x), variables["params"])

    def of(share):
        shares = {group.name: share for group in wiring.groups}
        return channel_flops(uses, shapes, wiring.groups, shares) / whole

    np.testing.assert_allclose(of(jnp.float32(1)), 1, rtol=1e-6)
    slope, step = jax.grad(of)(jnp.float32(0.5)), 1e-2
    finite = (of(0.5 + step) - of(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(slope, finite, rtol=1e-3)


def test_means_of_channels_are_of_what_is_read():
    model, variables, x = made("conv")
    network = linen_network(model, x)
    groups = linen_channels(model, x).groups
    parts = variables["params"], variables["batch_stats"]
    found = channel_means(following_network(network), groups, *parts, x)
    assert {n: v.shape for n, v in found.items()} == {g.name: (2, 4) for g in groups}
    # What the classifier reads of its channel 1 is all that a network of it alone does.
    last = groups[-1]
    small = slice_channels(variables, groups, {last.name: np.array([1])})
    fewer = [g._replace(size=1) if g == last else g for g in groups]
    parts = small["params"], small["batch_stats"]
    again = channel_means(following_network(network), fewer, *parts, x)
    np.testing.assert_allclose(again[last.name][:, 0], found[last.name][:, 1], 1e-5)
