"""What is sparse and why, on real models of every library, and the totals."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import sup_tickets as st
from sup_tickets.trees import named_leaves, sparse_leaves

KEY = jax.random.key(0)


class ConvNormAct(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3))(x)
        return linen.relu(linen.BatchNorm(use_running_average=False)(x))


class PreNorm(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm()(x)
        return linen.Dense(6, name="ff")(x)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = ConvNormAct()(x).reshape(x.shape[0], -1, 4)
        token = self.param("cls", linen.initializers.zeros, (1, 1, 4))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        shape = (1, *x.shape[1:])
        x = x + self.param("pos_embedding", linen.initializers.zeros, shape)
        x = linen.MultiHeadDotProductAttention(2, normalize_qk=True)(x)
        x = linen.WeightNorm(linen.Dense(4))(PreNorm()(x))
        x = linen.RMSNorm()(linen.GroupNorm(2)(x))
        stacked = linen.vmap(
            linen.Dense, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        return linen.Dense(1, name="head")(stacked(3, name="experts")(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.positions = nnx.Embed(3, 4, rngs=rngs)
        self.conv_norm = nnx.BatchNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 4, decode=False, normalize_qk=True, rngs=rngs
        )
        self.blocks = nnx.List([nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)])
        self.layer_scale = nnx.Param(jnp.ones((1, 2, 4)))
        self.cell = nnx.GRUCell(4, 4, rngs=rngs)
        self.pre_norm_head = nnx.Linear(4, 1, rngs=rngs)


def haiku_forward(x):
    x = hk.Conv2D(4, 3, data_format="NCHW")(x)
    x = hk.BatchNorm(True, True, 0.9, data_format="NCHW")(x, is_training=True)
    x = hk.LayerNorm((-2, -1), True, True, param_axis=(-2, -1))(x)
    x = hk.Bias()(x)
    x = hk.nets.MLP([6, 5])(x.reshape(x.shape[0], -1))
    x = hk.Embed(5, 4)(jnp.argmax(x, -1))
    x = hk.experimental.layer_stack(2)(lambda h: hk.Linear(4)(h))(x)
    return hk.GRU(4)(x, jnp.zeros_like(x))[0]


class EquinoxNet(eqx.Module):
    layers: eqx.nn.Sequential
    norm: eqx.nn.Conv2d  # under a name that misleads
    cell: eqx.nn.LSTMCell
    embed: eqx.nn.Embedding
    pos_embed: jax.Array
    weighted: eqx.nn.WeightNorm
    experts: eqx.nn.Linear
    norms: list[eqx.nn.RMSNorm]
    steps: int

    def __init__(self):
        self.layers = eqx.nn.Sequential(
            [eqx.nn.Linear(3, 4, key=KEY), eqx.nn.LayerNorm((2, 4))]
        )
        self.norm = eqx.nn.Conv2d(2, 3, 3, key=KEY)
        self.cell = eqx.nn.LSTMCell(3, 4, key=KEY)
        self.embed = eqx.nn.Embedding(5, 4, key=KEY)
        self.pos_embed = jnp.zeros((3, 4))
        self.weighted = eqx.nn.WeightNorm(eqx.nn.Linear(3, 4, key=KEY))
        self.experts = eqx.filter_vmap(lambda k: eqx.nn.Linear(3, 4, key=k))(
            jax.random.split(KEY, 2)
        )
        self.norms = [eqx.nn.RMSNorm((2, 4))]
        self.steps = 3


def linen_params():
    shapes = jax.eval_shape(LinenNet().init, KEY, jnp.ones((1, 2, 2, 3)))
    return shapes["params"]


def nnx_params():
    return nnx.split(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))), nnx.Param, ...)[1]


@functools.cache
def haiku_net():
    init = hk.without_apply_rng(hk.transform_with_state(haiku_forward)).init
    # Haiku's moving averages mix dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.eval_shape(init, KEY, jnp.ones((1, 3, 4, 4)))


def haiku_params():
    return haiku_net()[0]


def haiku_state():
    return {**haiku_net()[1], "linear": {"w": jnp.ones((2, 2))}}


@functools.cache
def equinox_model():
    return EquinoxNet()


SPARSE = {
    linen_params: """
        ConvNormAct_0/Conv_0/kernel Dense_0/kernel
        MultiHeadDotProductAttention_0/key/kernel
        MultiHeadDotProductAttention_0/out/kernel
        MultiHeadDotProductAttention_0/query/kernel
        MultiHeadDotProductAttention_0/value/kernel
        PreNorm_0/ff/kernel experts/kernel head/kernel""",
    nnx_params: """
        attention/key/kernel attention/out/kernel attention/query/kernel
        attention/value/kernel blocks/0/kernel blocks/0/lora/lora_a
        blocks/0/lora/lora_b cell/dense_h/kernel cell/dense_i/kernel
        embed/embedding pre_norm_head/kernel""",
    haiku_params: """
        __layer_stack_no_per_layer/linear/w conv2_d/w embed/embeddings gru/w_h gru/w_i
        mlp/~/linear_0/w mlp/~/linear_1/w""",
    haiku_state: "linear/w",
    equinox_model: """
        layers/layers/0/weight norm/weight cell/weight_ih cell/weight_hh embed/weight
        weighted/layer/weight experts/weight""",
}


@pytest.mark.parametrize("make", SPARSE, ids=lambda f: f.__name__)
def test_real_models_have_their_kernels_and_embeddings_sparse(make):
    params = make()
    chosen = named_leaves(sparse_leaves(params))
    found = [name for name, sparse in chosen if sparse]
    assert sorted(found) == sorted(SPARSE[make].split()), str(st.describe(params))


def test_a_block_called_norm_does_not_make_its_kernels_dense():
    """The issue's network: the sparsity is of nearly all weights."""
    shapes = {f"ConvNormAct_{i}/Conv_0/kernel": (3, 3, 8, 8) for i in range(3)}
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    totals = st.describe(params).coverage
    assert totals == (3, 3, 3 * 576, 3 * 576) and totals.share == 1.0


def test_the_table_of_a_network_by_hand():
    params = {
        "norm": {"scale": np.ones((2, 3), np.float32)},
        "fc": {"kernel": np.ones((30, 4), np.float32), "steps": np.ones((2, 2), int)},
        "rate": np.float32(1),
    }
    assert str(st.describe(params)).splitlines() == [
        "leaf        shape   weights          because",
        "fc/kernel   30 x 4      120  sparse  a kernel",
        "fc/steps    2 x 2         4  dense   of int64",
        "norm/scale  2 x 3         6  dense   a scale",
        "rate        scalar        1  dense   of rank 0",
        "sparse leaves: 1 of 4, 91.6% of 131 weights",
    ]


def test_the_reasons_of_rules_of_ones_own():
    params = {"a": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}

    def reasons(where):
        return [(r.sparse, r.reason) for r in st.describe(params, where=where).rows]

    def mine(name, leaf):
        return name == "b"

    assert reasons("a") == [(True, "'a'"), (False, "not 'a'")]
    assert reasons([("^b", False), (".", True)]) == [(True, "'.'"), (False, "'^b'")]
    assert reasons(mine) == [(False, "by mine"), (True, "by mine")]


def test_what_would_be_refused_is_described():
    params = {"fc": {"kernel": np.ones((2, 2), np.int8)}}
    with pytest.raises(ValueError, match=r"leaf 'fc/kernel' is named as a kernel but"):
        st.sparse_leaves(params)
    assert str(st.describe(params)).endswith("sparse leaves: 0 of 1, 0% of 4 weights")
    assert str(st.describe({})).endswith("sparse leaves: 0 of 0, 0% of 0 weights")


def test_coverage_of_masks():
    params = {"w": np.ones((30, 4)), "v": np.ones((2, 2)), "b": np.ones(4)}
    masks = {"w": np.ones((30, 4), bool), "v": None, "b": None}
    totals = st.coverage(masks, params)
    assert totals == (1, 3, 120, 128)
    assert str(totals) == "sparse leaves: 1 of 3, 93.8% of 128 weights"
    shapes = jax.eval_shape(lambda: params)
    assert st.coverage(jax.eval_shape(lambda: masks), shapes) == totals
    with pytest.raises(ValueError, match="params has a leaf 'b' that masks lacks"):
        st.coverage({"w": None, "v": None}, params)


def test_coverage_and_description_agree_on_an_equinox_module():
    params = eqx.filter(equinox_model(), eqx.is_inexact_array)
    assert st.coverage(st.full_masks(params), params) == st.describe(params).coverage


@pytest.mark.parametrize(
    ("sparse", "total", "shown"),
    [
        (999_999, 1_000_000, "99.9% of 1,000,000"),
        (1, 1_000_000, "0.1% of 1,000,000"),
        (10, 10, "100% of 10"),
        (0, 10, "0% of 10"),
        (3 * 10**9, 4 * 10**9, "75.0% of 4,000,000,000"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(sparse, total, shown):
    assert f"{shown} weights" in str(st.Coverage(1, 2, sparse, total))
