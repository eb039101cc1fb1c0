"""Views in runs: trained, resumed, superposed and exported as the forward pass sees."""

import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sup_tickets as st
from experiments.build.experiment import build, comparisons
from experiments.evaluate import evaluate
from experiments.export import export
from experiments.lottery import Options, lottery
from experiments.run import run
from experiments.runs.stopping import Stopped
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.loop import train
from sup_tickets.training.network_files import load_dense, load_sparse
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.state import network_of
from sup_tickets.training.steps import Spec, compile_steps
from sup_tickets.trees import named_leaves
from tests.test_experiments import (
    CHECKED,
    assert_same_results,
    config_of,
    one,
    signalled,
)
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
STATIC = st.static(sparsity=SPARSITY)


@functools.cache
def steps_of(name, method=STATIC, **options):
    tx = make_optimizer("sgd", weight_decay=5e-4)
    return compile_steps(
        Spec(TASK, method, tx, RATE, view=VIEWS[name], **options),
        place_of().replicated,
    )


# --- Steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edge-popup", "softnet", "top-kast"])
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


# --- Superposition --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [("sr-ste", STATIC), ("edge-popup", st.dense()), ("softnet", st.dense())],
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


# --- Whole runs -----------------------------------------------------------------------

SOFTNET = {
    "view.name": "softnet",
    "view.options.density": 0.5,
    "view.options.redraw_every": 1,
    "view.options.keep_dense": "classifier",
    "method.name": "dense",
    "data.batch_size": 128,
    **CHECKED,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """SoftNet on the digits, with tickets; nothing stops it."""
    folder = tmp_path_factory.mktemp("softnet")
    run(config_of(**SOFTNET), folder, devices=one())
    return folder


def test_a_view_that_is_stopped_goes_on_with_the_same_bits(
    whole, tmp_path, monkeypatch, capfd
):
    config = config_of(**SOFTNET)
    signalled(monkeypatch, signal.SIGTERM, 13)
    with pytest.raises(Stopped, match="stopped after 13 of 60 steps"):
        run(config, tmp_path, devices=one())
    run(config, tmp_path, devices=one())
    assert "going on after 13 steps" in capfd.readouterr().out
    assert_same_results(tmp_path, whole)


def test_what_is_written_is_what_the_forward_pass_sees(whole, tmp_path):
    config = config_of(**SOFTNET)
    ours = build(config, devices=one())
    plan = (whole / "plan.txt").read_text()
    assert "view: SoftNet, 0.5 major; 1 of 4 leaves" in plan
    step, place = ours.plan.total_steps, ours.shardings.replicated
    checkpoints = Checkpoints(whole / "checkpoints", read_only=True)
    state = checkpoints.at(step, ours.like(step), place).state.train
    checkpoints.close()
    found = ours.experiment.network(state)
    stored = load_sparse(whole / "tickets/ticket-2.safetensors")
    assert_same_bits(found, stored)
    extra, kernel = state.view, state.params["dense1"]["kernel"]
    factors = np.asarray(stored.params["dense1"]["kernel"] / kernel)
    majors = np.isclose(factors, 1).sum()
    assert majors == int(extra.untrained["dense1"]["kernel"]["count"]) == 256
    (dense, _) = export(whole, tmp_path, networks=("ticket-2",))
    assert_same_bits(load_dense(dense.path).params, found.params)
    metrics = evaluate(whole, networks=("ticket-2",), devices=one())
    results = json.loads((whole / "results.json").read_text())
    rows = {row["network"]: row for row in results["rows"]}
    ((told, _),) = metrics.values()
    assert told["accuracy"] == rows["ticket 2"]["accuracy"]
    ours.inputs.close()


def test_a_run_with_masks_and_a_view_counts_what_is_seen(tmp_path):
    config = config_of(
        **{
            **{"view.name": "sr-ste", "view.options.n": 1, "method.name": "static"},
            **{"sup.enabled": False, "train.epochs": 2, **CHECKED},
        }
    )
    run(config, tmp_path, devices=one())
    network = load_sparse(tmp_path / "final/network.safetensors")
    for name, mask in named_leaves(network.masks):
        assert mask.reshape(-1, 4, mask.shape[-1]).sum(1).max() <= 1, name
    row = json.loads((tmp_path / "results.json").read_text())["rows"][-1]
    assert row["active"] == sum(m.sum() for m in jax.tree.leaves(network.masks))
    dense = comparisons(config_of(**{"view.name": "sr-ste", "compare": True}))["dense"]
    assert dense.view.name == "" and build(dense, devices=one()).experiment.view is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"view.name": "srste"},
            "config.view: unknown view 'srste'; did you mean 'sr-",
        ),
        ({"view.options.n": 2}, "config.view: options has 'n', but name is ''"),
        (
            {"view.name": "edge-popup", "view.options.density": 1.5},
            r"config.view: density must be in \(0, 1\], got 1.5",
        ),
        (
            {"view.name": "sr-ste", "view.options.m": 3},
            r"config.view: 2:3: .* does not divide leaf '.*kernel' of shape",
        ),
        (
            {"view.name": "powerpropagation"},
            r"config.view: with view 'powerpropagation.*' masks may only shrink",
        ),
        (
            {"view.name": "piggyback", "method.name": "static"},
            "'static' are explored for each cheap ticket; take 'static' or 'dense'",
        ),
        (
            {"view.name": "ksm", "method.name": "dense"},
            "config.view: .* chooses no leaf to be sparse",
        ),
        ({"view.name": 3}, "config.view.name must be of type str, got 3"),
    ],
)
def test_what_a_view_cannot_have_is_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        build(config_of(**changes), devices=one())
    assert "\n" not in str(caught.value)


def test_a_lottery_has_no_view(tmp_path):
    config = config_of(**{"view.name": "sr-ste", "method.name": "static"})
    with pytest.raises(ValueError, match=r"view.name must be '', got 'sr-ste'"):
        lottery(config, tmp_path, Options())


def test_a_view_trains_a_plain_loop_to_the_digits():
    """`sparse_training` and a view in a loop of one's own."""
    data = build(config_of(), devices=one())
    batch = data.inputs.batches(0)
    images, labels = data.inputs.prepare(batch, jax.random.key(0))
    data.inputs.close()
    images = images.reshape(len(images), -1)
    keys = jax.random.split(jax.random.key(1))
    params = {
        "hidden": {"kernel": 0.2 * jax.random.normal(keys[0], (64, 32))},
        "out": {"kernel": 0.2 * jax.random.normal(keys[1], (32, 10))},
    }
    view = st.sr_ste(2, 4)
    sgd = optax.sgd(0.5, momentum=0.9)
    tx = st.sparse_training(sgd, "set", sparsity=0.3, update_every=10, end_step=60)
    state, extra = tx.init(params), view.init(jax.random.key(2), params)
    params = st.keep_sparse(params, state)

    def loss(params):
        seen = view.apply(params, extra, None, True)
        logits = jnp.tanh(images @ seen["hidden"]["kernel"]) @ seen["out"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(60):
        params, state, value = step(params, state)
    assert value < 0.3
    masks = st.masks_of(state)
    seen, kept = st.seen_network(view, params, extra, masks)
    for name, mask in named_leaves(masks):
        own = np.asarray(dict(named_leaves(kept))[name])
        assert not (own & ~np.asarray(mask)).any()
        assert own.reshape(-1, 4, own.shape[-1]).sum(1).max() == 2
    logits = jnp.tanh(images @ seen["hidden"]["kernel"]) @ seen["out"]["kernel"]
    assert float((logits.argmax(-1) == labels).mean()) > 0.9
