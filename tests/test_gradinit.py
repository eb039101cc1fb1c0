import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from sup_tickets.gradinit import (
    lookahead_slopes,
    measure_gradient,
    norm_slopes,
    rescale_state,
    rescale_update,
    rescaled_init,
)


def cross_entropy(logits, labels):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -picked.mean()


# --- The worked example ---------------------------------------------------------------

MATRIX = {"kernel": jnp.array([[0.2, -0.1], [0.4, 0.3]])}
HOLE = {"kernel": jnp.array([[True, True], [False, True]])}
SAMPLE = (jnp.array([[1.0, 2.0]]), jnp.array([0]))


def matrix_loss(params, batch):
    images, labels = batch
    return cross_entropy(images @ params["kernel"].T, labels)


# mask of the weights, mask of the gradients; then the values of the specification.
EXAMPLES = {
    "dense": (
        None,
        None,
        (1.313261688, 2.311810211, 10.923721, 6.645801002, 0.6217415242),
    ),
    "type 2": (
        HOLE,
        None,
        (1.03748795, 2.041744513, 8.450655392, 3.422824762, 0.4340875756),
    ),
    "masked": (
        HOLE,
        HOLE,
        (1.03748795, 1.936968919, 8.543552445, 3.446655101, 0.4118116328),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_slopes_of_the_worked_example(name):
    masks, gradient_masks, values = EXAMPLES[name]
    params = MATRIX
    if masks is not None:
        params = {"kernel": jnp.where(masks["kernel"], MATRIX["kernel"], 0)}
    scales = jnp.ones(1)
    at = measure_gradient(matrix_loss, params, gradient_masks, scales, SAMPLE)
    objective, slopes = lookahead_slopes(
        matrix_loss, params, scales, at, SAMPLE, step_size=0.1
    )
    bent = norm_slopes(matrix_loss, params, scales, at, SAMPLE)
    got = (at.loss, at.norm, objective, slopes[0], bent[0])
    np.testing.assert_allclose(got, values, rtol=2e-6)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("limit, constrained", [(1.0, True), (np.inf, False)])
def test_first_step_of_the_worked_example(name, limit, constrained):
    masks, gradient_masks, values = EXAMPLES[name]
    done = rescaled_init(
        matrix_loss,
        MATRIX,
        masks,
        lambda _: SAMPLE,
        steps=1,
        norm_limit=limit,
        masked_gradients=gradient_masks is not None or masks is None,
    )
    assert done.history.constrained.tolist() == [constrained]
    np.testing.assert_allclose(done.history.losses, values[0], rtol=1e-6)
    np.testing.assert_allclose(done.history.norms, values[1], rtol=1e-6)
    if constrained:
        assert np.isnan(done.history.objectives).all()
    else:
        np.testing.assert_allclose(done.history.objectives, values[2], rtol=1e-6)
    np.testing.assert_allclose(done.scales["kernel"], 0.99, rtol=1e-6)
    want = np.where(HOLE["kernel"] if masks else True, 0.99 * MATRIX["kernel"], 0)
    np.testing.assert_allclose(done.params["kernel"], want, rtol=1e-6)


# --- Adam of the scales ---------------------------------------------------------------


def updated(sequence, **options):
    state, scales = rescale_state(1), []
    for constraint, slope in sequence:
        state = rescale_update(
            state,
            jnp.array([slope], jnp.float32),
            constraint=constraint,
            **({"learning_rate": 0.01} | options),
        )
        scales.append(float(state.scales[0]))
    return scales


def adam_reference(sequence, learning_rate=0.01, floor=0.0, clip=1.0):
    """GradInit's optimizer, one tensor, with Python floats."""
    alpha, second, scales = 1.0, 0.0, []
    first, steps = np.zeros(2), np.zeros(2)
    for constraint, slope in sequence:
        kind = int(constraint)
        slope = max(min(slope, clip), -clip)
        steps[kind] += 1
        first[kind] = 0.9 * first[kind] + 0.1 * slope
        second = 0.999 * second + 0.001 * slope * slope
        mean = first[kind] / (1 - 0.9 ** steps[kind])
        spread = (second / (1 - 0.999 ** sum(steps))) ** 0.5
        if alpha > 0:
            alpha = max(alpha - learning_rate * mean / (spread + 1e-8), floor)
        scales.append(alpha)
    return scales


@pytest.mark.parametrize(
    "sequence, scales",
    [
        ([(False, 0.5)] * 3, (0.99, 0.98, 0.97)),
        (
            [(False, 0.5), (True, -0.5), (False, 0.25), (False, 5.0)],
            (0.99, 1.0, 0.9914902611, 0.9818698223),
        ),
    ],
)
def test_update_values(sequence, scales):
    np.testing.assert_allclose(updated(sequence), scales, rtol=3e-7)
    np.testing.assert_allclose(adam_reference(sequence), scales, rtol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    sequence=st.lists(
        st.tuples(st.booleans(), st.floats(0.01, 20) | st.floats(-20, -0.01)),
        min_size=1,
        max_size=8,
    ),
    floor=st.sampled_from([0.0, 0.01, 0.5]),
    clip=st.sampled_from([0.25, 1.0, float("inf")]),
)
def test_update_is_gradinits(sequence, floor, clip):
    got = updated(sequence, floors=floor, clip=clip, learning_rate=0.2)
    want = adam_reference(sequence, 0.2, floor, clip)
    if 0 < min(want) < 1e-5 or 0 in want:
        return  # whether a scale dies at 0 is decided by a rounding
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)
    assert min(got) >= np.float32(floor)


def test_a_scale_without_slope_never_moves_and_a_dead_one_stays():
    state = rescale_state(3)
    for constraint in (False, True, True, False):
        state = rescale_update(
            state,
            jnp.array([0.0, 1.0, 1.0]),
            constraint=constraint,
            learning_rate=0.6,
            floors=jnp.array([0.01, 0.01, 0.0]),
        )
    np.testing.assert_array_equal(state.scales, np.array([1, 0.01, 0], np.float32))
    state = rescale_update(
        state, jnp.full(3, -9.0), constraint=False, learning_rate=0.1, clip=100.0
    )
    assert state.scales[2] == 0 and state.scales[1] > 0.01
    assert state.counts.tolist() == [3, 2]


# --- The loop, against NumPy ----------------------------------------------------------

CLASSES, WIDTH = 4, 5


def linear_params(seed=0):
    draw = np.random.default_rng(seed)
    kernel, bias = draw.normal(size=(WIDTH, CLASSES)), draw.normal(size=CLASSES)
    return {
        "dense": {"bias": np.float32(bias), "kernel": np.float32(kernel)},
        "zero": {"bias": np.zeros(CLASSES, np.float32)},
    }


def linear_masks(seed=1):
    kernel = np.random.default_rng(seed).random((WIDTH, CLASSES)) < 0.5
    return {"dense": {"bias": None, "kernel": kernel}, "zero": {"bias": None}}


def linear_loss(params, batch):
    images, labels = batch
    dense = params["dense"]
    shift = (dense["bias"] + params["zero"]["bias"]).reshape(1, -1)
    return cross_entropy(images @ dense["kernel"] + shift, labels)


def linear_batch(index):
    draw = np.random.default_rng(100 + index)
    return (
        np.float32(draw.normal(size=(6, WIDTH))),
        draw.integers(0, CLASSES, 6).astype(np.int32),
    )


def numpy_loss_and_gradients(tensors, batch, mask):
    bias, kernel, zero = tensors
    images, labels = np.float64(batch[0]), batch[1]
    logits = images @ kernel + bias + zero
    logits = logits - logits.max(1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
    error = (shares - np.eye(CLASSES)[labels]) / len(labels)
    return loss, [error.sum(0), images.T @ error * mask, error.sum(0)]


def numpy_norm(gradients, algorithm):
    flat = np.concatenate([g.ravel() for g in gradients])
    return np.abs(flat).sum() if algorithm == "adam" else np.sqrt((flat**2).sum())


def numpy_gradinit(steps, limit, algorithm, normalize, overlap, masked, learning_rate):
    """Three tensors; float64; the slope of the norm by central differences."""
    params, mask = linear_params(), linear_masks()["dense"]["kernel"]
    start = [params["dense"]["bias"], params["dense"]["kernel"] * mask, np.zeros(4)]
    start = [np.float64(tensor) for tensor in start]
    seen = mask if masked else np.ones_like(mask)
    index, eta = itertools.count(), 0.1
    sequences, alphas, objectives, flags = [[], [], []], [1.0, 1.0, 1.0], [], []

    def draw(kept=None):
        return linear_batch(next(index)) if kept is None else kept

    def joined(a, b):
        return tuple(np.concatenate(parts) for parts in zip(a, b, strict=True))

    def scaled(scales):
        return [a * tensor for a, tensor in zip(scales, start, strict=True)]

    for _ in range(steps):
        first = draw()
        batch = joined(first, draw())
        theta = scaled(alphas)
        _, gradients = numpy_loss_and_gradients(theta, batch, seen)
        norm = numpy_norm(gradients, algorithm)
        flags.append(norm > limit)
        if flags[-1]:
            slopes = []
            for p in range(3):
                ends = []
                for sign in (1, -1):
                    near = list(alphas)
                    near[p] += sign * 1e-5
                    at = numpy_loss_and_gradients(scaled(near), batch, seen)[1]
                    ends.append(numpy_norm(at, algorithm))
                slopes.append((ends[0] - ends[1]) / 2e-5)
            objectives.append(np.nan)
        else:
            batch = joined(draw(first if overlap else None), draw())
            step = [np.sign(g) for g in gradients]
            if algorithm == "sgd":
                step = [g / norm if normalize else g for g in gradients]
            ahead = [t - eta * s for t, s in zip(theta, step, strict=True)]
            value, after = numpy_loss_and_gradients(ahead, batch, seen)
            slopes = [(g * t).sum() / eta for g, t in zip(after, start, strict=True)]
            objectives.append(value / eta)
        for p, floor in enumerate((0.0, 0.01, 0.0)):
            sequences[p].append((flags[-1], slopes[p]))
            alphas[p] = adam_reference(sequences[p], learning_rate, floor)[-1]
    return alphas, np.array(objectives), flags


@pytest.mark.parametrize(
    "limit, algorithm, normalize, overlap, masked",
    [
        (0.75, "sgd", True, True, True),
        (0.75, "sgd", False, False, True),
        (0.9, "sgd", True, True, False),
        (3.0, "adam", True, True, True),
        (np.inf, "sgd", True, False, True),
    ],
)
def test_loop_is_the_reference(limit, algorithm, normalize, overlap, masked):
    alphas, objectives, flags = numpy_gradinit(
        14, limit, algorithm, normalize, overlap, masked, 0.05
    )
    done = rescaled_init(
        linear_loss,
        linear_params(),
        linear_masks(),
        linear_batch,
        steps=14,
        learning_rate=0.05,
        norm_limit=limit,
        algorithm=algorithm,
        normalize=normalize,
        overlap=overlap,
        masked_gradients=masked,
    )
    assert done.history.constrained.tolist() == flags
    assert limit == np.inf or 0 < sum(flags) < 14
    np.testing.assert_allclose(done.history.objectives, objectives, rtol=1e-4)
    np.testing.assert_allclose(jax.tree.leaves(done.scales), alphas, rtol=1e-3)
    assert done.scales["zero"]["bias"] == 1
    assert not np.any(done.params["zero"]["bias"])


# --- The loop -------------------------------------------------------------------------


def net_params(key, dtype=jnp.float32):
    keys = jax.random.split(key, 3)
    return {
        "conv": {
            "kernel": jax.random.normal(keys[0], (3, 3, 2, 4), dtype) * 0.8,
            "bias": jnp.full(4, 0.1, dtype),
        },
        "norm": {"scale": jnp.ones(4, dtype), "bias": jnp.zeros(4, dtype)},
        "head": {
            "kernel": jax.random.normal(keys[1], (4, 3), dtype) * 2,
            "bias": jnp.zeros(3, dtype),
        },
    }


def net_masks(key, params):
    def mask(leaf):
        return jax.random.bernoulli(key, 0.4, leaf.shape) if leaf.ndim > 1 else None

    return jax.tree.map(mask, params)


def net_loss(params, batch):
    """A convolution, a batch norm, ReLU, a maximum and a mean over places."""
    images, labels = batch
    conv, norm, head = params["conv"], params["norm"], params["head"]
    y = lax.conv_general_dilated(
        images.astype(conv["kernel"].dtype),
        conv["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y + conv["bias"].reshape(1, 1, 1, -1)
    y = (y - y.mean((0, 1, 2), keepdims=True)) * lax.rsqrt(
        y.var((0, 1, 2), keepdims=True) + 1e-5
    )
    y = y * norm["scale"].reshape(1, 1, 1, -1) + norm["bias"].reshape(1, 1, 1, -1)
    y = jax.nn.relu(y)
    low = np.array(-np.inf, y.dtype)
    y = lax.reduce_window(y, low, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    logits = y.mean((1, 2)) @ head["kernel"] + head["bias"].reshape(1, -1)
    return cross_entropy(logits.astype(jnp.float32), labels)


def net_batches():
    draw = np.random.default_rng(5)
    while True:
        labels = draw.integers(0, 3, 16).astype(np.int32)
        images = draw.normal(size=(16, 6, 6, 2)) + labels[:, None, None, None]
        yield np.float32(images), labels


def test_loop_lowers_the_objective_within_the_limit(key):
    params, batch = net_params(key), next(net_batches())
    done = rescaled_init(
        net_loss,
        params,
        net_masks(key, params),
        lambda _: batch,
        steps=40,
        learning_rate=0.05,
        norm_limit=3.0,
    )
    objectives = done.history.objectives[~done.history.constrained]
    assert objectives[-1] < 0.9 * objectives[0]
    assert done.history.norms.max() < 4.5  # without a limit, above 100


def test_loop_respects_masks_and_floors_and_compiles_once(key):
    params = net_params(key)
    masks, traces = net_masks(key, params), []

    def loss(params, batch):
        traces.append(batch)
        return net_loss(params, batch)

    done = rescaled_init(
        loss, params, masks, net_batches(), steps=30, learning_rate=0.05, norm_limit=1.5
    )
    constrained = done.history.constrained
    assert 0 < constrained.sum() < 30
    assert len(traces) == 3  # three programs, each compiled once
    assert np.isnan(done.history.objectives[constrained]).all()
    for part in ("conv", "head", "norm"):
        for name, scale in done.scales[part].items():
            assert scale >= (0 if name == "bias" else np.float32(0.01))
    # What is 0 has no length to learn; what is masked stays exactly 0.
    assert done.scales["norm"]["bias"] == done.scales["head"]["bias"] == 1
    for part in ("conv", "head"):
        kernel, mask = done.params[part]["kernel"], masks[part]["kernel"]
        want = jnp.where(mask, params[part]["kernel"] * done.scales[part]["kernel"], 0)
        np.testing.assert_allclose(kernel, want, rtol=1e-6)
        assert not np.signbit(kernel[~mask]).any() and not kernel[~mask].any()


def test_floors_are_reached():
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 3.0)}
    done = rescaled_init(
        lambda p, batch: sum(jnp.square(w).sum() for w in p.values()) * batch.mean(),
        params,
        None,
        itertools.repeat(np.ones(2, np.float32)),
        steps=4,
        learning_rate=0.5,
        norm_limit=1e-9,
    )
    assert done.scales["kernel"] == np.float32(0.01)
    assert done.scales["bias"] == 0 and not done.params["bias"].any()


def test_slope_of_the_norm_is_that_of_reverse_over_reverse(key):
    params = net_params(key)
    batch = next(net_batches())
    leaves, structure = jax.tree.flatten(params)

    def norm(scales):
        theta = [leaf * scale for leaf, scale in zip(leaves, scales, strict=True)]
        gradients = jax.grad(net_loss)(structure.unflatten(theta), batch)
        return jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)))

    @jax.jit
    def slopes(scales):
        at = measure_gradient(net_loss, params, None, scales, batch)
        return norm_slopes(net_loss, params, scales, at, batch)

    scales = jnp.linspace(0.5, 1.5, len(leaves))
    want = jax.jit(jax.grad(norm))(scales)
    np.testing.assert_allclose(slopes(scales), want, rtol=1e-3, atol=1e-4)


def test_bfloat16(key):
    params = net_params(key, jnp.bfloat16)
    done = rescaled_init(net_loss, params, None, net_batches(), steps=4)
    assert {leaf.dtype for leaf in jax.tree.leaves(done.params)} == {
        np.dtype(jnp.bfloat16)
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(done.scales)} == {
        np.dtype(np.float32)
    }
    assert np.isfinite(done.history.norms).all()


def test_held_tensors_and_ones_masked_away_keep_their_scale():
    masks = linear_masks()
    done = rescaled_init(
        linear_loss, linear_params(), masks, linear_batch, steps=4, held="dense/bias"
    )
    assert done.scales["dense"]["bias"] == 1 != done.scales["dense"]["kernel"]
    masks["dense"]["kernel"] = np.zeros((WIDTH, CLASSES), bool)
    done = rescaled_init(linear_loss, linear_params(), masks, linear_batch, steps=4)
    assert done.scales["dense"]["kernel"] == 1 != done.scales["dense"]["bias"]
    assert not done.params["dense"]["kernel"].any()


def test_no_gradient_is_no_step():
    params = {"kernel": jnp.ones((2, 2))}
    done = rescaled_init(
        lambda p, batch: 0 * p["kernel"].sum() + batch.mean(),
        params,
        None,
        lambda i: jnp.ones(3),
        steps=3,
    )
    assert done.scales["kernel"] == 1 and not done.history.constrained.any()


@pytest.mark.parametrize(
    "overlap, limit, drawn",
    [(True, 1e-9, 6), (True, np.inf, 9), (False, np.inf, 12)],
)
def test_minibatches_drawn(overlap, limit, drawn):
    indices = []

    def batches(index):
        indices.append(index)
        return linear_batch(index)

    rescaled_init(
        linear_loss,
        linear_params(),
        linear_masks(),
        batches,
        steps=3,
        overlap=overlap,
        norm_limit=limit,
    )
    assert indices == list(range(drawn))


# --- Refusals -------------------------------------------------------------------------


def refused(error, message, **options):
    defaults: dict[str, Any] = {
        "loss": linear_loss,
        "params": linear_params(),
        "masks": None,
        "batches": linear_batch,
        "steps": 2,
    }
    with pytest.raises(error, match=message) as caught:
        rescaled_init(**(defaults | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"step_size": np.inf}, "step_size must be positive and finite, got inf"),
        ({"norm_limit": -1.0}, "norm_limit must be positive, got -1.0"),
        ({"clip": np.nan}, "clip must be positive, got nan"),
        ({"min_scale": 1.5}, r"min_scale must be in \[0, 1\], got 1.5"),
        ({"algorithm": "adams"}, "algorithm must be one of 'sgd', 'adam'"),
        ({"held": "nowhere"}, "expression 'nowhere' matches no leaf"),
        ({"params": {}}, "params must have a leaf to scale"),
        ({"params": {"n": np.arange(3)}}, "floating point arrays, got int64 at leaf"),
        ({"masks": {"dense": None}}, "masks has a leaf 'dense'"),
        ({"batches": [linear_batch(0)] * 3}, "batches ended after 3 minibatches"),
    ],
)
def test_arguments_out_of_range(options, message):
    refused(ValueError, message, **options)


def test_loss_that_is_not_finite_names_the_iteration():
    def batches(index):
        images, labels = linear_batch(index)
        return (images if index < 4 else images * np.nan), labels

    refused(
        FloatingPointError,
        "the loss is nan at iteration 2",
        batches=batches,
        steps=5,
        norm_limit=1e-9,
    )


def test_norm_that_is_not_finite_names_the_iteration():
    refused(
        FloatingPointError,
        "the norm of the gradient is inf at iteration 0",
        loss=lambda params, batch: 1e30 * linear_loss(params, batch),
    )
