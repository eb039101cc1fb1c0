"""Masks: make, apply, count, compare, pack."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draws

from sup_tickets import masks as st

A = {
    "w": jnp.array([[True, False], [True, True]]),
    "v": jnp.array([False, False, True, False]),
    "bias": None,
}
B = {
    "w": jnp.array([[True, True], [False, True]]),
    "v": jnp.array([False, False, False, False]),
    "bias": None,
}
PARAMS = {"w": jnp.ones((2, 2)), "v": jnp.ones(4), "bias": jnp.ones(2)}


# --- Making ---------------------------------------------------------------------------


def test_full_masks():
    got = st.full_masks(PARAMS)
    assert got["bias"] is None and got["v"] is None
    assert got["w"].all() and got["w"].dtype == bool
    assert st.full_masks(PARAMS, where="v$")["v"].tolist() == [True] * 4


def test_random_masks_have_exact_counts(key):
    params = {"w": jnp.ones((10, 30)), "v": jnp.ones(9), "bias": jnp.ones(3)}
    make = jax.jit(st.random_masks)
    for n in (0, 1, 100, 299, 300, 400):
        got = make(key, params, {"w": n, "v": 9, "bias": None})
        assert int(got["w"].sum()) == min(n, 300) and got["v"].all()
        assert got["bias"] is None and got["w"].shape == (10, 30)


def test_random_masks_depend_on_the_key_and_the_name_alone():
    params = {"a": jnp.ones(200), "b": jnp.ones(200)}
    counts = {"a": 100, "b": 100}
    make = jax.jit(st.random_masks)
    first = make(jax.random.key(0), params, counts)
    again = make(jax.random.key(0), params, counts)
    other = make(jax.random.key(1), params, counts)
    helpers.assert_same(first, again)
    assert (first["a"] != other["a"]).any() and (first["a"] != first["b"]).any()
    alone = make(jax.random.key(0), {"b": jnp.zeros(200)}, {"b": 100})
    helpers.assert_same(alone["b"], first["b"])


def test_random_masks_are_uniform():
    keys = jax.random.split(jax.random.key(0), 2000)
    params, counts = {"w": jnp.ones(10)}, {"w": 3}
    got = jax.jit(jax.vmap(lambda k: st.random_masks(k, params, counts)["w"]))(keys)
    assert (got.sum(1) == 3).all()
    # Standard deviation of each share: sqrt(0.3 * 0.7 / 2000) = 0.0102.
    np.testing.assert_allclose(got.mean(0, dtype=np.float32), 0.3, atol=0.05)


# --- Applying -------------------------------------------------------------------------

AWKWARD = {
    "float32": [1.5, np.nan, np.inf, -np.inf, -0.0, -2.0, 1e-40, np.nan],
    "bfloat16": [1.5, np.nan, np.inf, -np.inf, -0.0, -2.0, 1e-40, np.nan],
    "float16": [1.5, np.nan, np.inf, -np.inf, -0.0, -2.0, 6e-8, np.nan],
    "float8_e4m3fn": [1.5, np.nan, 448.0, -448.0, -0.0, -2.0, 0.002, np.nan],
    "int8": [1, -128, 127, -1, 5, 0, 7, 9],
    "int32": [1, -(2**31), 2**31 - 1, -1, 5, 0, 7, 9],
    "uint8": [1, 255, 254, 3, 5, 0, 7, 9],
    "int4": [1, -8, 7, -1, 5, 0, 6, 3],
    "bool": [True, True, True, False, False, True, True, True],
    "complex64": [1 + 2j, np.nan, np.inf, -np.inf, -0.0, -2j, 1e-40, np.nan],
}


@pytest.mark.parametrize("dtype", AWKWARD)
def test_a_dead_place_is_plus_zero_and_the_others_keep_their_bits(dtype):
    leaf = jnp.array(AWKWARD[dtype]).astype(dtype)
    mask = jnp.array([True, False, False, False, False, True, True, True])
    host = np.asarray(leaf)
    wanted = np.where(np.asarray(mask), host, np.zeros((), host.dtype))
    assert wanted.dtype == host.dtype
    for apply in (st.apply_masks, jax.jit(st.apply_masks)):
        helpers.assert_same(apply({"w": mask}, {"w": leaf}), {"w": wanted})


def test_double_precision():
    with jax.enable_x64(True):
        leaf = jnp.array([1.0, np.nan, -0.0, -3.0])
        got = st.apply_masks([jnp.array([True, False, False, True])], [leaf])[0]
        helpers.assert_same(got, np.array([1.0, 0.0, 0.0, -3.0]))


def test_arrays_of_numpy_wider_than_jax_is_set_to():
    leaf, mask = {"w": np.ones((2, 3))}, {"w": np.eye(2, 3) > 0}
    for result in (
        st.apply_masks(mask, leaf),
        st.choose(mask, leaf, {"w": 0 * leaf["w"]}),
    ):
        assert result["w"].dtype == np.float32
        np.testing.assert_array_equal(result["w"], mask["w"].astype(np.float32))


def test_a_none_mask_leaves_its_leaf_alone():
    nan = jnp.full(2, np.nan)
    got = st.apply_masks({"w": A["w"], "bias": None}, {"w": PARAMS["w"], "bias": nan})
    assert got["bias"] is nan
    assert got["w"].tolist() == [[1, 0], [1, 1]]


def test_applying_takes_shapes_without_places():
    got = st.apply_masks([jnp.array(False), jnp.zeros((0, 2), bool)],
                         [jnp.float32(3), jnp.zeros((0, 2))])  # fmt: skip
    assert got[0] == 0 and got[1].shape == (0, 2)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"w": A["w"], "v": A["v"]}, ValueError, "params has a leaf 'bias' that masks"),
        ({**A, "more": None}, ValueError, "masks has a leaf 'more' that params lacks"),
        ({**A, "v": A["w"]}, ValueError, r"\(2, 2\) at leaf 'v', where params has \(4"),
        ({**A, "v": jnp.ones(4)}, TypeError, "bool, got float32 at leaf 'v'"),
        ({**A, "v": jnp.ones(4, int)}, TypeError, "bool, got int32 at leaf 'v'"),
    ],
)
def test_check_masks(masks, error, message):
    st.check_masks(PARAMS, A)
    st.check_masks(PARAMS, {"w": None, "v": None, "bias": None})
    with pytest.raises(error, match=message):
        st.check_masks(PARAMS, masks)


def test_a_mask_where_params_has_none_is_refused():
    st.check_masks({**PARAMS, "bias": None}, A)
    with pytest.raises(ValueError, match="at leaf 'bias', where params has None"):
        st.check_masks({**PARAMS, "bias": None}, {**A, "bias": jnp.ones(2, bool)})


# --- Counting and comparing -----------------------------------------------------------


def test_hand_table_of_counts():
    assert jax.tree.map(int, st.layer_counts(A)) == {"w": 3, "v": 1, "bias": None}
    assert jax.tree.map(float, st.layer_densities(A)) == {
        "w": 0.75,
        "v": 0.25,
        "bias": None,
    }
    assert int(st.count(A)) == 4 and st.size(A) == 8
    assert float(st.density(A)) == 0.5 and float(st.sparsity(A)) == 0.5
    assert st.layer_table(A) == [
        ("v", (4,), 4, 1, 0.25),
        ("w", (2, 2), 4, 3, 0.75),
        ("total", (), 8, 4, 0.5),
    ]


def test_counts_are_int32_and_jit_is_eager():
    for function in (st.count, st.layer_counts, st.layer_densities, st.density):
        helpers.assert_same(jax.jit(function)(A), function(A))
    assert st.count(A).dtype == jnp.int32 and st.density(A).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(), (1,), (15,), (16,), (17,), (1000,), (7, 11, 3)])
def test_counts_of_every_shape(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    assert int(st.count({"w": jnp.asarray(mask)})) == mask.sum()


def test_the_density_of_a_large_leaf_is_exact():
    n = 2**24 + 2**23  # a running float32 sum of ones stops at 2**24
    share = st.layer_densities({"w": jnp.ones(n, bool)})["w"]
    assert float(share) == 1.0


def test_nothing_sparse():
    for tree in ({}, {"bias": None}, {"w": jnp.zeros((0, 2), bool)}):
        assert int(st.count(tree)) == 0 and st.size(tree) == 0
        assert float(st.density(tree)) == 1 and float(st.sparsity(tree)) == 0
        assert st.layer_table(tree) == [("total", (), 0, 0, 1.0)]
    empty = st.layer_densities({"w": jnp.zeros((0, 2), bool)})["w"]
    assert float(empty) == 1 and empty.dtype == jnp.float32


def test_more_than_int32_places():
    large = {k: jax.ShapeDtypeStruct((2**31 - 1,), bool) for k in "ab"}
    assert st.size(large) == 2**32 - 2
    assert jax.eval_shape(st.density, large).dtype == jnp.float32


def test_hand_table_of_comparisons():
    either, both = st.union(A, B), st.intersection(A, B)
    assert either["w"].tolist() == [[True, True], [True, True]]
    assert both["w"].tolist() == [[True, False], [False, True]]
    assert either["v"].tolist() == [False, False, True, False]
    assert either["bias"] is None and both["bias"] is None
    assert int(st.hamming(A, B)) == 3 and int(st.hamming(A, A)) == 0
    assert float(st.overlap(A, B)) == np.float32(2 / 5)
    assert float(st.overlap(A, A)) == 1
    nothing = jax.tree.map(jnp.zeros_like, A)
    assert float(st.overlap(nothing, nothing)) == 1
    assert float(st.overlap(A, nothing)) == 0


# --- Packing --------------------------------------------------------------------------

SHAPES = [(), (1,), (0,), (7,), (8,), (9,), (3, 5), (2, 3, 4), (4, 0)]


@helpers.quick
@given(draws.sampled_from(SHAPES), draws.integers(0, 2**31))
def test_packing_is_a_round_trip_of_one_bit_a_weight(shape, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    packed = st.pack({"w": jnp.asarray(mask), "bias": None})
    assert packed["bias"] is None and packed["w"].dtype == jnp.uint8
    assert packed["w"].shape == (-(-mask.size // 8),)
    helpers.assert_same(packed["w"], np.packbits(mask.reshape(-1)))
    restored = st.unpack(packed, {"w": jnp.ones(shape), "bias": jnp.ones(3)})
    helpers.assert_same(restored, {"w": mask, "bias": None})


def test_the_first_place_is_the_highest_bit():
    assert st.pack([jnp.array([True] + [False] * 8)])[0].tolist() == [128, 0]


def test_unpacking_checks_the_number_of_bytes():
    packed = st.pack({"w": jnp.ones(9, bool)})
    for n in (8, 17):
        with pytest.raises(
            ValueError, match=r"packed has shape \(2,\) at leaf 'w', wh"
        ):
            st.unpack(packed, {"w": jnp.ones(n)})
    with pytest.raises(ValueError, match="packed has shape"):
        st.unpack({"w": jnp.ones((2, 1), jnp.uint8)}, {"w": jnp.ones(9)})


# --- Memory ---------------------------------------------------------------------------


def test_counting_makes_no_integer_copy():
    large = {k: jax.ShapeDtypeStruct((1024, 1024), bool) for k in "abcdef"}
    used = jax.jit(st.layer_counts).lower(large).compile().memory_analysis()
    assert used.temp_size_in_bytes < 0.6 * (4 << 20)  # an int32 leaf is 4 MiB
