import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sup_tickets.softening import fading, mish, sharpening, softened, swish

SOFT = {"swish": swish, "mish": mish}
# The largest distance from ReLU at sharpness 1.
GAP = {"swish": 0.2784645428, "mish": 0.3088395}

finite = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.floats(-(2.0**120), 2.0**120, width=32),
)
sharpnesses = st.floats(2.0**-10, 2.0**20, width=32)


def reference(kind, x, sharpness):
    """In float64, by the law f_b(x) = f_1(b x) / b."""
    x, z = np.float64(x), np.clip(np.float64(x) * sharpness, -700, 700)
    if kind == "swish":
        return x / (1 + np.exp(-z))
    return x * np.tanh(np.logaddexp(z, 0))


# --- Values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sharpness, x, values",
    [
        (
            1,
            (-2, -1, -0.5, 0.5, 1, 2),
            (-0.23840584, -0.26894142, -0.18877033, 0.31122967, 0.73105858, 1.7615942),
        ),
        (
            2,
            (-2, -1, -0.5, 0.5, 1, 2),
            (-0.03597242, -0.11920292, -0.13447071, 0.36552929, 0.88079708, 1.9640276),
        ),
        (10, (0.5, -0.5), (0.49665357, -0.0033464255)),
        (0, (-3, 0, 5), (-1.5, 0, 2.5)),
    ],
)
def test_swish_values(sharpness, x, values):
    got = swish(jnp.array(x, jnp.float32), sharpness)
    np.testing.assert_allclose(got, values, rtol=1e-6, atol=1e-8)


def test_mish_values():
    got = mish(jnp.array([-2, -1, 0.5, 1, 2], jnp.float32))
    values = (-0.2525014827, -0.3034014614, 0.3752452113, 0.8650983883, 1.94395896)
    np.testing.assert_allclose(got, values, rtol=1e-6)


@pytest.mark.parametrize(
    "soft, sharpness, x, slope",
    [
        (swish, 1.0, 1.0, 0.92767051),
        (swish, 1.0, -1.0, 0.072329488),
        (swish, 2.0, 1.0, 1.0907842),
        (swish, 2.0, -1.0, -0.090784249),
        (swish, 7.0, 0.0, 0.5),
        (mish, 1.0, 0.0, 0.6),
        (mish, 30.0, 0.0, 0.6),
    ],
)
def test_derivatives(soft, sharpness, x, slope):
    got = jax.grad(soft)(jnp.float32(x), sharpness)
    np.testing.assert_allclose(got, slope, rtol=2e-6)


@settings(deadline=None, max_examples=20)
@given(x=finite, sharpness=sharpnesses, kind=st.sampled_from(sorted(SOFT)))
def test_close_to_the_law_in_float64(x, sharpness, kind):
    got = np.asarray(SOFT[kind](jnp.asarray(x), sharpness))
    assert got.shape == x.shape and got.dtype == np.float32
    # Of e^z a float32 argument z gives few digits, but those values are tiny.
    bound = 1e-6 * np.abs(x) + 2e-7 / sharpness
    assert np.all(np.abs(got - reference(kind, x, sharpness)) <= bound)


@settings(deadline=None, max_examples=20)
@given(x=finite, sharpness=sharpnesses, kind=st.sampled_from(sorted(SOFT)))
def test_never_farther_from_relu_than_the_gap(x, sharpness, kind):
    gap = np.abs(np.asarray(SOFT[kind](jnp.asarray(x), sharpness)) - np.maximum(x, 0))
    assert np.all(gap <= GAP[kind] / sharpness * 1.00001 + 2e-7 * np.abs(x))


@pytest.mark.parametrize("sharpness", [1e-2, 1.0, 37.0, 1e4, 1e6])
def test_gap_law_of_swish_is_attained(sharpness):
    x = jnp.array([-1.2784645428, 1.2784645428], jnp.float32) / sharpness
    gap = jax.nn.relu(x) - swish(x, sharpness)
    np.testing.assert_allclose(gap, GAP["swish"] / sharpness, rtol=2e-6)


def test_close_to_relu_from_ten_thousand_on():
    x = jnp.linspace(-2e-3, 2e-3, 20001)
    assert jnp.abs(swish(x, 1e4) - jax.nn.relu(x)).max() < 3e-5
    assert jnp.abs(mish(x, 1e4) - jax.nn.relu(x)).max() < 3.1e-5


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("sharpness", [1.0, 1e6])
def test_finite_with_finite_derivatives_everywhere(kind, dtype, sharpness):
    largest = float(jnp.finfo(dtype).max)
    ends = [largest, 1e4, 1.0, 1e-3, 1e-6, 0.0]
    x = jnp.array([*ends, *(-end for end in ends)], dtype)
    soft = SOFT[kind]
    for value in (
        soft(x, sharpness),
        jax.vmap(jax.grad(soft), (0, None))(x, jnp.float32(sharpness)),
        jax.jvp(lambda x: soft(x, sharpness), (x,), (jnp.ones_like(x),))[1],
        jax.vmap(jax.grad(jax.grad(soft)), (0, None))(x, 1.0),
    ):
        assert value.dtype == dtype
        assert bool(jnp.isfinite(value).all())


@pytest.mark.parametrize("kind", SOFT)
def test_half_precision_is_float32_rounded(kind):
    x = jnp.linspace(-4, 4, 101).astype(jnp.bfloat16)
    wide = SOFT[kind](x.astype(jnp.float32), 3.3)
    assert jnp.array_equal(SOFT[kind](x, 3.3), wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", SOFT)
def test_traced_sharpness_compiles_once(kind):
    traces = []

    @jax.jit
    def jitted(x, sharpness):
        traces.append(x)
        return softened(jax.nn.relu, kind, sharpness)(x)

    x = jnp.linspace(-3, 3, 50)
    for sharpness in (0.5, 1.0, 40.0, 1e6):
        want = SOFT[kind](x, sharpness)
        got = jitted(x, jnp.float32(sharpness))
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-9)
        np.testing.assert_allclose(
            want, reference(kind, x, sharpness), rtol=1e-6, atol=1e-6
        )
    assert len(traces) == 1
    assert jitted(x.astype(jnp.bfloat16), jnp.float32(2)).dtype == jnp.bfloat16


def test_float64_is_kept():
    with jax.enable_x64(True):
        x = jnp.linspace(-5, 5, 11, dtype=jnp.float64)
        for kind, soft in SOFT.items():
            got = soft(x, jnp.float32(2))
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, reference(kind, x, 2.0), rtol=1e-13)


# --- Softened -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOFT)
def test_in_the_place_of_relu_it_is_the_soft_one(kind):
    x = jnp.linspace(-3, 3, 50)
    assert jnp.array_equal(
        softened(jax.nn.relu, kind, 2.0)(x),
        SOFT[kind](x, 2.0),
    )


def test_relu_of_flax_is_known():
    nn = pytest.importorskip("flax.linen")
    x = jnp.linspace(-3, 3, 50)
    assert jnp.array_equal(softened(nn.relu, "swish", 1.0)(x), swish(x))


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("own", [jnp.tanh, jax.nn.gelu, lambda x: 3 * x])
def test_any_other_activation_gets_what_softens_relu(kind, own):
    x = jnp.array([-3, -1, -0.25, 0, 0.25, 1, 3], jnp.float32)
    got = softened(own, kind, 2.0)(x)
    want = own(x) + reference(kind, x, 2.0) - np.maximum(x, 0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # Away from 0 the ghost is gone bit by bit, at 0 it always was.
    assert jnp.array_equal(softened(own, kind, 1e6)(x), own(x))
    assert softened(own, kind, 2.0)(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind must be one of .* did you mean 'swish"):
        softened(jax.nn.relu, "swich", 1.0)


# --- Schedules ------------------------------------------------------------------------

SCHEDULES = {
    "exponential": (sharpening(90), 1.0, 100.0),
    "linear sharpness": (sharpening(7, start=0.3, end=33.3, shape="linear"), 0.3, 33.3),
    "wide": (sharpening(10**6, start=1e-3, end=1e6), 1e-3, 1e6),
    "constant": (sharpening(3, start=2.0, end=2.0), 2.0, 2.0),
    "linear": (fading(49), 1.0, 0.0),
    "cosine": (fading(49, shape="cosine"), 1.0, 0.0),
    "one step": (fading(1), 1.0, 0.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_are_exact_traced_or_not(name):
    schedule, start, end = SCHEDULES[name]
    jitted = jax.jit(schedule)
    steps = {"exponential": 90, "linear sharpness": 7, "wide": 10**6, "constant": 3}
    last = steps.get(name, 1 if name == "one step" else 49)
    for step, value in ((0, start), (last, end), (last + 1, end), (2**31 - 1, end)):
        for got in (jnp.asarray(schedule(step)), jitted(step), jitted(jnp.int32(step))):
            assert got.dtype == jnp.float32 and got.shape == ()
            assert got == jnp.float32(value)


def test_between_the_ends():
    step = np.arange(0, 131)
    part = np.minimum(step / 90, 1)
    for shape, want in (
        ("exponential", 2 * (50 / 2) ** part),
        ("linear", 2 + (50 - 2) * part),
    ):
        schedule = sharpening(90, start=2, end=50, shape=shape)
        np.testing.assert_allclose(schedule(jnp.asarray(step)), want, rtol=1e-6)
    for shape, want in (
        ("linear", 1 - part),
        ("cosine", (1 + np.cos(np.pi * part)) / 2),
    ):
        got = fading(90, shape=shape)(jnp.asarray(step))
        np.testing.assert_allclose(got, want, atol=2e-7)


@settings(deadline=None, max_examples=12)
@given(steps=st.integers(1, 400), shape=st.sampled_from(["linear", "cosine"]))
def test_fading_falls_from_one_to_zero(steps, shape):
    values = np.asarray(fading(steps, shape=shape)(jnp.arange(403)))
    assert values[0] == 1 and np.all(values[steps:] == 0)
    assert np.all(values[:steps] > 0) and np.all(np.diff(values) <= 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sharpening(0), "steps must be a whole number of at least 1, got 0"),
        (lambda: sharpening(9, start=0.0), "start must be positive and finite, got"),
        (lambda: sharpening(9, end=np.inf), "end must be positive and finite, got inf"),
        (lambda: sharpening(9, start=3.0, end=2.0), "end=2.0 must be at least start=3"),
        (lambda: sharpening(9, shape="cosine"), "shape must be one of 'exponential'"),
        (lambda: fading(-3), "steps must be a whole number"),
        (lambda: fading(9, shape="sine"), "did you mean 'cosine'"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
