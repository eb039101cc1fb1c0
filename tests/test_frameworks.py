"""The core, unchanged, on the parameters of other people's libraries."""

import functools

import helpers
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from sup_tickets.masks import (
    apply_masks,
    check_masks,
    full_masks,
    layer_counts,
    layer_table,
    pack,
    random_masks,
    unpack,
)
from sup_tickets.saliency import magnitude, random_scores
from sup_tickets.selection import select, select_globally
from sup_tickets.topology import rewire
from sup_tickets.trees import named_leaves, sparse_leaves


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), name="conv")(x)
        x = linen.LayerNorm(name="norm")(x)
        return linen.Dense(3, name="head")(x.reshape(x.shape[0], -1))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)


@functools.cache
def linen_params():
    return LinenNet().init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))["params"]


@functools.cache
def nnx_params():
    return nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)[1]


def equinox_model():
    eqx = pytest.importorskip("equinox")

    return eqx, eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))


@functools.cache
def equinox_params():
    eqx, model = equinox_model()
    return eqx.filter(model, eqx.is_inexact_array)


@functools.cache
def haiku_params():
    hk = pytest.importorskip("haiku")

    def forward(x):
        x = hk.Conv2D(4, 3, name="conv")(x)
        x = hk.LayerNorm(-1, True, True, name="norm")(x)
        return hk.Linear(3, name="head")(x.reshape(x.shape[0], -1))

    net = hk.without_apply_rng(hk.transform(forward))
    return net.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))


SPARSE = {
    linen_params: ["conv/kernel", "head/kernel"],
    nnx_params: ["conv/kernel", "head/kernel"],
    equinox_params: [f"layers/{i}/weight" for i in range(2)],
    haiku_params: ["conv/w", "head/w"],
}
every_library = pytest.mark.parametrize("make", SPARSE, ids=lambda f: f.__name__)


def quarter_of(params):
    chosen = sparse_leaves(params)
    return jax.tree.map(lambda w, s: w.size // 4 if s else None, params, chosen)


@every_library
def test_the_kernels_are_sparse(make):
    chosen = sparse_leaves(make())
    assert [name for name, sparse in named_leaves(chosen) if sparse] == SPARSE[make]


@every_library
def test_masks_are_exact_applied_and_packed(make, key):
    params = make()
    counts = quarter_of(params)
    masks = jax.jit(lambda k, p: random_masks(k, p, counts))(key, params)
    check_masks(params, masks)
    assert [name for name, _ in named_leaves(masks)] == SPARSE[make]
    assert [row.name for row in layer_table(masks)] == [*SPARSE[make], "total"]
    assert jax.tree.leaves(layer_counts(masks)) == jax.tree.leaves(counts)

    sparse = apply_masks(masks, params)
    assert jax.tree.structure(sparse) == jax.tree.structure(params)
    active = [int((w != 0).sum()) for n, w in named_leaves(sparse) if n in SPARSE[make]]
    assert active == jax.tree.leaves(counts)
    dense = [(n, w) for n, w in named_leaves(params) if n not in SPARSE[make]]
    helpers.assert_same([(n, w) for n, w in named_leaves(sparse)
                         if n not in SPARSE[make]], dense)  # fmt: skip

    helpers.assert_same(unpack(pack(masks), params), masks)


@every_library
def test_select_and_rewire_jitted(make, key):
    params = make()
    counts = quarter_of(params)

    @jax.jit
    def step(params, key):
        masks = select(magnitude(params), counts)
        params = apply_masks(masks, params)
        return rewire(
            params,
            masks,
            drop_scores=magnitude(params),
            grow_scores=random_scores(key, params),
            fraction=0.5,
        )

    new = step(params, key)
    assert jax.tree.structure(new.params) == jax.tree.structure(params)
    assert jax.tree.leaves(layer_counts(new.masks)) == jax.tree.leaves(counts)


@every_library
def test_a_global_selection(make):
    params = make()
    scores, masks = magnitude(params), full_masks(params)
    chosen = jax.jit(lambda s, m: select_globally(s, 17, among=m))(scores, masks)
    wanted = helpers.top_k_masks(
        [w for n, w in named_leaves(scores) if n in SPARSE[make]], 17
    )
    helpers.assert_same(jax.tree.leaves(chosen), wanted)


def test_an_unfiltered_equinox_module_has_its_sparse_leaves():
    _, model = equinox_model()
    chosen = sparse_leaves(model)  # with functions and integers among its leaves
    found = [name for name, sparse in named_leaves(chosen) if sparse]
    assert found == SPARSE[equinox_params]


def test_nnx_names_lose_their_value():
    assert not any("value" in name for name, _ in named_leaves(nnx_params()))
