"""Options of methods, through whole trainings: windows, held layers, accumulation."""

import jax
import jax.numpy as jnp
import optax
import pytest

import sup_tickets as st
from tests.test_contract import batch, make_step, network

pytestmark = pytest.mark.usefixtures("loose")


@pytest.fixture(scope="module")
def params():
    return network()


def trained(method, params, calls, tickets=None, tx=None):
    tx = st.sparse_training(tx or optax.sgd(0.01), method, tickets=tickets)
    state = tx.init(params)
    live = st.keep_sparse(params, state)
    step = jax.jit(make_step(tx))
    for i in range(calls):
        live, state = step(live, state, *batch(i))
    return live, st.method_state_of(state)


PRUNERS = {"update_every": 10, "sparsity": 0.9}


@pytest.mark.parametrize(
    ("make", "options", "tickets"),
    [
        (st.gradual_magnitude, {"prune_begin_step": 5, "prune_end_step": 25}, None),
        (st.gradual_magnitude, {"begin_step": 5, "prune_end_step": 20}, None),
        (st.gradual_magnitude, {"prune_end_step": 20}, st.TicketPlan(21, 3, 1)),
        (st.granet, {"prune_end_step": 20, "end_step": 15}, None),
        (
            st.granet,
            {"prune_end_step": 20, "prune_scope": "layer", "drop_fraction": 0.5},
            None,
        ),
    ],
)
def test_pruning_ends_at_the_exact_count_whatever_the_window(
    make, options, tickets, params
):
    method = make(**PRUNERS, **options)
    assert method.settled_step <= 25
    _, state = trained(method, params, 26, tickets)
    assert int(st.count(state.masks)) == st.active_count(160, 0.9)


def test_pruning_by_layer_treats_them_alike(params):
    method = st.gradual_magnitude(**PRUNERS, prune_end_step=10, prune_scope="layer")
    _, state = trained(method, params, 12)
    assert jax.tree.map(int, st.layer_counts(state.masks)) == {
        "layer": {"kernel": 12, "bias": None},
        "head": {"kernel": 4},
    }


@pytest.mark.parametrize(
    "method",
    [
        st.sparse_momentum(sparsity=0.5, update_every=2, end_step=9, keep_dense="head"),
        st.rigl(sparsity=0.5, update_every=2, end_step=9, keep_dense="head"),
        st.granet(
            sparsity=0.5,
            update_every=2,
            prune_end_step=6,
            end_step=9,
            keep_dense="head",
        ),
        st.gradual_magnitude(
            sparsity=0.5,
            update_every=2,
            prune_end_step=6,
            keep_dense="head",
            prune_scope="layer",
        ),
    ],
    ids=lambda m: m.name,
)
def test_a_layer_fixed_dense_stays_dense(method, params):
    params = {**params, "head": {"kernel": 1e-3 * params["head"]["kernel"]}}
    _, state = trained(method, params, 9)
    assert bool(state.masks["head"]["kernel"].all())
    assert int(st.count(state.masks)) == st.active_count(160, 0.5)


def test_a_window_without_an_update_is_refused(params):
    with pytest.raises(ValueError, match="prune_end_step must leave an update"):
        st.gradual_magnitude(sparsity=0.9, update_every=10, prune_end_step=9)
    method = st.gradual_magnitude(**PRUNERS, prune_end_step=20)
    with pytest.raises(ValueError, match="prunes until step 20, but the tickets begin"):
        trained(method, params, 1, st.TicketPlan(20, 3, 1))


def test_a_final_sparsity_that_cannot_be_met_is_refused(params):
    for options in ({"sparsity": 0.9999}, {"sparsity": 0.8, "keep_dense": "head"}):
        method = st.gradual_magnitude(update_every=5, prune_end_step=20, **options)
        with pytest.raises(ValueError, match="active"):
            st.init_topology(method, jax.random.key(0), params)


def test_around_accumulated_gradients_a_step_is_one_of_the_optimizer():
    """Gradient 1, learning rate 1, two micro-steps: -1 at every second call."""
    params = {"kernel": jnp.ones((2, 2))}
    method = st.rigl(sparsity=0.5, update_every=2, drop_fraction=0.0)
    tx = optax.MultiSteps(st.sparse_training(optax.sgd(1.0), method), 2)
    state = tx.init(params)
    live, gradients, emitted = st.keep_sparse(params, state), params, []
    step = jax.jit(tx.update)
    for _ in range(10):
        updates, state = step(gradients, state, live)
        emitted.append(float(jnp.sum(updates["kernel"] * st.masks_of(state)["kernel"])))
    # The third step of the optimizer, calls 4 and 5, is replaced by RigL's update.
    assert emitted == [0, -2, 0, -2, 0, 0, 0, -2, 0, 0]


def test_never_active_places_grow_first(params):
    method = st.set_itop(
        sparsity=0.75, update_every=1, drop_fraction=0.5, prefer_unexplored=True
    )
    _, state = trained(method, params, 8)
    plain = st.set_itop(sparsity=0.75, update_every=1, drop_fraction=0.5)
    _, other = trained(plain, params, 8)
    assert float(st.exploration_rate(state)) > float(st.exploration_rate(other))


def test_drop_and_grow_draw_independently(params):
    method = st.Method(
        "chance",
        sparsity=0.5,
        drop_score=st.by_random,
        grow_score=st.by_random,
        drop_fraction=0.5,
        where="layer/kernel",
    )
    state = st.init_topology(method, jax.random.key(0), params)
    live = st.apply_masks(state.masks, params)
    change = st.update_topology(method, state, live, None, 100)
    kept = int(st.count(st.intersection(state.masks, change.state.masks)))
    assert 30 < kept < 55  # 30 are not dropped, of the other 30 a third comes back


def test_options_of_the_distribution_reach_it(params):
    method = st.static(
        sparsity=0.5,
        distribution="erk_plus",
        distribution_options={"classifier": "head"},
    )
    masks = st.init_topology(method, jax.random.key(0), params).masks
    assert bool(masks["head"]["kernel"].all())
    with pytest.raises(ValueError, match=r"'erk_plus'.*'classifier'"):
        st.static(sparsity=0.5, distribution="erk_plus")
    with pytest.raises(ValueError, match=r"'erk_plus'.*'classifer'"):
        method.replace(distribution_options={"classifer": "head"})


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"sparsity must be in .*, got '0.9'"):
        st.rigl(sparsity="0.9")
    with pytest.raises(ValueError, match=r"static.*never updates"):
        st.static(sparsity=0.5, update_every=5)
    with pytest.raises(ValueError, match="cycle_steps must be a whole number"):
        st.TicketPlan(10, 0, 2)
    with pytest.raises(ValueError, match="did you mean 'drop_fraction'"):
        st.make_method("rigl", sparsity=0.5, drop_fractio=0.1)
    with pytest.raises(ValueError, match="did you mean 'rigl'"):
        st.make_method("rigel")
    mask, leaf = {"w": jnp.ones((1, 8), bool)}, {"w": jnp.ones((8, 8))}
    with pytest.raises(ValueError, match="shape"):
        st.apply_masks(mask, leaf)
    with pytest.raises(ValueError, match="shape"):
        st.union(mask, {"w": jnp.ones((8, 8), bool)})
