"""How commands end: one line and an exit code, whatever happens."""

import os
import signal
import subprocess
import sys

import jax
import pytest

from experiments.command import Ended, end_with_failures, start
from experiments.config.flags import Parser
from experiments.config.reading import BrokenFile
from experiments.runs.stopping import Stopped
from tests.test_commands import ROOT, D


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
from experiments.config.flags import Parser
class Drops:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
def body(options):
    Drops()
    time.sleep(60)
try:
    command.start(Parser("x", None), body, [])
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
