import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save

from sup_tickets.masks import apply_masks, random_masks
from sup_tickets.training import network_files
from sup_tickets.training.network_files import (
    load_dense,
    load_sparse,
    provenance_of,
    save_dense,
    save_sparse,
    sparse_size,
)
from sup_tickets.training.state import Network
from tests.helpers import assert_same, quick

DTYPES = ["float32", "float16", "bfloat16"]


def network(seed=0, *, shape=(13, 7), density=0.3, dtype="float32"):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return np.asarray(rng.standard_normal(shape), jnp.dtype(dtype))

    mask = rng.random(shape) < density
    params = {
        "a": {"kernel": np.where(mask, leaf(*shape), leaf() * 0), "bias": leaf(3)},
        "deep": {"b": {"kernel": leaf(2, 3)}},
        "scalar": leaf(),
    }
    # Negative zero is +0 only in comparisons.
    params["a"]["kernel"][~mask] = 0
    masks = {
        "a": {"kernel": mask, "bias": None},
        "deep": {"b": {"kernel": np.ones((2, 3), bool)}},
        "scalar": None,
    }
    stats = {"bn": {"mean": leaf(4), "var": np.zeros(0, np.float32)}}
    return Network(params, stats, masks)


@quick
@given(
    seed=st.integers(0, 2**16),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_what_is_loaded_is_what_was_saved(
    tmp_path_factory, seed, shape, density, dtype
):
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    net = network(seed, shape=shape, density=density, dtype=dtype)
    assert save_sparse(path, net) == path.stat().st_size
    assert_same(load_sparse(path), net)
    save_dense(path, net)
    none = jax.tree.map(lambda _: None, net.params)
    assert_same(load_dense(path), net.replace(masks=none))


def test_the_size_of_a_network_does_not_depend_on_who_wrote_it(tmp_path):
    net = network()
    size = save_sparse(tmp_path / "net", net)
    longer = save_sparse(tmp_path / "net", net, provenance={"made_by": "x" * 100})
    assert sparse_size(net) == size < longer
    assert sparse_size(load_sparse(tmp_path / "net")) == size


def test_special_values_keep_their_bits(tmp_path):
    kernel = np.array([[np.nan, -0.0, np.inf], [0, 1e-45, 0]], np.float32)
    mask = np.array([[True, True, True], [True, True, False]])
    net = Network({"k": kernel}, {}, {"k": mask})
    save_sparse(tmp_path / "net", net)
    assert_same(load_sparse(tmp_path / "net"), net)


def test_arrays_on_devices_can_be_saved(tmp_path, key):
    params = {"k": jax.random.normal(key, (40, 9)), "b": jnp.ones(9)}
    masks = random_masks(key, params, {"k": 31, "b": None})
    params = apply_masks(masks, params)
    save_sparse(tmp_path / "net", Network(params, {}, masks))
    loaded = load_sparse(tmp_path / "net")
    assert_same(loaded.params, jax.device_get(params))
    assert loaded.masks["k"].sum() == 31


def test_a_dense_file_can_be_read_by_anyone(tmp_path):
    net = network()
    save_dense(tmp_path / "net", net)
    arrays = load_file(tmp_path / "net")
    assert set(arrays) == {
        *("params/a/kernel", "params/a/bias", "params/deep/b/kernel"),
        *("params/scalar", "batch_stats/bn/mean", "batch_stats/bn/var"),
    }
    np.testing.assert_array_equal(arrays["params/a/kernel"], net.params["a"]["kernel"])


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
def test_a_sparse_file_is_small(tmp_path, density):
    rng = np.random.default_rng(0)
    params, masks = {}, {}
    for i in range(8):
        mask = rng.random((3, 3, 128, 96)) < density
        params[f"layer{i}"] = {
            "kernel": np.where(mask, np.float32(1), np.float32(0)),
            "bias": np.zeros(96, np.float32),
        }
        masks[f"layer{i}"] = {"kernel": mask, "bias": None}
    size = save_sparse(tmp_path / "net", Network(params, {}, masks))
    weights = 8 * 9 * 128 * 96
    active = sum(int(mask["kernel"].sum()) for mask in masks.values())
    assert 8 * size / weights <= 1.05 * (32 * active / weights + 1)


def test_the_provenance_is_kept(tmp_path):
    save_sparse(tmp_path / "a", network(), provenance={"seed": 3, "from": ["x"]})
    assert provenance_of(tmp_path / "a") == {"seed": 3, "from": ["x"]}
    save_sparse(tmp_path / "a", network())
    assert provenance_of(tmp_path / "a") == {}


# --- What is refused ------------------------------------------------------------------


def test_an_inactive_weight_that_is_not_zero_is_refused(tmp_path):
    for value in (1.0, -0.0, np.nan):
        net = network()
        place = tuple(np.argwhere(~net.masks["a"]["kernel"])[0])
        net.params["a"]["kernel"][place] = value
        with pytest.raises(ValueError, match="'a/kernel' has an inactive weight"):
            save_sparse(tmp_path / "net", net)
    assert not list(tmp_path.iterdir())


def test_other_trees_and_dtypes_are_refused(tmp_path):
    ones = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="params must be nested dicts"):
        save_dense(tmp_path / "x", Network({"a": [ones]}, {}, {"a": [None]}))
    with pytest.raises(ValueError, match="without a slash"):
        save_dense(tmp_path / "x", Network({"a/b": ones}, {}, {"a/b": None}))
    with pytest.raises(ValueError, match="leaf 'a' has dtype complex64"):
        save_dense(
            tmp_path / "x", Network({"a": ones.astype(np.complex64)}, {}, {"a": None})
        )


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "deeper" / "net"
    save_sparse(path, network())
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(network_files.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        save_sparse(path, network(1))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["net"]


@quick
@given(data=st.data())
def test_a_file_cut_short_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("net") / "net"
    save_sparse(path, network())
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    for load in (load_sparse, load_dense, provenance_of):
        with pytest.raises(ValueError, match="cannot be loaded as a network"):
            load(path)


def stored(tmp_path):
    save_sparse(tmp_path / "net", network())
    with safe_open(tmp_path / "net", "numpy") as file:
        return load_file(tmp_path / "net"), dict(file.metadata())


def change_count(arrays, _):
    arrays["active/a/kernel"] = arrays["active/a/kernel"][:-1]


def change_bits(arrays, _):
    arrays["mask/a/kernel"] = arrays["mask/a/kernel"][:-1]


def change_padding(arrays, _):
    arrays["mask/a/kernel"] = arrays["mask/a/kernel"].copy()
    arrays["mask/a/kernel"][-1] |= 1


def change_version(_, metadata):
    metadata["version"] = "2"


def change_shapes(_, metadata):
    metadata["shapes"] = metadata["shapes"][:-2]


def change_shape(_, metadata):
    metadata["shapes"] = json.dumps(json.loads(metadata["shapes"]) | {"a/kernel": [-1]})


def drop_weights(arrays, _):
    del arrays["active/deep/b/kernel"]


def add_part(arrays, _):
    arrays["slots/a"] = np.zeros(2, np.float32)


def add_within(arrays, _):
    arrays["params/scalar/x"] = np.zeros(2, np.float32)


def drop_format(_, metadata):
    metadata["format"] = "a poem"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_count, r"'a/kernel' has weights of shape \(\d+,\), where its mask has"),
        (
            change_bits,
            r"mask of leaf 'a/kernel' has 11 bytes, where shape \(13, 7\) ne",
        ),
        (change_padding, r"mask of leaf 'a/kernel' has bits beyond its end"),
        (change_version, r"it is of version '2', and this program knows version '1'"),
        (change_shapes, r"its shapes cannot be read"),
        (change_shape, r"the shape of leaf 'a/kernel' is \[-1\]"),
        (drop_weights, r"masks, weights and shapes are not of the same leaves"),
        (add_part, r"it has an array 'slots/a'"),
        (add_within, r"leaf 'scalar/x' is within another"),
        (drop_format, r"it is not a sup-tickets sparse network"),
    ],
)
def test_wrong_contents_are_refused_in_one_line(tmp_path, change, message):
    arrays, metadata = stored(tmp_path)
    change(arrays, metadata)
    (tmp_path / "net").write_bytes(save(arrays, metadata=metadata))
    with pytest.raises(ValueError, match=message) as caught:
        load_sparse(tmp_path / "net")
    assert "\n" not in str(caught.value)


def test_the_other_kind_of_file_is_refused(tmp_path):
    save_dense(tmp_path / "dense", network())
    with pytest.raises(ValueError, match="it is not a sup-tickets sparse network"):
        load_sparse(tmp_path / "dense")
    save_sparse(tmp_path / "sparse", network())
    with pytest.raises(ValueError, match="load it with load_sparse"):
        load_dense(tmp_path / "sparse")
    with pytest.raises(FileNotFoundError):
        load_sparse(tmp_path / "nowhere")
