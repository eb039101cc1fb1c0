"""One contract for every view: pure, exact, of its key alone, and what is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sup_tickets as st
from sup_tickets.trees import named_leaves
from tests import helpers

OPTIONS = {
    "edge-popup": {"density": 0.3},
    "softnet": {"density": 0.3, "redraw_every": 2},
    "spartan": {"density": 0.3, "total_steps": 10},
    "ksm": {"noise": True},
    "sr-ste": {"n": 2, "m": 4},
    "top-kast": {"density": 0.3, "backward_density": 0.6, "refresh_every": 2},
}
VIEWS = {name: st.make_view(name, **OPTIONS.get(name, {})) for name in st.VIEWS}

QUICK = ("edge-popup", "sr-ste")  # compiling a training step takes seconds


@pytest.fixture(scope="module", params=VIEWS)
def view(request):
    return VIEWS[request.param]


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        "conv": {
            "kernel": jax.random.normal(keys[0], (3, 3, 4, 16)),
            "bias": jax.random.normal(keys[1], (16,)),
        },
        "head": {"kernel": jax.random.normal(keys[2], (16, 8), jnp.bfloat16)},
    }


@pytest.fixture(scope="module")
def masks(params):
    counts = st.uniform(params, sparsity=0.5)
    return st.random_masks(jax.random.key(2), params, counts)


@pytest.fixture(scope="module")
def extra(view, params):
    return jax.jit(view.init)(jax.random.key(3), params)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (name, x), (_, y) in zip(named_leaves(a), named_leaves(b), strict=True):
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), name)


def covered(view, params):
    return dict(named_leaves(view.covers(params)))


def test_it_is_pure_and_jit_changes_nothing(view, params, extra):
    before = jax.tree.map(np.array, (params, extra))
    key = jax.random.key(4)
    found = jax.jit(view.apply, static_argnums=3)(params, extra, key, True)
    again = jax.jit(view.apply, static_argnums=3)(params, extra, key, True)
    same(found, again)
    same(jax.tree.map(jnp.asarray, before), (params, extra))
    plain = view.apply(params, extra, key, True)
    for (name, x), (_, y) in zip(named_leaves(found), named_leaves(plain), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(x == 0, y == 0, name)


def test_shapes_and_dtypes_are_kept_and_other_leaves_left_alone(view, params, extra):
    found = view.apply(params, extra)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    is_covered = covered(view, params)
    assert any(is_covered.values()) and not is_covered["conv/bias"]
    for (name, x), (_, y) in zip(
        named_leaves(found), named_leaves(params), strict=True
    ):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        if not is_covered[name]:
            assert x is y


def test_init_and_apply_are_functions_of_the_key(view, params, extra):
    again = view.init(jax.random.key(3), params)
    assert jax.tree.structure(again) == jax.tree.structure(extra)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(extra), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    keys = jax.random.split(jax.random.key(5))
    same(
        view.apply(params, extra, keys[0], True),
        view.apply(params, extra, keys[0], True),
    )
    # Nothing is drawn to evaluate.
    same(view.apply(params, extra), view.apply(params, extra, keys[1], False))


def test_the_randomness_of_a_leaf_is_its_own(view, params, extra):
    """Another leaf beside it changes nothing, as everywhere here."""
    more = {**params, "a": {"kernel": jnp.ones((4, 4))}}
    found = dict(named_leaves(view.init(jax.random.key(3), more)))
    for name, leaf in named_leaves(extra):
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, err_msg=name)


def test_what_is_pruned_is_exactly_0(view, params, masks):
    live = st.apply_masks(masks, view.store(params))
    extra = view.init(jax.random.key(3), live, masks)
    found, kept = st.seen_network(view, live, extra, masks)
    is_covered = covered(view, params)
    for name, mask in named_leaves(masks):
        of_leaf = dict(named_leaves(found))[name]
        seen = view.apply(live, extra, jax.random.key(1), True)
        assert not np.asarray(dict(named_leaves(seen))[name])[~np.asarray(mask)].any()
        own = np.asarray(dict(named_leaves(kept))[name])
        assert not (own & ~np.asarray(mask)).any()
        if is_covered[name]:
            np.testing.assert_array_equal(own, np.asarray(of_leaf) != 0)
        zeros = np.asarray(of_leaf)[~own].astype(np.float32)
        assert not np.signbit(zeros).any()  # as files want them


def test_what_begins_is_what_was_drawn(view, params):
    """Views by reparametrization store other numbers, and show the given ones."""
    stored = view.store(params)
    assert jax.tree.structure(stored) == jax.tree.structure(params)
    again = view.apply(stored, view.init(jax.random.key(3), stored))
    if all(
        p is s for p, s in zip(*map(jax.tree.leaves, (params, stored)), strict=True)
    ):
        return
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(
            x.astype(jnp.float32), y.astype(jnp.float32), rtol=2e-2
        )


def loss(view, params, extra, key, trained):
    """Linear in what is seen, so that every step of a straight-through rule helps."""
    seen = view.apply(*st.with_trained(params, extra, trained), key, True)
    slopes = st.random_scores(jax.random.key(9), seen)
    products = jax.tree.map(
        lambda w, c: jnp.sum(w.astype(jnp.float32) * (c - 0.5)), seen, slopes
    )
    return sum(jax.tree.leaves(products))


def test_gradients_are_those_of_what_is_trained(view, params, extra):
    trained = st.trainable(view, params, extra)
    same(st.with_trained(params, extra, trained), (params, extra))
    key = jax.random.key(6)
    gradient = jax.jit(jax.grad(lambda t: loss(view, params, extra, key, t)))(trained)
    assert jax.tree.structure(gradient) == jax.tree.structure(trained)
    is_covered = covered(view, params)
    assert {name for name, _ in named_leaves(trained.weights)} == {
        name for name in is_covered if not (view.freezes and is_covered[name])
    }
    for (name, g), (_, t) in zip(
        named_leaves(gradient), named_leaves(trained), strict=True
    ):
        assert (g.shape, g.dtype) == (t.shape, t.dtype), name
        assert np.isfinite(np.asarray(g, np.float32)).all(), name
        assert np.asarray(g).any(), name


def test_a_frozen_leaf_is_not_the_optimizers(view, params, extra):
    """Neither a slot nor a mask: the optimizer does not know of it."""
    if not view.freezes:
        return
    trained = st.trainable(view, params, extra)
    slots = jax.tree.leaves(optax.sgd(0.1, momentum=0.9).init(trained))
    weights = sum(x.size for x in jax.tree.leaves(trained))
    assert sum(x.size for x in slots) == weights
    masks = st.trainable_masks(view, params, extra, st.full_masks(params))
    assert jax.tree.leaves(masks.extra) == []
    assert not any(covered(view, params)[n] for n, _ in named_leaves(masks.weights))


def test_after_a_step_what_is_trained_stays(view, params, extra):
    @jax.jit
    def after(params, extra, step):
        return view.after_step(params, extra, jax.random.key(7), step)

    for step in (1, 2, 3):
        new = after(params, extra, jnp.int32(step))
        assert jax.tree.structure(new) == jax.tree.structure(extra)
        same(new.trained, extra.trained)
        for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(extra), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert after._cache_size() == 1  # pyright: ignore


def test_eight_devices_see_the_same(view, params, extra):
    mesh = helpers.mesh(model=8)

    def spread(leaf):
        parts = P(*(None,) * (leaf.ndim - 1), "model") if leaf.ndim > 1 else P()
        if leaf.ndim > 1 and leaf.shape[-1] % 8:
            parts = P()
        return jax.device_put(leaf, NamedSharding(mesh, parts))

    one = jax.jit(view.apply)(params, extra)
    eight = jax.jit(view.apply)(*jax.tree.map(spread, (params, extra)))
    for (name, x), (_, y) in zip(named_leaves(one), named_leaves(eight), strict=True):
        np.testing.assert_array_equal(np.asarray(x) == 0, np.asarray(y) == 0, name)
        np.testing.assert_allclose(x, y, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in VIEWS],
)
def test_it_trains_within_sparse_training(name, params):
    """Anybody's loop: inactive weights stay 0, stored and seen."""
    view = VIEWS[name]
    stored, tx = view.store(params), optax.sgd(0.01, momentum=0.9)
    extra = view.init(jax.random.key(3), stored)
    trained = st.trainable(view, stored, extra)
    if not view.freezes:
        where = [("^weights/conv/kernel", True), (".*", False)]
        tx = st.sparse_training(tx, "static", sparsity=0.5, where=where)
    state = tx.init(trained)
    if not view.freezes:
        trained: Any = st.keep_sparse(trained, state)
        masks = st.masks_of(state).weights
        extra = view.init(jax.random.key(3), trained.weights, masks)
        trained = trained._replace(extra=extra.trained)

    @jax.jit
    def step(trained, extra, state, number):
        key = jax.random.fold_in(jax.random.key(8), number)
        value, gradient = jax.value_and_grad(
            lambda t: loss(view, stored, extra, key, t)
        )(trained)
        updates, state = tx.update(gradient, state, trained)
        trained = optax.apply_updates(trained, updates)
        ours = st.with_trained(stored, extra, trained)
        return trained, view.after_step(*ours, key, number), state, value

    values = []
    for number in range(1, 6):
        trained, extra, state, value = step(trained, extra, state, jnp.int32(number))
        values.append(float(value))
    assert values[-1] < values[0]
    if not view.freezes:
        off = ~np.asarray(masks["conv"]["kernel"])  # pyright: ignore
        seen = view.apply(*st.with_trained(stored, extra, trained))
        for weights in (trained.weights, seen):
            assert not np.asarray(weights["conv"]["kernel"])[off].any()


def test_bad_fields_and_names_are_refused():
    with pytest.raises(TypeError, match="apply of a view must be a function, got 3"):
        st.View("mine", lambda p: p, lambda *a: st.Extra(), 3)  # pyright: ignore
    word: Any = "go"
    with pytest.raises(ValueError, match="masks_may must be one of 'change'"):
        st.View("", lambda p: p, lambda *_: st.Extra(), lambda p, *_: p, masks_may=word)
    for name, options, words in (
        ("edge_popup", {}, "unknown view 'edge_popup'; did you mean 'edge-popup'"),
        ("edge-popup", {"densty": 1}, "no option 'densty'; did you mean 'density'"),
        ("edge-popup", {}, "missing 1 required keyword-only argument: 'density'"),
        ("edge-popup", {"density": 0}, r"density must be in \(0, 1\], got 0"),
        ("softnet", {"density": 30}, r"in \(0, 1\], got 30; in percent"),
        ("softnet", {"density": 0.5, "redraw_every": -1}, "redraw_every must be"),
        ("sr-ste", {"n": 4, "m": 4}, "n must be at most 3, got 4"),
        ("sr-ste", {"decay": -1}, "decay must be a finite number of at least 0"),
        ("piggyback", {"threshold": "a"}, "threshold must be finite, got 'a'"),
        ("ksm", {"per": "row"}, "per must be one of 'kernel', 'channel', 'element'"),
        ("ksm", {"temperature": 0}, "temperature must be positive and finite, got 0"),
        ("ksm", {"scale": 2}, r"scale must be in \[0, 1\], got 2"),
        (
            "top-kast",
            {"density": 0.5, "backward_density": 0.4},
            r"in \[0.5, 1\], got 0",
        ),
        ("top-kast", {"density": 2, "backward_density": 1}, r"in \(0, 1\], got 2"),
        ("powerpropagation", {"alpha": 0.5}, "alpha must be a finite number of at lea"),
    ):
        with pytest.raises(ValueError, match=words):
            st.make_view(name, **options)
