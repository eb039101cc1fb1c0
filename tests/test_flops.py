import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.models import MLP, MODELS, ConvNet, make_model
from sup_tickets.training.flops import (
    Stretch,
    active_counts,
    dense_flops,
    flops_of,
    forward_flops,
    measured_flops,
    rigl_step_flops,
    training_flops,
    weight_step_flops,
)
from sup_tickets.training.libraries.linen import kernel_uses
from sup_tickets.trees import named_leaves
from tests.helpers import quick


def shapes_of(model, example):
    return jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False)["params"], example
    )


class Strange(nn.Module):
    """One of each kind of layer."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), padding="VALID", name="valid")(x)  # 10 -> 8
        x = nn.Conv(8, (3, 3), strides=2, feature_group_count=4, name="grouped")(x)
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up")(x)  # 4 -> 8
        shared = nn.Dense(6, name="shared")
        x = shared(shared(x))  # at 64 places, twice
        x = nn.DenseGeneral((2, 5), axis=(-1, -2), name="general")(x)  # [1, 8, 2, 5]
        x = nn.DenseGeneral(7, batch_dims=(0, 1), axis=3, name="batched")(x)
        words = jnp.zeros((x.shape[0], 3), jnp.int32)
        x = x.sum(axis=(1, 2, 3))
        return x + nn.Embed(11, 4, name="table")(words).sum(axis=(1, 2))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        return nn.remat(nn.Dense)(3, name="head")(x)


def test_uses_of_every_kind_of_layer():
    uses = kernel_uses(Strange(), jnp.zeros((5, 10, 10, 3)))
    assert uses == {
        "valid/kernel": 64,
        "grouped/kernel": 16,
        "up/kernel": 16,
        "shared/kernel": 128,
        "general/kernel": 8,
        "batched/kernel": 2,
        "table/embedding": 0,
    }
    names = {
        name
        for name, _ in named_leaves(shapes_of(Strange(), jnp.zeros((1, 10, 10, 3))))
    }
    assert set(uses) <= names


def test_uses_of_nested_layers():
    uses = kernel_uses(Attention(), jax.ShapeDtypeStruct((2, 9, 8), jnp.float32))
    parts = ("query", "key", "value", "out")
    assert uses == {f"attention/{part}/kernel": 9 for part in parts} | {
        "head/kernel": 9
    }


def test_flops_of_the_conv_net_by_hand():
    model, example = ConvNet(features=(4, 4, 8, 8)), jnp.zeros((1, 8, 8, 1))
    params = shapes_of(model, example)
    convolutions = 64 * 9 * (1 * 4 + 4 * 4) + 16 * 9 * (4 * 8 + 8 * 8)
    wanted = 2 * (convolutions + 2 * 2 * 8 * 10)
    assert dense_flops(kernel_uses(model, example), params) == wanted


def test_flops_of_lenet_by_hand():
    model, example = MLP(features=(300, 100)), jnp.zeros((1, 28, 28, 1))
    uses = kernel_uses(model, example)
    assert dense_flops(uses, shapes_of(model, example)) == 2 * (
        784 * 300 + 300 * 100 + 100 * 10
    )


@pytest.mark.skipif("resnet50_imagenet" not in MODELS, reason="no such model yet")
def test_flops_of_resnet50():
    """8.2e9 in RigL's table; 4.09e9 multiply-adds."""
    model = make_model("resnet50_imagenet")
    example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    flops = dense_flops(kernel_uses(model, example), shapes_of(model, example))
    assert abs(flops - 8.2e9) < 0.05e9


def test_sparse_flops_count_active_weights():
    model, example = MLP(features=(3,)), jnp.zeros((1, 4))
    params, uses = shapes_of(model, example), kernel_uses(model, example)
    mask = np.arange(12).reshape(4, 3) < 5
    masks = {
        "dense1": {"kernel": mask, "bias": None},
        "classifier": {"kernel": None, "bias": None},
    }
    assert forward_flops(uses, masks, params) == 2 * (5 + 30)
    assert active_counts(masks, params) == {
        "dense1/kernel": 5,
        "dense1/bias": 3,
        "classifier/kernel": 30,
        "classifier/bias": 10,
    }


def test_unknown_leaves_are_refused():
    params = {"own": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="leaf 'own' is sparse, but no layer"):
        forward_flops({}, {"own": jnp.ones((2, 2), bool)}, params)
    with pytest.raises(ValueError, match="no number for leaf 'x'"):
        flops_of({"x": 1}, {})


# --- Training -------------------------------------------------------------------------


def test_training_flops_by_hand():
    history = [Stretch(10, 5, 1), Stretch(20, 2)]
    total = 5 * 30 + (20 + 100) + 2 * 60
    assert training_flops(history, dense=100, batch_size=8) == 8 * total
    snfs = 5 * 120 + 120 + 2 * 140
    assert (
        training_flops(history, dense=100, batch_size=8, all_gradients=True) == 8 * snfs
    )
    assert training_flops([], dense=100, batch_size=8) == 0
    assert weight_step_flops(100, 100, all_gradients=True) == 300


@quick
@given(
    sparse=st.integers(1, 10**6),
    more=st.integers(0, 10**6),
    every=st.integers(1, 2000),
    updates=st.integers(1, 50),
)
def test_the_sum_agrees_with_the_closed_form(sparse, more, every, updates):
    dense = sparse + more
    history = [Stretch(sparse, every, 1)] * updates
    mean = rigl_step_flops(sparse, dense, update_every=every)
    steps = updates * (every + 1)
    total = training_flops(history, dense=dense, batch_size=1)
    np.testing.assert_allclose(total, mean * steps, rtol=1e-12)


# --- Measured -------------------------------------------------------------------------


def test_the_compiler_counts_about_the_same():
    model, example = MLP(features=(64, 32)), jnp.zeros((16, 100))
    params = model.init(jax.random.key(0), example, train=False)["params"]
    apply = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))
    measured = measured_flops(apply.lower(params, example).compile())
    ours = 16 * dense_flops(kernel_uses(model, example), params)
    assert measured is not None
    assert 0.95 * ours < measured < 1.1 * ours


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"flops": -1.0}, None),
        ([{"flops": 6}], 6.0),
    ],
)
def test_a_compiler_that_does_not_say(answer, wanted):
    class Compiled:
        def cost_analysis(self):
            return answer

    assert measured_flops(Compiled()) == wanted
