"""Every command: what the user got wrong, and its help."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.main import _join as join
from sup_tickets.training.network_files import save_sparse
from sup_tickets.training.state import Network

ROOT = Path(__file__).parent.parent
COMMANDS = (
    *("main", "sweep", "study", "lottery", "report", "evaluate"),
    *("export", "jacobian", "prepare_data", "stamp", "ksm", "softnet"),
    *(
        f"benchmarks.{name}"
        for name in (
            *(
                "core",
                "groups",
                "condensed",
                "texts",
                "views",
                "train",
                "replicas",
                "scale",
                "rates",
            ),
        )
    ),
)


def main_of(name):
    return importlib.import_module(f"experiments.{name}").main


# --- What the user got wrong ----------------------------------------------------------

D, W, OUT, G = "--config=configs/digits.py", "--workdir=W", "--out=O", "--grid=seed=0"
S = "--config=configs/stamp.py"
WRONG = {
    "main": [
        ([], "required: --config, --workdir"),
        ([D], "required: --workdir"),
        ([W], "required: --config"),
        ([D, "--workdir="], "--workdir: it is empty"),
        ([D, "--workdir= "], "--workdir: it is empty"),
        ([D, "--workdir"], "--workdir: expected one argument"),
        ([D, "--workdir=~no-such-user/x"], "there is no user 'no-such-user'"),
        ([D, "--workdir=README.md"], "'README.md' is not a folder"),
        ([D, "--workdir=README.md/x"], "'README.md' is not a folder"),
        ([D, W, "more"], "unexpected argument 'more'"),
        ([D, W, "--wrkdir=x"], "unknown flag '--wrkdir'; did you mean '--workdir'"),
        ([D, W, "--conf.seed=3"], "unknown flag '--conf.seed'"),
        ([D, W, "-x"], "unknown flag '-x'"),
        (["--config=", W], "--config is empty"),
        (["--config=:seed=1", W], "--config is empty"),
        (["--config", W], "--config: expected one argument"),
        (["--config=configs", W], "there is no file 'configs'"),
        (["--config=configs/digit.py:a=1", W], "there is no file 'configs/digit.py'"),
        (["--config=README.md", W], "'README.md' is not a Python file"),
        (["--config=~no-such-user/x.py", W], "there is no user 'no-such-user'"),
        ([f"{D}:seed", W], "has 'seed'; it must look like"),
        ([f"{D}:=3", W], "has '='; it must look like"),
        ([f"{D}:seed==3", W], "seed must be of type int, got '=3'"),
        ([f"{D}:sed=3", W], "unknown name 'sed'"),
        ([f"{D}:sup=yes", W], "sup must be true or false, got 'yes'"),
        ([f"{D}:tost=hard", W], "tost must be true, false, released or some of"),
        ([D, W, "--config.tost.parts=hard"], "tost must be true, false, released or"),
        ([D, W, "--config.nocompare"], "did you mean --noconfig.compare?"),
        ([D, W, "--config.sup.noenabled"], "did you mean --noconfig.sup.enabled?"),
        ([D, W, "--noconfig.seed"], "--noconfig.seed: only a boolean"),
        ([D, W, "--noconfig.compare=true"], "--noconfig.compare: only a boolean"),
        ([D, W, "--noconfig.compar"], "--config.compar: there is no such field"),
        ([D, W, "--config.compare=yes"], "config.compare must be true or false"),
        ([D, W, "--config.seed"], "--config.seed has no value"),
        ([D, W, "--config.seed=1e3"], "config.seed must be of type int, got '1e3'"),
        ([D, W, "--config.seed=1.0"], "config.seed must be of type int, got '1.0'"),
        ([D, W, "--config.seed=none"], "config.seed must be of type int, got 'none'"),
        ([D, W, "--config.method.sparsity="], "sparsity must be of type float, got ''"),
        ([D, W, "--config.train.drop_epochs=1,x"], "drop_epochs must be of type ints"),
        ([D, W, "--config.train.drop_epochs=1.5"], "drop_epochs must be of type ints"),
        ([D, W, "--config.sup=true"], "--config.sup: .* it is a section"),
        ([D, W, "--config.sparsity=0.9"], "mean config.method.sparsity"),
        ([D, W, "--config.stamp.hidden=9"], "has no field config.stamp.hidden"),
        ([S, W], "unknown field config.stamp."),
        ([D, W, "--config..seed=1"], "--config..seed: there is no such field"),
        ([D, W, "--config.=1"], "--config.: there is no such field"),
        ([D, W, "--config.model.name=mlp"], "digits.py:model=NAME"),
        ([D, W, "--config.data.dir=~no-such-user"], "no user 'no-such-user'"),
        ([D, W, "--coordinator=h:1"], "need --distributed"),
        ([D, W, "--process=0"], "need --distributed"),
        ([D, W, "--distributed=perhaps"], "--distributed: it must be true or false"),
        ([D, W, "--distributed", "--coordinator=nonsense"], "must be HOST:PORT, got"),
        ([D, W, "--distributed", "--coordinator="], "must be HOST:PORT, got ''"),
        ([D, W, "--distributed", "--coordinator=a b:3"], "must be HOST:PORT"),
        ([D, W, "--distributed", "--coordinator=h:0"], "must be HOST:PORT"),
        ([D, W, "--distributed", "--coordinator=h:65536"], "must be HOST:PORT"),
        ([D, W, "--distributed", "--processes=0"], "--processes must be at least 1"),
        ([D, W, "--distributed", "--processes=2", "--process=2"], "below 2, got 2"),
        ([D, W, "--distributed", "--process=-1"], "from 0 .* got -1"),
        ([D, W, "--processes=two"], "--processes: invalid int value: 'two'"),
        # These are found by the build.
        (
            [D, W, "--config.method.sparsity=90"],
            r"in \[0, 1\), got 90.0; in percent\? 90% is 0.9",
        ),
        (
            [D, W, "--config.method.sparsity=nan"],
            r"sparsity must be in \[0, 1\), got nan",
        ),
        ([f"{D}:mask=snipp", W], "config.mask.name .* mean 'snip'"),
        ([D, W, "--config.masks=nowhere/x.st"], "no file 'nowhere/x.st'"),
        ([f"{D}:masks=runs/a=1,seed=0/x.st", W], "no file 'runs/a=1,seed=0/x.st'"),
    ],
    "sweep": [
        ([], "required: --config, --out, --grid"),
        ([D, OUT, "--grid="], "--grid is empty"),
        ([D, OUT, "--grid=seed"], "--grid has 'seed'; it must look like"),
        ([D, OUT, "--grid=sed=0"], "did you mean 'seed'"),
        ([D, "--out=", G], "--out: it is empty"),
        ([D, "--out=README.md", G], "'README.md' is not a folder"),
        ([D, OUT, G, "--dryrun"], "did you mean '--dry_run'"),
        ([D, OUT, G, "--config.seed=3"], "--config.seed is given beside seed=0"),
        ([D, OUT, G, "--config.sed=3"], "--config.sed: there is no such field"),
        ([f"{D}:seed", OUT, G], "it must look like"),
        ([D, OUT, "--grid=seed=a/b"], "has 'a/b' in 'seed=a/b', which is no value"),
        (
            [D, OUT, "--grid=masks=a/b"],
            "masks=a%2Fb: config.masks: there is no file 'a/b'",
        ),
        ([D, OUT, f"--grid=masks={'a' * 300}"], "folder's name of over 255 bytes"),
    ],
    "study": [
        ([], "required: NAME, --out"),
        (["claim"], "required: --out"),
        (["clam", OUT], "'clam'.*claim"),
        (["claim", OUT, "--part=5/4"], "'5/4' is no part"),
        (["claim", OUT, "--part=0/4"], "'0/4' is no part"),
        (["claim", OUT, "--part=half"], "'half' is no part"),
        (["claim", OUT, "--csv=nowhere.csv"], "nowhere.csv"),
        (["claim", OUT, "--csv=README.md"], "README.md"),
        (["claim", OUT, "--config=x"], "unknown flag '--config'"),
        (["claim", OUT, "--config.train.epoch=3"], "did you mean config.train.epochs"),
        (["claim", OUT, "--config.train.epochs=many"], "train.epochs"),
        (["claim", "claim", OUT], "unexpected argument 'claim'"),
    ],
    "lottery": [
        ([D], "required: --workdir"),
        ([D, W, "--variant=all"], "--variant: invalid choice: 'all'"),
        ([D, W, "--targets=x"], "--targets: 'x' is not a number"),
        ([D, W, "--targets="], "--targets: '' is not a number"),
        ([D, W, "--targets=0.5,2"], r"targets must be in \[0, 1\), got 2.0"),
        ([D, W, "--prune_fraction=nan"], "prune_fraction must be in"),
        ([D, W, "--prune_fraction=x"], "--prune_fraction: invalid float"),
        ([D, W, "--rewind_epoch=-1"], "rewind_epoch must be at least 0"),
        ([D, W, "--config.sed=3"], "--config.sed: there is no such field"),
        ([f"{D}:method=gmp", W], "method 'gmp' does not start"),
        ([D, W, "--config.method.name=gmp"], "method 'gmp' does not start"),
        ([f"{D}:mask=snip", W], "a lottery finds masks"),
        ([D, W, "--config.branch_from=R"], "branch_from='R': every round of a lottery"),
        ([D, W, "--config.mask.name=snip"], "a lottery finds masks"),
    ],
    "report": [
        ([], "required: RUN, --out"),
        (["x"], "required: --out"),
        (["nowhere", OUT], "there is no folder 'nowhere'"),
        (["README.md", OUT], "'README.md' is not a folder"),
        (["docs", OUT], "no finished run in docs"),
        (["docs", "--out="], "--out: it is empty"),
        (["docs", OUT, "--config=x"], "unknown flag '--config'"),
    ],
    "evaluate": [
        ([], "required: RUN"),
        ([""], "RUN: it is empty"),
        (["nowhere"], "not the folder of a run: no config.json"),
        (["README.md"], "'README.md' is not a folder"),
        (["x", "--split=train"], "--split: invalid choice: 'train'"),
        (["x", "--config.seed=1"], "this command takes no configuration"),
        (["~no-such-user"], "there is no user 'no-such-user'"),
        (["x", "y"], "unexpected argument 'y'"),
    ],
    "export": [
        (["x"], "required: --out"),
        (["x", "--out="], "--out: it is empty"),
        (["x", OUT, "--format=x"], "--format: invalid choice"),
        (["nowhere", OUT], "nowhere has no network"),
    ],
    "jacobian": [
        (["x", "--examples=x"], "--examples: invalid int value"),
        (["x", "--examples=0"], "examples must be a whole number of at least 1"),
        (["x", "--out=x.jpg"], "must be a name that ends in .png"),
        (["x", "--out="], "--out: it is empty"),
        (["nowhere"], "no config.json"),
    ],
    "prepare_data": [
        ([], "required: NAME"),
        (["mnst"], "did you mean 'mnist'"),
        (["mnist", "--data_dir="], "--data_dir: it is empty"),
        (["mnist", "--data_dir=O", "--from_files=nowhere"], "in nowhere; unpack"),
        (["mnist", "--data_dir=README.md"], "'README.md' is not a folder"),
    ],
    "benchmarks.core": [
        (["--repeats=0"], "--repeats must be a whole number of at least 1, got 0"),
        (["--repeat=3"], "unknown flag '--repeat'; did you mean '--repeats'"),
        (["--repeats=x"], "--repeats: invalid int value"),
    ],
    "stamp": [
        ([S], "required: --workdir"),
        ([S, W, "--seeds=x"], "--seeds: 'x' is not a number"),
        ([S, W, "--seeds=0.5"], "--seeds: '0.5' must be different whole numbers"),
        ([S, W, "--seeds=1,1"], "--seeds: '1,1' must be different whole numbers"),
        ([S, W, "--config.stamp.flops_ratio=30"], "in percent. 30% is 0.3"),
        ([S, W, "--config.stamp.flops=0.3"], "did you mean config.stamp.flops_ratio"),
        ([f"{S}:stamp.episode_classes=9", W], "is more than the 5 classes of the ref"),
        ([S, W, "--config.method.name=rigl"], "has no field config.method.name"),
        ([D, W], "unknown field config.branch_from"),
    ],
    "ksm": [
        (["--config=configs/ksm.py"], "required: --workdir"),
        (["--config=configs/ksm.py", W, "--seeds=1,1"], "must be different whole num"),
        (["--config=configs/ksm.py", W, "--seeds=0.5"], "must be different whole num"),
        (["--config=configs/ksm.py:ksm.tasks='4-5,5-6'", W], "class 5, which task 1"),
        (["--config=configs/ksm.py:ksm.epoch=3", W], "unknown name 'ksm.epoch'"),
        ([D, W], "has no field config.ksm.data"),
    ],
    "softnet": [
        (["--config=configs/softnet.py"], "required: --workdir"),
        (["--config=configs/softnet.py:softnet.bases=soft-1.5", W], "c of 'soft-1.5'"),
        (["--config=configs/softnet.py:softnet.shots=500", W], "shots=500 is more"),
        ([D, W], "unknown field config."),
    ],
    "benchmarks.groups": [(["--repeats=0"], "--repeats must be a whole number of at")],
    "benchmarks.condensed": [(["--fast"], "unknown flag '--fast'")],
    "benchmarks.texts": [(["--repeats=x"], "--repeats: invalid int value")],
    "benchmarks.replicas": [(["--repeats=0"], "--repeats must be a whole number of")],
    "benchmarks.scale": [(["--repeats=0"], "--repeats must be a whole number of at")],
    "benchmarks.rates": [(["--compile_s=x"], "--compile_s: invalid float value")],
    "benchmarks.views": [(["--repeats=0"], "--repeats must be a whole number of at")],
    "benchmarks.train": [
        (["--models="], "unknown model ''"),
        (["--repeats=x"], "--repeats: invalid int value"),
        (["--out=nowhere/x.md"], "there is no such folder"),
    ],
}
CASES = [(name, words, text) for name, table in WRONG.items() for words, text in table]


@pytest.mark.parametrize(
    ("name", "words", "message"), CASES, ids=[f"{n} {' '.join(w)}" for n, w, _ in CASES]
)
def test_what_the_user_got_wrong_is_one_line_and_code_2(
    name, words, message, tmp_path, monkeypatch, capsys
):
    for part in ("configs", "docs", "README.md"):
        (tmp_path / part).symlink_to(ROOT / part)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        main_of(name)(words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"{caught.value}\n" and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"configs", "docs", "README.md"}


@pytest.mark.parametrize("name", ["evaluate", "jacobian"])
@pytest.mark.parametrize(
    "stored",
    [b"", b"[]", b"null", b"3", b"{", b"{}", b'{"seed": 0}', b"\xff\xfe", b"\x00"],
)
def test_a_run_whose_configuration_is_none(name, stored, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes(stored)
    (tmp_path / "final").mkdir()
    save_sparse(tmp_path / "final/network.safetensors", network())
    with pytest.raises(SystemExit) as caught:
        main_of(name)([str(tmp_path)])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"{caught.value}\n"
    assert "config" in str(caught.value)


def network():
    kernel = {"dense": {"kernel": np.ones((2, 3), np.float32)}}
    masks = {"dense": {"kernel": np.ones((2, 3), bool)}}
    return Network(params=kernel, model_state={}, masks=masks)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert name in WRONG
    for flag in ("-h", "--help"):
        with pytest.raises(SystemExit) as caught:
            main_of(name)([flag])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: python -m experiments.{name}")
        assert "None" not in text


@pytest.mark.parametrize(
    ("seen", "tasks", "given", "found"),
    [
        ("0,1,2,3,4,5,6,7", "1(x4)", None, list(range(8))),  # one task a node
        ("0,1,2,3,4,5,6,7", "1", None, list(range(8))),
        ("0,1,2,3,4,5,6,7", "8(x4)", None, None),  # each takes the GPU of its number
        ("5", "8(x4)", None, [0]),  # each sees one, which is its first
        ("0,1", "1(x2),2", None, None),
        ("", "1(x4)", None, None),  # no GPUs, or nobody says which
        ("0,1", "", None, None),  # not under SLURM
        ("0,1", "1(x4)", "1", None),  # the user says so
    ],
)
def test_the_gpus_of_a_task_under_slurm(monkeypatch, seen, tasks, given, found):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: asked.append(a))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    if given:
        monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", given)
    options = SimpleNamespace(
        distributed=True, coordinator=None, processes=None, process=None
    )
    join(options)
    assert asked == [(None, None, None, found)]
