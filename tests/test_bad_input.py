"""Bad arguments of the core: one line that names the argument, before any compute."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sup_tickets as st

W = {"fc": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
MASKS = {"fc": {"kernel": jnp.ones((3, 4), bool), "bias": None}}
COUNTS = {"fc": {"kernel": 6, "bias": None}}
KEY = jax.random.key(0)


def with_count(n):
    return {"fc": {"kernel": n, "bias": None}}


def line_of(call, kinds=(ValueError, TypeError)):
    with pytest.raises(kinds) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400, text
    return text


# --- Numbers --------------------------------------------------------------------------

SPARSITIES = {
    "active_count": lambda s: st.active_count(10, s),
    "uniform": lambda s: st.uniform(W, sparsity=s),
    "erk": lambda s: st.erk(W, sparsity=s),
    "allocate": lambda s: st.allocate(W, sparsity=s),
    "prune_to": lambda s: st.prune_to(W, MASKS, sparsity=s),
    "superposition": lambda s: st.superposition("cia", sparsity=s),
    "prune_in_rounds": lambda s: st.prune_in_rounds(never, W, sparsity=s),
    "initial": lambda s: st.cubic_sparsity(s, 0.9, begin_step=0, every=1, updates=1),
    "final": lambda s: st.cubic_sparsity(0, s, begin_step=0, every=1, updates=1),
}
FRACTIONS = {
    "drop": lambda f: st.drop(MASKS, W, f),
    "rewire": lambda f: st.rewire(W, MASKS, drop_scores=W, grow_scores=W, fraction=f),
    "initial": lambda f: st.cosine_fraction(f, end_step=9),
    "final": lambda f: st.linear_fraction(0.1, end_step=9, final=f),
    "decay": lambda f: st.superposition("cima", sparsity=0.5, decay=f),
    "ticket_budget": lambda f: st.ticket_budget(100, fraction=f),
}
NO_NUMBERS = [float("nan"), float("inf"), -0.1, 1.5, True, np.True_, "0.9", None, 1j]
NO_NUMBERS += [[0.9], np.array([0.9]), np.float32("nan"), jnp.float32(2), 90]


def never(*_):
    raise AssertionError("computed")


def accepts_none(name):
    return name in ("superposition", "decay")


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_sparsities_and_fractions(value):
    for name, call in {**SPARSITIES, **FRACTIONS}.items():
        if value is None and accepts_none(name):
            continue
        if isinstance(value, list) and name == "rewire":
            assert "fraction" in line_of(lambda call=call: call(value))  # a tree
            continue
        word = name if name in ("initial", "final", "decay") else ""
        word = word or ("sparsity" if name in SPARSITIES else "fraction")
        text = line_of(lambda call=call: call(value))
        assert text.startswith(word) and "must be in [0, 1" in text, (name, text)


@pytest.mark.parametrize("value", [90, 90.0, np.int64(90), np.float32(90)], ids=repr)
def test_percents_are_hinted_at(value):
    for call in (*SPARSITIES.values(), *FRACTIONS.values()):
        assert line_of(lambda call=call: call(value)).endswith("90% is 0.9")
    text = line_of(lambda: st.erk_plus(W, sparsity=0.5, classifier="k",
                                       classifier_density=20))  # fmt: skip
    assert text == (
        "classifier_density must be in (0, 1], got 20; in percent? 20% is 0.2"
    )
    assert "percent" not in line_of(lambda: st.active_count(10, 1.0))
    assert "percent" not in line_of(lambda: st.active_count(10, 101))


@pytest.mark.parametrize(
    "value",
    [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5)],
    ids=lambda v: type(v).__name__,
)
def test_numpy_scalars_are_numbers(value):
    assert st.active_count(12, value) == 6
    assert st.uniform(W, sparsity=value) == COUNTS
    assert st.ticket_budget(np.int64(16), fraction=value).cycles == 1
    assert int(st.count(st.prune_to(W, MASKS, sparsity=value)[1])) == 6


WHOLE = {
    "total": lambda n: st.active_count(n, 0.5),
    "every": lambda n: st.update_due(every=n),
    "begin": lambda n: st.update_due(every=2, begin=n),
    "end_step": lambda n: st.cosine_fraction(0.3, end_step=n),
    "milestones": lambda n: st.step_lr(0.1, milestones=[n]),
    "warmup_steps": lambda n: st.step_lr(0.1, milestones=[], warmup_steps=n),
    "phase1_steps": lambda n: st.TicketPlan(n, 1, 1),
    "cycle_steps": lambda n: st.TicketPlan(1, n, 1),
    "cycles": lambda n: st.TicketPlan(1, 1, n),
    "epochs": lambda n: st.ticket_budget(n),
    "cycle_epochs": lambda n: st.ticket_budget(9, cycle_epochs=n),
    "rounds": lambda n: st.prune_in_rounds(never, W, sparsity=0.5, rounds=n),
    "shape": lambda n: st.synflow(never, W, (1, n)),
    "m": lambda n: st.select_n_m(W, 0, n),
    "block": lambda n: st.select_blocks(W, COUNTS, (n, 1)),
}


@pytest.mark.parametrize("value", [-1, 2.0, 0.5, True, np.True_, "3", [1]], ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name, value):
    text = line_of(lambda: WHOLE[name](value))
    assert text.startswith(name) and "whole number of at least" in text


REAL = {
    "base_lr": lambda x: st.step_lr(x, milestones=[]),
    "factor": lambda x: st.step_lr(0.1, milestones=[], factor=x),
    "power": lambda x: st.inverse_power_fraction(0.3, end_step=3, power=x),
    "value": lambda x: st.constant(x),
    "final_lr": lambda x: st.cosine_lr(0.1, total_steps=3, final_lr=x),
    "lr_min": lambda x: st.cheap_ticket_schedule(
        st.constant(0.1), phase1_steps=1, cycle_steps=1, cycles=1, lr_min=x, lr_max=1.0
    ),
    "temperature": lambda x: st.classification_loss(never, temperature=x),
    "power ": lambda x: st.erk(W, sparsity=0.5, power=x),
    "classifier_density": lambda x: st.erk_plus(
        W, sparsity=0.5, classifier="kernel", classifier_density=x
    ),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True, [1.0]])
@pytest.mark.parametrize("name", REAL)
def test_real_numbers(name, value):
    text = line_of(lambda: REAL[name](value))
    assert text.startswith(name.strip()) and repr(value) in text


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("milestones", lambda: st.step_lr(0.1, milestones=3)),
        ("base", lambda: st.cheap_ticket_schedule(
            0.1, phase1_steps=1, cycle_steps=1, cycles=1, lr_min=0.0, lr_max=1.0)),
        ("form", lambda: st.cheap_ticket_schedule(
            st.constant(0.1), phase1_steps=1, cycle_steps=1, cycles=1, lr_min=0.0,
            lr_max=1.0, form="papr")),
        ("rounding", lambda: st.drop(MASKS, W, 0.5, rounding="up")),
        ("rounding", lambda: st.rewire(
            W, MASKS, drop_scores=W, grow_scores=W, fraction=0.5, rounding="round")),
        ("scope", lambda: st.prune_to(W, MASKS, sparsity=0.5, scope="globl")),
        ("kind", lambda: st.superposition("cai", sparsity=0.5)),
        ("spacing", lambda: st.prune_in_rounds(never, W, sparsity=0.5, spacing="x")),
        ("pairing", lambda: st.grasp(never, W, [1], pairing="x")),
        ("batches", lambda: st.snip(never, W, iter([1]))),
        ("batches", lambda: st.grasp(never, W, [])),
        ("distribution", lambda: st.allocate(W, sparsity=0.5, distribution="ekr")),
        ("distribution", lambda: st.allocate(W, sparsity=0.5, distribution=[1])),
        ("distribution", lambda: st.static(sparsity=0.5, distribution=[1])),
        ("channel_axes", lambda: st.erdos_renyi(W, sparsity=0.5, channel_axes=3)),
        ("channel_axes", lambda: st.erdos_renyi(
            W, sparsity=0.5, channel_axes=("a", 1))),
        ("n", lambda: st.select_n_m({"w": jnp.ones((4, 4))}, 0.5, 4)),
        ("n", lambda: st.select_n_m({"w": jnp.ones((4, 4))}, True, 4)),
        ("block", lambda: st.select_blocks(W, with_count(1), 4)),
        ("tx", lambda: st.sparse_training(optax.sgd, "static", sparsity=0.5)),
        ("tx", lambda: st.sparse_training(None, "static", sparsity=0.5)),
        ("tx", lambda: st.sparse_training(optax.MultiSteps, "static", sparsity=0.5)),
        ("tx", lambda: st.sparse_training(st.static(sparsity=0.5), optax.sgd(0.1))),
        ("tickets", lambda: st.sparse_training(optax.sgd(0.1), "static", sparsity=0.5,
                                               tickets=5)),
    ],
)  # fmt: skip
def test_other_arguments(name, call):
    assert line_of(call).startswith(name)


# --- Counts ---------------------------------------------------------------------------

COUNTED = {
    "select": lambda n: st.select(W, with_count(n)),
    "random_masks": lambda n: st.random_masks(KEY, W, with_count(n)),
    "grow": lambda n: st.grow(MASKS, W, with_count(n)),
    "prune_to_counts": lambda n: st.prune_to_counts(W, MASKS, with_count(n)),
    "together": lambda n: st.prune_to_counts(W, MASKS, n),
    "select_globally": lambda n: st.select_globally(W, n, among=MASKS),
    "select_blocks": lambda n: st.select_blocks(W, with_count(n), (1, 1)),
}


@pytest.mark.parametrize(
    "value", [-1, 17, 2.5, 2.0, np.int64(-3), np.float32(2), True, "2"], ids=repr
)
@pytest.mark.parametrize("name", COUNTED)
def test_counts_of_weights(name, value):
    text = line_of(lambda: COUNTED[name](value))
    assert text.startswith("count") and "must be a whole number in [0, 1" in text
    if name not in ("together", "select_globally"):
        assert "at leaf 'fc/kernel'" in text


@pytest.mark.parametrize("value", [jnp.float32(2), jnp.ones(2, jnp.int32)], ids=str)
@pytest.mark.parametrize("name", COUNTED)
def test_counts_in_arrays_have_the_right_kind(name, value):
    if name == "together" and value.ndim:
        return
    assert "must be an integer scalar" in line_of(lambda: COUNTED[name](value))


def test_the_values_of_jax_arrays_are_clipped():
    def active(n):
        return st.count(st.select({"w": W["fc"]["kernel"]}, {"w": n}))

    compiled = jax.jit(active)
    assert [int(compiled(jnp.int32(n))) for n in (-5, 0, 3, 12, 99)] == [
        0,
        0,
        3,
        12,
        12,
    ]


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
