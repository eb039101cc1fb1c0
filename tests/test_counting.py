"""Counts: exact ones before tracing, and alike traced or not."""

from fractions import Fraction

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draws

from sup_tickets.checks import check_fraction, check_sparsity
from sup_tickets.counting import MAX_COUNT, active_count, exact, portion

ROUNDINGS = ["floor", "nearest", "ceil"]


@pytest.mark.parametrize(
    ("total", "sparsity", "active"),
    [
        (100, 0.71, 29),  # 100 * 0.29 truncates to 28 in floating point
        (8, 0.8, 2),  # RigL's own tests
        (30, 0.1, 27),
        (120, 0.5, 60),
        (25502912, 0.9, 2550291),  # ResNet-50
        (11159232, 0.98, 223185),  # VGG-like, 223184.64
        (5, 0.5, 3),  # half up
        (7, 0, 7),
        (7, 0.0, 7),
        (0, 0.5, 0),
        (10, 0.99, 0),
    ],
)
def test_active_count_golden(total, sparsity, active):
    assert active_count(total, sparsity) == active


def test_active_count_takes_numpy_and_jax_scalars():
    assert active_count(100, np.float32(0.71)) == 29
    assert active_count(100, np.float64(0.71)) == 29
    assert active_count(100, jnp.float32(0.71)) == 29


def test_exact_is_the_decimal_that_was_written():
    assert exact(0.1) == Fraction(1, 10)
    assert exact(1e-05) == Fraction(1, 100000)
    assert exact(1) == 1


@helpers.quick
@given(draws.integers(0, 2**40), draws.integers(0, 9999))
def test_active_count_is_exact(total, ten_thousandths):
    wanted = (2 * total * (10000 - ten_thousandths) + 10000) // 20000
    assert active_count(total, ten_thousandths / 10000) == wanted


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 2, float("nan"), float("inf")])
def test_a_sparsity_outside_0_1_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        active_count(10, sparsity)
    with pytest.raises(ValueError, match=r"final must be in \[0, 1\), got"):
        check_sparsity(sparsity, "final")


@pytest.mark.parametrize("fraction", [1.1, -0.1, float("nan"), float("inf")])
def test_a_fraction_outside_0_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got"):
        check_fraction(fraction, "rate")


def test_concrete_arrays_are_checked_and_traced_ones_pass():
    check_fraction(jnp.float32(1.0))
    check_sparsity(jnp.float32(0.5))
    with pytest.raises(ValueError, match="fraction"):
        check_fraction(jnp.float32(1.5))

    def checked(x):
        check_fraction(x)
        check_sparsity(x)
        return x

    jax.jit(checked)(7.0)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_portion_is_exact_for_decimals_of_small_counts(rounding):
    counts, thousandths = np.arange(0, 1001), np.arange(0, 1001)
    rule = jax.jit(
        jax.vmap(
            jax.vmap(lambda n, f: portion(n, f, rounding), (None, 0)),  # fractions
            (0, None),
        )
    )
    got = np.asarray(rule(counts, (thousandths / 1000).astype(np.float32)))
    product = np.multiply.outer(counts, thousandths)
    wanted = {
        "floor": product // 1000,
        "nearest": (product + 500) // 1000,
        "ceil": -(-product // 1000),
    }[rounding]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("count", "fraction", "product"),
    [
        (1000, 0.001, 1),
        (10000, 0.0001, 1),
        (1_000_000, 0.003, 3000),
        (1_000_000, 0.0001, 100),
        (10_000_000, 0.3, 3_000_000),
        (10_000_000, 0.29, 2_900_000),
        (2**24, 0.5, 2**23),
        (2**30, 0.25, 2**28),
        (MAX_COUNT, 1.0, MAX_COUNT),
        (MAX_COUNT, 0.0, 0),
        (1, 1.0, 1),
        (0, 0.3, 0),
    ],
)
def test_portion_of_an_integer_product_is_that_integer(
    count, fraction, product, rounding
):
    assert int(portion(count, fraction, rounding)) == product


def test_portion_of_the_largest_count():
    half = {r: int(portion(MAX_COUNT, 0.5, r)) for r in ROUNDINGS}
    assert half == {"floor": 2**30 - 1, "nearest": 2**30, "ceil": 2**30}


def test_portion_clips_the_fraction():
    assert int(portion(10, 1.5, "floor")) == 10
    assert int(portion(10, -1.0, "ceil")) == 0


@helpers.quick
@given(
    draws.integers(0, MAX_COUNT),
    draws.integers(0, 10000),
    draws.sampled_from(ROUNDINGS),
)
def test_portion_is_within_float32_of_exact(count, ten_thousandths, rounding):
    fraction = ten_thousandths / 10000
    product = Fraction(ten_thousandths, 10000) * count
    slack = min(product / 2**22 + Fraction(count, 2**30), Fraction(1, 4))
    slack += product / 2**24 + Fraction(count, 2**31)  # float32, fixed point
    rule = helpers.ROUND[rounding]
    eager = int(portion(count, fraction, rounding))
    assert rule(product - slack) <= eager <= rule(product + slack)
    assert eager == int(_jitted(jnp.int32(count), fraction, rounding))
    assert 0 <= eager <= count


_jitted = jax.jit(portion, static_argnums=2)


def test_portion_grows_with_the_fraction():
    fractions = np.linspace(0, 1, 4001, dtype=np.float32)
    for rounding in ROUNDINGS:
        rule = jax.vmap(lambda f, r=rounding: portion(25_502_912, f, r))
        assert (np.diff(rule(fractions)) >= 0).all()


def test_portion_does_not_recompile():
    rule = helpers.jit_once(lambda n, f: portion(n, f, "floor"))
    for count, fraction in [(10, 0.1), (20, 0.5), (30, 1.0)]:
        rule(count, fraction)
