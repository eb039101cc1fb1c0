"""The core, unchanged, on the parameters of other people's libraries."""

import functools

import helpers
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import sup_tickets as st
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


# --- Training in their own idiom ------------------------------------------------------


def dropped_in():
    return st.sparse_training(
        optax.adam(0.01),
        st.sparse_evolutionary(sparsity=0.5, update_every=2),
    )


def check_sparse(params, masks):
    """Exactly 0 where inactive, at half of the sparse places, and ready for tickets."""
    assert int(st.count(masks)) == st.active_count(st.size(masks), 0.5)
    helpers.assert_same(apply_masks(masks, params), params)
    tickets = st.superposition("cia", sparsity=0.5)
    tickets.update(tickets.init(params, masks), params, masks)


@pytest.fixture
def as_others_promote():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("as_others_promote")
def test_nnx_trains_in_place():
    model = NnxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, dropped_in(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            hidden = model.norm(model.conv(jnp.ones((2, 2, 2, 1))))
            return (model.head(hidden.reshape(2, -1)) ** 2).mean()

        optimizer.update(model, nnx.grad(loss)(model))
        params = nnx.state(model, nnx.Param)
        nnx.update(model, st.keep_sparse(params, optimizer.opt_state))

    for _ in range(3):
        step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    check_sparse(params, st.masks_of(optimizer.opt_state, like=params))


@pytest.mark.usefixtures("as_others_promote")
def test_an_equinox_model_trains():
    eqx, model = equinox_model()
    tx = dropped_in()
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    model = st.keep_sparse(model, state)

    @eqx.filter_jit
    def step(model, state):
        loss = lambda model: (model(jnp.ones(4)) ** 2).mean()  # noqa: E731
        gradients = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(gradients, state, params)
        return st.keep_sparse(eqx.apply_updates(model, updates), state), state

    for _ in range(3):
        model, state = step(model, state)
    params = eqx.filter(model, eqx.is_inexact_array)
    check_sparse(params, st.masks_of(state, like=params))


def boxed_params():
    """Partitioned in Linen, with names of axes."""
    return {
        "head": {
            "kernel": linen.Partitioned(jnp.ones((4, 3)), (None, "model")),
            "bias": linen.LogicallyPartitioned(jnp.zeros(3), ("embed",)),
        },
        "conv": {"kernel": jnp.ones((3, 5))},
    }


@pytest.mark.usefixtures("as_others_promote")
@pytest.mark.parametrize("make", [haiku_params, boxed_params, linen_params])
def test_trees_of_others_train(make):
    params, tx = make(), dropped_in()
    state = tx.init(params)
    params = st.keep_sparse(params, state)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return st.keep_sparse(optax.apply_updates(params, updates), state), state

    for _ in range(3):
        params, state = step(params, state)
    check_sparse(params, st.masks_of(state))
    helpers.assert_same(st.masks_of(state, like=params), st.masks_of(state))
