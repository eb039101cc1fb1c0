"""Selfish-RNN: a joint drop over the gates of a matrix, and growth in equal shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.selfish_rnn import ARMS, get_config
from experiments.build.option_rules import check_options
from experiments.build.parts import make_optimizer, make_parts
from experiments.config.fields import check_config
from sup_tickets.groups import per_part
from sup_tickets.iterate_averaging import is_averaging
from sup_tickets.masks import layer_counts
from sup_tickets.method_state import init_topology
from sup_tickets.methods import make_method, selfish_rnn
from sup_tickets.methods.selfish import recurrent_gates
from sup_tickets.structures import n_of_m
from sup_tickets.updates import explore_topology, update_topology
from tests.helpers import quick

NAME, ROWS, GATES = "hidden_kernel", 3, 4
PLACES = 12  # of a gate


def gates_of(mask):
    """The active weights of each gate."""
    parts = np.split(np.asarray(mask), GATES, axis=1)
    return [int(part.sum()) for part in parts]


def matrix(active, dropped):
    """Weights and mask with so many active in each gate, so many of them small."""
    rng = np.random.default_rng(0)
    weights, masks = [], []
    for n, small in zip(active, dropped, strict=True):
        flat = np.zeros(PLACES, np.float32)
        places = rng.permutation(PLACES)[:n]
        flat[places] = 2 + rng.random(n)
        flat[places[:small]] = rng.random(small)
        weights.append(flat.reshape(ROWS, -1))
        masks.append(flat.reshape(ROWS, -1) != 0)
    params = {"layer1": {NAME: jnp.asarray(np.concatenate(weights, 1))}}
    mask = {"layer1": {NAME: jnp.asarray(np.concatenate(masks, 1))}}
    return params, mask


def method(structure=None, **options):
    options = {"update_every": 1, "drop_fraction": 0.48} | options
    return selfish_rnn(sparsity=0.5, **options).replace(structure=structure)


def updated(ours, params, masks, seed=0):
    state = init_topology(ours, seed, params)._replace(masks=masks)
    change = update_topology(ours, state, params, None, 1)
    return change.state.masks["layer1"][NAME], change


def test_the_golden_case_of_the_figure():
    """nnz 6, 6, 7, 6; the joint drop takes 1, 3, 4, 4; growth gives 3 to each."""
    params, masks = matrix([6, 6, 7, 6], [1, 3, 4, 4])
    for seed in range(3):
        mask, change = updated(method(), params, masks, seed)
        assert gates_of(mask) == [8, 6, 6, 5] and mask.sum() == 25
    # What was not dropped has its weight, and the rest is 0.
    large = params["layer1"][NAME] > 1.5
    np.testing.assert_array_equal(change.params["layer1"][NAME] > 1.5, large)
    assert (np.asarray(mask)[np.asarray(large)]).all()


def test_pooled_growth_is_anywhere():
    params, masks = matrix([6, 6, 7, 6], [1, 3, 4, 4])
    found = {
        tuple(gates_of(updated(method(gate_growth="pooled"), params, masks, s)[0]))
        for s in range(6)
    }
    assert len(found) > 1 and {sum(gates) for gates in found} == {25}
    after = np.array([5, 3, 3, 2])
    assert all((np.array(gates) >= after).all() for gates in found)


def test_what_a_gate_has_no_room_for_is_for_the_others():
    """A full gate, of which nothing is dropped, takes none of 12; the others 4 each."""
    params, masks = matrix([12, 4, 5, 4], [0, 3, 5, 4])
    mask, _ = updated(method(), params, masks)
    assert gates_of(mask) == [12, 5, 4, 4]


@quick
@given(
    st.lists(st.integers(1, PLACES), min_size=4, max_size=4),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_gates_grow_alike_and_the_count_stays(active, fraction, seed):
    params, masks = matrix(active, [0] * 4)
    total = sum(active)
    state = init_topology(method(), seed, params)._replace(masks=masks)
    after = EXPLORE(state, params, jnp.float32(fraction)).state.masks
    found = np.array(gates_of(after["layer1"][NAME]))
    assert found.sum() == total
    dropped = int(np.ceil(np.float32(fraction) * np.float32(total) - 1e-6))
    # By NumPy: what each gate keeps, then equal shares as far as there is room.
    flat = np.asarray(params["layer1"][NAME])
    order = np.sort(np.where(np.asarray(masks["layer1"][NAME]), flat, np.inf).ravel())
    limit = order[dropped] if dropped < flat.size else np.inf
    kept = np.array(gates_of(np.where(masks["layer1"][NAME], flat >= limit, False)))
    room, grown, left = PLACES - kept, np.zeros(4, int), dropped
    while left:
        free = [i for i in range(4) if grown[i] < room[i]]
        low = min(free, key=lambda i: (grown[i], i))
        grown[low] += 1
        left -= 1
    np.testing.assert_array_equal(found, kept + grown)


EXPLORE = jax.jit(
    lambda state, params, fraction: explore_topology(
        method(), state, params, None, 1, fraction
    )
)


def test_gates_of_another_library():
    ours = method(gates=per_part(4, axis=0))
    params, masks = matrix([6, 6, 7, 6], [1, 3, 4, 4])
    params, masks = ({"layer1": {NAME: t["layer1"][NAME].T}} for t in (params, masks))
    mask, _ = updated(ours, params, masks)
    assert gates_of(mask.T) == [8, 6, 6, 5]


def test_gates_are_those_of_the_kernels():
    names = ("layer1/input_kernel", "hidden_kernel", "l/highway_hidden_kernel10")
    parts = [recurrent_gates(name, None) for name in names]
    assert parts == [per_part(4), per_part(4), per_part(2)]
    for name in ("decoder/kernel", "embedding/embedding", "l/ordered_input_kernel"):
        assert recurrent_gates(name, None) is None


def test_the_preset():
    ours = make_method("selfish-rnn", sparsity=0.9, total_steps=1000)
    assert [float(ours.drop_fraction_at(s)) for s in (0, 1000)] == [
        0.5,
        pytest.approx(0.005),
    ]
    assert (ours.rounding, ours.distribution) == ("ceil", "uniform")
    assert not ours.update_needs_gradients and not ours.consumes_step
    shapes = {"layer1": {NAME: jnp.zeros((10, 40)), "bias": jnp.zeros(40)}}
    shapes["decoder"] = {"kernel": jnp.zeros((10, 100))}
    counts = layer_counts(init_topology(ours, 0, shapes).masks)
    assert counts["layer1"][NAME] == 40 and counts["decoder"]["kernel"] == 100
    er = init_topology(ours.replace(distribution="er"), 0, shapes).masks
    assert int(layer_counts(er)["layer1"][NAME]) != 40
    assert sum(int(m.sum()) for m in jax.tree.leaves(er)) == 140


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_growth": "same"}, r"gate_growth must be one of .* got 'same'"),
        ({"gates": per_part(5)}, r"grow_groups: 5 parts of axis -1 does not divide"),
        ({"gates": 4}, r"grow_groups must be Groups or None at leaf"),
    ],
)
def test_bad_gates_are_told(options, message):
    params, masks = matrix([6, 6, 7, 6], [1, 3, 4, 4])
    with pytest.raises(ValueError, match=message):
        updated(method(**options), params, masks)


def test_networks_without_gates_are_refused_before_training():
    """Not grown anywhere in silence: equal shares are not to be had."""
    params = {
        "dense": {"kernel": jnp.ones((4, 8))},
        "rnn": {"ordered_kernel": jnp.ones((4, 8))},
    }
    with pytest.raises(ValueError, match=r"no leaf has any.*gate_growth='pooled'"):
        init_topology(method(), 0, params)
    for ours in (method(gate_growth="pooled"), method(gates=per_part(2))):
        assert int(init_topology(ours, 0, params).masks["dense"]["kernel"].sum()) == 16


def test_two_ways_to_say_what_grows_are_refused():
    params, _ = matrix([6, 6, 7, 6], [1, 3, 4, 4])
    ours = make_method("snfs", sparsity=0.5, total_steps=9, update_every=1)
    ours = ours.replace(grow_groups=per_part(4))
    state = init_topology(ours, 0, params)
    with pytest.raises(ValueError, match="shares and grow_groups both say"):
        update_topology(ours, state, params, params, 1)
    with pytest.raises(ValueError, match=r"grow_groups and structure=.* both say"):
        method(structure=n_of_m(2, 4))


# --- The arms of the reduced protocol -------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("sparsity", [0.67, 0.9])
def test_every_arm_is_a_configuration(arm, sparsity):
    config = get_config(",".join(filter(None, [ARMS[arm], f"sparsity={sparsity}"])))
    check_config(config)
    check_options(config)
    plan, ours, rate = make_parts(config, epoch_steps=214)
    dense, fixed = "dense" in arm, "dense" in arm or "static" in arm
    assert ours.sparsity == (0.0 if dense else sparsity) and ours.fixed == fixed
    assert len(plan.updates) == (0 if fixed else 29) and float(rate(9)) == 20
    assert (ours.grow_groups is not None) == (
        arm.startswith("Selfish") and "pooled" not in arm
    )
    params = {"w": jnp.ones(2)}
    averages = is_averaging(make_optimizer(config).init(params))
    assert averages == (arm not in ("dense SGD", "Selfish, no averages"))
    assert ours.update_needs_gradients == ("gradient" in arm)
