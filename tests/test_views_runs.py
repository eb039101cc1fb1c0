"""Views in whole runs: resumed, exported as the forward pass sees, refused, by hand."""

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
from sup_tickets.training.network_files import load_dense, load_sparse
from sup_tickets.trees import named_leaves
from tests.test_experiments import (
    CHECKED,
    assert_same_results,
    config_of,
    one,
    signalled,
)
from tests.test_training import assert_same_bits

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


def test_ghosts_leave_a_view_and_its_optimizer():
    options = {"view.options.density": 0.5, "view.options.train_weights": True}
    config = config_of(
        **{"view.name": "edge-popup", **options, "method.name": "dense"},
        **{"tost.parts": "skips", "tost.ghost_fraction": 0.5},
    )
    ours = build(config, devices=one())
    first, last = ours.experiment.stages
    young = ours.experiment.like(first.until - 1).train
    grown = jax.eval_shape(first.then, young)
    assert jax.tree.structure(grown) == jax.tree.structure(
        ours.experiment.like(last.until - 1).train
    )
    assert len(named_leaves(young.params)) > len(named_leaves(grown.params))
    ours.inputs.close()


@pytest.mark.slow
def test_a_run_with_a_view_branches(whole, tmp_path):
    config = config_of(**SOFTNET, branch_from=str(whole))
    run(config, tmp_path, devices=one())
    for name in ("ticket-1", "ticket-2"):
        found = load_sparse(tmp_path / f"tickets/{name}.safetensors")
        assert_same_bits(found, load_sparse(whole / f"tickets/{name}.safetensors"))
