import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from configs.digits import get_config
from experiments import run as run_module
from experiments.build.experiment import build, comparisons
from experiments.build.parts import make_parts
from experiments.config.fields import FIELDS, check_config, flat
from experiments.main import main
from experiments.run import run
from experiments.runs.folder import RunFolder
from experiments.runs.made_by import command
from experiments.runs.progress import Progress
from experiments.runs.stopping import Stopped
from sup_tickets.training.network_files import (
    load_sparse,
    provenance_of,
    sparse_size,
)
from sup_tickets.trees import named_leaves

ROOT = Path(__file__).parent.parent
ARGUMENT = (
    "model=mlp,sparsity=0.5,epochs=6,cycles=2,cycle_epochs=1,data.batch_size=256,"
    "method.update_every_steps=5,train.validate_every_epochs=2,sup.lr_max=0.02"
)


def config_of(**changes):
    """A run of a second: 6 epochs of 5 steps, two tickets."""
    config = get_config(ARGUMENT)
    config.model.options.features = (8,)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def one():
    return jax.devices()[:1]


@functools.cache
def finished(folder):
    """A whole run with its comparisons, as another process does it."""
    command = [
        *(sys.executable, "-m", "experiments.main"),
        f"--config=configs/digits.py:{ARGUMENT}",
        "--config.model.options.features=(8,)",
        *("--config.compare=true", f"--workdir={folder}"),
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "deeper" / "run"


# --- A whole run ----------------------------------------------------------------------


def test_a_run_from_the_command_line(folder):
    done = finished(folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sparse leaves: ")
    assert lines[1].startswith("plan: rigl, sparsity 0.5, 30 steps in 6 epochs")
    rows = [line.split(" | ")[0].strip("| ") for line in lines if line[0:1] == "|"]
    assert rows[2:] == [
        *("phase 1", "ticket 1", "ticket 2", "superposed ticket"),
        *("rigl without Sup-tickets", "dense", "ensemble of the tickets"),
        *("the superposed ticket against", rows[10]),
        *("mean of the 2 tickets", "best of the tickets"),
        *(
            "phase 1, where the tickets begin",
            "rigl without Sup-tickets, as many steps",
        ),
    ]
    assert "steps/s" in done.stdout
    assert re.search(r"^Training .* took \d+ s, \d+ s with the runs for", lines[-1])


def test_a_run_leaves_every_file(folder):
    finished(folder)
    skipped = ("checkpoints", "tensorboard")
    files = {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not set(p.parts) & set(skipped)
    }
    own = {
        *("config.json", "plan.txt", "metrics.jsonl", "results.json", ".lock"),
        *("made_by.json", "written.json"),
        *(f"tickets/{n}.safetensors" for n in ("phase-1", "ticket-1", "ticket-2")),
        "final/network.safetensors",
        "report/summary.md",
        "report/index.html",
    }
    assert own <= files
    others = {f.split("/")[0] for f in files} - {f.split("/")[0] for f in own}
    assert others == {"rigl-without-Sup-tickets", "dense"}
    for name in others:
        assert (folder / name / "report" / "summary.md").exists()
    for name in skipped:
        assert any((folder / name).iterdir())
    assert json.loads((folder / "config.json").read_text())["compare"] is True
    summary = (folder / "report/summary.md").read_text()
    assert "| superposed ticket" in summary
    assert "dense1/kernel" in summary
    assert (folder / "report/curves.png").read_bytes()[1:4] == b"PNG"


def test_the_results_count_exactly(folder):
    finished(folder)
    results = json.loads((folder / "results.json").read_text())
    rows, total = results["rows"], 64 * 8 + 8 * 10
    assert [r["network"] for r in rows] == [
        *("phase 1", "ticket 1", "ticket 2", "superposed ticket")
    ]
    assert [(r["active"], r["total"]) for r in rows] == [(total // 2, total)] * 4
    assert [r["examples"] for r in rows] == [360] * 4
    dense = json.loads((folder / "dense" / "results.json").read_text())["rows"]
    assert [(r["network"], r["active"], r["total"]) for r in dense] == [("final", 0, 0)]
    events = RunFolder(folder, config_of(compare=True)).metrics()
    steps = {
        kind: [e["step"] for e in events if e["event"] == kind]
        for kind in ("start", "loss", "validation", "update", "explore", "network")
    }
    assert steps == {
        "start": [0],
        "loss": [10, 20, 25, 30],
        "validation": [10, 20, 25, 30],
        "update": [5, 10, 15],
        "explore": [20, 25],
        "network": [20, 25, 30, 30],
    }


def test_the_costs_are_those_of_the_convention(folder):
    finished(folder)
    cost = json.loads((folder / "results.json").read_text())["cost"]
    active, total, biases = 296, 592, 18
    assert cost["parameters"] == total + biases
    assert cost["active_parameters"] == active + biases
    assert cost["inference_flops"] == 2 * active
    assert cost["dense_inference_flops"] == 2 * total
    # 30 steps, of them RigL's updates take 3; 5 changes look at all gradients.
    sparse, full = 2 * active, 2 * total
    expected = 27 * 3 * sparse + 5 * (2 * sparse + full)
    assert cost["training_flops"] == 256 * expected
    assert cost["dense_training_flops"] == 256 * 30 * 3 * full
    assert cost["measured_step_flops"] > 256 * 2 * full
    file = folder / "final/network.safetensors"
    assert cost["bytes_sparse"] == sparse_size(load_sparse(file)) < file.stat().st_size


def test_the_tickets_are_compared(folder):
    finished(folder)
    analysis = json.loads((folder / "results.json").read_text())["analysis"]
    assert 0 <= analysis["ensemble"]["accuracy"] <= 1
    matrix = np.array(analysis["disagreement"])
    assert matrix.shape == (2, 2)
    assert (np.diag(matrix) == 0).all() and (matrix >= 0).all()


def test_the_final_network_is_sparse_and_can_be_loaded(folder):
    finished(folder)
    network = load_sparse(folder / "final/network.safetensors")
    params = dict(named_leaves(network.params))
    active = 0
    for name, mask in named_leaves(network.masks):
        assert not params[name][~mask].any()
        active += int(mask.sum())
    assert active == (64 * 8 + 8 * 10) // 2


def test_a_finished_run_is_left_alone_and_another_refused(folder, capsys):
    finished(folder)
    before = (folder / "metrics.jsonl").read_bytes()
    run(config_of(compare=True), folder, devices=one())
    assert "this run is finished" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match=r"config.seed is 0 there and 1 here"):
        run(config_of(compare=True, seed=1), folder, devices=one())
    with pytest.raises(ValueError, match=r"config.sup.kind is 'cia' there and 'caa'"):
        RunFolder(folder, config_of(compare=True, **{"sup.kind": "caa"}))


def test_a_run_that_left_no_checkpoint_starts_again(tmp_path, capsys):
    config = config_of(**{"sup.batch_norm": "bu", "method.name": "set"})
    first = RunFolder(tmp_path, config)
    first.log({"event": "old"})
    first.close()
    run(config, tmp_path, devices=one())
    assert "was begun and left no checkpoint" in capsys.readouterr().out
    events = [e["event"] for e in RunFolder(tmp_path, config).metrics()]
    assert "old" not in events
    assert events.count("network") == 4


def test_a_run_that_diverges_keeps_what_it_had(tmp_path):
    config = config_of(
        **{"train.learning_rate": 1e30, "train.check_every_steps": 1, "seed": 2}
    )
    with pytest.raises(ValueError, match=r"diverged: .* at step \d+ \(phase 1, epoch"):
        run(config, tmp_path, devices=one())
    assert not (tmp_path / "report").exists()
    assert not (tmp_path / "final").exists()


# --- Stopped and continued ------------------------------------------------------------


def signalled(monkeypatch, number, at):
    """Sends this process a signal once ``at`` steps are done."""
    original = Progress.reported

    def reported(self, phase, steps, values):
        original(self, phase, steps, values)
        if steps[-1] + 1 >= at and not getattr(Progress, "sent", False):
            monkeypatch.setattr(Progress, "sent", True, raising=False)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "reported", reported)


CHECKED = {"train.check_every_steps": 1, "report.path_points": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    run(config_of(**CHECKED), folder, devices=one())
    return folder


@pytest.mark.parametrize(
    ("number", "at"), [(signal.SIGTERM, 7), (signal.SIGINT, 22), (signal.SIGTERM, 30)]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    number, at, whole, tmp_path, monkeypatch, capfd
):
    config = config_of(**CHECKED)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    signalled(monkeypatch, number, at)
    with pytest.raises(Stopped, match=rf"stopped after {at} of 30 steps") as caught:
        run(config, tmp_path, devices=one())
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert f"{number.name}: saving" in capfd.readouterr().err
    run(config, tmp_path, devices=one())
    assert f"going on after {at} steps" in capfd.readouterr().out
    assert_same_results(tmp_path, whole)


def test_the_command_to_go_on_with_is_the_one_typed(monkeypatch):
    main = type(
        "Main", (), {"__spec__": type("Spec", (), {"name": "experiments.main"})}
    )
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/x/experiments/main.py", "--workdir=a b"])
    assert command() == "python -m experiments.main '--workdir=a b'"


def assert_same_results(one, other):
    """The same networks bit by bit, the same rows, the same log."""
    names = sorted(str(p.relative_to(other)) for p in other.rglob("*.safetensors"))
    assert names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    rows = [json.loads((p / "results.json").read_text())["rows"] for p in (one, other)]
    assert rows[0] == rows[1]
    logs = [(p / "metrics.jsonl").read_text() for p in (one, other)]
    assert logs[0] == logs[1]


def test_what_a_run_needs_is_in_its_checkpoint(tmp_path, monkeypatch, capsys):
    config = config_of(**CHECKED)
    signalled(monkeypatch, signal.SIGTERM, 22)
    with pytest.raises(Stopped):
        run(config, tmp_path, devices=one())
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"another run: config.seed is 0 there and 1"):
        run(config_of(seed=1), tmp_path, devices=one())

    original = run_module.cost_of

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "cost_of", interrupted)
        with pytest.raises(Stopped, match="it is trained, and all is saved"):
            run(config, tmp_path, devices=one())
    assert "lines of metrics.jsonl are gone" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()
    run(config, tmp_path, devices=one())
    results = json.loads((tmp_path / "results.json").read_text())
    # As in `test_the_costs_are_those_of_the_convention`.
    assert results["cost"]["training_flops"] == 256 * (
        27 * 3 * 592 + 5 * (2 * 592 + 1184)
    )
    assert [row["network"] for row in results["rows"]] == [
        *("phase 1", "ticket 1", "ticket 2", "superposed ticket")
    ]
    origin = provenance_of(tmp_path / "final/network.safetensors")["made_by"]
    for by in (results["made_by"], origin):
        assert {"jax", "jaxlib", "python", "device", "commit", "command"} <= by.keys()
    assert f"jax: {jax.__version__}" in (tmp_path / "report/summary.md").read_text()

    # To save space; and what is left is the report.
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "report")
    before = (tmp_path / "results.json").read_bytes()
    run(config, tmp_path, devices=one())
    assert "trained already" in capsys.readouterr().out
    assert (tmp_path / "report/index.html").exists()
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_run_whose_checkpoints_are_gone_stops_and_removes_nothing(tmp_path):
    config = config_of()
    first = RunFolder(tmp_path, config)
    first.log({"event": "old"})
    first.record("checkpoints")
    first.close()
    with pytest.raises(ValueError, match="all that were saved are gone"):
        run(config, tmp_path, devices=one())
    assert "old" in (tmp_path / "metrics.jsonl").read_text()


def test_a_workdir_must_be_named():
    with pytest.raises(ValueError, match="workdir is empty"):
        run(config_of(), "", devices=one())


def test_a_folder_is_held_by_one(tmp_path):
    config = config_of()
    first = RunFolder(tmp_path, config)
    with pytest.raises(ValueError, match="is in use by another process"):
        run(config, tmp_path, devices=one())
    first.close()
    RunFolder(tmp_path, config).close()


def test_what_changes_no_result_may_change(tmp_path):
    RunFolder(tmp_path, config_of()).close()
    changes = {"checkpoint.every_steps": 3, "report.examples": 7, "data.workers": 2}
    RunFolder(tmp_path, config_of(**changes)).close()


def test_a_full_disk_stops_with_what_there_was(tmp_path, monkeypatch):
    config = config_of(**{"checkpoint.every_steps": 5})
    saves = []
    original = run_module.Checkpoints.save

    def save(self, state, notes, *, rank=None):
        saves.append(int(state.train.step))
        if len(saves) == 3:
            raise OSError("No space left on device")
        original(self, state, notes, rank=rank)

    monkeypatch.setattr(run_module.Checkpoints, "save", save)
    with pytest.raises(OSError, match="No space left"):
        run(config, tmp_path, devices=one())
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "5"]
    run(config, tmp_path, devices=one())
    assert (tmp_path / "report" / "summary.md").exists()


# --- The folder -----------------------------------------------------------------------


def test_nothing_is_ever_half_written(tmp_path):
    folder = RunFolder(tmp_path, config_of())
    folder.write("note.txt", "whole")

    def fails(path):
        path.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.make("note.txt", fails)
    assert (tmp_path / "note.txt").read_text() == "whole"
    names = sorted(p.name for p in tmp_path.iterdir())
    written = ["config.json", "made_by.json", "note.txt", "written.json"]
    assert names == [".lock", *written]


# --- Configurations -------------------------------------------------------------------


# Those of commands with fields of their own have a test beside their command's.
OTHERS = ("common", "ksm", "softnet", "stamp")
CONFIGS = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if not p.stem.startswith(OTHERS)
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_has_exactly_the_known_fields(name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    config = module.get_config("seed=3,sparsity=0.8,sup=false")
    assert (config.seed, config.method.sparsity, config.sup.enabled) == (3, 0.8, False)
    check_config(config)
    known = {n for n in flat(config) if ".options." not in n}
    assert known == set(FIELDS)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("mlp", r"has 'mlp'; it must look like model=vgg16"),
        ("sparsty=0.9", r"unknown name 'sparsty'; short names are model, "),
        ("train.epoch=1", r"unknown name 'train.epoch'"),
        ("sparsity=much", r"sparsity must be of type float, got 'much'"),
        ("epochs=1.5", r"epochs must be of type int, got '1.5'"),
        ("sup=yes", r"sup must be true or false, got 'yes'"),
    ],
)
def test_wrong_arguments_of_a_configuration(argument, message):
    with pytest.raises(ValueError, match=message):
        get_config(argument)


def test_every_short_name_is_a_field():
    assert set(common.ALIASES.values()) <= set(FIELDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"config.seed must be in \[0, 4294967295\], got -1"),
        ({"compare": 1}, r"config.compare must be of type bool, got 1"),
        (
            {"evaluate": "tests"},
            r"config.evaluate must be one of .*did you mean 'test'",
        ),
        (
            {"model.name": "con"},
            r"config.model: unknown model 'con'; did you mean 'conv",
        ),
        ({"model.options.feature": 1}, r"config.model: model 'mlp' has no option"),
        ({"model.dtype": "float16"}, r"config.model.dtype must be one of"),
        ({"method.options.dropp": 1}, r"config.method: method 'rigl' has no option"),
        (
            {"method.keep_dense": ("nothing",)},
            r"config.method: .*'nothing' matches no leaf",
        ),
        ({"data.name": "digts"}, r"config.data: name must be one of .*'digts'.*digits"),
        ({"data.crop_padding": 8}, r"config.data: crop_padding must be below the 8"),
        (
            {"data.batch_size": 4096},
            r"config.data: batch_size=4096 is more than the 1257 examples",
        ),
        (
            {"model.options.features": (0,)},
            r"config.model: a layer would have no weights, .*'features': \(0,\)",
        ),
        ({"model.options.features": (-3,)}, r"config.model: .*\(64, -3\)"),
        ({"model.options.features": (1.5,)}, r"config.model: .*\(64, 1.5\)"),
        ({"model.options.features": "x"}, r"config.model: .*\(64, 'x'\)"),
        ({"data.cutout": 9}, r"config.data: cutout must be below the 8 pixels"),
        ({"train.block_steps": 0}, r"config.train.block_steps must be at least 1"),
        ({"train.clip_norm": -1.0}, r"config.train.clip_norm must be at least 0"),
        ({"train.clip_norm": 0.0}, r"config.train: clip_norm must be positive or None"),
        ({"train.momentum": 1.0}, r"config.train.momentum must be in \[0, 1\)"),
        ({"train.accumulate": 3}, r"config.train: accumulate=3 does not divide the b"),
        ({"train.warmup_epochs": 4}, r"config.train: warmup_epochs=4 must be fewer"),
        (
            {"train.no_weight_decay": ("[",)},
            r"config.train: no_weight_decay '\[' is not .*: unterminated character",
        ),
        ({"method.keep_dense": ("(",)}, r"config.method: .*unterminated"),
        ({"method.options.sparsity": 0.5}, r"config.method: options.sparsity is set"),
        ({"train.no_weight_decay": "bn"}, r"config.train.no_weight_decay must be of"),
        ({"train.drop_epochs": (5,)}, r"drop_epochs=\(5,\): epoch 5 is not within"),
        (
            {"evaluate": "validation", "data.validation_examples": 0},
            r"config.data: evaluate='validation' needs a validation split",
        ),
        ({"method.structure": "4:2"}, r"config.method: n must be at most 1, got 4"),
        ({"method.structure": "rows"}, r"config.method: structure must be '', 'fan-in"),
        ({"method.structure": "1:4"}, r"config.method: sparsity with structure=1:4 mu"),
        (
            {"method.structure": "3:5", "method.sparsity": 0.4},
            r"config.method: structure=3:5: blocks of 5 along axis -2 does not divide",
        ),
        (
            {"method.structure": "fan-in", "method.name": "srigl"},
            r"config.method: structure='fan-in': method 'srigl' has its own, fan-in",
        ),
        ({"method.name": "rigel"}, r"config.method: unknown method .* mean 'rigl'"),
        ({"method.sparsity": 1.0}, r"config.method.sparsity must be in \[0, 1\), got"),
        ({"method.sparsity": 1.5}, r"config.method.sparsity must be in \[0, 1\), got"),
        (
            {"method.distribution": "erkk"},
            r"config.method.distribution must be one of .*erkk.*erk",
        ),
        ({"method.drop_schedule": "cos"}, r"one of .*did you mean 'cosine'"),
        ({"train.optimizer": "adam"}, r"config.train.optimizer .* mean 'adamw'"),
        ({"train.learning_rate": 0.0}, r"config.train: base_lr must be positive"),
        ({"train.epochs": 2}, r"config.sup: cycles=2 of cycle_epochs=1 take 2"),
        ({"sup.lr_min": 0.1}, r"config.sup: lr_min=0.1 and lr_max=0.\d+"),
        ({"sup.decay": 0.5}, r"config.sup.decay=0.5 would .*sup.kind is 'cima'"),
        ({"sup.kind": "cima"}, r"config.sup: decay must be in \[0, 1\]"),
        (
            {"method.name": "gmp", "method.prune_end_fraction": 1.0},
            r"config.method: .* prunes until step 20, but the tickets begin",
        ),
    ],
)
def test_wrong_values_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(config_of(**changes), devices=one())
    assert "\n" not in str(caught.value)


def test_the_batch_must_fit_the_devices():
    with pytest.raises(ValueError, match=r"config.data: batch_size=100 must be a mult"):
        build(config_of(**{"data.batch_size": 100}))


def test_unknown_and_missing_fields_are_refused():
    config = ConfigDict(config_of().to_dict())
    config.method.sparsty = 0.9
    with pytest.raises(ValueError, match=r"config.method.sparsty; did you mean config"):
        check_config(config)
    del config.method.sparsty, config.seed
    with pytest.raises(ValueError, match=r"no field config.seed"):
        check_config(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.sparsty=0.9"], "--config.sparsty: .* mean config.method.sparsity?"),
        (["--config.sup.cycle=3"], "--config.sup.cycle: .* mean config.sup.cycles?"),
        (["--config.model.name=mlp"], "--config.model.name: .*digits.py:model=NAME"),
        (["--config=configs/digit.py"], "there is no file 'configs/digit.py'"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=message) as caught:
        main(["--config=configs/digits.py", *words, "--workdir=x"])
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)


def test_an_error_ends_the_program_without_a_traceback(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.main", "--config=configs/digits.py"),
            *("--config.method.sparsity=1.5", f"--workdir={tmp_path / 'run'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: config.method.spars")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_comparisons_have_the_same_budget():
    config = config_of(compare=True)
    others = comparisons(config_of(compare=True, branch_from="elsewhere"))
    assert {other.branch_from for other in others.values()} == {None}
    assert list(others) == ["rigl without Sup-tickets", "dense"]
    runs = [build(c, devices=one()) for c in [config, *others.values()]]
    assert {r.plan.total_steps for r in runs} == {30}
    assert [len(r.plan.collections) for r in runs] == [2, 0, 0]
    assert comparisons(config_of()) == {}
    assert list(comparisons(config_of(compare=True, **{"sup.enabled": False}))) == [
        "dense"
    ]


@pytest.mark.parametrize(
    ("name", "options", "updates"),
    [
        # Phase 1 has 20 steps: AC/DC's turns, and MEST's every 5 with its two stairs.
        ("acdc", {}, (*range(2, 16), 17)),
        ("mest", {"extra_density": 0.05}, (5, 10, 11, 15)),
    ],
)
def test_methods_with_stairs_are_configured(name, options, updates):
    config = config_of(**{"method.name": name})
    with config.ignore_type():
        config.method.options = ConfigDict(options)
    plan, method, _ = make_parts(config, epoch_steps=5)
    assert plan.updates == updates and method.name == name
    assert method.track_exploration and method.distribution == "erk"
