import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.numpy import load_file

from configs.digits import get_config
from experiments.build import build, comparisons
from experiments.check import FIELDS, check_config, flat
from experiments.command_line import parse
from experiments.run import run
from experiments.run_folder import RunFolder

ROOT = Path(__file__).parent.parent


def config_of(**changes):
    """A run of a second: 6 epochs of 5 steps, two tickets."""
    config = get_config("mlp")
    small = {
        "data.batch_size": 256,
        "model.features": (8,),
        "method.sparsity": 0.5,
        "method.update_every_steps": 5,
        "train.epochs": 6,
        "train.validate_every_epochs": 2,
        "sup.cycles": 2,
        "sup.cycle_epochs": 1,
    }
    config.update_from_flattened_dict(small | changes)
    return config


def one():
    return jax.devices()[:1]


@functools.cache
def finished(folder):
    """A whole run with its comparisons, as another process does it."""
    config = config_of()
    words = [f"--config.{k}={v}" for k, v in flat(config).items() if v is not None]
    return subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "experiments.main",
                "--config=configs/digits.py:mlp",
            ),
            *(w for w in words if w.split("=")[0][9:] in CHANGED),
            *("--config.compare=true", f"--workdir={folder}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


CHANGED = {
    name
    for name, value in flat(config_of()).items()
    if value != flat(get_config("mlp"))[name]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "deeper" / "run"


# --- A whole run ----------------------------------------------------------------------


def test_a_run_from_the_command_line(folder):
    done = finished(folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("plan: rigl, sparsity 0.5, 30 steps in 6 epochs")
    rows = [line.split(" | ")[0].strip("| ") for line in lines if line[0:1] == "|"]
    assert rows[2:] == [
        *("phase 1", "ticket 1", "ticket 2", "superposed ticket"),
        *("rigl without Sup-tickets", "dense"),
    ]
    assert "steps/s" in done.stdout
    assert "points over the mean ticket" in done.stdout


def test_a_run_leaves_every_file(folder):
    finished(folder)
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        *("config.json", "plan.txt", "metrics.jsonl", "results.json"),
        *(f"final/{kind}.safetensors" for kind in ("params", "masks")),
        *(f"last_good/{kind}.safetensors" for kind in ("params", "masks")),
        *(f"report/{name}" for name in ("curves.png", "layer_sparsity.png")),
        "report/summary.md",
    }
    assert json.loads((folder / "config.json").read_text())["compare"] is True
    summary = (folder / "report/summary.md").read_text()
    assert "| superposed ticket" in summary
    assert "dense1/kernel" in summary
    assert (folder / "report/curves.png").read_bytes()[1:4] == b"PNG"


def test_the_results_count_exactly(folder):
    finished(folder)
    rows = json.loads((folder / "results.json").read_text())["rows"]
    total = 64 * 8 + 8 * 10
    assert [(r["active"], r["total"]) for r in rows[:5]] == [(total // 2, total)] * 5
    assert [r["examples"] for r in rows] == [360] * 6
    assert (rows[5]["active"], rows[5]["total"]) == (0, 0)  # no masks: dense
    events = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    ours = [e for e in events if e["run"] == "rigl"]
    assert [e["step"] for e in ours if e["event"] == "loss"] == list(range(30))
    assert [e["step"] for e in ours if e["event"] == "update"] == [5, 10, 15]
    assert [e["step"] for e in ours if e["event"] == "explore"] == [20, 25]


def test_the_final_network_is_sparse_and_can_be_loaded(folder):
    finished(folder)
    params = load_file(folder / "final/params.safetensors")
    packed = load_file(folder / "final/masks.safetensors")
    assert set(packed) == {"params/dense1/kernel", "params/classifier/kernel"}
    active = 0
    with safe_open(folder / "final/masks.safetensors", "numpy") as file:
        shapes = {name: json.loads(s) for name, s in file.metadata().items()}
    for name, bits in packed.items():
        mask = np.unpackbits(bits, count=np.prod(shapes[name])).reshape(shapes[name])
        assert not params[name][mask == 0].any()
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


def test_a_run_that_was_broken_off_starts_again(tmp_path, capsys):
    config = config_of(**{"sup.batch_norm": "bu", "method.name": "set"})
    first = RunFolder(tmp_path, config)
    first.log({"event": "old"})
    run(config, tmp_path, devices=one())
    assert "begun and not finished; starting it again" in capsys.readouterr().out
    events = [e["event"] for e in RunFolder(tmp_path, config).metrics()]
    assert "old" not in events
    assert events.count("network") == 4


def test_a_run_that_diverges_keeps_what_it_had(tmp_path):
    config = config_of(
        **{"train.learning_rate": 1e30, "train.check_every_steps": 1, "seed": 2}
    )
    with pytest.raises(ValueError, match=r"diverged: .* at step \d+ \(phase 1, epoch"):
        run(config, tmp_path, devices=one())
    folder = RunFolder(tmp_path, config)
    assert not folder.finished
    assert not (tmp_path / "final").exists()


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "note.txt"]


# --- Configurations -------------------------------------------------------------------


@pytest.mark.parametrize("arg", ["conv", "mlp"])
def test_the_configuration_has_exactly_the_known_fields(arg):
    config = get_config(arg)
    check_config(config)
    assert set(flat(config)) == set(FIELDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"config.seed must be at least 0 and at most .*, got -1"),
        ({"compare": 1}, r"config.compare must be of type bool, got 1"),
        (
            {"evaluate": "tests"},
            r"config.evaluate must be one of .*did you mean 'test'",
        ),
        (
            {"model.name": "con"},
            r"config.model: unknown model 'con'; did you mean 'conv",
        ),
        ({"model.features": ()}, r"config.model.features must be of type ints"),
        ({"method.name": "rigel"}, r"config.method: unknown method .* mean 'rigl'"),
        ({"method.sparsity": 1.0}, r"config.method: sparsity must be"),
        ({"method.sparsity": 1.5}, r"config.method.sparsity must be at least 0 and at"),
        (
            {"method.distribution": "erkk"},
            r"config.method.distribution must be one of .*erkk.*erk",
        ),
        ({"method.drop_schedule": "cos"}, r"one of .*did you mean 'cosine'"),
        ({"train.optimizer": "adam"}, r"config.train.optimizer .* mean 'adamw'"),
        ({"train.learning_rate": 0.0}, r"config.train: base_lr must be positive"),
        ({"train.epochs": 2}, r"config.sup: cycles=2 of cycle_epochs=1 take 2"),
        ({"sup.lr_min": 0.1}, r"config.sup: lr_min=0.1 and lr_max=0.\d+"),
        ({"sup.decay": 0.5}, r"config.sup: decay must be None for kind 'cia'"),
        ({"sup.kind": "cima"}, r"config.sup: decay must be in \[0, 1\]"),
        (
            {"method.name": "gmp", "method.prune_end_fraction": 1.0},
            r"config.method: .* prunes until step 20, but the tickets begin",
        ),
    ],
)
def test_wrong_values_are_refused_in_one_line(changes, message):
    config = config_of()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message) as caught:
        build(config, devices=one())
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
        (["--config=configs/digit.py"], "there is no file 'configs/digit.py'"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=message) as caught:
        parse(["main", "--config=configs/digits.py", *words, "--workdir=x"])
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
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: config.method.spars")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_comparisons_have_the_same_budget():
    config = config_of(compare=True)
    others = comparisons(config)
    assert list(others) == ["rigl without Sup-tickets", "dense"]
    runs = [build(c, devices=one()) for c in [config, *others.values()]]
    assert {r.plan.total_steps for r in runs} == {30}
    assert [len(r.plan.collections) for r in runs] == [2, 0, 0]
    assert comparisons(config_of()) == {}
