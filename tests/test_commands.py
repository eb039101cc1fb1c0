"""Every command: its flags, and how it ends where something is wrong."""

import argparse
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import command
from experiments import main as main_module
from experiments.command import Ended, Parser, end_with_failures, start
from experiments.config.reading import BrokenFile, Source
from experiments.runs.stopping import Stopped
from sup_tickets.training.network_files import save_sparse
from sup_tickets.training.state import Network

ROOT = Path(__file__).parent.parent
COMMANDS = (
    *("main", "sweep", "study", "lottery", "report", "evaluate"),
    *("export", "jacobian", "prepare_data", "benchmarks.core", "benchmarks.train"),
)


def main_of(name):
    return importlib.import_module(f"experiments.{name}").main


# --- What the user got wrong ----------------------------------------------------------

D, W, OUT, G = "--config=configs/digits.py", "--workdir=W", "--out=O", "--grid=seed=0"
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
        ([D, W, "--config.method.sparsity=90"], r"at most 1 \(90% is 0.9\), got 90.0"),
        ([D, W, "--config.method.sparsity=nan"], "sparsity must be at least 0"),
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


# --- Flags ----------------------------------------------------------------------------


def parsed(*words):
    parser = Parser("x", None)
    parser.add_config()
    parser.add_switch("--fast", "a switch")
    parser.add_argument("--number", type=int)
    parser.add_argument("rest", nargs="*")
    return parser.read([f"--config={ROOT / 'configs/digits.py'}", *words])


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ([], []),
        (["--config.seed=3"], [("seed", "3")]),
        (["--config.seed", "3"], [("seed", "3")]),
        (["-config.seed=3"], [("seed", "3")]),
        (["-config.seed", "-3"], [("seed", "-3")]),
        (["--config.compare"], [("compare", "true")]),
        (["--noconfig.compare"], [("compare", "false")]),
        (["-noconfig.compare"], [("compare", "false")]),
        (["--config.compare=false"], [("compare", "false")]),
        (["--config.seed=1", "--config.seed=2"], [("seed", "2")]),
        (["--config.masks=a=b,c=d"], [("masks", "a=b,c=d")]),
        (["--config.masks="], [("masks", "")]),
        (
            ["--config.method.keep_dense=a", "--config.method.keep_dense=b"],
            [("method.keep_dense", "a,b")],
        ),
        (["--config.model.options.x"], [("model.options.x", "true")]),
    ],
)
def test_overrides_are_written_as_in_ml_collections(words, overrides):
    source = parsed(*words).config
    assert isinstance(source, Source)
    assert list(source.overrides) == overrides
    # The same words for ml_collections itself.
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    plain = source._replace(overrides=()).make()
    flags_words = ["x", *words]
    if "options" in "".join(words) or "--config.masks=" in words:
        return  # it refuses new fields, and has no way to unset one
    config_flags.DEFINE_config_dict(
        "config", plain, flag_values=values, sys_argv=flags_words
    )
    values(flags_words)
    found: Any = values["config"].value
    theirs = found.to_dict()
    ours = source.make().to_dict()
    ours["method"]["name"] = theirs["method"]["name"]  # what follows from masks
    ours["sup"]["enabled"] = theirs["sup"]["enabled"]
    assert ours == theirs


def test_a_commands_own_flags():
    assert parsed().fast is False
    for words in (["--fast"], ["-fast"], ["--fast=true"], ["--fast=1"], ["--fast=T"]):
        assert parsed(*words).fast is True
    for words in (["--nofast"], ["--fast=false"], ["--fast", "--nofast"]):
        assert parsed(*words).fast is False
    assert parsed("--fast", "a", "b").rest == ["a", "b"]
    assert parsed("--number", "3").number == parsed("-number=3").number == 3
    assert parsed("--", "--fast", "--config.x=1").rest == ["--fast", "--config.x=1"]


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command.folder_path("~/runs/x") == tmp_path / "runs/x"
    assert command.folder_path("./~/x") == Path("~/x")
    assert command.file_path("runs/x") == Path("runs/x")
    seen = []
    monkeypatch.setattr(
        main_module, "run", lambda config, workdir: seen.append(workdir)
    )
    main_of("main")([f"--config={ROOT / 'configs/digits.py'}", "--workdir=~/runs/x"])
    assert seen == [tmp_path / "runs/x"]


@pytest.mark.parametrize("name", COMMANDS)
def test_letters_that_the_locale_lacks_are_told_at_once(name, capsys):
    """As ``LC_ALL=POSIX`` has them: libraries below cannot open such paths."""
    with pytest.raises(SystemExit) as caught:
        main_of(name)(["--out=/tmp/l\udcc3\udca4uf"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: '--out=/tmp/läuf' has letters that are not of the")
    assert "LC_ALL=C.UTF-8" in line


def test_a_home_that_the_locale_lacks(monkeypatch):
    monkeypatch.setenv("HOME", "/home/j\udcfcrg")
    with pytest.raises(argparse.ArgumentTypeError, match="letters that are not of"):
        command.folder_path("~/x")


# --- Endings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a\n  b"), 2, "error: a b"),
        (ModuleNotFoundError("no x"), 2, "error: no x"),
        (
            FileNotFoundError(2, "No such file", "x"),
            2,
            "error: [Errno 2] No such file: 'x'",
        ),
        (PermissionError(13, "Denied", "x"), 2, "error: [Errno 13] Denied: 'x'"),
        (IsADirectoryError(21, "Is one", "x"), 2, "error: [Errno 21] Is one: 'x'"),
        (OSError(28, "No space", "x"), 1, "error: [Errno 28] No space: 'x'"),
        (OSError(5, "Input/output error"), 1, "error: [Errno 5] Input/output error"),
        (BrokenFile("error: x\n  File y"), 2, "error: x\n  File y"),
        (Stopped("all saved", signal.SIGTERM), 143, "all saved"),
        (Stopped("all saved", signal.SIGINT), 130, "all saved"),
        (KeyboardInterrupt(), 130, "SIGINT: stopped; what was saved is kept"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 bytes\nmore"),
            1,
            "error: out of memory: RESOURCE_EXHAUSTED: 3 bytes",
        ),
    ],
)
def test_how_an_error_ends(error, code, line, capsys):
    def body(options):
        raise error

    with pytest.raises(Ended) as caught:
        start(Parser("x", None), body, [])
    assert (caught.value.code, str(caught.value)) == (code, line)
    assert capsys.readouterr().err == f"{line}\n"


def test_a_mistake_of_ours_keeps_its_traceback():
    def body(options):
        raise KeyError("x")

    with pytest.raises(KeyError):
        start(Parser("x", None), body, [])


def test_some_runs_that_failed(capsys):
    end_with_failures({})
    with pytest.raises(Ended) as caught:
        end_with_failures({"a": "b", "c": "d"})
    assert caught.value.code == 1
    assert capsys.readouterr().err == "\n2 failed:\n  a: b\n  c: d\n"


def ended(words, **environment):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


def test_ctrl_c_while_a_command_is_imported_is_one_line(tmp_path):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # here
    text = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    (tmp_path / "jax.py").write_text(text)
    done = ended(["experiments.report"], PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (130, b"SIGINT: stopped\n")


CTRL_C = """
import os, signal, sys, time
sys.argv = ["-m"]
from experiments import command
class Drops:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
def body(options):
    Drops()
    time.sleep(60)
try:
    command.start(command.Parser("x", None), body, [])
except command.Ended as end:
    assert end.code == 130
    os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def test_ctrl_c_is_not_lost_in_a_callback_and_the_next_one_ends_at_once():
    words = [sys.executable, "-c", CTRL_C]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
    lines = b"SIGINT: stopped; what was saved is kept\nSIGINT: stopped\n"
    assert (done.returncode, done.stderr) == (130, lines)


def test_a_backend_that_is_not_there_is_one_line(tmp_path):
    """From end to end, in a locale that is not UTF-8."""
    words = ["experiments.main", D, f"--workdir={tmp_path}/W"]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ended(words, JAX_PLATFORMS="cuda", **ascii_only)
    assert done.returncode == 2
    lines = done.stderr.decode("ascii").splitlines()
    assert lines[-1].startswith("error: JAX finds no device, with JAX_PLATFORMS=cuda")
    assert not any("Traceback" in line for line in lines) and len(lines) <= 3
    assert not list(tmp_path.iterdir())
