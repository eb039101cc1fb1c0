"""Learning rates: stairs, cosines, cycles."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sup_tickets.learning_rates import cosine_lr, step_lr
from tests.schedule_values import CLOSE, tickets, values

G1_PAPER = [0.002, 0.003, 0.004, 0.005, 0.004, 0.003, 0.002, 0.001]
G1_RELEASE = [0.001, 0.002, 0.003, 0.004, 0.005, 0.004, 0.003, 0.002]


def test_step_lr_levels_are_exact():
    lr = step_lr(0.1, milestones=[113, 169])
    for step, expected in [(0, 0.1), (112, 0.1), (113, 0.01), (168, 0.01)]:
        assert float(lr(step)) == np.float32(expected)
    # Repeated float32 products would give 0.0010000002.
    assert float(lr(169)) == float(lr(10**9)) == np.float32(0.001)


def test_step_lr_beyond_the_integers_of_float32():
    milestone = 2**24 + 1
    lr = step_lr(1.0, milestones=[milestone], factor=0.5)
    assert values(lr, [milestone - 1, milestone]) == [1.0, 0.5]
    with_cycles = tickets(phase1_steps=milestone, cycle_steps=8)
    steps = [milestone - 1, milestone, milestone + 7]
    np.testing.assert_allclose(values(with_cycles, steps), [0.1, 0.002, 0.001], 1e-6)


def test_step_lr_milestones_in_any_order_and_twice():
    lr = step_lr(8.0, milestones=[20, 10, 10], factor=0.5)
    assert values(lr, [9, 10, 19, 20]) == [8.0, 2.0, 2.0, 1.0]
    assert values(step_lr(8.0, milestones=[0], factor=0.5), [0, 5]) == [4.0, 4.0]


def test_warmup_golden():
    # G12: five epochs of warm-up to 0.1, here 7 steps an epoch.
    lr = step_lr(0.1, milestones=[210, 420], warmup_steps=35, warmup_every=7)
    epochs = [0.0166667, 0.0333333, 0.05, 0.0666667, 0.0833333, 0.1, 0.1]
    for epoch, expected in enumerate(epochs):
        for step in (7 * epoch, 7 * epoch + 6):
            assert float(lr(step)) == pytest.approx(expected, abs=5e-8)
    np.testing.assert_allclose(
        values(lr, [209, 210, 419, 420]), [0.1, 0.01, 0.01, 0.001], **CLOSE
    )


def test_warmup_every_step():
    lr = step_lr(1.0, milestones=[2], factor=0.5, warmup_steps=3)
    # A milestone inside the warm-up acts there already.
    assert values(lr, range(5)) == [0.25, 0.5, 0.375, 0.5, 0.5]


def test_cosine_lr():
    lr = cosine_lr(0.2, total_steps=110, final_lr=0.02, warmup_steps=10, warmup_every=5)
    expected = [0.2 / 3, 0.2 / 3, 0.4 / 3, 0.4 / 3, 0.2, 0.11, 0.02, 0.02]
    steps = [0, 4, 5, 9, 10, 60, 110, 1000]
    np.testing.assert_allclose(values(lr, steps), expected, **CLOSE)
    quarter = 0.02 + 0.09 * (1 + math.cos(math.pi / 4))
    assert float(lr(35)) == pytest.approx(quarter, rel=1e-6)


@pytest.mark.parametrize(
    ("form", "cycle"), [("paper", G1_PAPER), ("release", G1_RELEASE)]
)
def test_triangle_golden(form, cycle):
    lr = tickets(form=form)
    expected = [0.1] * 2 + 3 * cycle + [0.001] * 20
    np.testing.assert_allclose(values(lr, range(98, 144)), expected, **CLOSE)


def test_triangle_ends_are_exact():
    lr = tickets(cycle_steps=3128)
    for cycle in range(3):
        assert float(lr(100 + 3128 * cycle + 3127)) == np.float32(0.001)
        assert float(lr(100 + 3128 * cycle + 1563)) == np.float32(0.005)
    assert float(lr(10**6)) == np.float32(0.001)


def test_cifar_golden():
    # G2: 391 batches, cycles of 8 epochs, after 226 epochs.
    start = 88366
    options = {"phase1_steps": start, "cycle_steps": 3128}
    release, paper = tickets(form="release", **options), tickets(**options)
    for step, expected in [
        (0, 0.001),
        (391, 0.002),
        (782, 0.003),
        (1564, 0.005),
        (2346, 0.003),
        (3127, 0.00100255754),
        (3128, 0.001),
    ]:
        np.testing.assert_allclose(release(start + step), expected, **CLOSE)
    for i, expected in [(1, 0.00100255754), (1564, 0.005), (3128, 0.001)]:
        np.testing.assert_allclose(paper(start + i - 1), expected, **CLOSE)


def test_imagenet_golden():
    lr = tickets(
        phase1_steps=92 * 10009,
        cycle_steps=2 * 10009,
        cycles=4,
        lr_min=1e-4,
        lr_max=5e-4,
        form="release",
    )
    for step, expected in [(0, 1e-4), (10009, 5e-4), (20017, 0.00010003996)]:
        np.testing.assert_allclose(lr(92 * 10009 + step), expected, rtol=3e-7)


def equation_3(i, cycle, low, high):
    """The paper's eq. (3), literally; ``i`` counts from 1."""
    t = Fraction((i - 1) % cycle + 1, cycle)
    if t <= Fraction(1, 2):
        return (1 - 2 * t) * low + 2 * t * high
    return (2 - 2 * t) * high + (2 * t - 1) * low


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 9), st.data())
def test_triangle_against_equation_3(phase1, cycle, cycles, data):
    options = {"phase1_steps": phase1, "cycle_steps": cycle, "cycles": cycles}
    paper, release = tickets(**options), tickets(form="release", **options)
    j = data.draw(st.integers(0, cycles * cycle - 1))
    expected = equation_3(j + 1, cycle, Fraction(1, 1000), Fraction(5, 1000))
    np.testing.assert_allclose(paper(phase1 + j), float(expected), **CLOSE)
    # The release is one step behind, in the whole of phase 2.
    one_behind = 0.001 if j == 0 else float(paper(phase1 + j - 1))
    np.testing.assert_allclose(release(phase1 + j), one_behind, **CLOSE)
    assert float(paper(phase1 - 1)) == np.float32(0.1)
    assert float(paper(phase1 + cycle - 1)) == np.float32(0.001)


def test_base_is_used_in_phase_1_alone():
    base = step_lr(0.1, milestones=[50, 75])
    lr = tickets(base=base)
    assert values(lr, range(100)) == values(base, range(100))
    nan_after = tickets(base=lambda step: jnp.where(step < 100, 0.1, jnp.nan))
    assert np.isfinite(values(nan_after, range(90, 150))).all()


def test_without_cycles_the_base_goes_on():
    assert values(tickets(cycles=0), [99, 100, 10000]) == [np.float32(0.1)] * 3
