"""SNIP, GraSP, SynFlow and pruning in rounds: golden cases, float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sup_tickets as st

W = {"kernel": jnp.array([[1.0, -2.0, 3.0]])}


def square(params, batch):
    return 0.5 * (params["kernel"] * batch).sum() ** 2


def test_golden_snip_taylor_grasp():
    x = jnp.ones((1, 3))
    np.testing.assert_allclose(
        st.snip(square, W, [x])["kernel"], [[1 / 6, 1 / 3, 1 / 2]], rtol=1e-6
    )
    gradient = st.total_gradient(square, W, [x])
    np.testing.assert_allclose(st.taylor(W, gradient)["kernel"], [[2, 4, 6]])
    scores = st.grasp(square, W, [x])
    np.testing.assert_allclose(scores["kernel"], [[0.5, -1, 1.5]], rtol=1e-6)
    masks = st.prune_in_rounds(
        lambda p, m: st.grasp(square, p, [x], masks=m), W, sparsity=1 / 3
    )
    assert masks["kernel"].tolist() == [[True, False, True]]


def test_golden_masks():
    scores = {"kernel": jnp.array([[0.1, 0.5, 0.3, 0.2]])}
    ones = jax.tree.map(jnp.ones_like, scores)
    for given_scores, kept in ((scores, [0, 1, 1, 0]), (ones, [1, 1, 0, 0])):
        masks = st.prune_in_rounds(lambda p, m, s=given_scores: s, ones, sparsity=0.5)
        assert masks["kernel"].tolist() == [[bool(k) for k in kept]]


def chain(params, x):
    return (x @ params["1"]["kernel"]) @ params["2"]["kernel"]


def test_golden_synflow():
    params = {
        "1": {"kernel": jnp.array([[1.0, 3.0], [-2.0, 4.0]])},
        "2": {"kernel": jnp.array([[-1.0], [1.0]])},
    }
    scores = st.synflow(chain, params, (1, 2))  # divided by R = 10
    np.testing.assert_allclose(scores["1"]["kernel"], [[0.1, 0.3], [0.2, 0.4]])
    np.testing.assert_allclose(scores["2"]["kernel"], [[0.3], [0.7]])
    traced = jax.jit(lambda p: st.synflow(chain, p, (1, 2)))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), traced, scores
    )


def test_synflow_of_a_deep_chain_stays_finite():
    """R is about 1e150 here, beyond float32."""
    params = {f"{i}": {"kernel": jnp.ones((10, 10))} for i in range(150)}

    def deep(params, x):
        for i in range(150):
            x = x @ params[f"{i}"]["kernel"]
        return x

    scores = st.synflow(deep, params, (1, 10))
    for leaf in jax.tree.leaves(scores):
        np.testing.assert_allclose(leaf, 0.01, rtol=1e-5)


# --- An independent computation in float64 --------------------------------------------


def net(params, x):
    for name in ("1", "2"):
        layer = params[name]
        bias = jnp.broadcast_to(layer["bias"], (x.shape[0], layer["bias"].size))
        x = jax.nn.relu(x @ layer["kernel"] + bias)
    return x @ params["3"]["kernel"]


def numpy_gradient(params, x, y):
    """Of the mean cross-entropy; by hand."""
    inputs = [x]
    for name in ("1", "2"):
        before = inputs[-1] @ params[name]["kernel"] + params[name]["bias"]
        inputs.append(np.maximum(before, 0))
    scores = inputs[-1] @ params["3"]["kernel"]
    p = np.exp(scores - scores.max(1, keepdims=True))
    delta = p / p.sum(1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    found = {"3": {"kernel": inputs[2].T @ delta}}
    for name, after in (("2", "3"), ("1", "2")):
        delta = (delta @ params[after]["kernel"].T) * (inputs[int(name)] > 0)
        found[name] = {
            "kernel": inputs[int(name) - 1].T @ delta,
            "bias": delta.sum(0),
        }
    return found


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    sizes = {"1": (6, 8), "2": (8, 7), "3": (7, 4)}
    params = {n: {"kernel": rng.normal(size=s) * 0.6} for n, s in sizes.items()}
    for name in ("1", "2"):
        params[name]["bias"] = rng.normal(size=sizes[name][1]) * 0.1
    batches = [(rng.normal(size=(9, 6)), rng.integers(0, 4, 9)) for _ in range(2)]
    return params, batches


def single(tree):
    return jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32 if a.dtype == np.float64 else jnp.int32),
        tree,
    )


def kernels(tree):
    return {name: np.asarray(tree[name]["kernel"], np.float64) for name in tree}


def numpy_total(params, batches):
    parts = [numpy_gradient(params, *batch) for batch in batches]
    return jax.tree.map(lambda a, b: a + b, *parts) if len(parts) > 1 else parts[0]


def test_snip_is_that_of_numpy(problem):
    params, batches = problem
    gradient = kernels(numpy_total(params, batches))
    expected = {n: np.abs(params[n]["kernel"] * g) for n, g in gradient.items()}
    total = sum(e.sum() for e in expected.values())
    loss = st.classification_loss(net)
    scores = st.snip(loss, single(params), single(batches))
    assert not np.asarray(scores["1"]["bias"]).any()
    for name, found in kernels(scores).items():
        np.testing.assert_allclose(found, expected[name] / total, rtol=1e-4, atol=1e-8)
    compiled = jax.jit(lambda p: st.snip(loss, p, single(batches)))(single(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        compiled,
        scores,
    )


@pytest.mark.parametrize("pairing", ["all", "each"])
def test_grasp_is_that_of_numpy(problem, pairing):
    params, batches = problem

    def product(at, along):
        """By central differences of the gradient, in float64."""

        def moved(h):
            changed = {n: dict(layer) for n, layer in params.items()}
            for name in changed:
                changed[name]["kernel"] = params[name]["kernel"] + h * along[name]
            return kernels(numpy_total(changed, at))

        ahead, behind = moved(1e-6), moved(-1e-6)
        return {n: (ahead[n] - behind[n]) / 2e-6 for n in ahead}

    groups = [batches] if pairing == "all" else [[batch] for batch in batches]
    flows = [product(g, kernels(numpy_total(params, g))) for g in groups]
    expected = {n: params[n]["kernel"] * sum(flow[n] for flow in flows) for n in params}
    total = abs(sum(e.sum() for e in expected.values()))
    loss = st.classification_loss(net)
    scores = st.grasp(loss, single(params), single(batches), pairing=pairing)
    for name, found in kernels(scores).items():
        np.testing.assert_allclose(found, expected[name] / total, rtol=1e-3, atol=1e-5)


def test_synflow_is_that_of_numpy(problem):
    params, _ = problem
    positive = jax.tree.map(np.abs, params)
    inputs = [np.ones((1, 6))]
    for name in ("1", "2"):
        inputs.append(inputs[-1] @ positive[name]["kernel"] + positive[name]["bias"])
    back, flows = np.ones((1, 4)), {}
    for name in ("3", "2", "1"):
        kernel = positive[name]["kernel"]
        flows[name] = kernel * (inputs[int(name) - 1].T @ back)
        back = back @ kernel.T
    mean = sum(flow.sum() for flow in flows.values()) / 3
    scores = kernels(st.synflow(net, single(params), (1, 6)))
    for name, flow in flows.items():
        np.testing.assert_allclose(scores[name], flow / mean, rtol=1e-5)


@pytest.mark.slow
def test_synflow_keeps_every_layer_of_vgg16_alive():
    from sup_tickets.models import make_model

    model = make_model("vgg16", stages=((8, 8), (16,), (32,), (32,), (32,)))
    variables = model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False)

    def apply(params, x):
        stats = jax.tree.map(lambda s: s.astype(x.dtype), variables["batch_stats"])
        wide = model.clone(dtype=x.dtype)
        return wide.apply({"params": params, "batch_stats": stats}, x, train=False)

    params = variables["params"]
    masks = st.prune_in_rounds(
        lambda p, m: st.synflow(apply, p, (1, 32, 32, 3)),
        params,
        sparsity=0.98,
        rounds=30,
    )
    assert st.dead_layers(masks) == []
    assert int(st.count(masks)) == st.active_count(st.size(masks), 0.98)


@pytest.mark.slow
def test_synflow_at_999_on_vgg16():
    from sup_tickets.models import make_model

    model = make_model("vgg16")
    variables = jax.jit(lambda k: model.init(k, jnp.ones((1, 32, 32, 3)), train=False))(
        jax.random.key(0)
    )

    def apply(params, x):
        stats = jax.tree.map(lambda s: s.astype(x.dtype), variables["batch_stats"])
        wide = model.clone(dtype=x.dtype)
        return wide.apply({"params": params, "batch_stats": stats}, x, train=False)

    masks = st.prune_in_rounds(
        lambda p, m: st.synflow(apply, p, (1, 32, 32, 3)),
        variables["params"],
        sparsity=0.999,
        rounds=100,
    )
    assert st.dead_layers(masks) == []
    assert int(st.count(masks)) == st.active_count(st.size(masks), 0.999)


# --- Errors ---------------------------------------------------------------------------


def test_what_cannot_be_is_refused(problem):
    params, batches = single(problem[0]), single(problem[1])
    loss = st.classification_loss(net)
    x, y = batches[0]
    for batch, text in (
        (x, "a batch must be"),
        ((x, x), "integer labels"),
        ((x, y[:3]), "labels must have shape"),
    ):
        with pytest.raises(ValueError, match=text):
            st.snip(loss, params, [batch])
    with pytest.raises(ValueError, match="at least 1 batch"):
        st.snip(loss, params, [])
    with pytest.raises(ValueError, match="pairing must be one of"):
        st.grasp(loss, params, batches, pairing="some")
    with pytest.raises(ValueError, match="temperature must be positive"):
        st.classification_loss(net, temperature=0)
    zero = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(ValueError, match="round 1: the scores of all weights are 0"):
        st.prune_in_rounds(lambda p, m: zero, params, sparsity=0.5)
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(ValueError, match="round 1: the scores of leaf '1/kernel'"):
        st.prune_in_rounds(lambda p, m: nan, params, sparsity=0.5)
    for changes in ({"sparsity": 1.0}, {"rounds": 0}, {"scope": "x"}, {"spacing": "x"}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            st.prune_in_rounds(lambda p, m: p, params, **{"sparsity": 0.5, **changes})
    dead = {"a": jnp.zeros(3, bool), "b": None}
    assert st.dead_layers(dead) == ["a"]


def test_dense_leaves_are_held():
    params = {n: {"kernel": jnp.ones((10, 10))} for n in ("a", "b")}
    masks = st.prune_in_rounds(
        lambda p, m: st.random_scores(jax.random.key(0), p),
        params,
        sparsity=0.4,
        rounds=3,
        keep_dense="a",
    )
    assert [int(n) for n in jax.tree.leaves(st.layer_counts(masks))] == [100, 20]
