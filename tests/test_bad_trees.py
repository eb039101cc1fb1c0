"""Bad trees, expressions and rules: one line that names the argument and the leaf."""

import collections
import types

import jax
import jax.numpy as jnp
import optax
import pytest

import sup_tickets as st
from tests.test_bad_input import KEY, W, line_of, never

# --- Trees ----------------------------------------------------------------------------

X = jnp.ones((2, 2))
M = jnp.ones((2, 2), bool)


class Pair(collections.namedtuple("Pair", "a b")):
    __slots__ = ()


@pytest.mark.parametrize(
    ("params", "masks", "said"),
    [
        ([X, X], (M, M), "masks has a tuple at the top, where params has a list"),
        ({"l": (X,)}, {"l": [M]}, "masks has a list at 'l', where params has a tuple"),
        ({"l": [X]}, {"l": [None]}, ""),
        ({"l": {"a": X}}, {"l": collections.OrderedDict(a=M)},
         "masks has a OrderedDict at 'l', where params has a dict"),
        ({"l": Pair(X, X)}, {"l": {"a": M, "b": None}},
         "masks has a dict at 'l', where params has a Pair"),
        ({"a": X, "b": X}, {"a": M}, "params has a leaf 'b' that masks lacks"),
        ({"a": X}, {"a": M, "b": M}, "masks has a leaf 'b' that params lacks"),
        ({"a": {}, "b": X}, {"b": M}, "different leaves or fields at the top"),
        ({"a": X}, {"a": M[:1]}, "masks has shape (1, 2) at leaf 'a', where para"),
        ({"a": X}, {"a": X}, "masks must be bool, got float32 at leaf 'a'"),
        ({"a": X}, {"a": True}, "masks has shape () at leaf 'a', where params has"),
        ({"a": jnp.float32(1)}, {"a": True}, "must be bool, got bool at leaf 'a'"),
    ],
)  # fmt: skip
def test_trees_that_differ(params, masks, said):
    if not said:
        return st.check_masks(params, masks)
    assert said in line_of(lambda: st.check_masks(params, masks))
    for call in (
        lambda: st.apply_masks(masks, params),
        lambda: st.prune_to_counts(params, masks, 1),
        lambda: st.superposition("cia", sparsity=0.5).init(params, masks),
        lambda: st.prune_in_rounds(never, params, sparsity=0.5, masks=masks),
    ):
        assert said.replace("params", "") or line_of(call)
        assert "leaf" in (text := line_of(call)) or " at " in text
    return None


TUPLE = {"l": (X, X)}
LIST = {"l": [X, X]}
FULL = {"l": (M, M)}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("other", lambda: st.choose(FULL, TUPLE, LIST)),
        ("masks", lambda: st.choose({"l": [M, M]}, TUPLE, TUPLE)),
        ("counts", lambda: st.select(TUPLE, {"l": [1, 1]})),
        ("among", lambda: st.select_globally(TUPLE, 1, among={"l": [M, M]})),
        ("counts", lambda: st.random_masks(KEY, TUPLE, {"l": [1, 1]})),
        ("packed", lambda: st.unpack(st.pack({"l": [M, M]}), TUPLE)),
        ("first masks", lambda: st.union(FULL, {"l": [M, M]})),
        ("gradients", lambda: st.taylor(TUPLE, {"l": (X,)})),
        ("gradients", lambda: st.taylor(TUPLE, LIST)),
        ("scores", lambda: st.drop(FULL, LIST, 0.5)),
        ("scores", lambda: st.prune_to_counts(TUPLE, FULL, 1, scores=LIST)),
        ("grow_scores", lambda: st.rewire(
            TUPLE, FULL, drop_scores=TUPLE, grow_scores=LIST, fraction=0.5)),
        ("prefer", lambda: st.rewire(TUPLE, FULL, drop_scores=TUPLE, grow_scores=TUPLE,
                                     fraction=0.5, prefer={"l": [M, M]})),
        ("shares", lambda: st.rewire(TUPLE, FULL, drop_scores=TUPLE, grow_scores=TUPLE,
                                     fraction=0.5, shares={"l": [1.0, 1.0]})),
        ("masks", lambda: st.snip(never, TUPLE, [1], masks={"l": [M, M]})),
        ("masks", lambda: st.layer_counts({"l": X})),
        ("masks", lambda: st.pack({"l": X})),
        ("candidates", lambda: st.select_globally(TUPLE, 1, among=TUPLE)),
        ("masks", lambda: st.coverage({"l": [M, M]}, TUPLE)),
    ],
)  # fmt: skip
def test_other_trees(name, call):
    assert name in line_of(call)


@pytest.mark.parametrize(
    ("gradients", "state", "params", "said"),
    [
        (W, None, W, "the state that its own init gives, got a NoneType"),
        (W, {"step": 0}, W, "its own init gives, got a dict"),
        (W, W, "swapped", "its own init gives, got a dict"),
        ({"fc": {"kernel": X}}, ..., W, "params has a leaf 'fc/bias' that gradients"),
        ({"fc": {"kernel": W["fc"]["kernel"], "bias": None}}, ..., W,
         "gradients has shape None at leaf 'fc/bias', where params has (4,)"),
        ({"fc": {"kernel": X, "bias": jnp.ones(4)}}, ..., W,
         "gradients has shape (2, 2) at leaf 'fc/kernel', where params has (3, 4)"),
        ({"a": X}, ..., {"a": X}, "params has a leaf 'a' that masks lacks"),
    ],
)  # fmt: skip
def test_what_an_update_is_given(gradients, state, params, said):
    tx = st.sparse_training(optax.sgd(0.1), st.static(sparsity=0.5))
    state = tx.init(W) if state is ... else state
    assert said in line_of(lambda: tx.update(gradients, state, params))


@pytest.mark.parametrize("frozen", [types.MappingProxyType, list], ids=str)
def test_the_error_names_both_containers(frozen):
    text = line_of(lambda: st.select(TUPLE, {"l": frozen({"a": 1})}))
    assert "counts" in text and "scores" in text


# --- Expressions and rules ------------------------------------------------------------

BROKEN = ["(", "[a", "*x", "(?P<", "a{2,1}"]


@pytest.mark.parametrize("expression", BROKEN)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("where", lambda e: st.full_masks(W, where=e)),
        ("where", lambda e: st.sparse_leaves(W, where=[("kernel", True), (e, False)])),
        ("where", lambda e: st.describe(W, where=e)),
        ("where", lambda e: st.erk(W, sparsity=0.5, where=e)),
        ("where", lambda e: st.select_n_m(W, 1, 1, where=e)),
        ("keep_dense", lambda e: st.uniform(W, sparsity=0.5, keep_dense=e)),
        ("keep_dense", lambda e: st.erk(W, sparsity=0.5, keep_dense=["kernel", e])),
        ("classifier", lambda e: st.erk_plus(W, sparsity=0.5, classifier=e)),
        ("first", lambda e: st.uniform_plus(W, sparsity=0.5, first=e, classifier="k")),
        (
            "keep_dense",
            lambda e: st.prune_in_rounds(never, W, sparsity=0.5, keep_dense=e),
        ),
    ],
)
def test_expressions_that_do_not_compile(name, call, expression):
    text = line_of(lambda: call(expression))
    assert name in text and repr(expression) in text
    assert "is not a regular expression: " in text


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (3, "where must be a function, an expression or (expression, sparse) pairs"),
        (["kernel"], "where must be a function, an expression or (expression, sparse)"),
        ([(3, True)], "where: expression must be a regular expression, got 3"),
        ("kernal", "where: expression 'kernal' matches no leaf"),
        ("rate", "where='rate' chooses leaf 'rate' to be sparse, which is a scalar"),
        ("steps", "chooses leaf 'steps' to be sparse, which is of int32"),
        ("wave", "chooses leaf 'wave' to be sparse, which is of complex64"),
        ("tiny", "chooses leaf 'tiny' to be sparse, which is of float8_e5m2"),
        ("act", "chooses leaf 'act' to be sparse, which is a custom_jvp"),
        (lambda name, leaf: name == "rate", "where=<lambda> chooses leaf 'rate'"),
    ],
)
def test_rules(where, said):
    params = {
        "kernel": X,
        "rate": jnp.float32(1),
        "steps": jnp.ones((2, 2), jnp.int32),
        "wave": jnp.ones((2, 2), jnp.complex64),
        "tiny": jnp.ones((2, 2), jnp.float8_e5m2),
        "act": jax.nn.relu,
    }
    assert said in line_of(lambda: st.sparse_leaves(params, where=where))


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "complex64", "float8_e4m3fn", "bool"]
)
def test_a_kernel_of_another_dtype_is_not_left_dense_without_a_word(dtype):
    params = {"a": {"kernel": X}, "b": {"kernel": jnp.ones((2, 2), dtype)}}
    text = line_of(lambda: st.full_masks(params))
    assert text.startswith(f"leaf 'b/kernel' is named as a kernel but is of {dtype}; ")
    assert st.sparse_leaves(params, where="a/")["b"] == {"kernel": False}
