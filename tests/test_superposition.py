"""Superposition against the paper's worked numbers and a NumPy reference."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from jax.sharding import NamedSharding, PartitionSpec

from sup_tickets import masks as masks_module
from sup_tickets.superposition import Superposition, SuperpositionState, superposition
from tests import helpers
from tests.helpers import assert_same

KINDS = [("cia", None), ("caa", None), ("cima", 0.9)]
every_kind = pytest.mark.parametrize(("kind", "decay"), KINDS)
both_prunings = pytest.mark.parametrize("prune_each", [True, False])


@functools.cache
def compiled(
    kind: Any, sparsity: Any, prune_each: bool = True, decay: Any = None
) -> Superposition:
    """A jitted superposition; the same one for every test that wants it."""
    sup = superposition(kind, sparsity=sparsity, prune_each=prune_each, decay=decay)
    update, result = jax.jit(sup.update), jax.jit(sup.result)
    init = jax.jit(sup.init, static_argnames="as_ticket")
    return Superposition(init, update, result)  # pyright: ignore


def run(sup: Any, tickets: Any, masks: Any) -> SuperpositionState:
    state = sup.init(tickets[0], masks[0])
    for ticket, mask in zip(tickets, masks, strict=True):
        state = sup.update(state, ticket, mask)
    return state


def vectors(*rows: Any) -> tuple[list[Any], list[Any]]:
    """Tickets with one sparse leaf each, active where it is not 0."""
    arrays = [np.asarray(row, np.float32) for row in rows]
    return [{"w": jnp.asarray(a)} for a in arrays], [
        {"w": jnp.asarray(a != 0)} for a in arrays
    ]


def random_ticket(seed: int, density: float = 0.3, dtype: Any = jnp.float32) -> Any:
    """A network of two sparse and two dense leaves; NaN where it is inactive."""
    rng = np.random.default_rng(seed)
    shapes = {"conv": (3, 3, 4, 8), "dense": (32, 10), "bias": (10,), "scale": ()}
    values = {k: rng.standard_normal(s) for k, s in shapes.items()}
    masks: Any = {k: rng.random(shapes[k]) < density for k in ("conv", "dense")}
    params = {
        k: jnp.asarray(np.where(masks[k], v, np.nan) if k in masks else v, dtype)
        for k, v in values.items()
    }
    return params, {k: jnp.asarray(masks[k]) if k in masks else None for k in shapes}


def bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


# --- The paper's numbers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "expected"), [(None, [0, 1, 8 / 3]), (4.0, [2, 2, 3])]
)
def test_running_mean_of_the_paper_and_of_the_release(first, expected):  # G4
    sup = compiled("cia", None)
    start = {"s": jnp.float32(123.0 if first is None else first)}
    state = sup.init(start, {"s": None}, as_ticket=first is not None)
    for value, wanted in zip([0.0, 2.0, 6.0], expected, strict=True):
        state = sup.update(state, {"s": jnp.float32(value)}, {"s": None})
        assert np.isclose(state.average["s"], wanted, rtol=1e-6)
    assert int(state.tickets) == (3 if first is None else 4)


@pytest.mark.parametrize(
    ("kind", "average", "kept"),
    [
        ("cia", [0.6, 0.25, 0.1, -0.3], [0, 3]),
        ("caa", [0.6, 0.75, 0.3, -0.9], [1, 3]),
    ],
)
def test_connection_independent_and_aware_averages(kind, average, kept):  # G5
    tickets = vectors([0.9, 0, 0.3, 0], [0.6, 0.75, 0, 0], [0.3, 0, 0, -0.9])
    sup = compiled(kind, 0.5, prune_each=False)
    state = run(sup, *tickets)
    np.testing.assert_allclose(state.average["w"], average, rtol=1e-6)
    params, masks = sup.result(state)
    assert np.flatnonzero(masks["w"]).tolist() == kept
    wanted = np.zeros(4, np.float32)
    wanted[kept] = np.asarray(average, np.float32)[kept]
    np.testing.assert_allclose(params["w"], wanted, rtol=1e-6)
    if kind == "caa":
        assert state.counts["w"].tolist() == [3, 1, 1, 1]


def test_pruning_each_time_differs_from_pruning_once():  # G6
    tickets, masks = vectors([1, 0], [0, 0.9], [0, 0.9])
    sup = compiled("cia", 0.5)
    state = sup.init(tickets[0], masks[0])
    for ticket, mask, wanted in zip(tickets, masks, [1, 1 / 2, 1 / 3], strict=True):
        state = sup.update(state, ticket, mask)
        np.testing.assert_allclose(state.average["w"], [wanted, 0], rtol=1e-6)
    once = compiled("cia", 0.5, prune_each=False)
    params, kept = once.result(run(once, tickets, masks))
    np.testing.assert_allclose(params["w"], [0, 0.6], rtol=1e-6)
    assert kept["w"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("decay", "second", "third"),
    [(0.5, 1.5, 2.25), (0.8, 1.2, 1.56), (0, 2, 3), (1, 1, 1), (0.0, 2, 3)],
)
@pytest.mark.parametrize("mask", [None, True])
def test_moving_average(decay, second, third, mask):  # G7
    sup = compiled("cima", 0.0, decay=decay)
    masks = {"w": None if mask is None else jnp.ones((1,), bool)}
    state = sup.init({"w": jnp.array([7.0])}, masks)
    for value, wanted in [(1.0, 1.0), (2.0, second), (3.0, third)]:
        state = sup.update(state, {"w": jnp.array([value])}, masks)
        np.testing.assert_allclose(state.average["w"], [wanted], rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.5, 0.77, 0.9, 1.0])
def test_moving_average_closed_form(decay):  # G7
    (a, _), (b, masks), (c, _) = (random_ticket(seed, density=1.1) for seed in range(3))
    sup = compiled("cima", None, decay=decay)
    state = run(sup, [a, b, c], [masks] * 3)
    for key in a:
        closed = decay**2 * np.asarray(a[key], np.float64)
        closed += decay * (1 - decay) * np.asarray(b[key], np.float64)
        closed += (1 - decay) * np.asarray(c[key], np.float64)
        np.testing.assert_allclose(state.average[key], closed, rtol=1e-5, atol=1e-6)
    if decay in (0, 1):  # to the bit
        assert_same(state.average, c if decay == 0 else a)


@every_kind
@both_prunings
def test_ties_go_to_the_lower_index(kind, decay, prune_each):  # G8
    tickets, masks = vectors([0.5, -0.5, 0.2, 0.1], [0.5, -0.5, 0.2, 0.1])
    sup = compiled(kind, 0.75, prune_each=prune_each, decay=decay)
    params, kept = sup.result(run(sup, tickets, masks))
    assert kept["w"].tolist() == [True, False, False, False]
    assert params["w"].tolist() == [0.5, 0, 0, 0]


def test_ties_across_leaves_go_to_the_first_leaf():
    params = {"a": jnp.array([0.1, 0.5]), "b": jnp.array([0.5, 0.5])}
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    sup = compiled("cia", 0.5)
    _, kept = sup.result(sup.update(sup.init(params, masks), params, masks))
    assert kept["a"].tolist() == [False, True]
    assert kept["b"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("kind", "decay", "mean", "var"),
    [("cia", None, 0.5, 2.5), ("caa", None, 0.5, 2.5), ("cima", 0.9, 0.1, 1.3)],
)
def test_batch_norm_statistics_are_averaged_as_they_are(kind, decay, mean, var):  # G10
    tickets, masks = vectors([1, 0], [0, 2])
    statistics = [
        {"mean": jnp.array([0.0]), "var": jnp.array([1.0]), "steps": jnp.int32(3)},
        {"mean": jnp.array([1.0]), "var": jnp.array([4.0]), "steps": jnp.int32(7)},
    ]
    networks = [
        {"params": p, "batch_stats": s}
        for p, s in zip(tickets, statistics, strict=True)
    ]
    none = dict.fromkeys(statistics[0])
    both_masks = [{"params": m, "batch_stats": none} for m in masks]
    sup = compiled(kind, 0.5, decay=decay)
    params, kept = sup.result(run(sup, networks, both_masks))
    assert np.isclose(params["batch_stats"]["mean"], mean, rtol=1e-6)
    assert np.isclose(params["batch_stats"]["var"], var, rtol=1e-6)
    assert params["batch_stats"]["steps"].dtype == jnp.int32
    assert int(params["batch_stats"]["steps"]) == 7
    assert kept["batch_stats"] == none
    assert int(masks_module.count(kept)) == 1


# --- Invariants -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "decay"),
    [("cia", None), ("caa", None), *(("cima", b) for b in (0.0, 0.1, 0.5, 0.9, 1.0))],
)
@both_prunings
def test_equal_tickets_give_themselves_to_the_bit(kind, decay, prune_each):  # G13
    rng = np.random.default_rng(1)
    mask = np.zeros(100, bool)
    mask[rng.permutation(100)[:30]] = True
    value = np.where(mask, rng.standard_normal(100), 0).astype(np.float32)
    params = {"b": jnp.asarray(value[:7]), "w": jnp.asarray(value.reshape(4, 25))}
    masks = {"b": None, "w": jnp.asarray(mask.reshape(4, 25))}
    sup = compiled(kind, 0.7, prune_each=prune_each, decay=decay)
    state = run(sup, [params] * 7, [masks] * 7)
    superposed, kept = sup.result(state)
    assert_same(superposed, params)
    assert_same(kept, masks)


@every_kind
@both_prunings
def test_count_is_exact_and_dead_places_are_positive_zero(kind, decay, prune_each):
    sup = compiled(kind, 0.9, prune_each=prune_each, decay=decay)
    params, masks = random_ticket(0)
    state = sup.init(params, masks)
    for seed in range(4):
        params, masks = random_ticket(seed)
        # Active zeros and negative zeros are weights like any other.
        params["conv"] = jnp.where(masks["conv"], -0.0, params["conv"])
        before = (masks, sup.result(state)[1] if seed else masks)
        state = sup.update(state, params, masks)
        superposed, kept = sup.result(state)
        target = 61  # of 608
        union = int(masks_module.count(masks_module.union(*before)))
        if prune_each:
            assert int(masks_module.count(kept)) == min(target, union)
        assert int(masks_module.count(kept)) <= target
        for key in ("conv", "dense"):
            dead = np.asarray(superposed[key])[~np.asarray(kept[key])]
            assert not np.any(dead.view(np.int32))
            assert not np.isnan(np.asarray(superposed[key])).any()


@every_kind
@both_prunings
def test_a_dead_place_holds_positive_zero_in_the_state_too(kind, decay, prune_each):
    sup = compiled(kind, 0.9, prune_each=prune_each, decay=decay)
    params, masks = random_ticket(0)
    state = sup.update(sup.init(params, masks), params, masks)
    state = sup.update(state, *random_ticket(1))
    if kind == "caa":
        active = jax.tree.map(lambda n: n > 0, state.counts)
    else:
        active = masks_module.unpack(state.masks, state.average)
    for key in ("conv", "dense"):
        dead = np.asarray(state.average[key])[~np.asarray(active[key])]
        assert dead.size and not np.any(dead.view(np.int32))


def test_without_sparsity_nothing_is_pruned():
    for kind, decay in KINDS:
        sup = compiled(kind, None, decay=decay)
        tickets, masks = vectors([1, 0, 0, 0], [0, 0.01, 0, 0])
        params, kept = sup.result(run(sup, tickets, masks))
        assert kept["w"].tolist() == [True, True, False, False]
        assert np.count_nonzero(params["w"]) == 2


def test_fewer_active_weights_than_the_target_all_stay():
    tickets, masks = vectors([1, 0, 0, 0], [0, 0, 0, 2])
    sup = compiled("cia", 0.25)
    assert sup.result(run(sup, tickets, masks))[1]["w"].tolist() == [True] + [
        False
    ] * 2 + [True]


def test_an_active_weight_of_value_zero_is_a_candidate():
    params = {"w": jnp.array([0.0, 0.0, 0.0, 3.0])}
    masks = {"w": jnp.array([False, True, True, True])}
    for kind, decay in KINDS:
        sup = compiled(kind, 0.5, decay=decay)
        state = sup.update(sup.init(params, masks), params, masks)
        assert sup.result(state)[1]["w"].tolist() == [False, True, False, True]


def test_target_is_rounded_to_nearest():
    params = {"w": jnp.arange(1.0, 8.0)}
    masks = {"w": jnp.ones(7, bool)}
    sup = compiled("cia", 0.5)  # 3.5 rounds up; the release takes 3
    state = sup.update(sup.init(params, masks), params, masks)
    assert int(masks_module.count(sup.result(state)[1])) == 4


def test_the_mean_counts_a_pruned_weight_as_zero_but_connection_aware_restarts():
    rows = [1, 0.5], [1, 0], [1, 0], [1, 40]
    tickets, masks = vectors(*rows)
    cia = compiled("cia", 0.5)
    np.testing.assert_allclose(
        run(cia, tickets, masks).average["w"], [0, 10], rtol=1e-6
    )
    caa = compiled("caa", 0.5)
    state = run(caa, tickets, masks)
    # Index 1 was pruned with 0.5 at first: neither that sum nor that count is left.
    assert state.average["w"].tolist() == [0, 40]
    assert state.counts["w"].tolist() == [0, 1]


def test_connection_aware_goes_by_the_masks_and_not_by_values():
    params = [{"w": jnp.array([v])} for v in (4.0, 0.0, 5.0)]
    on, off = {"w": jnp.array([True])}, {"w": jnp.array([False])}
    sup = compiled("caa", None)
    # The active zero counts, the inactive 5 does not.
    state = run(sup, params, [on, on, off])
    assert state.average["w"].tolist() == [2.0]
    assert state.counts["w"].tolist() == [2]


def test_connection_aware_averages_dense_leaves_plainly():
    sup = compiled("caa", None)
    on, off = jnp.array([True]), jnp.array([False])
    state = sup.init({"b": jnp.zeros(1), "w": jnp.zeros(1)}, {"b": None, "w": off})
    for value, mask in [(3.0, on), (0.0, off), (6.0, on)]:
        ticket = {"b": jnp.array([value]), "w": jnp.array([value])}
        state = sup.update(state, ticket, {"b": None, "w": mask})
    assert np.isclose(state.average["b"][0], 3.0)
    assert np.isclose(state.average["w"][0], 4.5)


def test_connection_aware_count_saturates():
    sup = compiled("caa", None)
    masks = {"w": jnp.ones(2, bool)}
    state = sup.init({"w": jnp.zeros(2)}, masks)
    for _ in range(255):
        state = sup.update(state, {"w": jnp.array([1.0, -2.0])}, masks)
    assert state.average["w"].tolist() == [1.0, -2.0]
    assert state.counts["w"].tolist() == [255, 255]
    wanted = np.array([1.0, -2.0])
    for _ in range(3):
        state = sup.update(state, {"w": jnp.array([256.0, 253.0])}, masks)
        wanted += (np.array([256.0, 253.0]) - wanted) / 255
    np.testing.assert_allclose(state.average["w"], wanted, rtol=1e-5)
    assert state.counts["w"].tolist() == [255, 255]  # never wraps to 0
    assert int(state.tickets) == 258


@every_kind
def test_phase_1_as_a_ticket_is_the_same_as_updating_with_it(kind, decay):
    (params,), (masks,) = vectors([4, 0, 3, 2])
    sup = compiled(kind, 0.5, decay=decay)
    as_ticket = sup.init(params, masks, as_ticket=True)
    assert_same(as_ticket, sup.update(sup.init(params, masks), params, masks))
    assert sup.result(as_ticket)[0]["w"].tolist() == [4, 0, 3, 0]


def test_init_does_not_look_at_the_values():
    a, masks = random_ticket(0)
    b, _ = random_ticket(1)
    for kind, decay in KINDS:
        sup = compiled(kind, 0.9, decay=decay)
        assert_same(sup.init(a, masks), sup.init(b, masks))
        assert int(sup.init(a, masks).tickets) == 0


# --- A NumPy reference ----------------------------------------------------------------


class Reference(NamedTuple):
    """Superposition by the paper's formulas, in float64 on one flat vector."""

    kind: str
    decay: float | None
    target: int

    def prune(self, average: Any, active: Any) -> tuple[Any, Any]:
        magnitudes = np.where(active, np.abs(average), -1)
        first = np.argsort(-magnitudes, kind="stable")[: self.target]
        kept = np.zeros_like(active)
        kept[first] = True
        kept &= active
        return np.where(kept, average, 0.0), kept

    def run(self, tickets: Any, masks: Any, prune_each: bool) -> tuple[Any, Any]:
        average = np.zeros(tickets[0].size)
        total, count = np.zeros_like(average), np.zeros_like(average)
        active = np.zeros(average.shape, bool)
        beta: Any = self.decay
        for t, (values, mask) in enumerate(zip(tickets, masks, strict=True), start=1):
            ticket = np.where(mask, values, 0.0)
            total, count, active = total + ticket, count + mask, active | mask
            if self.kind == "caa":
                average = total / np.maximum(count, 1)
            elif self.kind == "cia":
                average = ((t - 1) * average + ticket) / t
            elif t == 1:
                average = ticket
            else:
                average = beta * average + (1 - beta) * ticket
            if prune_each:
                average, active = self.prune(average, active)
                total, count = np.where(active, total, 0), np.where(active, count, 0)
        return (average, active) if prune_each else self.prune(average, active)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    # Few of what costs a compilation, many of what does not.
    shapes=some.sampled_from([((7,),), ((2, 3), (1, 5, 4)), ((3, 3, 2, 4), (1,))]),
    number=some.integers(1, 5),
    sparsity=some.sampled_from([0, 0.3, 0.9]),
    density=some.sampled_from([0.05, 0.3, 0.7, 1.1]),
    kind=some.sampled_from(["cia", "caa", "cima"]),
    decay=some.sampled_from([0.0, 0.25, 0.9]),
    prune_each=some.booleans(),
    seed=some.integers(0, 2**31),
)
def test_agrees_with_a_numpy_reference(
    shapes, number, sparsity, density, kind, decay, prune_each, seed
):
    rng = np.random.default_rng(seed)
    sizes = [math.prod(shape) for shape in shapes]
    n = sum(sizes)
    flat = rng.standard_normal((number, n)).astype(np.float32)
    flat[rng.random(flat.shape) < 0.1] = 0  # ties, active and inactive
    flat_masks = rng.random((number, n)) < density
    biases = rng.standard_normal((number, 3)).astype(np.float32)

    def tree(row: Any) -> list[Any]:
        parts = np.split(row, np.cumsum(sizes)[:-1])
        return [jnp.asarray(p.reshape(s)) for p, s in zip(parts, shapes, strict=True)]

    poisoned = np.where(flat_masks, flat, np.nan).astype(np.float32)
    tickets = [
        (tree(row), jnp.asarray(b)) for row, b in zip(poisoned, biases, strict=True)
    ]
    masks = [(tree(row), None) for row in flat_masks]
    beta = decay if kind == "cima" else None
    sup = compiled(kind, sparsity, prune_each=prune_each, decay=beta)
    (weights, bias), (kept, _) = sup.result(run(sup, tickets, masks))

    reference = Reference(kind, beta, math.floor((1 - sparsity) * n + 0.5 + 1e-9))
    wanted, wanted_masks = reference.run(flat, flat_masks, prune_each)
    got = np.concatenate([np.asarray(w).ravel() for w in weights])
    got_masks = np.concatenate([np.asarray(m).ravel() for m in kept])
    np.testing.assert_array_equal(got_masks, wanted_masks)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert not np.any(got[~got_masks].view(np.int32))

    plain = "cia" if kind == "caa" else kind
    whole = np.ones_like(biases, bool)
    wanted_bias, _ = Reference(plain, beta, 3).run(biases, whole, False)
    np.testing.assert_allclose(bias, wanted_bias, rtol=1e-5, atol=1e-6)


# --- Dtypes and trees -----------------------------------------------------------------


@every_kind
@both_prunings
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_leaves_are_averaged_in_float32_and_rounded_once(
    kind, decay, prune_each, dtype
):
    (a, masks), (b, other) = (random_ticket(s, dtype=dtype) for s in (3, 4))
    sup = compiled(kind, None, prune_each=prune_each, decay=decay)
    plain = superposition(kind, sparsity=None, prune_each=prune_each, decay=decay)
    for update in (plain.update, sup.update):
        state = update(update(sup.init(a, masks), a, masks), b, other)
        for key, average in state.average.items():
            assert average.dtype == dtype
            on_a, on_b = np.ones(a[key].shape), np.ones(b[key].shape)
            if masks[key] is not None:
                on_a, on_b = np.asarray(masks[key]), np.asarray(other[key])
            x = np.where(on_a, np.asarray(a[key], np.float64), 0)
            y = np.where(on_b, np.asarray(b[key], np.float64), 0)
            weight: Any = 0.5 if decay is None else 1 - decay
            if kind == "caa" and masks[key] is not None:
                weight = on_b / np.maximum(on_a.astype(int) + on_b, 1)
            exact = (1 - weight) * x + weight * y
            half_ulp = float(jnp.finfo(dtype).eps) / 2
            error = np.abs(np.asarray(average, np.float64) - exact)
            assert np.all(error <= half_ulp * np.abs(exact) * 1.001 + 1e-7)


def test_leaves_of_several_dtypes_are_pruned_together():
    params = {
        "a": jnp.array([1.0, 5.0], jnp.bfloat16),
        "b": jnp.array([4.0, 2.0], jnp.float32),
        "c": jnp.array([3.0, 6.0], jnp.float16),
    }
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    sup = compiled("caa", 0.5)
    with jax.numpy_dtype_promotion("standard"):  # to compare scores of several dtypes
        superposed, kept = sup.result(sup.init(params, masks, as_ticket=True))
    assert jax.tree.map(lambda m: m.tolist(), kept) == {
        "a": [False, True],
        "b": [True, False],
        "c": [False, True],
    }
    assert {k: v.dtype for k, v in superposed.items()} == {
        k: v.dtype for k, v in params.items()
    }


@every_kind
def test_leaves_that_are_not_floating_point_are_the_latest(kind, decay):
    sup = compiled(kind, 0.5, decay=decay)
    masks = {"flag": None, "key": None, "n": None, "w": jnp.ones(2, bool)}

    def ticket(i: int) -> Any:
        return {
            "flag": jnp.array(i == 2),
            "key": jax.random.key(i),
            "n": jnp.int32(i),
            "w": jnp.ones(2),
        }

    state = sup.init(ticket(0), masks)
    for i in (5, 3, 2):
        state = sup.update(state, ticket(i), masks)
    params, _ = sup.result(state)
    assert params["n"].dtype == jnp.int32 and int(params["n"]) == 2
    assert bool(params["flag"])
    assert bool(params["key"] == jax.random.key(2))


@pytest.mark.parametrize(
    ("kind", "decay"), [("cia", None), ("caa", None), ("cima", 0.25), ("cima", 0.75)]
)
def test_complex_leaves_are_averaged(kind, decay):
    sup = compiled(kind, 0.5, decay=decay)
    masks = {"w": jnp.ones(2, bool)}
    tickets = [{"w": jnp.array(w, jnp.complex64)} for w in ([1, 3j], [1, 5j])]
    params, kept = sup.result(run(sup, tickets, [masks] * 2))
    assert kept["w"].tolist() == [False, True]
    second = 4j if decay is None else decay * 3j + (1 - decay) * 5j
    np.testing.assert_allclose(params["w"], [0, second], rtol=1e-6)


def test_trees_with_none_empty_and_numpy_leaves():
    params = {"none": None, "empty": jnp.ones((0, 3)), "w": np.ones((2, 2), np.float32)}
    masks = {"none": None, "empty": jnp.ones((0, 3), bool), "w": np.ones((2, 2), bool)}
    for kind, decay in KINDS:
        sup = compiled(kind, 0.5, decay=decay)
        superposed, kept = sup.result(run(sup, [params] * 2, [masks] * 2))
        assert superposed["none"] is None and superposed["empty"].shape == (0, 3)
        assert kept["w"].tolist() == [[True, True], [False, False]]


def test_a_network_without_sparse_leaves_is_averaged():
    params = {"w": jnp.ones(2)}
    for kind, decay in KINDS:
        sup = compiled(kind, 0.5, decay=decay)
        superposed, kept = sup.result(run(sup, [params] * 3, [{"w": None}] * 3))
        assert superposed["w"].tolist() == [1, 1] and kept == {"w": None}


# --- State, jit, devices --------------------------------------------------------------


@every_kind
def test_state_is_one_copy_and_a_bit_or_a_byte_a_weight(kind, decay):
    params, masks = random_ticket(0)
    sup = superposition(kind, sparsity=0.9, decay=decay)
    state = jax.eval_shape(sup.init, params, masks)
    grown = jax.eval_shape(sup.update, state, params, masks)
    for s in (state, grown):
        assert s.tickets.shape == () and s.tickets.dtype == jnp.int32
        assert not s.tickets.weak_type
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), s.average)
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), params)
        extra = jax.tree.leaves((s.masks, s.counts))
        assert all(leaf.dtype == jnp.uint8 for leaf in extra)
        a_bit, a_byte = 288 // 8 + 320 // 8, 288 + 320
        assert sum(x.size for x in extra) == (a_byte if kind == "caa" else a_bit)


@pytest.mark.parametrize(("kind", "decay"), [("caa", None), ("cima", 0.3)])
@both_prunings
def test_jitted_is_eager_and_compiles_once(kind, decay, prune_each):
    sup = superposition(kind, sparsity=0.9, prune_each=prune_each, decay=decay)
    traces = 0

    def counted(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return sup.update(*args)

    update = jax.jit(counted)
    params, masks = random_ticket(0)
    eager, jitted = sup.init(params, masks), jax.jit(sup.init)(params, masks)
    assert_same(eager, jitted)
    for seed in range(3):
        params, masks = random_ticket(seed)
        eager = sup.update(eager, params, masks)
        jitted = update(jitted, params, masks)
    update(sup.init(params, masks), params, masks)
    assert traces == 1
    compared = [sup.result(eager), sup.result(jitted), jax.jit(sup.result)(jitted)]
    for other in compared[1:]:
        assert_same(compared[0][1], other[1])
        # Compilers fuse products and sums as they like.
        for x, y in zip(*map(jax.tree.leaves, (compared[0][0], other[0])), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["cia", "caa"])
@both_prunings
def test_donating_the_state_leaves_everything_else_alive(kind, prune_each):
    # Every warning is an error here, also that a donated buffer was not used.
    sup = superposition(kind, sparsity=0.5, prune_each=prune_each)
    update = jax.jit(sup.update, donate_argnums=0)
    (params,), (masks,) = vectors([1, 0, 3, 4])
    params, masks = params | {"n": jnp.int32(1)}, masks | {"n": None}
    states = [
        # Eager ones too, as those could share buffers.
        sup.init(params, masks, as_ticket=True),
        jax.jit(sup.init)(params, masks),
        update(sup.init(params, masks), params, masks),
    ]
    for state in states:
        snapshots = [sup.result(state)] if int(state.tickets) else []
        snapshots += [jax.jit(sup.result)(state)]
        before = jax.tree.map(np.array, snapshots)
        wanted = jax.jit(sup.update)(state, params, masks)
        assert_same(update(state, params, masks), wanted)
        for leaf in jax.tree.leaves((state.average["w"], state.masks, state.counts)):
            assert leaf.is_deleted()
        assert_same(before, jax.tree.map(np.array, snapshots))
        for leaf in jax.tree.leaves((params, masks)):
            assert not leaf.is_deleted()


@every_kind
def test_the_state_outlives_the_tickets(kind, decay):
    # The next training step may be donated the parameters.
    sup = superposition(kind, sparsity=None, decay=decay)
    masks = {"b": None, "n": None, "w": jnp.ones(2, bool)}

    def ticket(n: int) -> Any:
        return {"b": jnp.ones(2), "n": jnp.int32(n), "w": jnp.ones(2)}

    tickets = [ticket(n) for n in range(3)]
    state = sup.init(tickets[0], masks, as_ticket=True)
    other = sup.init(tickets[1], masks)
    state = sup.update(state, tickets[2], masks)
    for leaf in jax.tree.leaves(tickets):
        leaf.delete()
    assert int(state.average["n"]) == 2 and int(other.average["n"]) == 1
    assert state.average["w"].tolist() == state.average["b"].tolist() == [1, 1]


@every_kind
@both_prunings
def test_update_and_result_change_none_of_their_inputs(kind, decay, prune_each):  # G13
    sup = compiled(kind, 0.9, prune_each=prune_each, decay=decay)
    state = sup.update(sup.init(*random_ticket(0)), *random_ticket(0))
    ticket = random_ticket(1)
    before = jax.tree.map(np.array, (state, ticket))
    first = sup.update(state, *ticket)
    sup.result(state)
    assert_same(before, jax.tree.map(np.array, (state, ticket)))
    assert_same(first, sup.update(state, *ticket))


def test_superposing_never_touches_training():  # G13
    sup = superposition("cia", sparsity=0.5)
    update = jax.jit(sup.update, donate_argnums=0)
    mask = {"w": jnp.asarray(np.random.default_rng(0).random((8, 8)) < 0.6)}

    @jax.jit
    def train(params: Any, x: Any) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.mean((jnp.tanh(x @ p["w"]) - x) ** 2)

        new = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params))
        return masks_module.apply_masks(mask, new)

    def trajectory(superpose: bool) -> list[bytes]:
        params = {"w": jax.random.normal(jax.random.key(1), (8, 8))}
        state, seen = sup.init(params, mask), []
        for step in range(8):
            params = train(params, jax.random.normal(jax.random.key(step), (4, 8)))
            seen.append(bits(params["w"]))
            if superpose and step % 2:
                state = update(state, params, mask)
                assert int(masks_module.count(sup.result(state)[1])) == 32
        return seen

    assert trajectory(True) == trajectory(False)


@pytest.mark.parametrize(
    ("kind", "decay"), [("cia", None), ("caa", None), ("cima", 0.5)]
)
@both_prunings
def test_sharded_is_unsharded(kind, decay, prune_each):
    mesh = helpers.mesh()
    sup = compiled(kind, 0.9, prune_each=prune_each, decay=decay)

    def place(leaf: jax.Array) -> jax.Array:
        parts = PartitionSpec("data", "model") if leaf.ndim == 2 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, parts))

    def ticket(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        params = {k: rng.standard_normal((16, 24)) for k in "ab"} | {"z": np.ones(3)}
        masks: Any = {k: jnp.asarray(rng.random((16, 24)) < 0.4) for k in "ab"}
        # Few values, so that many weights tie, and none of the averages is rounded.
        rounded = {k: jnp.asarray(np.round(v), jnp.float32) for k, v in params.items()}
        return rounded, masks | {"z": None}

    update = jax.jit(sup.update)
    one = sup.init(*ticket(0))
    many = sup.init(*jax.tree.map(place, ticket(0)))
    for seed in range(2):
        one = update(one, *ticket(seed))
        many = update(many, *jax.tree.map(place, ticket(seed)))
    assert len(many.average["a"].sharding.device_set) == 8
    assert_same(one, many)
    assert_same(jax.jit(sup.result)(one), jax.jit(sup.result)(many))


def test_state_survives_flattening_and_holds_arrays_alone():
    for kind, decay in KINDS:
        sup = compiled(kind, 0.9, decay=decay)
        state = sup.update(sup.init(*random_ticket(0)), *random_ticket(0))
        leaves, structure = jax.tree.flatten(state)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        restored = structure.unflatten([jnp.asarray(np.asarray(x)) for x in leaves])
        ticket = random_ticket(1)
        assert_same(sup.update(state, *ticket), sup.update(restored, *ticket))


def test_replicas_side_by_side():
    sup = superposition("cima", sparsity=0.75, decay=0.5)
    tickets, masks = vectors([4, 3, 2, 1], [1, 2, 3, 4])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *tickets)
    stacked_masks = jax.tree.map(lambda *x: jnp.stack(x), *masks)
    state = jax.vmap(sup.init)(stacked, stacked_masks)
    state = jax.vmap(sup.update)(state, stacked, stacked_masks)
    params, _ = jax.vmap(sup.result)(state)
    assert params["w"].tolist() == [[4, 0, 0, 0], [0, 0, 0, 4]]


# --- Errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("cimma", {}, r"kind must be .*'cia', 'caa', 'cima', got 'cimma'.*'cima'"),
        ("CAA", {}, r"got 'CAA'; did you mean 'caa'"),
        (None, {}, r"kind must be one of .* got None"),
        ("cima", {}, r"decay must be in \[0, 1\] for kind 'cima'.*got None"),
        ("cia", {"decay": 0.5}, r"decay must be None for kind 'cia', got 0.5"),
        ("caa", {"decay": 0.0}, r"decay must be None for kind 'caa', got 0.0"),
        ("cima", {"decay": 1.01}, r"decay must be in \[0, 1\], got 1.01"),
        ("cima", {"decay": -0.1}, r"decay must be in \[0, 1\], got -0.1"),
        ("cima", {"decay": math.nan}, r"decay must be in \[0, 1\], got nan"),
        ("cia", {"sparsity": 1}, r"sparsity must be in \[0, 1\), got 1"),
        ("cia", {"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ("cia", {"sparsity": math.nan}, r"sparsity must be in \[0, 1\), got nan"),
    ],
)
def test_arguments_are_checked(kind, options, message):
    make: Any = superposition
    with pytest.raises(ValueError, match=message) as raised:
        make(kind, **{"sparsity": 0.5, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["sparsity", "decay"])
def test_arguments_cannot_be_traced(name):
    def make(value: Any) -> Any:
        sparsity, decay = (value, 0.5) if name == "sparsity" else (0.5, value)
        return superposition("cima", sparsity=sparsity, decay=decay)

    with pytest.raises(TypeError, match=f"{name} must be known before tracing"):
        jax.jit(make)(0.5)


W, B = jnp.ones((2, 3)), jnp.ones(3)
M = jnp.ones((2, 3), bool)


@every_kind
@pytest.mark.parametrize(
    ("params", "masks", "error", "message"),
    [
        ({"w": W}, {"w": M}, ValueError, "state.average has a leaf 'b'"),
        (
            {"w": W, "b": B, "c": B},
            {"w": M, "b": None, "c": None},
            ValueError,
            "params has a leaf 'c' that state.average lacks",
        ),
        ({"w": W, "b": None}, {"w": M, "b": None}, ValueError, "leaf 'b'"),
        ({"w": W.T, "b": B}, {"w": M.T, "b": None}, ValueError, r"\(3, 2\) at leaf 'w"),
        (
            {"w": W.astype(jnp.bfloat16), "b": B},
            {"w": M, "b": None},
            TypeError,
            "params has dtype bfloat16 at leaf 'w', where state.average has float32",
        ),
        (
            {"w": W, "b": B.astype(jnp.int32)},
            {"w": M, "b": None},
            TypeError,
            "params has dtype int32 at leaf 'b'",
        ),
        ({"w": W, "b": B}, {"w": M.T, "b": None}, ValueError, "masks has shape"),
        ({"w": W, "b": B}, {"w": M}, ValueError, "params has a leaf 'b' that masks"),
        ({"w": W, "b": B}, {"w": W, "b": None}, TypeError, "masks must be bool"),
        (
            {"w": W, "b": B},
            {"w": None, "b": None},
            ValueError,
            "masks has None at leaf 'w', where init got an array",
        ),
        (
            {"w": W, "b": B},
            {"w": M, "b": jnp.ones(3, bool)},
            ValueError,
            "masks has an array at leaf 'b', where init got None",
        ),
    ],
)
def test_tickets_are_checked(kind, decay, params, masks, error, message):
    sup = superposition(kind, sparsity=0.5, decay=decay)
    state = sup.init({"w": W, "b": B}, {"w": M, "b": None})
    for update in (sup.update, jax.jit(sup.update)):
        with pytest.raises(error, match=message) as raised:
            update(state, params, masks)
        assert "\n" not in str(raised.value).split("\n----")[0]


def test_init_checks_masks():
    sup = superposition("cia", sparsity=0.5)
    with pytest.raises(ValueError, match="masks has shape"):
        sup.init({"w": W}, {"w": M.T})
    with pytest.raises(TypeError, match="masks must be bool"):
        sup.init({"w": W}, {"w": W})


@both_prunings
def test_result_needs_a_ticket(prune_each):
    sup = superposition("cia", sparsity=0.5, prune_each=prune_each)
    state = sup.init({"w": W}, {"w": M})
    with pytest.raises(ValueError, match="state must hold at least 1 ticket, got 0"):
        sup.result(state)
    params, masks = jax.jit(sup.result)(state)  # a traced state cannot be looked at
    assert not np.any(params["w"]) and not np.any(masks["w"])
    sup.result(sup.init({"w": W}, {"w": M}, as_ticket=True))
