"""Bad arguments of the core: one line that names the argument, before any compute."""

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
