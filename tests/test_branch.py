"""A run that starts with another's state at the end of phase 1."""

import json
import shutil

import chex
import jax
import pytest

from configs.digits import get_config
from experiments.build.branch import course_of, difference_before
from experiments.run import run
from experiments.runs import branch as branch_module
from experiments.runs.branch import find_source
from experiments.runs.events import read_events
from experiments.runs.identity import CONTENTS, TEXT
from sup_tickets.training.network_files import load_sparse

ARGUMENT = (
    "model=mlp,sparsity=0.5,epochs=5,cycles=1,cycle_epochs=2,data.batch_size=256,"
    "method.update_every_steps=4,method.drop_schedule=constant,sup.lr_max=0.02,"
    "method.update_end_fraction=1.0,train.validate_every_epochs=2,seed=3"
)


def config_of(**fields):
    """Five epochs of 5 steps, a ticket in the last two."""
    config = get_config(ARGUMENT)
    config.model.options.features = (8,)
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


def phase1_of(**fields):
    return config_of(**{"train.epochs": 3, "sup.enabled": False, **fields})


def trained(folder, config):
    run(config, folder, devices=jax.devices()[:1])
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A whole run."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, trained(folder, config_of())


def assert_same(folder, results, straight, kinds=("loss", "update", "explore")):
    place, wanted = straight
    for part in ("rows", "layers"):
        assert results[part] == wanted[part]
    for name in ("training_flops", "inference_flops", "active_parameters"):
        assert results["cost"][name] == wanted["cost"][name]
    ours, theirs = (
        load_sparse(f / "final/network.safetensors") for f in (folder, place)
    )
    chex.assert_trees_all_equal(ours, theirs)

    def losses(path):
        events = read_events(path / "metrics.jsonl")
        return [e for e in events if e["event"] in kinds]

    assert losses(folder) == losses(place)


# --- The same bits --------------------------------------------------------------------


def test_a_branch_of_a_whole_run_is_that_run(straight, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(straight[0].parent)
    results = trained(tmp_path, config_of(branch_from=straight[0].name))
    assert f"begins with step 15 of {straight[0].name}" in capsys.readouterr().out
    assert_same(tmp_path, results, straight)
    # Reports are made anywhere.
    known = json.loads((tmp_path / "config.json").read_text())["branch_from"]
    assert known == str(straight[0])


def test_a_branch_of_phase_1_alone_is_the_whole_run(straight, tmp_path):
    phase1 = tmp_path / "phase1"
    trained(phase1, phase1_of())
    before = {p: p.stat().st_mtime_ns for p in phase1.rglob("*") if p.is_file()}
    config = config_of(branch_from=str(phase1))
    results = trained(tmp_path / "branch", config)
    assert_same(tmp_path / "branch", results, straight)
    # The other run is as it was; and nobody needs it any more.
    after = {p: p.stat().st_mtime_ns for p in phase1.rglob("*") if p.is_file()}
    assert before == after
    shutil.rmtree(phase1)
    run(config, tmp_path / "branch", devices=jax.devices()[:1])
    (tmp_path / "branch" / "results.json").unlink()
    shutil.rmtree(tmp_path / "branch" / "report")
    again = trained(tmp_path / "branch", config)  # evaluated anew from its checkpoint
    assert_same(tmp_path / "branch", again, straight)


def test_the_base_goes_on_from_a_run_with_tickets(straight, tmp_path):
    base = {"sup.enabled": False, "train.drop_epochs": (1, 2)}
    whole = trained(tmp_path / "whole", config_of(**base))
    branch = config_of(**base, branch_from=str(straight[0]))
    results = trained(tmp_path / "branch", branch)
    # The other run ended a line of the log where its phase 1 ended.
    same = (tmp_path / "whole", whole)
    assert_same(tmp_path / "branch", results, same, kinds=("update",))
    assert [row["network"] for row in results["rows"]] == ["final"]


def test_lines_that_are_copied_are_of_the_run_that_copies(straight, tmp_path):
    source = tmp_path / "dense"  # as within another, where it is called so
    shutil.copytree(straight[0], source)
    log = source / "metrics.jsonl"
    log.write_text(log.read_text().replace('"run": "rigl"', '"run": "else"'))
    assert {event["run"] for event in read_events(log)} == {"else"}
    trained(tmp_path / "branch", config_of(branch_from=str(source)))
    events = read_events(tmp_path / "branch" / "metrics.jsonl")
    assert {event["run"] for event in events} == {"rigl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"method.name": "granet", "method.prune_end_fraction": 0.6},
        {"method.name": "static", "mask.name": "snip"},
        {"tost.parts": "soft+labels", "tost.ghost_fraction": 0.4},
        {"tost.parts": "soft+skips+labels", "tost.released": True},
        {"method.name": "srigl"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_whatever_phase_1_does_a_branch_has_its_bits(fields, tmp_path):
    """Pruning on the way, masks that were found, ghosts that fade or stay, ablation."""
    whole = tmp_path / "whole"
    results = trained(whole, config_of(**fields))
    trained(tmp_path / "phase1", phase1_of(**fields))
    config = config_of(**fields, branch_from=str(tmp_path / "phase1"))
    branch = trained(tmp_path / "branch", config)
    assert_same(tmp_path / "branch", branch, (whole, results))


# --- Refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"seed": 4}, "config.seed is 3 there, 4 here"),
        ({"train.momentum": 0.8}, "config.train.momentum is 0.9 there, 0.8 here"),
        ({"method.sparsity": 0.6}, "config.method.sparsity is 0.5 there"),
        ({"method.name": "set"}, "config.method.name is 'rigl' there, 'set' here"),
        ({"data.batch_size": 128}, "config.data.batch_size is 256 there"),
        ({"mask.name": "snip"}, "config.mask.name is 'random' there"),
        ({"train.learning_rate": 0.2}, "rate of step 0 is 0.1 there, 0.2 here"),
        ({"train.drop_epochs": (2,)}, "rate of step 5 is 0.01 there, 0.1 here"),
        ({"method.update_every_steps": 6}, "updated at step 4 there and not here"),
        ({"method.drop_fraction": 0.2}, "at step 4 drops 0.3 there, 0.2 here"),
        ({"train.epochs": 4}, "phase 1 ends at step 15 there, and at 10 here"),
        ({"train.epochs": 3, "sup.enabled": False}, "nothing left to train"),
    ],
)
def test_what_differs_before_is_named(fields, what):
    theirs = course_of(phase1_of(), epoch_steps=5)
    ours = course_of(config_of(**fields), epoch_steps=5)
    found = difference_before(theirs, ours)
    assert found is not None and what in found


@pytest.mark.parametrize(
    "fields",
    [
        {"sup.cycle_epochs": 1, "sup.cycles": 2},
        {"sup.kind": "caa", "sup.explore_fraction": 0.0, "sup.lr_max": 0.5},
        {"evaluate": "validation", "report.path_points": 0},
        {"train.epochs": 6, "train.drop_epochs": (1, 2)},  # phase 1 goes on for one
        {"sup.enabled": False, "train.epochs": 9, "train.drop_epochs": (1, 2)},
    ],
)
def test_what_differs_afterwards_is_free(fields):
    theirs = course_of(phase1_of(), epoch_steps=5)
    ours = course_of(config_of(**fields), epoch_steps=5)
    assert difference_before(theirs, ours) is None


def test_pruning_and_ghosts_are_compared_by_steps():
    granet = {"method.name": "granet", "method.prune_end_fraction": 0.6}
    theirs = course_of(phase1_of(**granet), epoch_steps=20)
    longer = {"sup.enabled": False, "train.epochs": 5, "train.drop_epochs": (1, 2)}
    ours = course_of(config_of(**granet | longer), epoch_steps=20)
    found = difference_before(theirs, ours)
    assert found == "prune_end_step of the method is 36 there, 60 here"
    longer["method.prune_end_fraction"] = 0.36
    ours = course_of(config_of(**granet | longer), epoch_steps=20)
    assert difference_before(theirs, ours) is None

    ghosts = {"tost.parts": "soft", "tost.ghost_fraction": 0.4}
    theirs = course_of(phase1_of(**ghosts), epoch_steps=5)
    ours = course_of(config_of(**ghosts), epoch_steps=5)
    assert difference_before(theirs, ours) is None
    ours = course_of(config_of(**ghosts | longer), epoch_steps=5)
    assert "ghosts fade over a part of the 15 steps" in difference_before(theirs, ours)
    stay = {"tost.parts": "soft", "tost.released": True}  # to the end, without fading
    theirs = course_of(phase1_of(**stay), epoch_steps=5)
    ours = course_of(config_of(**stay | longer), epoch_steps=5)
    assert difference_before(theirs, ours) is None


def test_what_is_no_run_to_branch_from_is_said(straight, tmp_path, monkeypatch):
    def refused(message, **fields):
        with pytest.raises(ValueError, match=message):
            run(config_of(**fields), tmp_path / "new", devices=jax.devices()[:1])
        assert not (tmp_path / "new").exists()

    refused("is not the folder of a run", branch_from=str(tmp_path / "nowhere"))
    other = config_of(branch_from=str(straight[0]), seed=4)
    with pytest.raises(ValueError, match=r"branch_from='.*seed is 3 there, 4 here"):
        run(other, tmp_path / "new", devices=jax.devices()[:1])
    early = {"checkpoint.keep_epochs": (1,), "branch_from": str(straight[0])}
    refused("epoch 1 is over where", **early)

    copy = tmp_path / "copy"
    shutil.copytree(straight[0], copy)
    made = json.loads((copy / "made_by.json").read_text())
    identity = {CONTENTS: "a", TEXT: "b"}
    for name, other in ((CONTENTS, {TEXT: "b"}), (TEXT, {CONTENTS: "a"})):
        (copy / "made_by.json").write_text(json.dumps(made | other | {name: "c"}))
        monkeypatch.setattr(branch_module, "identity_of", lambda config: identity)
        refused(f"{name} are others now", branch_from=str(copy))
    (copy / "made_by.json").write_text(json.dumps(made))
    monkeypatch.undo()
    file = next(p for p in (copy / "checkpoints" / "15").rglob("*") if p.stat().st_size)
    (copy / "checkpoints" / "15" / "checksums.json").unlink()
    refused("checkpoints/15 cannot be read", branch_from=str(copy))
    assert file.exists()
    shutil.rmtree(copy / "checkpoints" / "15")
    refused("has no checkpoint of step 15", branch_from=str(copy))


@pytest.mark.parametrize(
    ("theirs", "ours", "what"),
    [
        ({}, {}, None),
        ({}, {"train.validate_every_epochs": 1}, "at step 4 there and not here"),
        ({"checkpoint.keep_epochs": (1,)}, {}, "at step 4 here and not there"),
        ({}, {"train.epochs": 6, "train.drop_epochs": (1, 2)}, "at step 14 here"),
        ({}, {"train.validate_every_epochs": 0}, "at step 9 here and not there"),
    ],
)
def test_blocks_of_steps_are_the_same(theirs, ours, what):
    both = {"train.block_steps": 2, "method.name": "static"}
    if what and "at step 9" in what:
        both["train.block_steps"] = 3
    found = difference_before(
        course_of(phase1_of(**both | theirs), epoch_steps=5),
        course_of(config_of(**both | ours), epoch_steps=5),
    )
    assert (found is None) if what is None else (what in found)


def test_a_run_killed_in_its_first_checkpoint_branches_again(
    straight, tmp_path, capsys
):
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp-1").mkdir(parents=True)
    results = trained(tmp_path, config_of(branch_from=str(straight[0])))
    assert "begins with step 15 of" in capsys.readouterr().out
    assert_same(tmp_path, results, straight)


# --- Found by a sweep -----------------------------------------------------------------


def test_a_source_is_the_first_that_began_alike(straight, tmp_path):
    def begun(name, step):
        shutil.copytree(
            straight[0] / "checkpoints" / "15",
            tmp_path / name / "checkpoints" / str(step),
        )
        return tmp_path / name

    others = [
        (begun("other seed", 15), phase1_of(seed=9)),
        (begun("unfinished", 10), phase1_of()),
        (begun("broken", 15), phase1_of()),
        (begun("ours", 15), phase1_of()),
        (begun("later", 15), config_of()),
    ]
    (tmp_path / "broken" / "checkpoints" / "15" / "checksums.json").unlink()
    assert find_source(config_of(), others, epoch_steps=5) == tmp_path / "ours"
    assert find_source(config_of(seed=8), others, epoch_steps=5) is None


def test_a_run_that_keeps_a_network_of_phase_1_has_no_source(straight):
    others = [(straight[0], config_of())]
    kept = {epoch: {"checkpoint.keep_epochs": (epoch,)} for epoch in (1, 4)}
    assert find_source(config_of(**kept[1]), others, epoch_steps=5) is None
    assert find_source(config_of(**kept[4]), others, epoch_steps=5) == straight[0]


def test_whoever_trains_phase_1_again_for_blocks_is_told(tmp_path, capsys):
    """Steps of one call round differently: 15 steps are no blocks of 2."""
    blocks = {"train.block_steps": 2, "train.drop_epochs": (2,)}
    longer = config_of(**{"sup.enabled": False, **blocks})
    trained(tmp_path / "short", phase1_of(**blocks))
    others = [(tmp_path / "unfinished", phase1_of(**blocks))]
    capsys.readouterr()
    assert find_source(longer, others, epoch_steps=5) is None
    assert not capsys.readouterr().out
    others.append((tmp_path / "short", phase1_of(**blocks)))
    assert find_source(longer, others, epoch_steps=5) is None
    told = capsys.readouterr().out
    assert f"phase 1 of {tmp_path / 'short'} is not taken, for this alone: " in told
    assert "a block of config.train.block_steps begins at step 14 here" in told
    sooner = phase1_of(**blocks | {"train.epochs": 4})
    others.append((tmp_path / "longer", sooner))
    trained(tmp_path / "longer", sooner)  # 20 steps are
    capsys.readouterr()
    assert find_source(longer, others, epoch_steps=5) == tmp_path / "longer"
    assert not capsys.readouterr().out
