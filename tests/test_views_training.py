"""Steps of training through views, and tickets as the forward pass sees them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sup_tickets as st
from sup_tickets.training.loop import train
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.state import network_of
from sup_tickets.training.steps import Spec, compile_steps
from sup_tickets.trees import named_leaves
from tests.test_training import (
    RATE,
    SPARSITY,
    TASK,
    Recorder,
    assert_same_bits,
    batches_of,
    experiment_of,
    place_of,
)

VIEWS = {
    "edge-popup": st.edge_popup(density=0.5),
    "HardNet": st.edge_popup(density=0.5, train_weights=True),
    "softnet": st.softnet(density=0.5, redraw_every=2),
    "sr-ste": st.sr_ste(2, 4),
    "top-kast": st.top_kast(density=0.2, backward_density=0.5, refresh_every=2),
    "powerpropagation": st.powerpropagation(),
}
SLOW = pytest.mark.slow  # more of the same, and compiling takes seconds
STATIC = st.static(sparsity=SPARSITY)


@functools.cache
def steps_of(name, method=STATIC, **options):
    tx = make_optimizer("sgd", weight_decay=5e-4)
    return compile_steps(
        Spec(TASK, method, tx, RATE, view=VIEWS[name], **options),
        place_of().replicated,
    )


# --- Steps ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["edge-popup", *(pytest.param(n, marks=SLOW) for n in ("softnet", "top-kast"))],
)
def test_steps_train_what_the_view_says(name):
    """Against the same by hand: the loss at what is seen, SGD on what is trained."""
    view, steps, batch = VIEWS[name], steps_of(name), batches_of()
    state = steps.init(jax.random.key(0))
    key, masks = jnp.copy(state.key), jax.device_get(state.method.masks)
    params, extra = jax.device_get((state.params, state.view))

    @jax.jit
    def by_hand(params, extra, slots, model_state, rows, t):
        step_key = jax.random.fold_in(key, t)
        see_key, after_key = jax.random.split(jax.random.fold_in(step_key, 2))

        def loss(trained):
            seen = view.apply(*st.with_trained(params, extra, trained), see_key, True)
            ready = TASK.prepare(rows, step_key)
            loss_key = jax.random.fold_in(step_key, 1)
            return TASK.loss(seen, model_state, ready, loss_key, t)[0]

        trained = st.trainable(view, params, extra)
        own = st.trainable_masks(view, params, extra, masks)
        gradient = st.apply_masks(own, jax.grad(loss)(trained))
        slots = jax.tree.map(
            lambda m, g, w: 0.9 * m + g + 5e-4 * w, slots, gradient, trained
        )
        trained = jax.tree.map(lambda w, m: w - RATE(t) * m, trained, slots)
        params, extra = st.with_trained(params, extra, trained)
        return params, view.after_step(params, extra, after_key, t + 1), slots

    slots = jax.tree.map(jnp.zeros_like, st.trainable(view, params, extra))
    for t in range(4):
        rows, statistics = batch(t), jax.device_get(state.model_state)
        params, extra, slots = by_hand(
            params, extra, slots, statistics, rows, jnp.int32(t)
        )
        state, report = steps.train(state, rows)
        assert np.isfinite(report["loss"])
    named = (
        named_leaves(tree) for tree in ((state.params, state.view), (params, extra))
    )
    for (leaf, x), (_, y) in zip(*named, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=leaf)
    assert_same_bits(state.params, st.apply_masks(masks, state.params))
    assert steps.train._cache_size() == 1


def test_a_frozen_backbone_stays_and_costs_no_gradient():
    steps, batch = steps_of("edge-popup"), batches_of()
    state = steps.init(jax.random.key(0))
    before = jax.device_get(state.params)
    text = steps.train.lower(state, batch(0)).compile().as_text()
    frozen = dict(named_leaves(VIEWS["edge-popup"].covers(before)))
    state, _ = steps.train(state, batch(0))
    for name, leaf in named_leaves(state.params):
        same = (np.asarray(leaf) == dict(named_leaves(before))[name]).all()
        assert same == frozen[name], name
    slots = [n for n, _ in named_leaves(state.opt_state)]
    assert not [n for n in slots if "weights" in n and frozen[n.split("weights/")[1]]]
    assert len([n for n in slots if n.endswith("kernel/score")]) == 2
    # The products of a step: two forward, two for the scores, one back to the features.
    assert text.count(" dot(") <= 5


@SLOW
def test_parts_of_a_batch_and_blocks_see_one_view():
    batches = batches_of()
    plain = steps_of("softnet", block_steps=4, block_at=batches.at)
    parts = steps_of("softnet", accumulate=2)
    state, _ = plain.block(plain.init(jax.random.key(0)), batches.block(0, 4))
    other = plain.init(jax.random.key(0))
    for t in range(4):
        other, _ = plain.train(other, batches(t))
    for x, y in zip(*map(jax.tree.leaves, (state.params, other.params)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert_same_bits(state.view.untrained, other.view.untrained)
    found, _ = parts.train(parts.init(jax.random.key(0)), batches(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.params))


def test_masks_change_below_a_view_that_takes_it():
    method = st.rigl(sparsity=SPARSITY, update_every=4, total_steps=12)
    steps, batch = steps_of("sr-ste", method), batches_of()
    state = steps.init(jax.random.key(0))
    for t in range(3):
        state, _ = steps.train(state, batch(t))
    state, turnover = steps.topology(state, batch(3))
    assert int(state.step) == 4 and int(turnover.kept) < int(turnover.active)
    state, _ = steps.explore(state, batch(4), 0.5)
    state, _ = steps.train(state, batch(4))
    seen = network_of(state, VIEWS["sr-ste"])
    for (name, own), (_, stored) in zip(
        named_leaves(seen.masks), named_leaves(state.method.masks), strict=True
    ):
        assert not np.asarray(own & ~stored).any(), name
        blocks = np.asarray(own).reshape(-1, 4, own.shape[-1])
        assert blocks.sum(1).max() <= 2


def test_masks_that_change_are_refused_where_a_view_does_not_take_it():
    rigl = st.rigl(sparsity=0.5, total_steps=500)
    acdc = st.acdc(sparsity=0.5, total_steps=500)
    gmp = st.gradual_magnitude(sparsity=0.5, total_steps=500)
    for name, method, words in (
        ("softnet", rigl, "must stay as they are, but those of method 'rigl' change"),
        ("softnet", gmp, "must stay as they are, but those of method 'gmp' shrink"),
        (
            "powerpropagation",
            acdc,
            "may only shrink, but those of method 'acdc' change",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            steps_of(name, method)
    steps_of("powerpropagation", gmp)
    with pytest.raises(ValueError, match="'static' are explored for each cheap ticket"):
        experiment_of("static", steps=steps_of("softnet"))


def test_what_a_run_starts_with_is_what_is_seen_at_first():
    """Weights of a file, say; powerpropagation stores other numbers."""
    steps = steps_of("powerpropagation")
    drawn = steps.begin(jax.random.key(1))
    state = steps.init(jax.random.key(0), drawn)
    found = network_of(state, VIEWS["powerpropagation"])
    wanted = st.apply_masks(state.method.masks, drawn.params)
    for (name, x), (_, y) in zip(
        named_leaves(found.params), named_leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7, err_msg=name)
    kernel = dict(named_leaves(state.params))["dense1/kernel"]
    assert not np.allclose(kernel, dict(named_leaves(wanted))["dense1/kernel"])


# --- Superposition --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("sr-ste", STATIC),
        pytest.param("edge-popup", st.dense(), marks=SLOW),
        pytest.param("softnet", st.dense(), marks=SLOW),
    ],
)
def test_tickets_are_what_the_forward_pass_sees(name, method):
    view = VIEWS[name]
    groups = view.groups or (lambda name, leaf: None)
    ours = experiment_of(
        "static",
        steps=steps_of(name, method),
        superposition=st.superposition("cia", sparsity=None, groups=groups),
    )
    recorder = Recorder()
    outcome = train(ours, ours.init(jax.random.key(0)), recorder)
    assert_same_bits(outcome.network, network_of(outcome.state.train, view))
    first, second = (recorder.networks[f"ticket {i}"] for i in (1, 2))
    found = jax.device_get(outcome.superposed)
    assert_same_bits(second, outcome.network)
    for leaf in ("dense1", "classifier"):
        a, b = first.params[leaf]["kernel"], second.params[leaf]["kernel"]
        mask = found.masks[leaf]["kernel"]
        mean = found.params[leaf]["kernel"]
        np.testing.assert_allclose(mean, np.where(mask, (a + b) / 2, 0), atol=1e-6)
        assert mask.sum() == (b != 0).sum()  # as many as the latest ticket
        if name == "sr-ste":
            assert mask.reshape(-1, 4, mask.shape[-1]).sum(1).max() <= 2
    assert outcome.state.average.average["params"].keys() == first.params.keys()


def test_averaged_weights_are_seen_through_the_view():
    tx = make_optimizer("sgd", weight_decay=0.0, averaging="plain", patience=1)
    view = VIEWS["HardNet"]
    spec = Spec(TASK, STATIC, tx, RATE, view=view)
    steps = compile_steps(spec, place_of().replicated)
    state = steps.init(jax.random.key(0))
    state = state.replace(opt_state=st.start_averaging(state.opt_state))
    for t in range(4):
        state, _ = steps.train(state, batches_of()(t))
    found = network_of(state, view)
    trained = st.trainable(view, state.params, state.view)
    trained = st.averaged_params(trained, state.opt_state)
    params, extra = st.with_trained(state.params, state.view, trained)
    seen, masks = st.seen_network(view, params, extra, state.method.masks)
    assert_same_bits((found.params, found.masks), (seen, masks))
    live = st.seen_network(view, state.params, state.view, state.method.masks)[0]
    kernel = live["dense1"]["kernel"]
    assert (kernel != found.params["dense1"]["kernel"]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softnet", "sr-ste"])
def test_eight_devices_train_as_one(name):
    states = []
    for devices in (1, 8):
        spec = steps_of(name).spec
        steps = compile_steps(spec, place_of(devices).replicated)
        state, batch = steps.init(jax.random.key(0)), batches_of(devices)
        for t in range(4):
            state, _ = steps.train(state, batch(t))
        states.append(jax.device_get(state))
    for x, y in zip(
        *(jax.tree.leaves((s.params, s.view)) for s in states), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=1e-4)
    one, eight = (network_of(s, VIEWS[name]).masks for s in states)
    for x, y in zip(*map(jax.tree.leaves, (one, eight)), strict=True):
        assert x.sum() == y.sum()
