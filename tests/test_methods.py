"""Methods as values: what presets are, worked by hand, and what they refuse."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sup_tickets as st
from sup_tickets import redistribution

KEY = jax.random.key(0)
SPARSE = [name for name in st.METHODS if name != "dense"]


def example(name, **options):
    given = {} if name == "dense" else {"sparsity": 0.75, "total_steps": 10_000}
    return st.make_method(name, **{**given, **options})


def at(method, steps):
    return [round(float(method.drop_fraction_at(step)), 6) for step in steps]


# --- Values ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", st.METHODS)
def test_methods_are_values(name):
    method = example(name)
    assert method == example(name) and hash(method) == hash(example(name))
    assert method != method.replace(name="another")
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.sparsity = 0.1
    traces = []

    @partial(jax.jit, static_argnums=0)
    def due(method, step):
        traces.append(None)
        return st.topology_due(method, step)

    steps = jnp.arange(10_001)
    whole = due(method, steps).tolist()
    assert whole == due(example(name), steps).tolist() and len(traces) == 1
    assert whole == [bool(st.topology_due(method, int(s))) for s in steps]
    assert any(whole) == (not method.fixed)


@pytest.mark.parametrize("name", st.METHODS)
def test_an_unknown_distribution_is_refused_when_a_method_is_made(name):
    with pytest.raises(ValueError, match=r"^distribution must be.*'erkk'.*mean 'erk'"):
        example(name).replace(distribution="erkk")


def test_options_are_frozen_copies():
    options, pairs = {"classifier": "b"}, [[0, 0.2], [10, 0.1]]
    method = st.Method(
        "mine",
        sparsity=0.5,
        distribution="erk_plus",
        distribution_options=options,
        keep_dense=["a"],
        drop_fraction=pairs,
    )
    options["classifier"], pairs[0][1] = "c", 0.9
    assert method.distribution_options == {"classifier": "b"}
    assert method.keep_dense == ("a",) and method.drop_fraction == ((0, 0.2), (10, 0.1))
    hash(method)


def test_what_follows_from_the_fields():
    methods = {name: example(name) for name in st.METHODS}

    def those(what):
        return {name for name, method in methods.items() if getattr(method, what)}

    assert those("fixed") == {"dense", "static"}
    assert those("prunes") == {"granet", "granet-dense", "gmp", "acdc"}
    assert those("starts_denser") == {"dense", "granet", "granet-dense", "gmp", "acdc"}
    assert those("observes") == {"snfs"}
    assert those("consumes_step") == {"rigl", "srigl"}
    assert those("tracks") == {"set-itop", "rigl-itop"}
    random = {"set", "set-itop", "mest", "selfish-rnn"}
    blind = set(methods) - those("update_needs_gradients")
    assert blind == {"dense", "static", "gmp", "acdc"} | random
    blind = set(methods) - those("explore_needs_gradients")
    assert blind == {"dense"} | random
    assert example("mest", gradient_weight=0.01).update_needs_gradients
    assert methods["set"].replace(grow_score=lambda s: s.params).update_needs_gradients


# --- Presets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "end", "fractions"),
    [
        # At 0, a quarter, a half and three quarters of the training, and at its end.
        ("set", 10_000, [0.3, 0.3, 0.3, 0.3, 0.3]),
        ("rigl", 7_500, [0.3, 0.225, 0.075, 0.0, 0.0]),
        ("set-itop", 10_000, [0.5, 0.427509, 0.2525, 0.077491, 0.005]),
        ("rigl-itop", 10_000, [0.5, 0.427509, 0.2525, 0.077491, 0.005]),
        ("granet", 10_000, [0.5, 0.427509, 0.2525, 0.077491, 0.005]),
        ("selfish-rnn", 10_000, [0.5, 0.427509, 0.2525, 0.077491, 0.005]),
        ("snfs", 10_000, [0.5, 0.427509, 0.2525, 0.077491, 0.005]),
        ("mest", 7_500, [0.2, 0.2, 0.2, 0.0, 0.0]),
    ],
)
def test_presets_lay_their_schedule_over_the_training(name, end, fractions):
    method = example(name)
    assert method.end_step == end
    assert at(method, (0, 2_500, 5_000, 7_500, 10_000)) == fractions
    due = [s for s in range(10_001) if st.topology_due(method, s)]
    assert due[0] == method.update_every and due[-1] <= end < due[-1] + due[0]


def test_pruning_ends_after_110_of_160_parts():
    assert example("granet").prune_end_step == 6875
    assert example("granet").settled_step == 6000
    assert example("gmp").settled_step == 6800
    assert example("gmp").end_step == 6875


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: st.rigl(sparsity=0.9), "rigl needs total_steps.*or update_every"),
        (
            lambda: st.rigl(sparsity=0.9, update_every=10),
            "rigl needs total_steps.*drop fraction falls; or end_step; or a drop_frac",
        ),
        (
            lambda: st.rigl(sparsity=0.9, total_steps=50),
            "rigl would never change .*update_every=100 and total_steps=50 .*step 37",
        ),
        (lambda: st.sparse_evolutionary(sparsity=0.9), "set needs total_steps"),
        (lambda: st.sparse_evolutionary(sparsity=0.9, total_steps=99), "would never"),
        (
            lambda: st.granet(sparsity=0.9, drop_fraction=0.5),
            "granet needs total_steps",
        ),
        (lambda: st.gradual_magnitude(sparsity=0.9), "gmp needs total_steps"),
        (lambda: st.acdc(sparsity=0.9, total_steps=19), "total_steps .* at least 20"),
        (lambda: st.mest(sparsity=0.9, total_steps=31), "total_steps .* at least 32"),
        (lambda: example("rigl", momentum_decay=0.9), "rigl.*momentum_decay.*replace"),
        (
            lambda: example("rigl").replace(momentum=0.9),
            "did you mean 'momentum_decay'",
        ),
        (
            lambda: st.Method("m", sparsity=0.5, grow_score=st.by_momentum),
            "grow_score .* needs momentum_decay",
        ),
        (
            lambda: st.Method("m", sparsity=0.5, drop_decay="cosine"),
            "needs drop_end_step or end_step",
        ),
        (
            lambda: st.Method("m", sparsity=0.5, drop_fraction=((5, 0.1),)),
            "drop_fraction must be .* the first at step 0",
        ),
        (
            lambda: st.Method("m", sparsity=0.5, sparsity_stairs=((0, 0.9), (5, 0.5))),
            "may fall to 0 alone",
        ),
        (
            lambda: st.Method("m", sparsity=0.5, sparsity_stairs=((0, 0.1),)),
            "must end at sparsity=0.5",
        ),
        (
            lambda: st.rigl(sparsity=0.9, end_step=50),
            "rigl would never .*update_every=100 .* end_step=50",
        ),
        (
            lambda: st.sparse_evolutionary(sparsity=0.9, update_every=0),
            "update_every must be a whole number of at least 1, got 0",
        ),
        (
            lambda: st.rigl(sparsity=0.9, total_steps=900, update_every="100"),
            "update_every must be a whole number of at least 1, got '100'",
        ),
        (
            lambda: st.rigl(sparsity=0.9, total_steps=2**40),
            "end_step must be at most 2147483647",
        ),
        (
            lambda: st.Method("m", sparsity=0.5, update_every=2.5),
            "update_every must be a whole number",
        ),
        (
            lambda: st.gradual_magnitude(sparsity=0.5, prune_end_step="9"),
            "prune_end_step must be a whole number",
        ),
        (
            lambda: example("gmp").replace(prune_begin_step=2.5),
            "prune_begin_step must be a whole number",
        ),
        (
            lambda: st.mest(sparsity=0.5, total_steps=999, extra_density=0.7),
            r"extra_density must be in \[0, 0.5\], got 0.7",
        ),
        (
            lambda: st.make_method("rigl", total_steps=9),
            "^method 'rigl' needs sparsity$",
        ),
        (
            lambda: st.make_method("acdc"),
            "^method 'acdc' needs sparsity and total_steps$",
        ),
        (
            lambda: st.make_method("rigl", sparcity=0.9, total_steps=9),
            "^method 'rigl' has no option 'sparcity'; did you mean 'sparsity'.$",
        ),
        (
            lambda: st.rigl(sparsity=0.5, total_steps=999, grow_score=st.by_random),
            r"^method 'rigl' has no option 'grow_score', .* by replace\(grow_score=",
        ),
        (
            lambda: st.make_method("dense", sparsity=0.9),
            "^method 'dense' has no option 'sparsity'$",
        ),
        (lambda: st.make_method("sparse_evolutionary"), "did you mean 'set'"),
        (lambda: st.make_method("gradual_magnitude"), "did you mean 'gmp'"),
        (lambda: st.Method("m", sparsity=0.5, where=None), "where=None .* must be 0"),
        (lambda: st.Method("m", sparsity=0.5, spare_dense=True), "needs redistribute"),
        (lambda: st.by_magnitude_and_gradient(-1.0), "must not be negative, got -1"),
    ],
)
def test_what_is_missing_or_wrong_is_said_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_drop_fraction_without_an_end_stays():
    method = st.rigl(sparsity=0.9, update_every=10, drop_fraction=0.2)
    assert at(method, (0, 10**6)) == [0.2, 0.2] and method.end_step is None


def test_sparse_training_takes_a_name_and_refuses_the_rest():
    tx, params = optax.sgd(0.1), {"w": jnp.ones((8, 8))}
    named = st.sparse_training(tx, "rigl", sparsity=0.75, total_steps=1000)
    given = st.sparse_training(tx, st.rigl(sparsity=0.75, total_steps=1000))
    chex.assert_trees_all_equal(named.init(params), given.init(params))
    for method, options, message in [
        ("rigle", {}, "did you mean 'rigl'"),
        ("rigl", {}, "sparsity"),
        ("rigl", {"sparsity": 0.5, "total_step": 9}, "did you mean 'total_steps'"),
        (st.rigl, {}, "got the function 'rigl'; call it"),
        (0.9, {}, "must be a Method or a name, got 0.9"),
        (example("rigl"), {"sparsity": 0.5}, r"options .*\['sparsity'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            st.sparse_training(tx, method, **options)


# --- State ----------------------------------------------------------------------------


def test_any_key_will_do():
    params, method = {"w": jnp.ones((8, 8))}, example("set-itop")
    states = [
        st.init_topology(method, key, params)
        for key in (7, np.int32(7), jax.random.key(7), jax.random.PRNGKey(7))
    ]
    for state in states:
        assert state.key.dtype == jnp.uint32
        chex.assert_trees_all_equal(state, states[0])
    state = st.init_topology(method, jax.random.key(7, impl="rbg"), params)
    change = st.update_topology(method, state, params, None, 1500)
    assert int(st.count(change.state.masks)) == 16
    keys = jax.random.split(jax.random.key(0), 2)
    for key in (jnp.zeros(3), 1.5, "a", None, 2**70, keys):
        with pytest.raises(ValueError, match="key must be a random key or a seed"):
            st.init_topology(method, key, params)


@pytest.mark.parametrize("name", ["set-itop", "snfs"])
def test_no_buffer_is_in_a_state_twice(name):
    params = {"w": jnp.ones((8, 8))}
    state = st.init_topology(example(name), 0, params)
    begun = st.method_state.starting_from(state, params, state.masks)
    for made in (state, begun._replace(masks=None)):
        leaves = jax.tree.leaves(made)
        pointers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
        assert len(pointers) == len(leaves)
    jax.jit(lambda s: jax.tree.map(jnp.copy, s), donate_argnums=0)(state)


# --- The references, by hand ----------------------------------------------------------

W = {"w": jnp.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]])}
G = {"w": jnp.array([[0.0, 0, 0, 0, 0, 3, 4, 5]])}


def granet(**options):
    return st.granet_dense(
        sparsity=0.5, prune_end_step=2, update_every=1, drop_fraction=0.5, **options
    )


@pytest.mark.parametrize("keep", [False, True])
def test_granet_grows_what_it_pruned_anew(keep):
    """5 of 8 stay at step 1; 3 are dropped, and the 3 that were pruned grow."""
    method = granet(keep_pruned=keep)
    state = st.init_topology(method, 0, W)
    change = st.update_topology(method, state, W, G, 1)
    kept = [0.4, 0.3, 0.2] if keep else [0, 0, 0]
    np.testing.assert_array_equal(
        change.params["w"], jnp.array([[0.9, 0.8, 0, 0, 0, *kept]])
    )
    assert change.state.masks["w"].tolist() == [[True] * 2 + [False] * 3 + [True] * 3]
    assert change.grown["w"].tolist() == [[False] * 5 + [not keep] * 3]


@pytest.mark.parametrize("keep", [False, True])
def test_granet_zeroes_value_and_moments_in_an_optax_loop(keep):
    """Step 0 leaves moments of G; step 1 prunes and grows the last three anew."""
    tx = st.sparse_training(optax.sgd(0.01, momentum=0.5), granet(keep_pruned=keep))
    state, params = tx.init(W), W
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            updates, state = tx.update(G, state, params)
            params = optax.apply_updates(params, updates)
    trace = state.inner[0].trace["w"][0, 5:]
    np.testing.assert_allclose(trace, jnp.array([3.0, 4, 5]) * (1.5 if keep else 1))
    begun = jnp.array([0.37, 0.26, 0.15]) if keep else jnp.zeros(3)
    np.testing.assert_allclose(params["w"][0, 5:], begun - 0.01 * trace, atol=1e-7)


@pytest.mark.parametrize(("spare", "dropped"), [(True, (1, 2)), (False, (5, 2))])
def test_snfs_spares_dense_layers_that_grow(spare, dropped):
    """Layer a: 9 of 10 active, half of them would drop; its sparsity is a tenth."""
    method = st.sparse_momentum(
        sparsity=0.5, update_every=1, drop_fraction=0.5, spare_dense=spare
    ).replace(regrow_dropped=False)
    masks = {
        "a": jnp.arange(10)[None] < 9,
        "b": jnp.arange(10)[None] < 3,
    }
    params = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
    state = st.init_topology(method, 0, params)
    state = st.method_state.starting_from(state, params, masks)
    momentum = {"a": jnp.full((1, 10), 3.0), "b": jnp.ones((1, 10))}
    state = state._replace(momentum=momentum)
    fraction = redistribution.spared_fractions(masks, {"a": 3.0, "b": 1.0}, 0.5)
    assert round(float(fraction["a"]), 6) == 0.1
    assert float(fraction["b"]) == 0.5
    # A layer at 80% exactly, or with no more than the average share, is not spared.
    even = redistribution.spared_fractions(masks, {"a": 1.0, "b": 1.0}, 0.5)
    four_fifths = {"a": jnp.arange(10)[None] < 8, "b": masks["b"]}
    at_80 = redistribution.spared_fractions(four_fifths, {"a": 3.0, "b": 1.0}, 0.5)
    assert float(even["a"]) == float(at_80["a"]) == 0.5
    method = method.replace(regrow_dropped=True)
    change = st.update_topology(method, state, params, None, 1)
    stays = st.layer_counts(st.intersection(masks, change.state.masks))
    # Ties go to the lowest index, so what is dropped and not regrown is at the end.
    assert int(st.count(change.state.masks)) == 12
    assert int(stays["a"]) >= 9 - dropped[0] and int(stays["b"]) >= 3 - dropped[1]


def test_acdc_alternates_by_hand():
    """Of 100 steps dense 0-9, sparse 10-14, dense 15-19, .., 75-84, sparse 85-99."""
    method = st.acdc(sparsity=0.75, total_steps=100)
    turns = [s for s in range(101) if st.topology_due(method, s)]
    assert turns == [*range(10, 80, 5), 85] and method.settled_step == 85
    state = st.init_topology(method, 0, W)
    assert bool(state.masks["w"].all())
    first = st.update_topology(method, state, W, None, 10)
    assert first.state.masks["w"].tolist() == [[True, True] + [False] * 6]
    live = {"w": first.params["w"].at[0, 0].set(0.1)}
    second = st.update_topology(method, first.state, live, None, 15)
    assert bool(second.state.masks["w"].all())
    assert second.grown["w"].tolist() == [[False, False] + [True] * 6]
    np.testing.assert_array_equal(second.params["w"], live["w"])
    moved = {"w": second.params["w"].at[0, 7].set(-2.0)}
    third = st.update_topology(method, second.state, moved, None, 20)
    assert third.state.masks["w"].tolist() == [
        [False, True, False, False, False, False, False, True]
    ]


@pytest.mark.parametrize(
    ("gradient_weight", "stays"), [(0.0, [0, 1, 2, 3]), (0.1, [0, 1, 2, 4])]
)
def test_mest_drops_by_weight_and_gradient(gradient_weight, stays):
    """|w| + 0.1 |g|: 0.6 + 0 falls behind 0.5 + 0.2."""
    method = st.mest(
        sparsity=0.375, total_steps=160, gradient_weight=gradient_weight
    ).replace(regrow_dropped=False)
    masks = {"w": jnp.arange(8)[None] < 5}
    params, gradients = st.apply_masks(masks, W), {"w": G["w"].at[0, 4].set(2.0)}
    state = st.method_state.starting_from(st.init_topology(method, 0, W), W, masks)
    change = st.update_topology(method, state, params, gradients, 5)
    kept = st.intersection(masks, change.state.masks)["w"][0]
    assert jnp.flatnonzero(kept).tolist() == stays
    assert int(st.count(change.state.masks)) == 5
    assert at(method, (89, 90, 119, 120)) == [0.2, 0.1, 0.1, 0.0]


def test_mest_with_a_soft_bound_ends_on_target():
    method = st.mest(sparsity=0.9, total_steps=160, extra_density=0.05)
    assert method.sparsity_stairs == ((0, 0.85), (90, 0.875), (120, 0.9))
    assert at(method, (0, 90, 120)) == [0.333333, 0.2, 0.0]
    params = {"w": jax.random.normal(KEY, (20, 20))}
    state, counts = st.init_topology(method, 0, params), []
    for step in (5, 85, 90, 115, 120):
        live = st.apply_masks(state.masks, params)
        state = st.update_topology(method, state, live, None, step).state
        counts.append(int(st.count(state.masks)))
    assert counts == [60, 60, 50, 50, 40]
