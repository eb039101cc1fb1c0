"""Orthogonal sparse weights: matrices, exact counts, and networks of 1000 layers."""

import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets import orthogonal
from sup_tickets.data.image_sets import load_dataset
from sup_tickets.masks import apply_masks, layer_counts, random_masks
from sup_tickets.orthogonal import exact_orthogonal, orthogonality_error
from tests.helpers import assert_same, quick, singular


def kernel_of(key, shape, count, **options):
    """The kernel and mask of a network of one leaf, as NumPy."""
    params = {"kernel": np.zeros(shape, np.float32)}  # compiles nothing
    params, masks = exact_orthogonal(key, params, {"kernel": count}, **options)
    return np.asarray(params["kernel"]), np.asarray(masks["kernel"])


# --- Kernels --------------------------------------------------------------------------


@st.composite
def kernels(draw):
    """A shape, a possible count, and how dense the centre is."""
    k = draw(st.sampled_from([0, 1, 3, 5]))
    most = 24 if k < 3 else 8
    sides = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    shape = (*(k, k), *sides) if k else sides
    count = draw(st.integers(min(sides), math.prod(shape)))
    return shape, count, draw(st.sampled_from(orthogonal.CENTRES))


@quick
@given(kernels(), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1.5]))
def test_counts_are_exact_and_kernels_orthogonal(kernel, seed, gain):
    shape, count, centre = kernel
    options = {"centre": centre, "gain": gain, "depthwise": ()}
    w, mask = kernel_of(jax.random.key(seed), shape, count, **options)
    assert mask.dtype == bool and mask.shape == w.shape == shape
    assert mask.sum() == count
    assert not w[~mask].any() and not np.signbit(w[w == 0]).any()
    assert orthogonality_error(w, gain=gain) < 2e-6 * gain**2
    if len(shape) == 4:
        tap = (shape[0] // 2, shape[1] // 2)
        np.testing.assert_allclose(singular(w[tap]), gain, rtol=2e-6)
        assert np.count_nonzero(w) == np.count_nonzero(w[tap])


@pytest.mark.parametrize(
    ("d", "wanted"), [(0.1, 0.316228), (0.05, 0.223607), (0.01, 0.09), (0.5, 0.707107)]
)
def test_density_of_the_centre(key, d, wanted):
    shape, size = (3, 3, 100, 100), 90_000
    leaf, count = jax.ShapeDtypeStruct(shape, np.float32), round(d * size)
    assert orthogonal._nonzeros(leaf, count, "sqrt") == math.floor(wanted * 1e4)
    assert orthogonal._nonzeros(leaf, count, "same") == max(d * 1e4, 100)
    w, mask = kernel_of(key, shape, count)
    assert wanted - 0.02 < np.mean(w[1, 1] != 0) <= wanted
    assert mask.sum() == count


@pytest.mark.parametrize("d", [0.1, 0.5])
def test_density_of_a_single_tap(d):
    leaf, count = jax.ShapeDtypeStruct((1, 1, 20, 30), np.float32), round(d * 600)
    for centre in orthogonal.CENTRES:
        assert orthogonal._nonzeros(leaf, count, centre) == count


def test_sparse_convolutions_fall_back_on_the_identity(key):
    w, mask = kernel_of(key, (3, 3, 16, 16), 16, centre="same")
    np.testing.assert_array_equal(w[1, 1], np.eye(16))
    assert mask.sum() == 16


def test_a_convolution_keeps_norms(key):
    w, _ = kernel_of(key, (3, 3, 8, 8), 100)
    x = jax.random.normal(key, (2, 5, 5, 8))
    y = jax.lax.conv_general_dilated(
        *(x, w, (1, 1), "SAME"), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    norms = (jnp.linalg.norm(z, axis=-1) for z in (x, y))
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_full_counts_are_full_masks(key):
    for shape in [(6, 9), (3, 3, 4, 5)]:
        w, mask = kernel_of(key, shape, math.prod(shape))
        assert mask.all() and orthogonality_error(w) < 2e-6
        assert (w[orthogonal._centre(shape)] != 0).all()


def test_added_places_are_everywhere(key):
    w, mask = kernel_of(key, (3, 3, 20, 20), 1800)  # d = 0.5
    added = mask & (w == 0)
    per_tap = added.sum(axis=(2, 3)) / (w == 0).sum(axis=(2, 3))
    assert np.ptp(per_tap) < 0.25 and per_tap.min() > 0.2


@pytest.mark.parametrize("count", [12, 40, 108])
def test_depthwise_kernels(key, count):
    w, mask = kernel_of(key, (3, 3, 1, 12), count, gain=2.0, depthwise="kernel")
    assert set(w[1, 1, 0]) == {2.0, -2.0}
    assert np.count_nonzero(w) == 12 and mask.sum() == count and mask[1, 1].all()


# --- Networks -------------------------------------------------------------------------

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 4, 6)), "bias": jnp.ones(6)},
    "norm": {"scale": jnp.full(6, 3.0), "bias": jnp.ones(6)},
    "dense": {"kernel": jnp.ones((6, 6), jnp.bfloat16), "bias": jnp.ones(6)},
    "other": {"kernel": jnp.ones((6, 6))},
}
COUNTS = {
    "conv": {"kernel": 40, "bias": None},
    "norm": {"scale": None, "bias": None},
    "dense": {"kernel": np.int64(20), "bias": None},
    "other": {"kernel": None},
}


def test_networks(key):
    params, masks = exact_orthogonal(key, PARAMS, COUNTS)
    counts = layer_counts(masks)
    assert_same(counts, jax.tree.map(jnp.int32, COUNTS))
    assert_same(
        jax.tree.map(lambda p: (p.shape, str(p.dtype)), params),
        jax.tree.map(lambda p: (p.shape, str(p.dtype)), PARAMS),
    )
    assert_same(apply_masks(masks, params), params)
    assert_same(params["other"], PARAMS["other"])
    assert_same(params["norm"]["scale"], PARAMS["norm"]["scale"])
    assert not any(params[name]["bias"].any() for name in ("conv", "norm", "dense"))
    assert orthogonality_error(params["dense"]["kernel"]) < 0.02


def test_biases_are_normal(key):
    params = {"bn": {"bias": jnp.ones(4000), "scale": jnp.ones(5)}, "k": jnp.eye(2)}
    counts = {"bn": {"bias": None, "scale": None}, "k": 2}
    made, _ = exact_orthogonal(key, params, counts, bias_std=0.5)
    bias = np.asarray(made["bn"]["bias"])
    assert abs(bias.mean()) < 0.04 and abs(bias.std() - 0.5) < 0.03


def test_the_same_key_gives_the_same_bits(key):
    first = exact_orthogonal(key, PARAMS, COUNTS, bias_std=0.1)
    assert_same(exact_orthogonal(key, PARAMS, COUNTS, bias_std=0.1), first)
    old = jax.random.PRNGKey(0)
    assert_same(exact_orthogonal(old, PARAMS, COUNTS, bias_std=0.1), first)
    other, _ = exact_orthogonal(jax.random.key(1), PARAMS, COUNTS)
    assert (other["conv"]["kernel"] != first[0]["conv"]["kernel"]).any()


def test_leaves_depend_on_their_names_alone(key):
    params = {name: jnp.zeros((9, 9)) for name in "abc"}
    made, masks = exact_orthogonal(key, params, {"a": 40, "b": 40, "c": 81})
    assert (made["a"] != made["b"]).any()
    alone = {"b": params["b"]}
    assert_same(
        exact_orthogonal(key, alone, {"b": 40}), ({"b": made["b"]}, {"b": masks["b"]})
    )


def test_unknown_depthwise_kernels_are_refused(key):
    with pytest.raises(ValueError, match=r"leaf 'kernel' .* may be a depthwise conv"):
        kernel_of(key, (3, 3, 1, 12), 40)
    with pytest.raises(ValueError, match=r"depthwise='conv': .* matches no leaf"):
        kernel_of(key, (3, 3, 1, 12), 40, depthwise="conv")
    w, _ = kernel_of(key, (3, 3, 1, 12), 40, depthwise=())
    assert orthogonality_error(w) < 2e-6


@pytest.mark.parametrize(
    ("shape", "count", "options", "message"),
    [
        ((9, 7), 6, {}, "leaf 'kernel' of shape (9, 7) has count 6, but .* least 7"),
        ((3, 3, 5, 8), 4, {}, "has count 4, but an orthogonal kernel needs at least 5"),
        ((9, 7), 64, {}, "leaf 'kernel' of shape (9, 7) has count 64, above its size"),
        ((2, 2, 5, 8), 40, {}, "leaf 'kernel' must have odd spatial sides"),
        ((3, 4, 5, 8), 40, {}, "has shape (3, 4, 5, 8)"),
        ((7,), 7, {}, "leaf 'kernel' must be a matrix"),
        ((3, 5, 8), 40, {}, "leaf 'kernel' must be a matrix"),
        ((3, 3, 1, 8), 7, {"depthwise": "k"}, "has count 7, but .* at least 8"),
        ((9, 7), 20, {"gain": 0.0}, "gain must be a finite number above 0, got 0.0"),
        ((9, 7), 20, {"bias_std": -1}, "bias_std must be .* got -1"),
        ((9, 7), 20, {"centre": "half"}, "centre must be one of 'sqrt', 'same'"),
    ],
)
def test_what_cannot_be_is_refused(key, shape, count, options, message):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern):
        kernel_of(key, shape, count, **options)


def test_traced_keys_are_refused(key):
    with pytest.raises(ValueError, match="key must be concrete"):
        jax.eval_shape(lambda k: exact_orthogonal(k, PARAMS, COUNTS), key)


@pytest.mark.parametrize("shape", [(784, 300), (3, 3, 512, 512)])
def test_large_kernels_take_no_time(key, shape):
    start = time.perf_counter()
    kernel_of(key, shape, math.prod(shape) // 20)
    assert time.perf_counter() - start < 5  # 0.1 s, on a machine with nothing else


# --- A thousand layers ----------------------------------------------------------------

WIDTH, LAYERS, DENSITY, GAIN, BIAS = 128, 1000, 0.125, 1.0247, 0.00448


def deep_params():
    """A tanh MLP on 64 pixels of digits: zeros, by leaf."""
    sides = [(64, WIDTH), *[(WIDTH, WIDTH)] * (LAYERS - 1), (WIDTH, 10)]
    return {
        f"layer{i:04}": {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])}
        for i, shape in enumerate(sides)
    }


def stacked(layers):
    """First layer, hidden layers as one leaf each, classifier: compiles at once."""
    first, *hidden, last = layers.values()
    return {
        "first": first,
        "hidden": jax.tree.map(lambda *leaves: jnp.stack(leaves), *hidden),
        "last": last,
    }


def deep_scores(params, x):
    def layer(x, p):
        return jnp.tanh(x @ p["kernel"] + p["bias"][None]), None

    x, _ = layer(x, params["first"])
    x, _ = jax.lax.scan(layer, x, params["hidden"])
    return x @ params["last"]["kernel"] + params["last"]["bias"][None]


def lecun_at_random(key, params, counts):
    """Usual weights, most of them cut off by a random mask."""
    masks = random_masks(key, params, counts)
    init = jax.nn.initializers.lecun_normal()
    keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
    params = {
        name: layer | {"kernel": init(keys[name], layer["kernel"].shape)}
        for name, layer in params.items()
    }
    return apply_masks(masks, params), masks


def train(params, masks, *, steps=40, batch=64, rate=1e-3):
    """Loss, accuracy on the digits, and the first gradient."""
    data = load_dataset("digits")
    images = jnp.asarray(data.train.images.reshape(-1, 64), jnp.float32)
    x, labels = (images / 16 - data.mean[0]) / data.std[0], data.train.labels
    tx = optax.sgd(rate, momentum=0.9, nesterov=True)

    def loss(params, x, labels):
        scores = deep_scores(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    @jax.jit
    def step(params, state, x, labels):
        gradients = jax.grad(loss)(params, x, labels)
        gradients = apply_masks(masks, gradients)
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(params, updates), state, gradients["first"]

    state, rng, first = tx.init(params), np.random.default_rng(0), None
    for _ in range(steps):
        rows = rng.choice(len(labels), batch, replace=False)
        params, state, gradient = step(params, state, x[rows], labels[rows])
        first = gradient if first is None else first
    scores = deep_scores(params, x)
    right = float((scores.argmax(-1) == labels).mean())
    return float(loss(params, x, labels)), right, first


@pytest.mark.slow  # half a minute on two idle cores
def test_a_thousand_layers_train(key):
    empty = deep_params()
    counts = {
        name: {"kernel": round(DENSITY * layer["kernel"].size), "bias": None}
        for name, layer in empty.items()
    }
    params, masks = exact_orthogonal(key, empty, counts, gain=GAIN, bias_std=BIAS)
    assert_same(layer_counts(masks), jax.tree.map(jnp.int32, counts))
    loss, accuracy, gradient = train(stacked(params), stacked(masks))
    assert float(optax.global_norm(gradient)) > 0.1
    assert loss < 1.7 and accuracy > 0.8  # 1.3 and 0.92; by chance 2.3 and 0.1

    params, masks = lecun_at_random(key, empty, counts)
    loss, accuracy, gradient = train(stacked(params), stacked(masks), steps=10)
    assert float(optax.global_norm(gradient)) == 0
    assert loss > 2.29 and accuracy < 0.15
