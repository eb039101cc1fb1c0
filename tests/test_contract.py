"""One contract for every method and optimizer: exact, consistent, compiled once.

The drop-in is what binds them all, so the contract is tested through it.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sup_tickets as st
from sup_tickets.structures import check_structure

pytestmark = pytest.mark.usefixtures("loose")

SPARSITY = 0.75
TICKETS = st.TicketPlan(phase1_steps=8, cycle_steps=3, cycles=2)
EVERY = 2

DYNAMIC = {"sparsity": SPARSITY, "update_every": EVERY, "end_step": 8}
PRUNED = {"sparsity": SPARSITY, "update_every": EVERY, "prune_end_step": 6}
OPTIONS = {
    "dense": {},
    "static": {"sparsity": SPARSITY},
    "gmp": PRUNED,
    "granet": {**PRUNED, "end_step": 8},
    "granet-dense": {**PRUNED, "end_step": 8},
    "acdc": {"sparsity": SPARSITY, "total_steps": 20},
    "mest": {"sparsity": SPARSITY, "total_steps": 32, "update_every": EVERY},
    "selfish-rnn": {**DYNAMIC, "gates": st.per_part(2)},
}
METHODS = {name: OPTIONS.get(name, DYNAMIC) for name in st.METHODS}
HALF = {**DYNAMIC, "sparsity": 0.5}
STRUCTURED = {
    "set 1:2": st.sparse_evolutionary(**HALF).replace(structure=st.n_of_m(1, 2)),
    "granet 1:2": st.granet_dense(**{**HALF, "prune_end_step": 6}).replace(
        structure=st.n_of_m(1, 2)
    ),
    "acdc 1:2": st.acdc(sparsity=0.5, total_steps=20).replace(
        structure=st.n_of_m(1, 2)
    ),
    "rigl fan-in": st.rigl(**DYNAMIC).replace(structure=st.fan_in()),
    "granet fan-in": st.granet(**PRUNED, end_step=8).replace(structure=st.fan_in()),
    "snfs fan-in": st.sparse_momentum(**DYNAMIC, redistribute=False).replace(
        structure=st.fan_in()
    ),
    "srigl": st.srigl(**DYNAMIC),
}
QUICK_STRUCTURES = ("set 1:2", "granet fan-in", "srigl")
PRUNING = {"gmp", "granet", "granet-dense"}
# The phases of AC/DC take 20 steps at least.
PLANS = {"acdc": st.TicketPlan(phase1_steps=20, cycle_steps=3, cycles=2)}
ACDC_TURNS = {*range(2, 16), 17}  # sparse from the first on, dense from the second, ...


def by_kind(params):
    return jax.tree.map(lambda p: "kernel" if p.ndim > 1 else "bias", params)


OPTIMIZERS = {
    "sgd": optax.sgd(0.05, momentum=0.9),
    "nesterov": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "lion": optax.lion(0.01, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.01, momentum=0.9, initial_scale=1.0),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(0.1),
        optax.sgd(optax.linear_schedule(0.1, 0.01, 20), momentum=0.9),
    ),
    "inject": optax.inject_hyperparams(optax.sgd)(learning_rate=0.05, momentum=0.9),
    "rprop": optax.rprop(0.01),
    "centralize": optax.chain(optax.centralize(), optax.sgd(0.05, momentum=0.9)),
    "multi_transform": optax.multi_transform(
        {"kernel": optax.adam(0.01), "bias": optax.sgd(0.05, momentum=0.9)}, by_kind
    ),
}
# `test_optimizers` has all optimizers with one method.
QUICK = ("adam", "adamw", "chain")
PAIRS = [(method, "sgd") for method in METHODS if method != "srigl"] + [
    pytest.param(
        *(method, optimizer), marks=[] if optimizer in QUICK else [pytest.mark.slow]
    )
    for method, optimizers in {
        "rigl": OPTIMIZERS,
        "set": ("adamw", "chain", "rprop"),
    }.items()
    for optimizer in optimizers
    if optimizer != "sgd"
]


def network():
    key = jax.random.key(1)
    return {
        "layer": {
            "kernel": jax.random.normal(key, (12, 10)),
            "bias": jnp.zeros(10),
        },
        "head": {"kernel": jax.random.normal(key, (10, 4))},
    }


@pytest.fixture(scope="module")
def params():
    return network()


def loss(params, inputs, targets):
    hidden = jnp.tanh(
        inputs @ params["layer"]["kernel"] + params["layer"]["bias"][None]
    )
    return jnp.mean((hidden @ params["head"]["kernel"] - targets) ** 2)


def batch(step):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(2), step))
    return jax.random.normal(keys[0], (16, 12)), jax.random.normal(keys[1], (16, 4))


def make_step(tx, traces=None):
    def step(params, state, inputs, targets):
        if traces is not None:
            traces.append(None)
        gradients = jax.grad(loss)(params, inputs, targets)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def check_zeros(params, state, tx):
    """Inactive weights are 0, and their slots as the optimizer's init gives them."""
    masks = st.masks_of(state)
    fresh = jax.tree.leaves(tx.init(st.apply_masks(masks, params)))
    for (name, weight), mask in zip(
        [
            (jax.tree_util.keystr(k), v)
            for k, v in jax.tree_util.tree_leaves_with_path(params)
        ],
        jax.tree.leaves(masks, is_leaf=lambda m: m is None),
        strict=True,
    ):
        if mask is None:
            continue
        dead = ~np.asarray(mask)
        assert not np.any(np.asarray(weight)[dead].view(np.uint32)), name
        slots = [
            (slot, new)
            for slot, new in zip(jax.tree.leaves(state.inner), fresh, strict=True)
            if slot.shape == weight.shape
        ]
        assert slots
        for slot, new in slots:
            np.testing.assert_array_equal(np.asarray(slot)[dead], new[dead], name)


def expected_count(method, params, total):
    if method == "dense":
        return 0
    return st.active_count(total, SPARSITY)


@pytest.mark.parametrize(("method", "optimizer"), PAIRS)
def test_contract(method, optimizer, params):
    made = st.make_method(method, **METHODS[method])
    plan = PLANS.get(method, TICKETS)
    tx = st.sparse_training(
        OPTIMIZERS[optimizer], made, tickets=plan, explore_fraction=0.3
    )
    state = tx.init(params)
    live = st.keep_sparse(params, state)
    traces = []
    step = jax.jit(make_step(tx, traces))
    structure, counts, changes = jax.tree.structure(state), [], []
    for i in range(plan.total_steps):
        before = st.masks_of(state)
        layers = st.layer_counts(before)
        live, state = step(live, state, *batch(i))
        masks = st.masks_of(state)
        check_zeros(live, state, OPTIMIZERS[optimizer])
        st.check_masks(live, masks)
        counts.append(int(st.count(masks)))
        if int(st.hamming(before, masks)):
            changes.append(i)
        if method not in PRUNING | {"snfs", "acdc"} or i >= plan.phase1_steps:
            redistributes = method == "snfs" and i in (8, 11)
            if not redistributes:
                assert jax.tree.map(int, st.layer_counts(masks)) == jax.tree.map(
                    int, layers
                )
    assert len(traces) == 1, "recompiled"
    assert jax.tree.structure(state) == structure
    assert jax.tree.map(lambda a: a.dtype, live) == jax.tree.map(
        lambda a: a.dtype, params
    )
    total = st.size(st.masks_of(state))
    final = expected_count(method, params, total)
    assert counts[-1] == final
    if method == "acdc":
        full = {i for i in range(17) if counts[i] == total}
        assert full == {0, 1, *range(3, 17, 2), 16}
        assert set(counts) == {total, final} and set(counts[17:]) == {final}
    elif method not in PRUNING:
        assert set(counts) == {final}
    else:
        assert counts == sorted(counts, reverse=True) and counts[0] > final
    # Scheduled updates stop before the tickets, which explore once each.
    scheduled = (
        {i for i in range(EVERY, 8, EVERY)}
        if METHODS[method].get("update_every")
        else set()
    )
    explored = {8, 11} if method != "dense" else set()
    if method == "acdc":
        scheduled, explored = ACDC_TURNS, {20, 23}
    assert set(changes) <= scheduled | explored
    if method in ("set", "set-itop", "acdc"):
        assert set(changes) == scheduled | explored


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_STRUCTURES else pytest.mark.slow)
        for name in STRUCTURED
    ],
)
def test_structured_contract(name, params):
    """In every step all groups of a leaf have as many weights, but ablated neurons."""
    made = STRUCTURED[name]
    begin = 20 if name.startswith("acdc") else 8
    plan = st.TicketPlan(phase1_steps=begin, cycle_steps=2, cycles=2)
    optimizer = OPTIMIZERS["sgd"]
    tx = st.sparse_training(optimizer, made, tickets=plan, explore_fraction=0.5)
    sup = st.superposition("cia", sparsity=None, groups=made.structure.groups)
    state = tx.init(params)
    live = st.keep_sparse(params, state)
    average = sup.init(live, st.masks_of(state))
    traces, changed = [], 0
    step, add = jax.jit(make_step(tx, traces)), jax.jit(sup.update)
    for i in range(plan.total_steps):
        before = st.masks_of(state)
        live, state = step(live, state, *batch(i))
        masks = st.masks_of(state)
        check_zeros(live, state, optimizer)
        full = all(bool(mask.all()) for mask in jax.tree.leaves(masks))
        if not full and (made.initial_sparsity is None or i >= made.settled_step):
            check_structure(made.structure, masks)
        if plan.ticket_due(i + 1):
            average = add(average, live, masks)
        changed += int(st.hamming(before, masks)) > 0
    assert len(traces) == 1 and changed >= 3
    superposed, kept = sup.result(average)
    check_structure(made.structure, kept)
    groups = made.structure.groups
    wanted, got = (st.layer_counts(m, groups=groups) for m in (masks, kept))
    chex.assert_trees_all_equal(got, wanted)
    st.check_masks(superposed, kept)
    if made.structure.of is not None:
        assert int(st.count(kept)) == st.active_count(160, 0.5)


@pytest.mark.parametrize("method", ["set", "rigl", "granet", "snfs"])
def test_jit_equals_eager(method, params):
    made = st.make_method(method, **METHODS[method])
    key = jax.random.key(3)
    state = st.init_topology(made, key, params)
    gradients = jax.grad(loss)(st.apply_masks(state.masks, params), *batch(0))
    live = st.apply_masks(state.masks, params)
    observed = st.observe_gradients(made, state, gradients)
    for change in (
        partial(st.update_topology, made),
        lambda *a: st.explore_topology(made, *a, 0.4),
    ):
        eager = change(observed, live, gradients, jnp.int32(4))
        jitted = jax.jit(change)(observed, live, gradients, jnp.int32(4))
        chex.assert_trees_all_equal(_plain(eager), _plain(jitted))


@pytest.mark.parametrize("method", METHODS)
def test_a_change_keeps_what_stays_and_zeroes_what_grew(method, params):
    made = st.make_method(method, **METHODS[method]).replace(keep_pruned=True)
    state = st.init_topology(made, jax.random.key(3), params)
    live = st.apply_masks(state.masks, params)
    gradients = jax.grad(loss)(live, *batch(0))
    state = st.observe_gradients(made, state, gradients)
    change = st.update_topology(made, state, live, gradients, 4)
    for weight, new, old, mask, grown in zip(
        *map(
            lambda t: jax.tree.leaves(t, is_leaf=lambda m: m is None),
            (live, change.params, state.masks, change.state.masks, change.grown),
        ),
        strict=True,
    ):
        if mask is None:
            np.testing.assert_array_equal(new, weight)
            continue
        np.testing.assert_array_equal(grown, mask & ~old)
        np.testing.assert_array_equal(new, jnp.where(mask & old, weight, 0))


@pytest.mark.parametrize("method", ["set", "rigl", "snfs", "granet"])
def test_same_key_same_run_and_other_key_other_masks(method, params):
    made = st.make_method(method, **METHODS[method])

    def masks(seed):
        state = st.init_topology(made, jax.random.key(seed), params)
        live = st.apply_masks(state.masks, params)
        gradients = jax.grad(loss)(live, *batch(0))
        state = st.observe_gradients(made, state, gradients)
        return st.update_topology(made, state, live, gradients, 4).state.masks

    assert int(st.hamming(masks(0), masks(0))) == 0
    assert int(st.hamming(masks(0), masks(1))) > 0


def test_members_of_a_vmapped_ensemble_have_their_own_masks(params):
    made = st.rigl(sparsity=SPARSITY, total_steps=1000)
    keys = jax.random.split(jax.random.key(0), 3)
    masks = jax.vmap(lambda key: st.init_topology(made, key, params).masks)(keys)
    masks = masks["layer"]["kernel"]
    assert len({np.asarray(m).tobytes() for m in masks}) == 3
    assert len({int(m.sum()) for m in masks}) == 1


def _plain(tree):
    """Typed keys have no NumPy value; their data has."""
    return jax.tree.map(
        lambda a: (
            jax.random.key_data(a)
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
            else a
        ),
        tree,
    )
