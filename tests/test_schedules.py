import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sup_tickets.learning_rates import cosine_lr, step_lr
from sup_tickets.schedules import (
    constant,
    cosine_fraction,
    cubic_sparsity,
    inverse_power_fraction,
    linear_fraction,
    update_due,
)
from sup_tickets.tickets import TicketBudget, TicketPlan, ticket_budget
from tests.schedule_values import tickets, values

# 1 + cos keeps an absolute error near its zero, and a compiled one rounds otherwise.
COMPILED = {"rtol": 2e-6, "atol": 6e-8}


SCHEDULES = {
    "step_lr": step_lr(
        0.1, milestones=[30, 60], factor=0.2, warmup_steps=20, warmup_every=4
    ),
    "step_lr_constant": step_lr(0.1, milestones=[]),
    "cosine_lr": cosine_lr(0.1, total_steps=90, final_lr=0.01, warmup_steps=10),
    "constant": constant(0.3),
    "cosine_fraction": cosine_fraction(0.5, begin_step=10, end_step=80, final=0.005),
    "linear_fraction": linear_fraction(0.5, begin_step=10, end_step=80, final=0.1),
    "inverse_power": inverse_power_fraction(0.5, end_step=80, power=2.5),
    "cubic": cubic_sparsity(0.5, 0.9, begin_step=10, every=7, updates=9),
    "paper": tickets(phase1_steps=50, cycle_steps=11),
    "release": tickets(phase1_steps=50, cycle_steps=12, form="release"),
    "no_cycles": tickets(cycles=0),
}


# --- Every schedule -------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_scalar_for_any_step(name):
    for step in (0, 40, jnp.int32(40), np.int64(40), jnp.uint32(40), jnp.float32(40)):
        value = SCHEDULES[name](step)
        assert isinstance(value, jax.Array)
        assert (value.shape, value.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("name", SCHEDULES)
def test_jit_equals_eager_and_compiles_once(name):
    schedule, traces = SCHEDULES[name], []

    @jax.jit
    def jitted(step):
        traces.append(step)
        return schedule(step)

    steps = range(0, 120)
    compiled = [float(jitted(jnp.int32(step))) for step in steps]
    np.testing.assert_allclose(compiled, values(schedule, steps), **COMPILED)
    assert len(traces) == 1
    assert jitted(jnp.int32(3)).dtype == jnp.float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_elementwise_on_many_steps(name):
    schedule, steps = SCHEDULES[name], jnp.arange(120)
    one_by_one = values(schedule, range(120))
    np.testing.assert_allclose(schedule(steps), one_by_one, **COMPILED)
    np.testing.assert_allclose(jax.vmap(schedule)(steps), one_by_one, **COMPILED)


@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_with_64_bits_enabled(name):
    with jax.enable_x64(True):
        assert SCHEDULES[name](jnp.asarray(7, jnp.int64)).dtype == jnp.float32
        assert jax.jit(SCHEDULES[name])(7).dtype == jnp.float32


def test_drives_an_optimizer():
    tx = optax.sgd(SCHEDULES["paper"])
    state = tx.init(jnp.zeros(3))
    updates, _ = tx.update(jnp.ones(3), state)
    np.testing.assert_allclose(updates, [-0.1] * 3, rtol=1e-6)


# --- Drop fractions -------------------------------------------------------------------


def test_cosine_fraction_golden():
    rigl = cosine_fraction(0.3, end_step=75000)
    steps = [0, 18750, 37500, 56250, 75000]
    expected = [0.3, 0.256066, 0.15, 0.043934, 0.0]
    np.testing.assert_allclose(values(rigl, steps), expected, atol=5e-7, rtol=0)
    pytorch = cosine_fraction(0.5, end_step=1000, final=0.005)
    expected = [0.5, 0.427509, 0.2525, 0.077491, 0.005]
    steps = [0, 250, 500, 750, 1000]
    np.testing.assert_allclose(values(pytorch, steps), expected, atol=5e-7, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        cosine_fraction,
        linear_fraction,
        lambda initial, **span: inverse_power_fraction(initial, power=3, **span),
    ],
)
def test_fractions_are_clipped_to_the_span(make):
    fraction = make(0.3, begin_step=100, end_step=200)
    assert values(fraction, [0, 99, 100]) == [np.float32(0.3)] * 3
    assert values(fraction, [200, 201, 10**9]) == [0.0] * 3
    inside = values(fraction, range(100, 201))
    assert inside == sorted(inside, reverse=True)
    assert len(set(inside)) > 90


@settings(deadline=None, max_examples=40)
@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 100),
    st.integers(1, 1000),
    st.integers(0, 1200),
    st.floats(0.25, 4),
)
def test_fractions_against_formulas(initial, final, begin, length, step, power):
    span = {"begin_step": begin, "end_step": begin + length}
    progress = min(max((step - begin) / length, 0.0), 1.0)
    near = {"rtol": 2e-6, "atol": 3e-7}
    cosine = final + (initial - final) * (1 + math.cos(math.pi * progress)) / 2
    schedule = cosine_fraction(initial, final=final, **span)
    np.testing.assert_allclose(schedule(step), cosine, **near)
    line = initial + (final - initial) * progress
    schedule = linear_fraction(initial, final=final, **span)
    np.testing.assert_allclose(schedule(step), line, **near)
    schedule = inverse_power_fraction(initial, power=power, **span)
    left = min(max((begin + length - step) / length, 0.0), 1.0)
    np.testing.assert_allclose(schedule(step), initial * left**power, **near)


@pytest.mark.parametrize("length", [3, 7, 41, 49, 80, 391, 3128, 88366])
def test_corners_are_exact_when_compiled(length):
    """XLA divides by a constant through its reciprocal, and 49 * (1 / 49) is not 1."""
    span = {"begin_step": 5, "end_step": 5 + length}
    power = jax.jit(inverse_power_fraction(0.3, power=2.5, **span))
    line = jax.jit(linear_fraction(0.3, final=0.1, **span))
    assert (float(power(5)), float(power(5 + length))) == (np.float32(0.3), 0.0)
    assert float(line(5)) == np.float32(0.3)
    assert float(line(5 + length)) == np.float32(0.1)
    triangle = jax.jit(tickets(cycle_steps=2 * length))
    assert float(triangle(100 + length - 1)) == np.float32(0.005)
    assert float(triangle(100 + 2 * length - 1)) == np.float32(0.001)
    warm = jax.jit(step_lr(0.1, milestones=[], warmup_steps=length - 1))
    assert float(warm(length - 1)) == np.float32(0.1)


def test_fraction_corners_are_exact():
    for make in (cosine_fraction, linear_fraction):
        schedule = make(0.5, begin_step=3, end_step=17, final=0.005)
        assert float(schedule(3)) == np.float32(0.5)
        assert float(schedule(17)) == np.float32(0.005)


def test_constant():
    assert values(constant(0.3), [0, 5, 10**9]) == [np.float32(0.3)] * 3
    assert constant(2)(jnp.arange(4)).tolist() == [2.0] * 4


# --- Sparsity -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initial", "expected"),
    [
        (
            0.5,
            "0.5 0.6084 0.6952 0.7628 0.8136 0.85 0.8744 0.8892 0.8968 0.8996 0.9",
        ),
        (
            0.0,
            "0 0.2439 0.4392 0.5913 0.7056 0.7875 0.8424 0.8757 0.8928 0.8991 0.9",
        ),
    ],
)
def test_cubic_golden(initial, expected):
    expected = [float(value) for value in expected.split()]
    sparsity = cubic_sparsity(initial, 0.9, begin_step=50, every=100, updates=10)
    at_updates = values(sparsity, range(50, 1051, 100))
    np.testing.assert_allclose(at_updates, expected, rtol=0, atol=2e-7)
    # Whole updates alone count.
    just_before = values(sparsity, range(149, 1150, 100))
    np.testing.assert_allclose(just_before, expected, rtol=0, atol=2e-7)
    np.testing.assert_allclose(values(sparsity, [0, 49]), [initial] * 2, atol=1e-7)
    assert values(sparsity, [1050, 10**9]) == [np.float32(0.9)] * 2


def test_granet_golden():
    # G11: densities 0.5 and 0.05, 43 updates.
    sparsity = cubic_sparsity(0.5, 0.95, begin_step=0, every=1000, updates=43)
    expected = [0.53067088, 0.88973361, 0.94999434]
    got = values(sparsity, [1000, 21000, 42999])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7)


def test_cubic_never_falls():
    sparsity = cubic_sparsity(0.2, 0.9, begin_step=3, every=2, updates=40)
    got = np.asarray(sparsity(jnp.arange(100)))
    assert np.all(np.diff(got) >= 0)
    assert len(np.unique(got)) == 41


# --- When -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 20),
    st.none() | st.integers(0, 30),
    st.none() | st.integers(0, 100),
)
def test_update_due_against_a_range(every, begin, end):
    due = update_due(every=every, begin=begin, end=end)
    first = every if begin is None else begin
    last = 99 if end is None else end
    expected = [step in range(first, last + 1, every) for step in range(100)]
    assert [due(step) for step in range(100)] == expected
    assert due(jnp.arange(100)).tolist() == expected


def test_update_due_types():
    due = update_due(every=3)
    assert due(3) is True and due(4) is False and due(0) is False
    assert update_due(every=3, begin=0)(0) is True
    traced = jax.jit(due)
    assert traced(3).dtype == jnp.bool_
    assert [bool(traced(step)) for step in range(5)] == [False] * 3 + [True, False]
    assert traced._cache_size() == 1
    # An unsigned step below the first update must not wrap around.
    late = update_due(every=4, begin=7)
    assert [bool(late(jnp.uint32(step))) for step in (3, 7, 11)] == [False, True, True]


def test_published_update_counts():
    # Phase 1 of 226 epochs with 391 or 352 batches, an update every 1000 steps.
    for batches, updates in [(391, 88), (352, 79)]:
        due = update_due(every=1000, end=226 * batches)
        assert sum(due(step) for step in range(1, 226 * batches + 1)) == updates


def walk(plan):
    """The phases as a training loop would meet them, one step after the other."""
    explored, collected, frozen = set(), set(), set()
    done = plan.phase1_steps
    for _ in range(plan.cycles):
        explored.add(done)
        for _ in range(plan.cycle_steps):
            frozen.add(done)
            done += 1
        collected.add(done)
    return explored, collected, frozen


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(1, 12), st.integers(0, 5))
def test_ticket_plan_against_a_loop(phase1, cycle, cycles):
    plan = TicketPlan(phase1, cycle, cycles)
    explored, collected, frozen = walk(plan)
    steps = range(160)  # of one length, so that nothing is compiled again
    assert {step for step in steps if plan.explore_due(step)} == explored
    assert {step for step in steps if plan.ticket_due(step)} == collected
    assert {s for s in range(plan.total_steps) if plan.in_tickets(s)} == frozen
    assert plan.total_steps == phase1 + len(frozen)
    for method in (plan.explore_due, plan.ticket_due, plan.in_tickets):
        many = method(jnp.arange(len(steps)))
        assert many.tolist() == [method(step) for step in steps]


def test_ticket_plan_traced():
    plan = TicketPlan(phase1_steps=10, cycle_steps=4, cycles=2)
    assert plan.explore_due(10) is True and plan.explore_due(18) is False
    assert plan.ticket_due(10) is False and plan.ticket_due(18) is True
    assert plan.in_tickets(9) is False and plan.in_tickets(10) is True
    for method in (plan.explore_due, plan.ticket_due, plan.in_tickets):
        jitted = jax.jit(method)
        for step in range(24):
            assert bool(jitted(step)) is method(step)
            assert bool(method(jnp.uint32(step))) is method(step)
        assert jitted._cache_size() == 1


@pytest.mark.parametrize(
    ("epochs", "cycle_epochs", "expected"),
    [
        (250, 8, TicketBudget(226, 24, 3, (113, 169))),
        (250, 4, TicketBudget(226, 24, 6, (113, 169))),
        (250, 2, TicketBudget(226, 24, 12, (113, 169))),
        (250, 12, TicketBudget(226, 24, 2, (113, 169))),
        (160, 8, TicketBudget(144, 16, 2, (72, 108))),
        (60, 8, TicketBudget(60, 0, 0, (30, 45))),
    ],
)
def test_budget_golden(epochs, cycle_epochs, expected):
    got = ticket_budget(epochs, fraction=0.1, cycle_epochs=cycle_epochs)
    assert got == expected
    assert all(type(n) is int for n in (*got[:3], *got.milestones))


def test_budget_is_exact():
    # In binary floating point 0.29 * 100 is 28.999999999999996.
    assert ticket_budget(100, fraction=0.29, cycle_epochs=29).cycles == 1
    assert ticket_budget(10, fraction=0.3, cycle_epochs=3).cycles == 1
    assert ticket_budget(100, fraction=0.0).phase2_epochs == 0


def test_budget_with_a_number_of_cycles():
    imagenet = ticket_budget(100, cycle_epochs=2, cycles=4)
    assert imagenet == TicketBudget(92, 8, 4, (46, 69))
    assert ticket_budget(100, fraction=0.0, cycles=3).phase1_epochs == 76
    assert ticket_budget(17, cycles=2) == TicketBudget(1, 16, 2, (0, 0))
    assert ticket_budget(17, cycles=0) == TicketBudget(17, 0, 0, (8, 12))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 1000), st.integers(0, 99), st.integers(1, 50))
def test_budget_takes_the_most_whole_cycles(epochs, percent, cycle_epochs):
    budget = ticket_budget(epochs, fraction=percent / 100, cycle_epochs=cycle_epochs)
    assert budget.phase1_epochs + budget.phase2_epochs == epochs
    assert budget.phase2_epochs == budget.cycles * cycle_epochs
    assert budget.phase2_epochs * 100 <= percent * epochs
    assert (budget.phase2_epochs + cycle_epochs) * 100 > percent * epochs
    half, three_quarters = budget.milestones
    assert 0 <= budget.phase1_epochs - 2 * half < 2
    assert 0 <= 3 * budget.phase1_epochs - 4 * three_quarters < 4


# --- Errors ---------------------------------------------------------------------------

NAN = float("nan")


def cubic(initial=0.0, final=0.9, **changes):
    options = {"begin_step": 0, "every": 1, "updates": 1}
    return cubic_sparsity(initial, final, **(options | changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: step_lr(0.0, milestones=[]), "base_lr must be positive .* got 0.0"),
        (lambda: step_lr(NAN, milestones=[]), "base_lr must be positive .* got nan"),
        (lambda: step_lr(0.1, milestones=[-1]), "milestones must be a whole .* got -1"),
        (lambda: step_lr(0.1, milestones=[1.5]), "milestones must be .* got 1.5"),
        (lambda: step_lr(0.1, milestones=[1], factor=0), "factor must be positive"),
        (
            lambda: step_lr(0.1, milestones=[], warmup_steps=-1),
            "warmup_steps must be a whole number of at least 0, got -1",
        ),
        (
            lambda: step_lr(0.1, milestones=[], warmup_steps=4, warmup_every=0),
            "warmup_every must be a whole number of at least 1, got 0",
        ),
        (
            lambda: step_lr(0.1, milestones=[], warmup_steps=7, warmup_every=2),
            "warmup_steps=7 must be a multiple of warmup_every=2",
        ),
        (lambda: cosine_lr(-1, total_steps=9), "base_lr must be positive"),
        (lambda: cosine_lr(0.1, total_steps=0), "total_steps must be a whole"),
        (
            lambda: cosine_lr(0.1, total_steps=9, final_lr=0.2),
            r"final_lr must be in \[0, base_lr=0.1\], got 0.2",
        ),
        (
            lambda: cosine_lr(0.1, total_steps=9, final_lr=NAN),
            r"final_lr must be in \[0, base_lr=0.1\], got nan",
        ),
        (
            lambda: cosine_lr(0.1, total_steps=9, warmup_steps=9),
            "total_steps=9 must be above warmup_steps=9",
        ),
        (
            lambda: cosine_lr(0.1, total_steps=9, warmup_steps=3, warmup_every=2),
            "must be a multiple of warmup_every=2",
        ),
        (lambda: tickets(phase1_steps=0), "phase1_steps must be .* got 0"),
        (lambda: tickets(cycle_steps=-8), "cycle_steps must be .* got -8"),
        (lambda: tickets(cycle_steps=8.0), r"cycle_steps must be a whole .* got 8\.0"),
        (lambda: tickets(cycles=-1), "cycles must be .* got -1"),
        (lambda: tickets(lr_min=0.01), "lr_min=0.01 and lr_max=0.005 must be"),
        (lambda: tickets(lr_min=-0.01), "lr_min=-0.01 and lr_max"),
        (lambda: tickets(lr_min=NAN), "lr_min=nan and lr_max"),
        (lambda: tickets(lr_max=NAN), "and lr_max=nan must"),
        (lambda: tickets(lr_max=float("inf")), "and lr_max=inf must"),
        (
            lambda: tickets(form="Papers"),
            "one of 'paper', .*'constant', got 'Papers'; did you mean 'paper'",
        ),
        (lambda: tickets(form="code_release"), "did you mean 'release'"),
        (lambda: constant(NAN), "value must be finite, got nan"),
        (
            lambda: cosine_fraction(1.5, end_step=9),
            r"initial must be in \[0, 1\], got 1.5",
        ),
        (
            lambda: cosine_fraction(0.5, end_step=9, final=NAN),
            r"final must be in \[0, 1\], got nan",
        ),
        (
            lambda: cosine_fraction(0.5, end_step=9, begin_step=9),
            "end_step=9 must be above begin_step=9",
        ),
        (
            lambda: linear_fraction(-0.5, end_step=9),
            r"initial must be in \[0, 1\], got -0.5",
        ),
        (
            lambda: linear_fraction(0.5, end_step=9, begin_step=-1),
            "begin_step must be .* got -1",
        ),
        (
            lambda: inverse_power_fraction(0.5, end_step=0, power=1),
            "end_step must be a whole number of at least 1, got 0",
        ),
        (
            lambda: inverse_power_fraction(2, end_step=9, power=1),
            r"initial must be in \[0, 1\], got 2",
        ),
        (
            lambda: inverse_power_fraction(0.5, end_step=9, power=0),
            "power must be positive and finite, got 0",
        ),
        (lambda: cubic(initial=-0.1), r"initial must be in \[0, 1\), got -0.1"),
        (lambda: cubic(final=1.0), r"final must be in \[0, 1\), got 1.0"),
        (
            lambda: cubic(0.5, 0.05),
            "final=0.05 must be at least initial=0.5; both are sparsities",
        ),
        (lambda: cubic(begin_step=-1), "begin_step must be .* got -1"),
        (lambda: cubic(every=0), "every must be .* got 0"),
        (lambda: cubic(updates=0), "updates must be .* got 0"),
        (lambda: update_due(every=0), "every must be .* at least 1, got 0"),
        (lambda: update_due(every=2.5), r"every must be .* got 2\.5"),
        (lambda: update_due(every=2, begin=-1), "begin must be .* got -1"),
        (lambda: update_due(every=2, end=-1), "end must be .* got -1"),
        (lambda: ticket_budget(0), "epochs must be .* at least 1, got 0"),
        (lambda: ticket_budget(2.5), r"epochs must be .* got 2\.5"),
        (lambda: ticket_budget(9, cycle_epochs=0), "cycle_epochs must be .* got 0"),
        (lambda: ticket_budget(9, cycles=-1), "cycles must be .* got -1"),
        (
            lambda: ticket_budget(9, fraction=1.1),
            r"fraction must be in \[0, 1\], got 1.1",
        ),
        (
            lambda: ticket_budget(9, fraction=NAN),
            r"fraction must be in \[0, 1\], got nan",
        ),
        (
            lambda: ticket_budget(16, cycles=2),
            "cycles=2 of cycle_epochs=8 take 16 of epochs=16; phase 1 needs at least 1",
        ),
        (lambda: ticket_budget(16, fraction=1), "phase 1 needs at least 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
