"""Names decide which leaves are sparse, and which random numbers they get."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets.trees import (
    default_rule,
    leaf_keys,
    map_named,
    matching_names,
    named_leaves,
    sparse_leaves,
    uniform_draws,
)


def net(**more):
    return {
        "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
        "dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
        **more,
    }


def names_of(chosen):
    return [name for name, sparse in named_leaves(chosen) if sparse]


def test_names_follow_the_order_of_the_leaves():
    names = ["conv/bias", "conv/kernel", "dense/bias", "dense/kernel"]
    assert [name for name, _ in named_leaves(net())] == names
    assert [n for n, _ in named_leaves([jnp.ones(1), {"a": jnp.ones(1)}])] == [
        "0",
        "1/a",
    ]


def test_none_is_a_leaf_on_request():
    tree = {"a": None, "b": 1}
    assert named_leaves(tree) == [("b", 1)]
    assert named_leaves(tree, keep_none=True) == [("a", None), ("b", 1)]


def test_map_named_hands_none_over():
    got = map_named(lambda *a: a, {"a": 1, "b": 2}, {"a": None, "b": 3})
    assert got == {"a": ("a", 1, None), "b": ("b", 2, 3)}


@pytest.mark.parametrize(
    ("name", "shape", "sparse"),
    [
        ("dense/kernel", (4, 2), True),
        ("conv/kernel", (3, 3, 1, 8), True),
        ("embed/embedding", (10, 4), True),
        ("linear/w", (4, 2), True),
        ("layers/0/weight", (4, 2), True),
        ("kernel", (4, 2), True),
        ("dense/bias", (2,), False),
        ("attention/query/bias", (4, 8), False),  # of rank 2 or more
        ("linear/b", (2,), False),
        ("b", (4, 2), True),  # a matrix may be called so
        ("normalizer/kernel", (4, 2), True),
        ("LayerNorm_0/scale", (2, 4), False),
        ("batch_norm/kernel", (2, 4), False),
        ("block/bn1/kernel", (2, 4), False),
        ("block/bn/weight", (2, 4), False),
        ("x/gamma", (2, 4), False),
        ("x/beta", (2, 4), False),
        ("x/offset", (2, 4), False),
        ("class_token", (1, 1, 4), False),
        ("x/positions", (1, 5, 4), False),
        ("abn/kernel", (2, 4), True),  # the letters alone are not a batch norm
        ("verb", (2, 4), True),  # nor is a final b a bias
        ("scalar", (), False),
        ("vector", (9,), False),
    ],
)
def test_default_rule(name, shape, sparse):
    assert default_rule(name, jnp.ones(shape)) is sparse
    assert default_rule(name, jax.ShapeDtypeStruct(shape, jnp.float32)) is sparse
    assert default_rule(name, np.ones(shape, np.float32)) is sparse


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_any_real_floating_point_is_sparse(dtype):
    assert default_rule("kernel", jnp.ones((2, 2), dtype))


@pytest.mark.parametrize(
    "leaf",
    [
        jnp.ones((2, 2), jnp.int32),
        jnp.ones((2, 2), bool),
        jnp.ones((2, 2), jnp.complex64),
        jax.random.split(jax.random.key(0), (2, 2)),
        jax.nn.relu,
        3.0,
        "name",
        object(),
    ],
    ids=["int", "bool", "complex", "key", "function", "float", "string", "object"],
)
def test_other_leaves_are_dense(leaf):
    assert default_rule("kernel", leaf) is False
    chosen = sparse_leaves({"odd": leaf, "kernel": jnp.ones((2, 2))})
    assert chosen == {"odd": False, "kernel": True}


def test_the_result_has_the_structure_of_the_params():
    params = net(empty={}, nothing=None)
    chosen = sparse_leaves(params)
    assert jax.tree.structure(chosen) == jax.tree.structure(params)
    assert all(type(leaf) is bool for leaf in jax.tree.leaves(chosen))
    assert names_of(chosen) == ["conv/kernel", "dense/kernel"]
    assert sparse_leaves(jax.eval_shape(lambda: params)) == chosen


def test_a_rule_may_be_a_function():
    chosen = sparse_leaves(net(), where=lambda name, leaf: "bias" in name)
    assert names_of(chosen) == ["conv/bias", "dense/bias"]
    array = sparse_leaves(net(), where=lambda name, leaf: np.bool_(leaf.ndim == 4))
    assert names_of(array) == ["conv/kernel"]
    assert type(jax.tree.leaves(array)[0]) is bool


def test_a_rule_may_be_an_expression():
    assert names_of(sparse_leaves(net(), where="kernel$")) == [
        "conv/kernel",
        "dense/kernel",
    ]
    assert names_of(sparse_leaves(net(), where="^dense")) == [
        "dense/bias",
        "dense/kernel",
    ]


def test_of_pairs_the_first_match_decides():
    pairs = [("^dense", False), ("kernel", True), (".*", False)]
    assert names_of(sparse_leaves(net(), where=pairs)) == ["conv/kernel"]
    pairs = [("kernel", True), ("^dense", False), (".*", False)]
    assert names_of(sparse_leaves(net(), where=pairs)) == [
        "conv/kernel",
        "dense/kernel",
    ]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("kernal", "'kernal' matches no leaf; the leaves are 'conv/bias', 'conv/ker"),
        ([("dense", True), ("no", False)], "'no' matches no leaf"),
        ([("dense", True)], r"leaves 'conv/bias', 'conv/kernel' uncovered; end it wi"),
        ([(".*", False)], "chooses no leaf to be sparse; the leaves are 'conv/bias'"),
        (lambda name, leaf: False, "where=<lambda> chooses no leaf to be sparse"),
    ],
)
def test_errors_name_what_is_wrong(where, message):
    with pytest.raises(ValueError, match=message):
        sparse_leaves(net(), where=where)


def test_the_default_rule_raises_too_if_nothing_is_sparse():
    with pytest.raises(ValueError, match="where=default_rule chooses no leaf"):
        sparse_leaves({"bias": jnp.ones(3)})


def test_errors_list_a_few_leaves():
    many = {f"b{i:02}": jnp.ones(1) for i in range(30)}
    with pytest.raises(ValueError, match="'b07' and 22 more"):
        sparse_leaves(many)


def test_matching_names():
    names = ["a/kernel", "b/kernel", "b/bias"]
    assert matching_names("kernel", names) == {"a/kernel", "b/kernel"}
    assert matching_names(["^b", "kernel"], names) == set(names)
    assert matching_names((), names) == set()
    with pytest.raises(ValueError, match="'c' matches no leaf"):
        matching_names(["a", "c"], names)


def test_the_key_of_a_leaf_depends_on_its_name_alone(key):
    few = net()
    many = net(another={"kernel": jnp.ones(3)}, z=jnp.ones(1))
    before, after = leaf_keys(key, few), leaf_keys(key, many)
    for name in few:
        helpers.assert_same(
            jax.tree.map(jax.random.key_data, before[name]),
            jax.tree.map(jax.random.key_data, after[name]),
        )
    data = [jax.random.key_data(k).tolist() for k in jax.tree.leaves(after)]
    assert len({tuple(d) for d in data}) == 6
    other = leaf_keys(jax.random.key(1), few)["conv"]["bias"]
    assert other != before["conv"]["bias"]


def test_draws_are_float32_in_0_1_and_depend_on_names(key):
    small = uniform_draws(key, {"a": jnp.ones((2, 5), jnp.bfloat16), "n": None})
    large = uniform_draws(key, {"0": jnp.ones(3), "a": jnp.ones((2, 5), int)})
    assert small["n"] is None and small["a"].dtype == jnp.float32
    helpers.assert_same(small["a"], large["a"])
    assert ((small["a"] >= 0) & (small["a"] < 1)).all()
