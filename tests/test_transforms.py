"""The drop-in: slots by their meaning, RigL's step, gaps, parts, and its state."""

import copy
import pickle
from typing import NamedTuple

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sup_tickets as st
from sup_tickets.slots import slot_masks

PARAMS = {  # no two alike: rounding must not decide what is dropped
    "a": 1 + jax.random.normal(jax.random.key(1), (4, 3)) / 4,
    "b": 2 + jax.random.normal(jax.random.key(2), (3, 4)) / 4,
    "bias": jnp.zeros(3),
}
MASKS = {
    "a": jnp.arange(12).reshape(4, 3) % 2 == 0,
    "b": jnp.arange(12).reshape(3, 4) % 3 == 0,
    "bias": None,
}


@pytest.fixture(autouse=True)
def as_optax_is_used():
    """Optax itself mixes dtypes; our own modules are tested strictly elsewhere."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def set_of(**options):
    """SET with an update at every second step; it needs no gradient."""
    return st.sparse_evolutionary(sparsity=0.5, update_every=2, **options)


def trained(tx, params, steps, gradients=lambda i, p: jax.tree.map(jnp.cos, p)):
    """Parameters and state after some steps of one compiled program."""
    state = tx.init(params)
    params = st.keep_sparse(params, state)

    @jax.jit
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return st.keep_sparse(optax.apply_updates(params, updates), state), state

    for i in range(steps):
        params, state = step(params, state, gradients(i, params))
    return params, state


# --- Slots by their meaning -----------------------------------------------------------


class Factors(NamedTuple):
    left: jax.Array
    right: jax.Array


def shampoo_like():
    """State only: a momentum, and two factors of every matrix."""

    def init(params):
        left = jax.tree.map(lambda p: jnp.eye(p.shape[0]), params)
        right = jax.tree.map(lambda p: jnp.eye(p.shape[-1]), params)
        pairs = jax.tree.map(Factors, left, right)
        return {"trace": jax.tree.map(jnp.zeros_like, params), "left": left,
                "right": right, "pairs": pairs}  # fmt: skip

    return optax.GradientTransformation(init, lambda u, s, p=None: (u, s))


@pytest.mark.parametrize("shape", [(12, 12), (12, 13), (1, 1), (2, 2), (3, 3, 3)])
def test_factors_of_a_square_kernel_are_no_slots_of_its_weights(shape):
    params = {"kernel": jnp.ones(shape)}
    masks = {"kernel": jnp.zeros(shape, bool)}
    tx = shampoo_like()
    state = tx.init(params)
    new = st.reset_slots(tx, masks, jax.tree.map(lambda s: s + 7, state), params)
    assert np.all(new["trace"]["kernel"] == 0)
    del new["trace"], state["trace"]
    helpers.assert_same(new, jax.tree.map(lambda s: s + 7, state))


@pytest.mark.parametrize("size", [126, 127, 128, 129])
def test_a_kernel_at_the_size_where_adafactor_changes(size):
    shape = size, size
    params, masks = {"k": jnp.ones(shape)}, {"k": jnp.zeros(shape, bool)}
    tx = optax.adafactor(0.1)
    found = slot_masks(tx, masks, params, tx.init(params))
    assert sum(mask is not None for mask in found) == (size < 128)


def test_leaves_of_one_name_and_shape_keep_their_own_masks():
    params = {"k": jnp.ones((2, 2)), "mu": {"k": jnp.ones((2, 2))}}
    masks = {"k": jnp.zeros((2, 2), bool), "mu": {"k": jnp.ones((2, 2), bool)}}
    tx = optax.adam(0.1)
    state = jax.tree.map(lambda s: s + 1, tx.init(params))
    new = st.reset_slots(tx, masks, state, params)[0]
    for slot in (new.mu, new.nu):
        assert np.all(slot["k"] == 0) and np.all(slot["mu"]["k"] == 1)


class Moments(NamedTuple):
    mu: jax.Array
    left: jax.Array


def kept_by(structure):
    """SGD with momentum whose state is of another form than the parameters."""

    def init(params):
        def one(leaf):
            return Moments(jnp.zeros_like(leaf), jnp.eye(leaf.shape[0]))

        if structure == "list":
            return [one(leaf).mu for leaf in jax.tree.leaves(params)]
        return jax.tree.map(one, params)

    def update(updates, state, params=None):
        new = jax.tree.map(
            lambda g, s: s._replace(mu=0.9 * s.mu + g - g.mean()), updates, state
        )
        step = jax.tree.map(lambda g, s: -0.1 * s.mu, updates, new)
        return step, new

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("shape", [(12, 12), (6, 4)])
def test_a_structure_for_each_parameter_has_slots_too(shape):
    params = {"x": jnp.ones(shape), "y": {"x": jnp.ones(shape)}}
    params, state = trained(
        st.sparse_training(kept_by("structures"), set_of()),
        params,
        5,
        lambda i, p: jax.tree.map(lambda w: jnp.cos(w + i).at[0].mul(2), p),
    )
    masks = st.masks_of(state)
    for moments, mask, weight in (
        (state.inner["x"], masks["x"], params["x"]),
        (state.inner["y"]["x"], masks["y"]["x"], params["y"]["x"]),
    ):
        dead = ~np.asarray(mask)
        assert not np.asarray(moments.mu)[dead].any()
        assert not np.asarray(weight)[dead].any()
        assert np.asarray(moments.mu)[~dead].any()
        np.testing.assert_array_equal(moments.left, np.eye(shape[0]))


def test_slots_of_no_known_parameter_are_refused():
    tx = st.sparse_training(kept_by("list"), set_of())
    with pytest.raises(
        ValueError, match=r"cannot wrap .* state\[0\] is a slot of"
    ) as e:
        tx.init({"x": jnp.ones((6, 4))})
    assert "\n" not in str(e.value)


def test_start_values_are_those_of_init():
    """By hand: step sizes of Rprop, accumulators of Adagrad, copies of DoG."""
    for tx, wanted in [
        (optax.rprop(0.25), {0.25, 0.0}),
        (optax.adagrad(0.1, initial_accumulator_value=0.5), {0.5}),
        (optax.contrib.dog(0.1), {0.0}),
    ]:
        state = jax.tree.map(lambda s: s + 1, tx.init(PARAMS))
        new = st.reset_slots(tx, MASKS, state, PARAMS)
        slots = [s for s in jax.tree.leaves(new) if s.shape == (4, 3)]
        dead = ~np.asarray(MASKS["a"])
        assert {float(v) for slot in slots for v in slot[dead]} == wanted


def test_the_state_of_another_optimizer_is_refused():
    with pytest.raises(ValueError, match="opt_state has 0 arrays"):
        st.reset_slots(optax.adam(0.1), MASKS, optax.sgd(0.1).init(PARAMS), PARAMS)


def test_no_weight_of_rprop_stays_at_zero():
    """Once 54 of 180 active weights did, because their step size was 0."""
    params = {"k": jax.random.normal(jax.random.key(0), (9, 20))}
    target = {"k": jax.random.normal(jax.random.key(1), (9, 20))}
    method = st.sparse_evolutionary(sparsity=0.5, update_every=20, end_step=60)
    params, state = trained(
        st.sparse_training(optax.rprop(1e-2), method),
        params,
        90,
        lambda i, p: jax.tree.map(jnp.subtract, p, target),
    )
    assert np.all(np.asarray(params["k"])[np.asarray(st.masks_of(state)["k"])] != 0)


# --- RigL's step ----------------------------------------------------------------------


RATE = optax.linear_schedule(0.1, 0.01, 9)
DIRECTIONS = {
    "sgd": lambda: optax.identity(),
    "momentum": lambda: optax.trace(0.9),
    "nesterov": lambda: optax.trace(0.9, nesterov=True),
    "adam": lambda: optax.scale_by_adam(),
    "adamw": lambda: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1)),
    "amsgrad": lambda: optax.scale_by_amsgrad(),
    "belief": lambda: optax.scale_by_belief(),
    "lion": lambda: optax.scale_by_lion(),
    "rms": lambda: optax.scale_by_rms(initial_scale=1.0),
    "adan": lambda: optax.scale_by_adan(),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9)),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_replaced_step_is_time_without_the_optimizer(name):
    """As the training layer has it: the rate by the step, the rest by weight steps."""
    direction = DIRECTIONS[name]()
    method = st.rigl(sparsity=0.5, update_every=3, end_step=9)
    tx = st.sparse_training(
        optax.chain(direction, optax.scale_by_learning_rate(RATE)), method
    )
    given = [nan_at({})(i, PARAMS) for i in range(9)]
    params, state = trained(tx, PARAMS, 9, lambda i, _: given[i])

    @jax.jit
    def weight_step(params, slots, masks, gradients, i):
        updates, slots = direction.update(
            st.apply_masks(masks, gradients), slots, params
        )
        slots = st.reset_slots(direction, masks, slots, params)
        params = jax.tree.map(lambda p, u: p - RATE(i) * u, params, updates)
        return st.apply_masks(masks, params), slots

    topology = st.init_topology(method, 0, PARAMS)
    live = st.apply_masks(topology.masks, PARAMS)
    slots = direction.init(live)
    for i in range(9):
        if i in (3, 6):
            live, topology, _ = st.update_topology(method, topology, live, given[i], i)
            slots = st.reset_slots(direction, topology.masks, slots, live)
        else:
            live, slots = weight_step(live, slots, topology.masks, given[i], i)
    helpers.assert_same(st.masks_of(state), topology.masks)
    own, rate = state.inner
    assert int(rate.count) == 9
    if "count" in getattr(slots, "_fields", ()):
        assert int(own.count) == int(slots.count) == 7
    for a, b in zip(jax.tree.leaves((params, own)), jax.tree.leaves((live, slots)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_hyperparameters_are_of_the_time_too():
    method = st.rigl(sparsity=0.5, update_every=2, end_step=9)
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=RATE)
    _, state = trained(st.sparse_training(tx, method), PARAMS, 5)
    inner = state.inner
    assert int(inner.count) == 5 and int(inner.inner_state[0].count) == 3
    np.testing.assert_allclose(inner.hyperparams["learning_rate"], RATE(4), rtol=1e-6)


# --- Gradients that are not finite ----------------------------------------------------


def nan_at(steps):
    def gradients(i, params):
        fill = jnp.nan if i in steps else 0.0
        return jax.tree.map(lambda p: jnp.cos(p + i) + fill, params)

    return gradients


@pytest.mark.parametrize("around", [False, True])
def test_a_skipped_step_leaves_no_trace(around):
    """SNFS once kept NaN averages for good."""
    method = st.sparse_momentum(sparsity=0.5, update_every=4, end_step=9)
    if around:
        tx = optax.apply_if_finite(st.sparse_training(optax.sgd(0.1), method), 5)
    else:
        tx = st.sparse_training(optax.apply_if_finite(optax.sgd(0.1), 5), method)
    params, state = trained(tx, PARAMS, 4, nan_at({3}))
    expected, other = trained(tx, PARAMS, 3, nan_at({}))
    helpers.assert_same(params, expected)
    ours, theirs = st.method_state_of(state), st.method_state_of(other)
    helpers.assert_same(ours.momentum, theirs.momentum)
    helpers.assert_same(ours.masks, theirs.masks)
    params, state = trained(tx, PARAMS, 7, nan_at({3}))
    state = st.method_state_of(state)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((params, state.momentum)))
    assert int(st.hamming(state.masks, ours.masks)) > 0


def test_an_update_waits_for_finite_gradients():
    tx = st.sparse_training(optax.apply_if_finite(optax.sgd(0.1), 5), set_of())
    _, before = trained(tx, PARAMS, 2, nan_at({}))
    _, waiting = trained(tx, PARAMS, 4, nan_at({2, 3}))
    _, after = trained(tx, PARAMS, 5, nan_at({2, 3}))
    assert int(st.hamming(st.masks_of(before), st.masks_of(waiting))) == 0
    assert bool(waiting.update_waits) and not bool(after.update_waits)
    assert int(st.hamming(st.masks_of(before), st.masks_of(after))) > 0
    assert int(after.step) == 5


def test_the_last_pruning_is_not_lost():
    method = st.gradual_magnitude(sparsity=0.75, update_every=2, prune_end_step=4)
    tx = st.sparse_training(optax.apply_if_finite(optax.sgd(0.1), 5), method)
    _, state = trained(tx, PARAMS, 6, nan_at({4}))
    assert int(st.count(st.masks_of(state))) == st.active_count(24, 0.75)


# --- Parts of a network ---------------------------------------------------------------


def by_name(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if path[0].key == "a" else "k", params
    )


PARTED = {
    "partition": optax.partition(
        {"k": optax.adam(0.1), "frozen": optax.set_to_zero()},
        {"a": "frozen", "b": "k", "bias": "k"},
    ),
    "a function": optax.partition(
        {"k": optax.adam(0.1), "frozen": optax.set_to_zero()}, by_name
    ),
    "masked": optax.masked(optax.adam(0.1), {"a": True, "b": False, "bias": False}),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", PARTED)
def test_only_a_part_is_trained(name, nested):
    """Labels are prefixes where every leaf is a branch of its own."""
    params = {k: {"x": v, "y": v + 1} for k, v in PARAMS.items()} if nested else PARAMS
    params, state = trained(st.sparse_training(PARTED[name], set_of()), params, 5)
    masks = st.masks_of(state)
    for leaf, mask in zip(
        jax.tree.leaves(params), jax.tree.leaves(masks, is_leaf=lambda m: m is None),
        strict=True,
    ):  # fmt: skip
        assert mask is None or np.all(np.asarray(leaf)[~np.asarray(mask)] == 0)


def test_sparse_training_of_a_part_alone():
    tx = optax.partition(
        {"k": st.sparse_training(optax.adam(0.1), set_of()), "frozen": optax.sgd(0.1)},
        {"a": "frozen", "b": "k", "bias": "frozen"},
    )
    params, state = trained(tx, PARAMS, 5)
    masks = st.masks_of(state, like=params)
    assert masks["a"] is None and masks["bias"] is None
    assert int(masks["b"].sum()) == int((params["b"] != 0).sum()) == 6
    st.superposition("cia", sparsity=0.5).init(params, masks)


def test_two_parts_with_masks_of_their_own():
    tx = optax.partition(
        {
            "a": st.sparse_training(optax.adam(0.1), st.static(sparsity=0.25)),
            "b": st.sparse_training(optax.sgd(0.1), set_of()),
            "rest": optax.sgd(0.1),
        },
        {"a": "a", "b": "b", "bias": "rest"},
    )
    params, state = trained(tx, PARAMS, 5)
    masks = st.masks_of(state, like=params)
    assert (int(masks["a"].sum()), int(masks["b"].sum())) == (9, 6)
    with pytest.raises(ValueError, match=r"exactly one .*found 2"):
        st.masks_of(state)
    with pytest.raises(ValueError, match=r"two masks of leaf 'a'"):
        st.masks_of((state, state), like=params)
    with pytest.raises(ValueError, match=r"mask of leaf 'b' that params lacks"):
        st.masks_of(state, like={"a": params["a"]})
    with pytest.raises(ValueError, match="found 0"):
        st.masks_of(optax.sgd(0.1).init(params), like=params)


def test_lookahead_is_put_around():
    tx = optax.lookahead(st.sparse_training(optax.sgd(0.1), set_of()), 2, 0.5)
    both = optax.LookaheadParams.init_synced(PARAMS)
    state = tx.init(both)
    both = st.keep_sparse(both, state)
    for _ in range(5):
        gradients = jax.tree.map(jnp.cos, both.fast)
        updates, state = tx.update(gradients, state, both)
        both = st.keep_sparse(optax.apply_updates(both, updates), state)
    masks = st.masks_of(state)
    for params in both:
        assert np.all(np.asarray(params["b"])[~np.asarray(masks["b"])] == 0)


# --- The state ------------------------------------------------------------------------


METHODS = {
    "rigl-itop": st.rigl_itop(sparsity=0.5, update_every=2, end_step=9),
    "snfs": st.sparse_momentum(sparsity=0.5, update_every=2, end_step=9),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_parameters_and_state_can_be_donated(method, jitted):
    base = optax.contrib.schedule_free_adamw(0.1)  # keeps a copy of the parameters
    tx = st.sparse_training(base, METHODS[method])
    params = jax.tree.map(jnp.array, PARAMS)
    state = (jax.jit(tx.init) if jitted else tx.init)(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return optax.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        params, state = donated(params, state)


@pytest.fixture(scope="module")
def state():
    tx = st.sparse_training(optax.adam(0.1), METHODS["rigl-itop"])
    return jax.jit(tx.init)(PARAMS)


def test_no_key_of_the_state_is_typed(state):
    for leaf in jax.tree.leaves(state):
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def by_flax(state, path):
    flax = pytest.importorskip("flax.serialization")
    return flax.from_bytes(jax.tree.map(jnp.zeros_like, state), flax.to_bytes(state))


def by_equinox(state, path):
    eqx = pytest.importorskip("equinox")
    eqx.tree_serialise_leaves(path / "state.eqx", state)
    return eqx.tree_deserialise_leaves(path / "state.eqx", state)


def by_orbax(state, path):
    orbax = pytest.importorskip("orbax.checkpoint")
    with orbax.StandardCheckpointer() as keeper:
        keeper.save(path / "state", state)
        keeper.wait_until_finished()
        return keeper.restore(path / "state", state)


@pytest.mark.parametrize(
    "saved",
    [
        lambda state, _: pickle.loads(pickle.dumps(state)),
        lambda state, _: copy.deepcopy(state),
        by_flax,
        by_equinox,
        by_orbax,
    ],
    ids=["pickle", "deepcopy", "flax", "equinox", "orbax"],
)
def test_the_state_comes_back_as_it_was(saved, state, tmp_path):
    back = saved(state, tmp_path)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    helpers.assert_same(back, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), back, state))


def test_members_of_an_ensemble_are_drawn_apart():
    keys = jax.random.split(jax.random.key(0), 4)

    def init(key):
        return st.sparse_training(optax.adam(0.1), set_of(), key=key).init(PARAMS)

    state = jax.vmap(init)(keys)
    masks = np.asarray(st.masks_of(state)["a"]).reshape(4, -1)
    assert len({mask.tobytes() for mask in masks}) > 1
    tx = st.sparse_training(optax.adam(0.1), set_of())
    params = jax.vmap(lambda s: st.keep_sparse(PARAMS, s))(state)
    _, state = jax.vmap(tx.update)(params, state, params)
    assert int(st.count(st.masks_of(state))) == 4 * 12
    same = jax.vmap(lambda _: tx.init(PARAMS))(keys)  # the key of all of them is 0
    assert len({mask.tobytes() for mask in np.asarray(st.masks_of(same)["a"])}) == 1


@pytest.mark.parametrize("key", [3, jax.random.key(3), jax.random.PRNGKey(3)])
def test_keys_of_all_kinds(key):
    def masks(key):
        tx = st.sparse_training(optax.sgd(0.1), set_of(), key=key)
        return st.masks_of(tx.init(PARAMS))

    helpers.assert_same(masks(key), masks(3))
    assert int(st.hamming(masks(key), masks(4))) > 0


def test_parameters_may_be_nested_in_tuples_and_lists():
    params = ({"kernel": jnp.ones((4, 3))}, [(jnp.ones((3, 2)),), jnp.zeros(2)])
    tx = st.sparse_training(
        optax.rprop(0.1), "set", sparsity=0.5, update_every=1, where="kernel|1/0/0"
    )
    state = tx.init(params)
    params = st.keep_sparse(params, state)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, state = jax.jit(tx.update)(gradients, state, params)
    params = st.keep_sparse(optax.apply_updates(params, updates), state)
    masks = st.masks_of(state)
    assert int(st.count(masks)) == 9 and masks[1][1] is None
    assert int(jnp.sum(params[0]["kernel"] != 0)) == int(jnp.sum(masks[0]["kernel"]))
