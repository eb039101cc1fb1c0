"""The STAMP experiment: a whole tiny run, killed and gone on with, and bad input."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from configs import stamp as digits
from configs import stamp_cifar
from experiments.build.domains import Domain, conforming, load_domain
from experiments.build.stamp import ARMS, build_stamp
from experiments.config.fields import STAMP_FIELDS, check_config, flat
from experiments.reports.stamp import write_stamp_report
from experiments.runs.phases import Phases
from experiments.runs.stopping import Signals, Stopped
from experiments.stamp import main, run_stamp
from experiments.systems.stamp import gates as stamp_gates
from experiments.systems.stamp.lab import Lab
from sup_tickets.data import image_sets
from sup_tickets.data.files import Split, TrainTest

ROOT = Path(__file__).parent.parent
TINY = {
    "model.options.features": (4, 4),
    "stamp.targets": ("digits:5-7",),
    "stamp.pretrain_epochs": 1,
    "stamp.episodes": 4,
    "stamp.set_size": 8,
    "stamp.inner_steps": 2,
    "stamp.adapt_steps": 1,
    "stamp.hidden": 4,
    "stamp.flops_ratio": 0.5,
    "stamp.arms": ("generator",),
    "stamp.finetune_epochs": 1,
    "stamp.dense_epochs": 1,
    "stamp.report_epochs": (1,),
}


def config_of(**changes):
    config = digits.get_config()
    for name, value in {**TINY, **changes}.items():
        *path, last = name.split(".")
        section = config
        for step in path:
            section = section[step]
        with section.ignore_type():
            section[last] = value
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamp")
    return folder, run_stamp(config_of(), folder).read_text("utf-8")


def phases_of(folder):
    files = sorted((folder / "seed=0/phases").iterdir())
    return {path.name: path.read_bytes() for path in files}


def test_a_run_that_is_killed_within_episodes_has_the_same_bits(
    whole, tmp_path, monkeypatch, capsys
):
    episode = stamp_gates._episode

    def killed(lab, meta, notes, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return episode(lab, meta, notes, index)

    monkeypatch.setattr(stamp_gates, "_episode", killed)
    with pytest.raises(Stopped, match="stopped after 2 of 4 steps of 'episodes', all"):
        run_stamp(config_of(), tmp_path)
    monkeypatch.setattr(stamp_gates, "_episode", episode)
    text = run_stamp(config_of(), tmp_path).read_text("utf-8")
    assert "going on after 2 of 4 steps" in capsys.readouterr().out
    assert phases_of(tmp_path) == phases_of(whole[0])
    assert text == whole[1]


def test_what_a_run_leaves_behind(whole, capsys):
    folder, text = whole
    results = json.loads((folder / "seed=0/results.json").read_text("utf-8"))
    (row,) = results["rows"]
    assert row["arm"] == "generator" and row["target"] == "digits:5-7"
    assert 0.35 < row["share"] < 0.65 and 0.4 < row["measured_share"] < 0.6
    assert len(row["accuracy"]) == len(row["loss"]) == 1
    for name, size in results["layers"].items():
        assert len(row["kept"][name]) == size and "1" in row["kept"][name]
    assert len(results["meta"]["loss"]) == len(results["meta"]["flops"]) == 4
    assert results["overlaps"]["digits:5-7"].keys() == {"another set"}
    report = folder / "report"
    assert {path.name for path in report.iterdir()} == {
        *("summary.md", "index.html", "results.csv"),
        *("accuracy.png", "channels.png", "episodes.png", ".written.json"),
    }
    assert len(pd.read_csv(report / "results.csv")) == 1
    before = phases_of(folder)
    assert run_stamp(config_of(), folder).read_text("utf-8") == text
    assert "finished" in capsys.readouterr().out and phases_of(folder) == before


def test_all_networks_of_a_target_see_the_same_batches(tmp_path):
    """Rows and crops are of the seed, the target and the step, not of the arm."""
    config, seen = config_of(), {}

    def inputs(images, domain, key=None):
        seen.setdefault(name, []).append(
            images.tobytes() + jax.random.key_data(key).tobytes()
        )

    programs = SimpleNamespace(
        size=16,
        inputs=inputs,
        train=lambda state, total, rate, x, labels, key: (state, total),
        counts=lambda *given: lambda images, labels: 0,
    )
    setup = SimpleNamespace(wiring=SimpleNamespace(groups=()))
    phases = Phases(tmp_path, Signals(), 0, 0)
    lab: Any = Lab(config, setup, phases, programs)  # pyright: ignore
    domain = load_domain(config, "digits:5-7", training_examples=40)
    for name in ("one arm", "another"):
        lab.train(name, domain, lambda: ({}, {}), 2, lambda i: 0.1)
    assert seen["one arm"] == seen["another"] and len(set(seen["another"])) == 6


def test_the_time_of_phases_goes_on_where_they_do(tmp_path, monkeypatch):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("experiments.runs.phases.time.monotonic", lambda: next(now))
    signals = Signals()
    phases = Phases(tmp_path / "phases", signals, 0, 0)

    def step(state, notes, index):
        signals.received = signal.SIGTERM if index == 1 else 0
        return state, notes

    with pytest.raises(Stopped):
        phases.run("one", lambda: {"a": np.ones(2)}, 4, step)
    assert phases.seconds() == 10  # the clock is read when it begins and when it saves
    phases.run("one", lambda: {"a": np.ones(2)}, 4, step)
    phases.run("two", lambda: {}, 1, step)
    assert phases.seconds() == 30


def test_another_experiment_is_not_mixed_in(whole, tmp_path):
    with pytest.raises(ValueError, match=r"another STAMP .*: config.stamp.hidden is 4"):
        run_stamp(config_of(**{"stamp.hidden": 5}), whole[0])
    (tmp_path / "seed=0").mkdir()
    with pytest.raises(ValueError, match=r"holds seed=0, and no stamp.json says"):
        run_stamp(config_of(), tmp_path)


def test_a_damaged_phase_is_named(whole, tmp_path):
    place = tmp_path / "seed=0/phases/reference.safetensors"
    place.parent.mkdir(parents=True)
    (tmp_path / "stamp.json").write_bytes((whole[0] / "stamp.json").read_bytes())
    good = (whole[0] / "seed=0/phases/reference.safetensors").read_bytes()
    place.write_bytes(good[:-4] + b"else")
    with pytest.raises(ValueError, match=r"reference.safetensors .* checksum is wrong"):
        run_stamp(config_of(), tmp_path)
    place.write_bytes((whole[0] / "seed=0/phases/episodes.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"arrays of other shapes; remove it"):
        run_stamp(config_of(), tmp_path)


@pytest.mark.slow
def test_all_arms_by_the_command_at_equal_operations(tmp_path, capsys):
    lists = ("stamp.arms", "stamp.targets", "model.options.features")
    words = [
        *(f"--config.{k}={v}" for k, v in TINY.items() if k not in lists),
        "--config.stamp.targets=digits:5-7,digits:7-9",
        f"--config.stamp.arms={','.join(ARMS)}",
        "--config.model.options.features=(8,8)",
        "--config.stamp.gate=kumaraswamy",
        "--config.stamp.kl_weight=0.1",
        "--config.stamp.kl_prior=1e-4",
        "--seeds=0,1",
        f"--config={ROOT / 'configs/stamp.py'}",
        f"--workdir={tmp_path}",
    ]
    main(words)
    text = capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "report/results.csv")
    assert len(frame) == 2 * 2 * len(ARMS)
    for _, same in frame.groupby(["seed", "target"]):
        assert set(same["arm"]) == {*ARMS}
        assert same["measured_share"].max() - same["measured_share"].min() < 0.08
        assert abs(same["measured_share"].mean() - 0.5) < 0.04
        costs = same.set_index("arm")["target_flops"]
        assert costs["random"] == costs["l1"] == costs["small"]
        assert costs["dense-prune"] > costs["random"] < costs["generator"]
    for heading in ("Accuracy, %", "Points of the generator", "Does the set decide?"):
        assert heading in text
    assert "The right set is better than a wrong one in" in text


def fabricated(name, folder, *, shape, examples):
    """In place of `sup_tickets.data.prepared.read_prepared`: noise of its shapes."""
    classes, rng = {"cifar100": 100}.get(name, 10), np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % classes
    images = rng.integers(0, 256, (400, *shape), np.uint8)
    return TrainTest(Split(images, labels), Split(images, labels))


@pytest.mark.slow
def test_the_protocol_on_cifar_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sets, "read_prepared", fabricated)
    config = stamp_cifar.get_config(
        "data.validation_examples=50,data.training_examples=70,stamp.set_size=20,"
        "stamp.pretrain_epochs=1,stamp.episodes=2,stamp.finetune_epochs=1,"
        "stamp.report_epochs=1,stamp.arms=(wrong set,small)"
    )
    setup = build_stamp(config)
    shapes = {domain.train.images.shape for domain in setup.targets.values()}
    assert shapes == {(70, 16, 16, 3)}  # Fashion-MNIST too, of 28 x 28 grey pixels
    assert [group.size for group in setup.wiring.groups] == [16, 16, 32, 32, 64, 64]
    run_stamp(config, tmp_path)
    frame = pd.read_csv(tmp_path / "report/results.csv")
    assert len(frame) == 3 * 2
    assert (frame["measured_share"] - 0.3).abs().max() < 0.006


# --- What cannot be -------------------------------------------------------------------

_TWO = ("digits:5-7", "digits:7-9")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stamp.flops_ratio": 0.0}, r"flops_ratio must be in \(0, 1\], got 0.0"),
        ({"stamp.flops_ratio": 1.2}, r"flops_ratio must be in \(0, 1\], got 1.2"),
        ({"stamp.flops_ratio": 30.0}, r"in percent\? 30% is 0.3"),
        ({"stamp.flops_ratio": 0.01}, "to keep one channel of every layer, got 0.01"),
        ({"stamp.episode_classes": 6}, "episode_classes=6 is more than the 5 classes"),
        ({"stamp.episode_classes": 1}, "config.stamp.episode_classes must be at least"),
        ({"data.batch_size": 9000}, "batch_size=9000 is more than the"),
        ({"stamp.set_size": 0}, "config.stamp.set_size must be at least 1, got 0"),
        ({"stamp.set_size": 5000}, "set_size=5000 is more than the"),
        ({"stamp.arms": ()}, "arms must be some and all different"),
        ({"stamp.arms": ("l1", "l1")}, "arms must be some and all different"),
        ({"stamp.arms": ("l2",)}, "arms must be one of .* did you mean 'l1'"),
        ({"stamp.arms": ("wrong set",)}, "'wrong set' needs two targets or more"),
        ({"stamp.targets": ()}, "targets must be some and all different"),
        ({"stamp.targets": ("digits:4-6",)}, "has class 4 of the reference"),
        ({"stamp.targets": ("digits:7-12",)}, "has class 10, and the data set has 0-9"),
        ({"stamp.targets": ("digits:9-7",)}, "classes must look like 0-4 or 0.3.7-9"),
        ({"stamp.targets": ("digits:7-7",)}, "classes must be two or more"),
        ({"stamp.targets": ("digit:7-8",)}, "name must be one of .* 'digits'"),
        ({"stamp.reference": "pydoc"}, "name must be one of"),
        ({"stamp.report_epochs": (1, 2)}, "report_epochs must be at most finetune_epo"),
        ({"stamp.gate": "hard"}, "config.stamp.gate must be one of"),
        ({"stamp.episodes": 0}, "config.stamp.episodes must be at least 1"),
        ({"data.training_examples": 9999}, "training_examples=9999 is more than the"),
        ({"data.crop_padding": 8}, "crop_padding must be below the 8 pixels"),
        (
            {"data.validation_examples": 0, "evaluate": "validation"},
            "split .* is empty",
        ),
        ({"model.name": "lstm"}, "config.model: model 'lstm' is not one of images"),
        ({"model.options.features": (1, 1)}, "no channels that can be removed"),
        ({"model.name": "nothing"}, "unknown model"),
        ({"stamp.hidden": "x"}, "config.stamp.hidden must be of type int"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything(changes, text, tmp_path):
    config = config_of(**changes)
    if changes.get("model.name"):
        config.model.options = type(config)({})
    with pytest.raises(ValueError, match=text) as caught:
        run_stamp(config, tmp_path / "new")
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_a_model_that_cannot_be_sliced_is_told_at_once():
    config = config_of(**{"model.name": "wrn22x2"})
    options = {"blocks": 1, "widths": (4,), "stem_width": 4}
    config.model.options = type(config)(options)
    with pytest.raises(ValueError, match=r"config\.stamp: the model cannot have these"):
        build_stamp(config)


def test_seeds(tmp_path):
    with pytest.raises(ValueError, match="seeds must be some and all different"):
        run_stamp(config_of(), tmp_path, (1, 1))
    with pytest.raises(ValueError, match=r"config\.seed must be in \[0, "):
        run_stamp(config_of(**{"seed": -1}), tmp_path)


# --- Configurations and domains -------------------------------------------------------


@pytest.mark.parametrize("module", [digits, stamp_cifar])
def test_configurations_have_all_fields(module):
    config = module.get_config("seed=3,stamp.episodes=7")
    check_config(config, STAMP_FIELDS)
    assert (config.seed, config.stamp.episodes) == (3, 7)
    assert set(config.stamp.arms) == {*ARMS} and tuple(ARMS) == digits.ARMS
    known = {name for name in flat(config) if not name.startswith("model.options.")}
    assert known == STAMP_FIELDS.keys()


def test_classes_count_from_0_and_examples_are_a_part():
    config = config_of()
    domain = load_domain(config, "digits:5-7", training_examples=30)
    assert domain.classes == 3 and len(domain.train.labels) == 30
    assert set(domain.held.labels) == {0, 1, 2} and len(domain.held.labels) == 3 * 36
    again = load_domain(config, "digits:5-7", training_examples=30)
    np.testing.assert_array_equal(again.train.images, domain.train.images)
    assert load_domain(config, "digits").classes == 10
    config.evaluate = "validation"
    assert len(load_domain(config, "digits:5-7").held.labels) == 3 * 18


def test_grey_images_become_coloured_and_larger():
    split = Split(np.full((2, 3, 4, 1), 7, np.uint8), np.zeros(2, np.int32))
    domain = Domain("x", "x", (0, 1), 2, split, split, 255.0, (0.5,), (0.2,))
    found = conforming(domain, (4, 6, 3))
    assert found.train.images.shape == found.held.images.shape == (2, 4, 6, 3)
    assert found.mean == (0.5,) * 3 and found.std == (0.2,) * 3
    inside = found.train.images[0, :, :, 1]
    np.testing.assert_array_equal(np.argwhere(inside == 7).min(0), [0, 1])
    np.testing.assert_array_equal(np.argwhere(inside == 7).max(0), [2, 4])
    with pytest.raises(ValueError, match=r"images of \(3, 4, 1\), and cannot be made"):
        conforming(domain, (2, 6, 3))


def test_a_report_of_a_break_even(tmp_path):
    """Curves that are written by hand: 2 targets pay for the episodes."""
    seed = tmp_path / "seed=0"
    seed.mkdir()

    def row(arm, before, accuracy):
        return {
            "target": "t",
            "arm": arm,
            "flops": 10,
            "share": 0.3,
            "measured": 11.0,
            "measured_share": 0.31,
            "before_flops": before,
            "epoch_flops": 1e9,
            "kept": {"params/a": "0110"},
            "accuracy": accuracy,
            "loss": [1.0, 0.5],
        }

    results = {
        "seed": 0,
        "evaluated_on": "test",
        "rows": [row("generator", 0, [0.8, 0.9]), row("dense-prune", 4e9, [0.7, 0.8])],
        "layers": {"params/a": 4},
        "reference": {"accuracy": [0.5]},
        "meta": {"loss": [2.0, 1.0], "flops": [0.5, 0.3]},
        "overlaps": {"t": {"another set": 0.75}},
        "pretrain_flops": 1e9,
        "meta_flops": 10e9,
    }
    (seed / "results.json").write_text(json.dumps(results), "utf-8")
    text = write_stamp_report(tmp_path, (1, 2)).read_text("utf-8")
    # 80%: after 1 G by the generator, 6 G by the other; the episodes have cost 10 G.
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["t", "80.00", "1.000", "6.000", "2.0"] in cells
    assert ["t, 2", "90.00", "80.00"] in cells and ["t, 2", "+10.00"] in cells
    assert ["t", "75.0"] in cells
