"""The parts of the reconstruction of STAMP: gates, generator, budget, Reptile."""

import functools
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.channels import ChannelAxis, ChannelGroup, channel_flops
from sup_tickets.stamp import (
    GATES,
    Learner,
    Objective,
    Rates,
    adapt_step,
    first_slots,
    generate,
    init_generator,
    keep_within,
    kernel_norms,
    ranked,
    reptile,
)
from sup_tickets.stamp.gates import (
    bernoulli_kl,
    kumaraswamy_kl,
    kumaraswamy_mean,
    kumaraswamy_sample,
    relaxed_bernoulli,
    straight_through,
)
from sup_tickets.stamp.learning import _stepped, flops_share
from sup_tickets.training.classification import PureNetwork
from sup_tickets.wiring import Wiring
from tests.helpers import quick

# --- Gates ----------------------------------------------------------------------------


def test_golden_gates():
    assert float(bernoulli_kl(0.3, 0.5)) == pytest.approx(0.082283, abs=1e-6)
    for temperature in (0.1, 1.0, 7.0):
        found = relaxed_bernoulli(jnp.float32(0), jnp.float32(0.5), temperature)
        assert float(found) == 0.5
    logit = jnp.log(jnp.float32(0.3) / 0.7)
    found = relaxed_bernoulli(logit, jnp.float32(0.6), 0.1)
    assert float(found) == pytest.approx(0.0119108, rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "alpha", "kl", "mean"),
    [
        (0.31326169, 0.99998429, 1e-4, 7.049953, 0.238541),
        (1.0, 1.0, 1e-4, 8.210440, 0.5),
        (2.0, 3.0, 0.1, 1.686011, 0.457143),
    ],
)
def test_golden_kumaraswamy(a, b, alpha, kl, mean):
    a, b = jnp.float32(a), jnp.float32(b)
    assert float(kumaraswamy_kl(a, b, alpha)) == pytest.approx(kl, rel=1e-5)
    assert float(kumaraswamy_mean(a, b)) == pytest.approx(mean, rel=1e-5)
    u = (jnp.arange(4000, dtype=jnp.float32) + 0.5) / 4000
    assert float(kumaraswamy_sample(a, b, u).mean()) == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("name", [*GATES])
def test_gates_are_drawn_as_often_as_they_say(name, key):
    gate = GATES[name]
    raw = jnp.tile(jnp.float32([0.4, 0.7])[: len(gate.start)], (4000, 1))
    draws = gate.sample(key, raw, 0.1)
    assert draws.shape == (4000,)
    assert float(draws.min()) >= 0 and float(draws.max()) <= 1
    open_ = straight_through(draws)
    assert set(np.unique(open_)) == {0.0, 1.0}
    assert float(open_.mean()) == pytest.approx(float(gate.mean(raw)[0]), abs=0.03)
    # A KL is at least 0, and 0 only at the prior.
    assert float(gate.kl(raw[:1], 0.5)[0]) > 0
    slopes = jax.grad(lambda r: straight_through(gate.sample(key, r, 0.5)).sum())(raw)
    soft = jax.grad(lambda r: gate.sample(key, r, 0.5).sum())(raw)
    np.testing.assert_array_equal(slopes, soft)
    assert bool((slopes[:, 0] >= 0).all()) and float(slopes[:, 0].mean()) > 0.01


# --- Generator ------------------------------------------------------------------------

SIZES = {"a": 5, "b": 3}


def test_the_order_of_a_set_does_not_matter(key):
    params = init_generator(key, SIZES, hidden=8, start=(2.0, 0.5))
    rng = np.random.default_rng(0)
    means = {n: rng.normal(size=(37, c)).astype(np.float32) for n, c in SIZES.items()}
    found = generate(params, means)
    assert {n: raw.shape for n, raw in found.items()} == {"a": (5, 2), "b": (3, 2)}
    order = rng.permutation(37)
    again = generate(params, {n: u[order] for n, u in means.items()})
    for name, raw in found.items():
        np.testing.assert_allclose(again[name], raw, rtol=0, atol=1e-6)
        np.testing.assert_allclose(
            raw, jnp.broadcast_to(jnp.float32([2, 0.5]), raw.shape), atol=1
        )
    twice = generate(params, {n: np.tile(u, (2, 1)) for n, u in means.items()})
    other = generate(params, {n: u + 1 for n, u in means.items()})
    for name, raw in found.items():
        np.testing.assert_allclose(twice[name], raw, atol=1e-6)
        assert float(jnp.abs(other[name] - raw).max()) > 1e-3


def test_generators_that_cannot_be(key):
    with pytest.raises(ValueError, match="hidden must be a whole number of at least 1"):
        init_generator(key, SIZES, hidden=0, start=(1.0,))
    with pytest.raises(ValueError, match="needs a layer whose channels can be gated"):
        init_generator(key, {}, hidden=2, start=(1.0,))
    params = init_generator(key, SIZES, hidden=2, start=(1.0,))
    with pytest.raises(ValueError, match="at least 1 example, got 0"):
        generate(params, {n: jnp.ones((0, c)) for n, c in SIZES.items()})


# --- Budget ---------------------------------------------------------------------------

FIRST = ChannelGroup("first", 4, (ChannelAxis("x", 1),), (ChannelAxis("y", 0),))
SECOND = ChannelGroup("second", 2, (ChannelAxis("y", 1),), (ChannelAxis("z", 0),))
SHAPES = {"x": (1, 4), "y": (4, 2), "z": (2, 1)}
USES = {"x": 1, "y": 1, "z": 1}
COSTS = {"uses": USES, "shapes": SHAPES}


def keep(ratio, first, second):
    scores = {"first": np.array(first), "second": np.array(second)}
    kept = keep_within(scores, [FIRST, SECOND], ratio=ratio, **COSTS)
    return [*map(int, kept["first"])], [*map(int, kept["second"])]


def test_golden_budget():
    # 28 operations in all: with i and j channels, 2 (i + i j + j).
    first, second = [3.0, 9.0, 5.0, 1.0], [4.0, 2.0]
    assert keep(1, first, second) == ([1, 1, 1, 1], [1, 1])
    assert keep(0.5, first, second) == ([1, 1, 1, 0], [1, 0])  # 2 (3 + 3 + 1) = 14
    assert keep(13.9 / 28, first, second) == ([0, 1, 1, 0], [1, 0])
    # After what is too dear (9: 2 (1 + 2 + 2) = 10) comes what fits.
    assert keep(9 / 28, [3.0, 1, 1, 1], [9.0, 8.0]) == ([1, 0, 0, 0], [1, 0])
    assert keep(10 / 28, [3.0, 1, 1, 1], [9.0, 8.0]) == ([1, 0, 0, 0], [1, 1])
    assert keep(10 / 28, [3.0, 3, 3, 3], [3.0, 3.0]) == ([1, 1, 0, 0], [1, 0])  # ties
    assert keep(0.5, [np.nan, 0, 0, 0], [0, 0])[0][0] == 0


@quick
@given(st.integers(0, 99), st.integers(7, 28))
def test_a_budget_is_kept_and_used(seed, budget):
    rng = np.random.default_rng(seed)
    scores = {"first": rng.integers(0, 3, 4), "second": rng.integers(0, 3, 2)}
    kept = keep_within(scores, [FIRST, SECOND], ratio=budget / 28, **COSTS)
    i, j = (int(mask.sum()) for mask in kept.values())
    assert min(i, j) >= 1
    cost = lambda i, j: 2 * (i + i * j + j)  # noqa: E731
    assert cost(i, j) <= budget + 1e-9
    more = [(i + 1, j)] * (i < 4) + [(i, j + 1)] * (j < 2)
    assert all(cost(*one) > budget for one in more)
    for name, mask in kept.items():  # those that stay are not worse within a group
        assert min(scores[name][mask]) >= max(scores[name][~mask], default=-1)
    shares = {"first": Fraction(i, 4), "second": Fraction(j, 2)}
    assert channel_flops(USES, SHAPES, [FIRST, SECOND], shares) == cost(i, j)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan"), True, 30])
def test_ratios_that_are_none(ratio):
    with pytest.raises(ValueError, match=r"flops_ratio must be in \(0, 1\]"):
        keep(ratio, [1.0] * 4, [1.0] * 2)


def test_a_budget_below_a_channel_a_layer():
    with pytest.raises(
        ValueError, match=r"at least 0\.2143 to keep one channel of every"
    ):
        keep(0.2, [1.0] * 4, [1.0] * 2)


def test_shares_of_groups_and_norms():
    found = ranked({"a": np.array([5.0, 7.0, 7.0, 1.0])})["a"]
    np.testing.assert_array_equal(found, [0.375, 0.875, 0.625, 0.125])
    tree = {"x": -np.ones((1, 4)), "y": np.arange(8.0).reshape(4, 2)}
    norms = kernel_norms(tree, [FIRST, SECOND._replace(read=())])
    np.testing.assert_array_equal(norms["first"], [1, 1, 1, 1])
    np.testing.assert_array_equal(norms["second"], [12, 16])


# --- Learning -------------------------------------------------------------------------


def test_reptile_is_a_step_towards_what_was_adapted():
    meta = {"a": jnp.float32([1, 2]), "n": jnp.int32(3)}
    adapted = {"a": jnp.float32([3, 0]), "n": jnp.int32(9)}
    found = reptile(meta, adapted, 0.25)
    np.testing.assert_array_equal(found["a"], [1.5, 1.5])
    assert int(found["n"]) == 3
    np.testing.assert_array_equal(reptile(meta, adapted, 1)["a"], adapted["a"])


def objective_of(**changes):
    """Of x -> relu(x a) b, two inputs, eight channels, two classes."""

    def apply(params, state, inputs, train, key, step):
        return jax.nn.relu(inputs @ params["a"]) @ params["b"], state

    group = ChannelGroup(
        "a", 8, (ChannelAxis("params/a", 1),), (ChannelAxis("params/b", 0),)
    )
    values = {
        "network": PureNetwork(lambda key: ({}, {}), apply),
        "wiring": Wiring((group,), None),
        "gate": GATES["concrete"],
        "raw": lambda gates, means: gates,
        "uses": {"params/a": 1, "params/b": 1},
        "shapes": {"params/a": (2, 8), "params/b": (8, 2)},
        "ratio": 0.5,
        "flops_weight": 0.0,
        "kl_weight": 0.0,
        "kl_prior": 0.5,
        "temperature": 0.5,
    }
    return Objective(**{**values, **changes})


@functools.cache
def stepping(gate, kl_weight):
    """`adapt_step`, compiled once for many tests."""

    @jax.jit
    def step(numbers, rates, kl_prior, learner, inputs, labels, k):
        objective = objective_of(
            gate=gate, kl_weight=kl_weight, kl_prior=kl_prior, **numbers
        )
        return adapt_step(objective, rates, learner, {}, inputs, labels, k)

    return step


def adapted(steps=60, gate_rate=0.05, learning_rate=0.01, start=2.0, **changes):
    """A learner after some steps on labels that the first input decides."""
    objective = objective_of(**changes)
    rates = Rates(learning_rate, gate_rate)
    key = jax.random.key(0)
    raw = jnp.full((8, len(objective.gate.start)), start)
    params = {
        "a": 0.5 * jax.random.normal(key, (2, 8)),
        "b": 0.5 * jax.random.normal(jax.random.fold_in(key, 1), (8, 2)),
    }
    learner = Learner(params, {}, {"a": raw}, first_slots(params, {"a": raw}))
    inputs = jax.random.normal(jax.random.fold_in(key, 2), (64, 2))
    labels = (inputs[:, 0] > 0).astype(jnp.int32)
    numbers = {
        name: jnp.float32(getattr(objective, name))
        for name in ("flops_weight", "temperature")
    }
    step = functools.partial(stepping(objective.gate, objective.kl_weight), numbers)
    reports = []
    for i in range(steps):
        k = jax.random.fold_in(key, 10 + i)
        learner, report = step(rates, objective.kl_prior, learner, inputs, labels, k)
        reports.append({name: float(value) for name, value in report.items()})
    return SimpleNamespace(learner=learner, reports=reports, objective=objective)


def test_steps_are_adams_without_momentum():
    """By NumPy: the first step is the sign of the gradient times the rate."""
    first = np.float32([0.5, -2.0]), np.float32([3.0])
    slopes = [(np.float32([1.0, -0.25]), np.float32([k])) for k in (2.0, -0.5, 0.125)]
    rates = Rates(np.float32(0.1), np.float32(0.01))
    trained, slots = dict(zip(rates._fields, first, strict=True)), first_slots(*first)
    ours, squares = [one.astype(np.float64) for one in first], [0.0, 0.0]
    for t, slope in enumerate(slopes, start=1):
        named = dict(zip(rates._fields, slope, strict=True))
        trained, slots = _stepped(trained, named, slots, rates)
        for i, (g, rate) in enumerate(zip(slope, rates, strict=True)):
            squares[i] = 0.999 * squares[i] + 0.001 * g.astype(np.float64) ** 2
            ours[i] = ours[i] - rate * g / (np.sqrt(squares[i] / (1 - 0.999**t)) + 1e-8)
        if t == 1:
            np.testing.assert_allclose(trained["params"], [0.4, -1.9], rtol=1e-5)
    np.testing.assert_allclose(trained["params"], ours[0], rtol=1e-5)
    np.testing.assert_allclose(trained["gates"], ours[1], rtol=1e-5)


@pytest.mark.parametrize("name", [*GATES])
def test_the_flops_term_leads_to_the_ratio(name):
    found = adapted(gate=GATES[name], flops_weight=10.0, start=3.0)
    assert found.reports[0]["flops"] > 0.57
    assert abs(found.reports[-1]["flops"] - 0.5) < 0.05
    assert found.reports[-1]["loss"] < found.reports[0]["loss"]


def test_every_term_and_rate_does_something():
    same = adapted(2)
    assert adapted(2, gate_rate=0.0).learner.gates["a"][0, 0] == 2.0
    still = adapted(2, learning_rate=0.0).learner.params["a"]
    assert not np.array_equal(still, same.learner.params["a"])
    drawn = adapted(1, kl_weight=5.0, kl_prior=0.1).learner.gates["a"]
    assert bool((drawn < 2).all())  # towards a prior of 0.1
    towards = adapted(1, kl_weight=5.0, kl_prior=0.99).learner.gates["a"]
    assert bool((towards > 2).all())
    hot = adapted(2, temperature=3.0).learner.gates["a"]
    assert not np.array_equal(hot, same.learner.gates["a"])
    assert not adapted(1, flops_weight=0.0).learner.gates["a"].min() > 2


def test_slopes_are_those_of_the_terms():
    """With gates that are not drawn the FLOPs term alone has a gradient in them."""
    objective = objective_of(flops_weight=3.0, ratio=0.25)
    share = jax.nn.sigmoid(2.0)

    def term(raw):
        return 3.0 * abs(jax.nn.sigmoid(raw).mean() - 0.25)

    raw = jnp.full((8, 1), 2.0)
    found = jax.grad(
        lambda r: (
            3 * jnp.abs(flops_share(objective, {"a": jax.nn.sigmoid(r[:, 0])}) - 0.25)
        )
    )(raw)
    np.testing.assert_allclose(found, jax.grad(term)(raw), rtol=1e-5)
    np.testing.assert_allclose(found, 3 / 8 * share * (1 - share), rtol=1e-5)
