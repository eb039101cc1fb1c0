"""The condensed layer equals the masked dense one."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sup_tickets as st
from sup_tickets.condensed import Condensed, condense, condense_params, expand
from sup_tickets.models import make_model
from sup_tickets.training.condensed_files import load_condensed, save_condensed
from sup_tickets.training.libraries.condensed_linen import condensed_apply
from sup_tickets.training.network_files import save_dense
from sup_tickets.training.state import Network

PARAMS = {
    "hidden": {"kernel": jnp.ones((12, 8)), "bias": jnp.ones(8)},
    "conv": {"kernel": jnp.ones((3, 3, 2, 4))},
}


def layer(ablated=()):
    rng = np.random.default_rng(0)
    mask = rng.permuted(np.arange(12)[:, None] < 3 * np.ones(8), axis=0)
    mask[:, list(ablated)] = False
    kernel = np.where(mask, rng.standard_normal((12, 8)), 0).astype(np.float32)
    return kernel, mask


matmul = jax.jit(st.condensed_matmul)


@pytest.mark.parametrize("ablated", [(), (0, 5)])
def test_it_is_the_masked_dense_layer(ablated):
    kernel, mask = layer(ablated)
    condensed = condense(kernel, mask)
    assert condensed.values.shape == (3, 8 - len(ablated))
    np.testing.assert_array_equal(expand(condensed), kernel)
    rng = np.random.default_rng(1)
    for shape in [(12,), (1, 12), (5, 12), (2, 3, 12)]:
        x = rng.standard_normal(shape).astype(np.float32)
        got = matmul(x, condensed)
        assert got.shape == (*shape[:-1], 8)
        np.testing.assert_allclose(got, x @ kernel, rtol=1e-5, atol=1e-6)
        assert not np.asarray(got)[..., list(ablated)].any()


def test_all_neurons_may_be_ablated():
    condensed = condense(*layer(range(8)))
    assert not np.asarray(matmul(jnp.ones((2, 12)), condensed)).any()
    np.testing.assert_array_equal(expand(condensed), np.zeros((12, 8)))


def test_a_dense_kernel_is_multiplied_as_it_is():
    x = jnp.ones((2, 12))
    np.testing.assert_array_equal(st.condensed_matmul(x, PARAMS["hidden"]["kernel"]),
                                  12 * np.ones((2, 8)))  # fmt: skip


def test_what_has_no_constant_fan_in_is_refused():
    kernel, mask = layer()
    mask[:, 1] = True
    with pytest.raises(ValueError, match=r"as many active inputs .*, got 3 and 12"):
        condense(kernel, mask)
    with pytest.raises(ValueError, match=r"kernel must be \[n_in, n_out\] and mask al"):
        condense(kernel, mask[:3])


def test_of_a_network_the_dense_layers_are_condensed():
    method = st.static(sparsity=0.5).replace(structure=st.fan_in())
    masks = st.init_topology(method, jax.random.key(0), PARAMS).masks
    params = st.apply_masks(masks, PARAMS)
    found = condense_params(params, masks)
    assert isinstance(found["hidden"]["kernel"], Condensed)
    assert found["hidden"]["bias"].shape == (8,)
    assert found["conv"]["kernel"] is params["conv"]["kernel"]


# --- Files ----------------------------------------------------------------------------


def network(structure):
    model = make_model("mlp", classes=4, features=(8, 8))
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 1))
    params = model.init(jax.random.key(1), x, train=False)["params"]
    method = st.static(sparsity=0.5).replace(structure=structure)
    masks = st.init_topology(method, jax.random.key(2), params).masks
    return model, x, Network(st.apply_masks(masks, params), {}, masks)


def test_a_file_is_loaded_and_runs(tmp_path):
    model, x, trained = network(st.fan_in())
    path = tmp_path / "network.safetensors"
    assert save_condensed(path, trained) == path.stat().st_size
    loaded = load_condensed(path)
    kernels = [layer["kernel"] for layer in loaded.params.values()]
    assert len(kernels) == 3 and all(isinstance(k, Condensed) for k in kernels)
    got = jax.jit(partial(condensed_apply(model), train=False))(
        {"params": loaded.params}, x
    )
    wanted = model.apply({"params": trained.params}, x, train=False)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    # Variables that are not condensed run as they are.
    plain = condensed_apply(model)({"params": trained.params}, x, train=False)
    np.testing.assert_array_equal(plain, wanted)


def test_a_network_without_such_layers_is_refused(tmp_path):
    _, _, trained = network(None)
    with pytest.raises(ValueError, match="no dense layer of the network"):
        save_condensed(tmp_path / "network.safetensors", trained)
    save_dense(tmp_path / "dense.safetensors", trained)
    with pytest.raises(ValueError, match=r"dense.safetensors holds no condensed layer"):
        load_condensed(tmp_path / "dense.safetensors")


# --- Networks that are more than dense layers -----------------------------------------


def language_network(name):
    widths = {
        "lstm": {"embedding": 8, "features": (8,)},
        "transformer": {"width": 8, "depth": 1, "heads": 2, "hidden": 16},
    }
    model = make_model(name, of_text=True, classes=12, **widths[name])
    tokens = jax.random.randint(jax.random.key(0), (2, 4), 0, 12)
    params = model.init(jax.random.key(1), tokens, train=False)["params"]
    method = st.static(sparsity=0.5).replace(structure=st.fan_in())
    masks = st.init_topology(method, jax.random.key(2), params).masks
    return model, tokens, Network(st.apply_masks(masks, params), {}, masks)


@pytest.mark.parametrize(("name", "layers"), [("lstm", 1), ("transformer", 4)])
def test_tables_and_recurrent_kernels_stay(tmp_path, name, layers):
    """They are looked up, or used within a scan; the file runs all the same."""
    model, tokens, trained = language_network(name)
    save_condensed(tmp_path / "network.safetensors", trained)
    params = load_condensed(tmp_path / "network.safetensors").params
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Condensed))
    assert sum(isinstance(leaf, Condensed) for leaf in leaves) == layers
    apply = jax.jit(partial(condensed_apply(model), train=False))
    wanted = model.apply({"params": trained.params}, tokens, train=False)[0]
    got = apply({"params": params}, tokens)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_condensed_leaf_that_no_dense_layer_uses_is_named():
    model, tokens, trained = language_network("lstm")
    params = condense_params(trained.params, trained.masks, where=".*")
    message = "leaf 'embedding/embedding' is condensed, but Embed is no nn.Dense"
    with pytest.raises(ValueError, match=message):
        condensed_apply(model)({"params": params}, tokens, train=False)


def test_general_dense_layers_and_half_precision_run():
    class General(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral(8, dtype=jnp.bfloat16)(x)
            return nn.DenseGeneral((2, 3), use_bias=False, dtype=jnp.bfloat16)(x)

    x = jax.random.normal(jax.random.key(0), (3, 2, 8))
    params = General().init(jax.random.key(1), x)["params"]
    method = st.static(sparsity=0.5).replace(structure=st.fan_in())
    masks = st.init_topology(method, jax.random.key(2), params).masks
    params = st.apply_masks(masks, params)
    condensed = condense_params(params, masks)
    assert isinstance(condensed["DenseGeneral_0"]["kernel"], Condensed)
    assert not isinstance(condensed["DenseGeneral_1"]["kernel"], Condensed)
    got = condensed_apply(General())({"params": condensed}, x)
    wanted = General().apply({"params": params}, x)
    assert got.dtype == wanted.dtype
    got, wanted = (np.asarray(y, np.float32) for y in (got, wanted))
    np.testing.assert_allclose(got, wanted, atol=0.03)


def test_inputs_of_another_width_are_refused():
    condensed = condense(*layer())
    for width in (11, 13):
        with pytest.raises(ValueError, match=rf"n_in=12\] .*, got \(2, {width}\)"):
            st.condensed_matmul(jnp.ones((2, width)), condensed)
    assert st.condensed_matmul(jnp.ones((0, 12)), condensed).shape == (0, 8)
