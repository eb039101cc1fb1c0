"""Runs whose state is spread over devices: memory, checkpoints, configurations."""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.build.branch import words_of
from experiments.build.experiment import build
from experiments.build.mesh import make_layout, to_read
from experiments.config.fields import check_config
from experiments.evaluate import evaluate
from experiments.run import run
from experiments.runs.stopping import RunCheckpointer, Stopped
from sup_tickets.data import resident
from sup_tickets.masks import count, layer_table
from sup_tickets.models.mlp import MLP
from sup_tickets.superposition import superposition
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.experiment import Experiment, Stage
from sup_tickets.training.loop import train
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.plan import make_plan
from sup_tickets.training.sharding import Layout
from sup_tickets.training.state import RunState
from sup_tickets.training.steps import Spec, compile_steps
from tests import test_training as small
from tests.helpers import assert_same
from tests.test_checkpoint import Saver, bits
from tests.test_experiments import config_of

RULES = (("dense1/kernel", P(None, "model")), ("classifier/kernel", P("model")))


@functools.cache
def layout_of(name):
    match name:
        case "one":
            return Layout(data_mesh(jax.devices()[:1]))
        case "8x1":
            return Layout(data_mesh(), fsdp=True)
    return Layout(data_mesh(model=2), fsdp=True, rules=RULES)


@functools.cache
def experiment_of(name):
    layout = layout_of(name)
    spec = Spec(
        small.task_of(MLP(features=(1024,))),
        small.method_of("set"),
        make_optimizer("sgd", weight_decay=5e-4),
        small.RATE,
    )
    place = data_shardings(layout.mesh, batch_size=small.BATCH)
    keys = {"key": jax.random.key(0), "batch_size": small.BATCH, "shardings": place}
    steps = compile_steps(spec, layout=layout)
    plan = make_plan(spec.method, small.TICKETS, epoch_steps=3)
    return Experiment(
        plan=plan,
        stages=(Stage(plan.total_steps, steps),),
        batches=resident.training_batches(small.data(), **keys),
        explore_fraction=0.5,
        superposition=superposition(
            "cia", sparsity=small.SPARSITY, packed=layout.is_replicated
        ),
    )


def restored(path, name):
    layout, checkpoints = layout_of(name), Checkpoints(path)
    found = checkpoints.restore(
        experiment_of(name).like, lambda like: layout.of(like, like.train.params)
    )
    checkpoints.close()
    assert found is not None and not found.broken
    return found.state


def on_first_device(tree):
    """Bytes."""
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "addressable_shards")]
    return sum(
        shard.data.size * leaf.dtype.itemsize
        for leaf in leaves
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )


@pytest.fixture(scope="module")
def fully_sharded():
    """A state before and after a step; each of eight devices has a part of it."""
    ours = experiment_of("8x1")
    begun = ours.init(jax.random.key(0)).train
    before = jax.device_get(bits(begun)), on_first_device(begun)
    state, _ = ours.stages[0].steps.train(begun, ours.batches(0))
    return (*before, state)


def test_memory_of_a_device_and_the_same_start(fully_sharded):
    begun, own, after = fully_sharded
    whole = experiment_of("one").init(jax.random.key(0)).train
    assert_same(begun, bits(whole))
    layout = layout_of("8x1")
    share = own / on_first_device(whole)
    assert share == layout.share(after, after.params) and share < 0.14
    assert on_first_device(after) == own


def test_a_checkpoint_is_read_on_any_layout(fully_sharded, tmp_path):
    ours, trained = experiment_of("8x1"), fully_sharded[2]
    average = ours.first_average(ours.network(trained))
    step = ours.plan.phase1_steps
    state = RunState(trained.replace(step=jnp.int32(step)), average)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {})
    checkpoints.close()
    for name in ("8x1", "4x2", "one"):
        found = restored(tmp_path, name)
        assert_same(bits(found.train), bits(state.train))
        assert_same(bits(found.average.average), bits(average.average))
        kept = jax.tree.leaves(found.average.masks)
        assert {leaf.dtype for leaf in kept} == {
            np.dtype("u1" if name == "one" else bool)
        }
        for tree in (
            found.train.params,
            found.train.method.masks,
            found.train.opt_state,
        ):
            spec = jax.tree.leaves(tree)[-1].sharding.spec
            wanted = {"8x1": P(None, "data"), "4x2": P("data", "model"), "one": P()}
            assert spec == wanted[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "4x2"])
def test_a_fully_sharded_run_goes_on_elsewhere(name, tmp_path):
    ours = experiment_of("8x1")
    checkpoints = Checkpoints(tmp_path)
    start = ours.init(jax.random.key(0))
    whole = train(ours, start, small.Recorder(), Saver(checkpoints, every=14))
    checkpoints.close()
    (tmp_path / "20").rename(tmp_path / "other")
    found = restored(tmp_path, name)
    assert int(found.train.step) == 16
    outcome = train(experiment_of(name), found, small.Recorder())
    for theirs, mine in ((whole.superposed, outcome.superposed),
                         (whole.network, outcome.network)):  # fmt: skip
        assert layer_table(theirs.masks)[-1] == layer_table(mine.masks)[-1]
        kernels = (x.params["dense1"]["kernel"] for x in (theirs, mine))
        np.testing.assert_allclose(*kernels, atol=1e-4)


# --- Configurations -------------------------------------------------------------------

TENSOR_WISE = {
    "mesh.model": 2,
    "mesh.rules": ("dense1/kernel = - model", "classifier/kernel = model"),
}


def config_with(**changes):
    wide = {"model.options": {"features": (256,)}, "data.batch_size": 128}
    return config_of(**wide, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.model": 3}, "config.mesh: model=3 must divide the 8 devices"),
        ({"mesh.model": 0}, "config.mesh.model must be at least 1, got 0"),
        ({"mesh.model": 2}, "config.mesh: model=2 would have no effect; no rule has "),
        ({"mesh.rules": ("nothing = data",)}, "config.mesh: rules 'nothing' matches"),
        (
            TENSOR_WISE | {"mesh.rules": ("classifier/kernel = - data+model",)},
            r"config.mesh: leaf 'classifier/kernel' .*: 10 is no multiple of 8",
        ),
        (
            {"mesh.model": 8}
            | {"mesh.rules": TENSOR_WISE["mesh.rules"][:1], "mesh.fsdp": True},
            "config.mesh: fsdp=True would have no effect; of the 8 devices one is ",
        ),
        (
            TENSOR_WISE | {"mesh.model": 1},
            "config.mesh: rule 'dense1/kernel' would hav",
        ),
        ({"mesh.rules": ("dense1",)}, "config.mesh: a rule must look like 'dense/ker"),
        (TENSOR_WISE | {"data.batch_size": 6}, "multiple of the 4 devices along data"),
    ],
)
def test_wrong_layouts_are_refused_in_one_line(changes, message):
    changes = {"data.batch_size": 128} | changes
    with pytest.raises(ValueError, match=message) as error:
        build(config_of(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("loose")
def test_the_plan_tells_what_each_device_has():
    ours = build(config_with(**{"mesh.fsdp": True}))
    assert "devices: 8 data x 1 model; each has 13.5% of the state" in ours.plan_text
    assert ours.experiment.superposition is not None
    kept = ours.like(ours.plan.phase1_steps).average.masks
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(bool)}


@pytest.mark.parametrize("mesh", [{"mesh.fsdp": True}, TENSOR_WISE, {}])
def test_networks_are_read_on_whatever_devices(mesh):
    read = to_read(config_of(**mesh))
    layout = make_layout(read, jax.devices()[:3])
    assert layout.is_replicated is (not mesh)
    assert (layout.fsdp, layout.rules) == (bool(mesh), ())
    assert dict(layout.mesh.shape) == {"data": 3, "model": 1}
    # A run may branch from one on another layout.
    assert words_of(config_of(**mesh)) == words_of(config_of())


def test_a_run_of_a_version_without_a_mesh_is_read():
    config = config_of()
    del config["mesh"]
    check_config(to_read(config))
    assert "mesh" not in config
    assert words_of(config) == words_of(config_of())


def stopping_after(step, monkeypatch):
    """Runs save and stop there."""
    due = RunCheckpointer.stopping
    monkeypatch.setattr(
        RunCheckpointer, "stopping", lambda self, at: at == step or due(self, at)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("loose")
def test_a_run_changes_its_layout_on_its_way(tmp_path, monkeypatch, capsys):
    layouts = [{"mesh.fsdp": True}, TENSOR_WISE, TENSOR_WISE | {"mesh.fsdp": True}, {}]
    place = tmp_path / "run"
    for layout, step in zip(layouts, (7, 22, 26, None), strict=True):
        with monkeypatch.context() as patched, contextlib.ExitStack() as stack:
            if step is not None:
                stopping_after(step, patched)
                stack.enter_context(pytest.raises(Stopped))
            run(config_with(**layout), place)
    assert capsys.readouterr().out.count("going on after") == 3
    run(config_with(), tmp_path / "plain", devices=jax.devices()[:1])
    rows = [
        json.loads((folder / "results.json").read_text())["rows"]
        for folder in (place, tmp_path / "plain")
    ]
    for changed, plain in zip(*rows, strict=True):
        assert [changed[k] for k in ("network", "active")] == [
            plain[k] for k in ("network", "active")
        ]
        assert abs(changed["accuracy"] - plain["accuracy"]) < 0.1
    # What is saved is evaluated wherever it is asked for.
    config = json.loads((place / "config.json").read_text())
    assert config["mesh"]["fsdp"] is True
    found = evaluate(place)["final"][0]
    assert found["accuracy"] == pytest.approx(rows[0][-2]["accuracy"], abs=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "magnitude"])
def test_masks_found_by_scores_lie_as_their_weights_do(name):
    changes = {"mask.name": name, "method.name": "static"}
    if name in ("snip", "grasp"):
        changes["mask.examples_per_class"] = 1
    sharded = build(config_with(**TENSOR_WISE, **changes, **{"mesh.fsdp": True}))
    plain = build(config_with(**changes), devices=jax.devices()[:1])
    found, wanted = (ours.init().train for ours in (sharded, plain))
    places = sharded.layout.of(found, found.params)
    for leaf, place in zip(
        jax.tree.leaves(found), jax.tree.leaves(places), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    assert_same(*(int(count(x.method.masks)) for x in (found, wanted)))
    for a, b in zip(*(jax.tree.leaves(x.method.masks) for x in (found, wanted)),
                    strict=True):  # fmt: skip
        assert np.mean(np.asarray(a) != np.asarray(b)) < 0.002  # near-ties
