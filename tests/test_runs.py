"""The folder of a run: what it is known by, what it may remove, what it writes down."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as save_arrays

from experiments import run as run_module
from experiments.runs import made_by as made_by_module
from experiments.runs import ownership as ownership_module
from experiments.runs.folder import RunFolder
from experiments.runs.identity import CONTENTS, difference, identity_of
from experiments.runs.lines import Lines
from experiments.runs.made_by import changed, commit_of, made_by, without_places
from experiments.runs.ownership import is_finished, is_trained, outputs
from experiments.runs.progress import Progress
from experiments.runs.stopping import Signals, Stopped
from sup_tickets.files import atomic_write, leftovers
from sup_tickets.training import processes
from sup_tickets.training.network_files import (
    load_dense,
    load_sparse,
    save_dense,
    save_sparse,
)
from sup_tickets.training.processes import difference_of
from sup_tickets.training.state import Network
from sup_tickets.training.task import Task
from tests.helpers import assert_same, quick
from tests.test_experiments import config_of
from tests.test_network_files import network


def begun(path, **changes):
    folder = RunFolder(path, config_of(**changes))
    folder.log({"event": "loss", "step": 3})
    folder.write("results.json", "{}")
    folder.write("tickets/phase-1.txt", "ours")
    folder.close()
    return path


# --- Nothing of the user's is lost ----------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["networks/thesis.pt", "report/mine.md", ".git/HEAD", "results.json", "log.txt"],
)
def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path, name):
    atomic_write(tmp_path / name, "mine")
    (tmp_path / "report").mkdir(exist_ok=True)
    for act in (RunFolder, is_finished):
        with pytest.raises(ValueError, match=rf"no run wrote .*{re.escape(name)}"):
            act(tmp_path, config_of())
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files == [tmp_path / name] and files[0].read_text() == "mine"


def test_the_folder_of_a_sweep_is_no_run(tmp_path):
    begun(tmp_path / "seed=0")
    with pytest.raises(ValueError, match="is not empty, and no run wrote what is in"):
        RunFolder(tmp_path, config_of())


def test_empty_folders_are_in_nobodys_way(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    RunFolder(tmp_path, config_of()).close()


def test_what_the_output_goes_to_is_in_nobodys_way(tmp_path, monkeypatch):
    """``> RUN/log.txt`` opens the file before there is a run, ``tee`` likewise."""
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as log:
        monkeypatch.setattr(ownership_module, "_STREAMS", (log.fileno(),))
        log.write("what was said before")
        log.flush()
        beside = outputs(tmp_path)
        assert beside == ["log.txt"] and not outputs(tmp_path / "x")
        assert not is_finished(tmp_path, config_of(), beside=beside)
        (tmp_path / "b").mkdir()
        os.link(tmp_path / "log.txt", tmp_path / "b/log.txt")  # not right in it
        (tmp_path / "other.txt").touch()
        assert outputs(tmp_path) == ["log.txt"]
        with pytest.raises(ValueError, match=r"no run wrote .*b/log.txt"):
            RunFolder(tmp_path, config_of(), beside=beside)
        (tmp_path / "b/log.txt").unlink()
        with pytest.raises(ValueError, match=r"no run wrote .*other.txt"):
            RunFolder(tmp_path, config_of(), beside=beside)
    reading, writing = os.pipe()
    monkeypatch.setattr(ownership_module, "_STREAMS", (writing,))
    assert outputs(tmp_path) == ["other.txt"]  # the other is not empty
    os.close(reading)
    os.close(writing)
    assert outputs(tmp_path) == []  # nothing to print to
    RunFolder(tmp_path, config_of(), beside=["log.txt", "other.txt"]).close()
    assert outputs(tmp_path) == [] and (tmp_path / "log.txt").read_text("utf-8")


def test_results_of_which_nothing_says_the_run(tmp_path):
    begun(tmp_path)
    atomic_write(tmp_path / "report/summary.md", "ours")
    assert is_finished(tmp_path, config_of())
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is gone, and nothing says"):
        is_finished(tmp_path, config_of(seed=3))
    (tmp_path / "checkpoints/5").mkdir(parents=True)  # they are compared when read
    assert not is_finished(tmp_path, config_of(seed=3))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ValueError, match=r"x is no folder"):
        RunFolder(tmp_path / "x", config_of())


def test_starting_over_removes_what_the_record_says_and_no_results(tmp_path):
    begun(tmp_path)
    for name in ("tickets/mine.safetensors", "thesis.pt"):
        atomic_write(tmp_path / name, "mine")
    folder = RunFolder(tmp_path, config_of())
    assert folder.begun and not folder.saved
    folder.start_over()
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {
        *(".lock", "config.json", "made_by.json", "written.json", "results.json"),
        *("tickets/mine.safetensors", "thesis.pt"),
    }
    folder.close()


def test_a_record_that_names_what_is_elsewhere_is_refused(tmp_path):
    begun(tmp_path / "run")
    (tmp_path / "precious").write_text("mine")
    for names in (["../precious"], "text", [3], None):
        (tmp_path / "run/written.json").write_text(json.dumps({"written": names}))
        with pytest.raises(ValueError, match=r"written.json"):
            RunFolder(tmp_path / "run", config_of())
    assert (tmp_path / "precious").exists()


def test_without_its_configuration_nothing_is_removed(tmp_path):
    begun(tmp_path)
    (tmp_path / "config.json").unlink()
    folder = RunFolder(tmp_path, config_of(seed=1))
    with pytest.raises(
        ValueError, match=r"config.json is gone, and no checkpoint says"
    ):
        folder.start_over()
    with pytest.raises(ValueError, match=r"holds another run: config.seed is 0 there"):
        folder.check_notes({"identity": identity_of(config_of())})
    with pytest.raises(ValueError, match=r"checkpoints are of an earlier version"):
        folder.check_notes({})
    folder.close()
    assert (tmp_path / "tickets/phase-1.txt").exists()
    again = RunFolder(tmp_path, config_of())
    again.check_notes({"identity": identity_of(config_of())})
    again.go_on(7)
    again.close()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_what_killed_processes_left_half_written_goes(tmp_path):
    begun(tmp_path)
    (tmp_path / ".tmp-0123abcd.results.json").write_text("{")
    (tmp_path / ".tmp-0123abcd.mine.json").write_text("{")
    RunFolder(tmp_path, config_of()).close()
    assert [p.name for p in tmp_path.glob(".tmp-*")] == [".tmp-0123abcd.mine.json"]


def test_results_without_a_report_are_trained(tmp_path):
    begun(tmp_path)
    assert is_trained(tmp_path, config_of())
    assert not is_finished(tmp_path, config_of())
    with pytest.raises(ValueError, match="holds another run"):
        is_trained(tmp_path, config_of(seed=3))


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '"x"'])
def test_a_configuration_that_is_none_is_told(tmp_path, text):
    begun(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json cannot be read") as caught:
        RunFolder(tmp_path, config_of())
    assert "\n" not in str(caught.value)


# --- Which run it is ------------------------------------------------------------------


def test_the_contents_of_the_masks_are_part_of_a_run(tmp_path):
    file = tmp_path / "m.safetensors"
    save_sparse(file, network(), provenance={"seed": 0, "made_by": {"jax": "1"}})
    config = config_of(masks=str(file))
    RunFolder(tmp_path / "run", config).close()
    save_sparse(file, network(), provenance={"seed": 0, "made_by": {"jax": "2"}})
    RunFolder(tmp_path / "run", config).close()  # the same network
    save_sparse(file, network(), provenance={"seed": 0, "rewind_step": 3})
    with pytest.raises(ValueError, match=r"the contents of config.masks .* others now"):
        is_finished(tmp_path / "run", config)
    save_sparse(file, network(1), provenance={"seed": 0})
    with pytest.raises(ValueError, match=r"the contents of config.masks .* others now"):
        RunFolder(tmp_path / "run", config)
    file.unlink()  # needed once, and not again
    RunFolder(tmp_path / "run", config).close()


def test_differences_name_the_first_field():
    one = {"config.seed": 0, "config.masks": "f", CONTENTS: "a"}
    assert difference(one, dict(one)) is None
    assert difference(one, one | {CONTENTS: None}) is None
    assert difference({"config.seed": 0}, one | {"config.masks": None}) == (
        "config.masks is 'nothing' there and None here"
    )
    assert "config.seed is 0 there and 1" in str(
        difference(one, one | {"config.seed": 1})
    )


# --- What made it ---------------------------------------------------------------------


def test_what_makes_a_result_is_known():
    found = made_by()
    assert {"python", "jax", "jaxlib", "device", "commit", "command"} <= found.keys()
    assert found["jax"] == made_by_module.jax.__version__
    json.dumps(found)


def test_a_command_without_its_places():
    text = "python -m x --config=a --workdir='b c' --out d --seed=1"
    assert without_places(text) == "python -m x --config=a --seed=1"


def test_the_commit_is_read_from_files(tmp_path):
    assert commit_of(tmp_path) is None
    atomic_write(tmp_path / ".git/HEAD", "ref: refs/heads/a/b\n")
    assert commit_of(tmp_path) is None
    atomic_write(tmp_path / ".git/packed-refs", "# pack\n123 refs/heads/a/b\n")
    assert commit_of(tmp_path) == "123"
    atomic_write(tmp_path / ".git/refs/heads/a/b", "456\n")
    assert commit_of(tmp_path) == "456"
    tree = tmp_path / ".git/worktrees/w"
    atomic_write(tree / "HEAD", "ref: refs/heads/a/b\n")
    atomic_write(tree / "commondir", "../..\n")
    atomic_write(tmp_path / "w/.git", f"gitdir: {tree}\n")
    assert commit_of(tmp_path / "w") == "456"
    atomic_write(tree / "HEAD", "789\n")
    assert commit_of(tmp_path / "w") == "789"


def test_other_versions_are_told_on_the_way(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, config_of())
    assert folder.go_on(0) == []
    monkeypatch.setattr(made_by_module, "_version", lambda package: f"{package} 9")
    lines = folder.go_on(20)
    assert any(re.fullmatch(r"jax \d.* then, jax 9 now", line) for line in lines)
    folder.close()
    sessions = json.loads((tmp_path / "made_by.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 20]
    assert changed({"command": "a", "jax": 1}, {"command": "b", "jax": 1}) == []


# --- The log --------------------------------------------------------------------------


@quick
@given(
    cuts=st.lists(st.integers(1, 39), max_size=6),
    fetches=st.lists(st.integers(1, 39), max_size=6),
    events=st.lists(st.integers(0, 39), max_size=5),
    line_steps=st.integers(1, 12),
)
def test_the_lines_do_not_depend_on_stops_and_fetches(
    cuts, fetches, events, line_steps
):
    losses = np.random.default_rng(0).random(40).astype(np.float32)
    ends = (20, 30, 40)

    def lines_of(stops, fetched):
        written, told, done = [], [], 0
        lines = Lines(written.append, line_steps, 0, {})
        for step in range(40):
            for event in (e for e in sorted(events) if e == step):
                lines.event({"event": "update", "step": event})
            after = step + 1
            if after in stops or after in fetched or after in ends:
                report = {"loss": losses[done:after]}
                lines.reports("phase", range(done, after), report)
                done = after
            if after in ends:
                lines.flush()
            if after in stops:
                notes = json.loads(json.dumps(lines.notes()))
                kept = len(written)
                lines.flush()  # as a run that stops does
                del written[kept:]
                lines = Lines(written.append, line_steps, after, notes)
            told = written
        return told

    assert lines_of(set(cuts), set(fetches)) == lines_of(set(), set())


def test_a_mean_is_over_its_steps_and_events_come_first():
    written = []
    lines = Lines(written.append, 2, 0, {})
    lines.event({"event": "start", "step": 0})
    lines.event({"event": "update", "step": 1})
    lines.reports("a", [0, 1, 2], {"loss": np.array([1, 2, 5], np.float32)})
    lines.flush()
    lines.flush()
    assert [(e["event"], e["step"], e.get("loss")) for e in written] == [
        *(("start", 0, None), ("update", 1, None)),
        *(("loss", 2, 1.5), ("loss", 3, 5.0)),
    ]


@pytest.mark.parametrize(
    ("cut", "whole"), [(0, 0), (10, 0), (28, 1), (29, 1), (30, 1), (60, 2)]
)
def test_a_log_that_was_cut_goes_on_with_whole_lines(tmp_path, cut, whole):
    folder = RunFolder(tmp_path, config_of())
    for step in range(2):
        folder.log({"event": "loss", "step": step})  # 28 bytes and a newline
    size = folder.logged_bytes()
    folder.log({"event": "loss", "step": 2})
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:cut])
    assert folder.forget_after(size) == (cut >= size)
    folder.log({"event": "loss", "step": 9})
    assert [event["step"] for event in folder.metrics()] == [*range(whole), 9]
    folder.close()


def test_a_log_that_was_removed_is_told(tmp_path):
    folder = RunFolder(tmp_path, config_of())
    assert folder.forget_after(0)
    assert not folder.forget_after(10)
    folder.close()


def test_errors_of_the_disk_name_their_file(tmp_path, monkeypatch):
    folder = RunFolder(begun(tmp_path), config_of())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*results.json'"):
        folder.write("results.json", "{}")
    folder.log({"event": "x"})
    with pytest.raises(OSError, match=r"No space left on device: .*metrics.jsonl'"):
        folder.logged_bytes()
    folder.close()


# --- Files ----------------------------------------------------------------------------


def test_files_are_flushed_before_they_get_their_name(tmp_path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("flush"), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda *names: (calls.append("name"), replace(*names))
    )
    assert atomic_write(tmp_path / "a/b.txt", "ü")
    assert calls == ["flush", "name", "flush"]  # the file, and then its folder
    assert (tmp_path / "a/b.txt").read_bytes() == "ü".encode()
    assert not atomic_write(tmp_path / "a/b.txt", lambda path: False)
    assert not (tmp_path / "a/b.txt").exists() and not leftovers(tmp_path / "a/b.txt")
    with pytest.raises(OSError, match=r"c.txt"):
        atomic_write(tmp_path / "a/c.txt", lambda path: os.stat("/nonexistent/x"))


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_flipped_byte_anywhere_is_noticed_or_harmless(tmp_path, kind):
    save, load = (
        (save_dense, load_dense) if kind == "dense" else (save_sparse, load_sparse)
    )
    path = tmp_path / "net"
    save(path, network())
    good = path.read_bytes()
    whole = load(path)
    noticed = 0
    for place in range(len(good)):
        broken = bytearray(good)
        broken[place] ^= 0x15
        path.write_bytes(bytes(broken))
        try:
            found = load(path)
        except ValueError as error:
            assert "cannot be loaded" in str(error) or "load it with" in str(error)
            noticed += 1
        else:
            assert_same(found, whole)
    assert noticed > 0.9 * len(good)


def test_files_of_earlier_versions_have_no_checksum_and_load(tmp_path):
    params = {"params/k": np.ones((2, 2), np.float32)}
    (tmp_path / "dense").write_bytes(save_arrays(params))
    assert isinstance(load_dense(tmp_path / "dense"), Network)


def test_a_run_is_ranked_by_the_metric_of_its_task(tmp_path, capsys):
    folder = RunFolder(tmp_path, config_of())
    plan = SimpleNamespace(total_steps=2, epoch_steps=1, phase_of=lambda _: "phase 1")
    task = Task(init=lambda key: ({}, {}), loss=lambda *_: (0.0, ({}, {})))
    progress = Progress(
        "mine", plan, folder, lambda _: {}, task=task, learning_rate=lambda _: 0.1
    )
    progress.validated("phase 1", 1, {"loss": 0.25}, None)
    assert progress.rank == progress.notes()["rank"] == -0.25
    progress.reported("phase 1", [1], {"loss": np.ones(1)})
    progress.close()
    folder.close()
    assert capsys.readouterr().out.endswith("loss 1.0000, validation loss 0.25\n")
    assert [event["event"] for event in folder.metrics()] == ["validation", "loss"]


# --- Signals --------------------------------------------------------------------------


def test_a_signal_is_honoured_where_the_run_looks(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with Signals().caught() as signals:
        signals.check("nothing yet")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="all is saved") as caught:
            signals.check("all is saved")
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err.count("SIGTERM: saving") == 1


def test_an_error_after_a_signal_is_a_stop(capfd):
    """A compiler that the same signal ended is no reason to begin another run."""
    with pytest.raises(Stopped) as caught, Signals().caught():
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyError("x")
    assert str(caught.value).endswith("what was saved is kept: KeyError: 'x'")
    assert caught.value.exit_code == 143
    with pytest.raises(KeyError), Signals().caught():
        raise KeyError("x")
    assert capfd.readouterr().err.count("SIGTERM") == 1


def test_a_second_signal_ends_at_once_in_one_line(monkeypatch, capfd):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as caught, Signals().caught():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 130
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith("SIGINT again: stopped")


def test_a_lost_partner_is_told_in_one_line_and_the_process_leaves(monkeypatch, capsys):
    def lost(*_):
        raise jax.errors.JaxRuntimeError("Gloo: connection closed by peer\nand more")

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(run_module, "running", lost)
    with pytest.raises(jax.errors.JaxRuntimeError):  # one process has no partner
        run_module.run(config_of(), "w")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as caught:
        run_module.run(config_of(), "w")
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: w: process 0 of 2 has lost another one (Gloo: conn")
    assert "start all of them again" in line


def test_an_error_of_one_process_does_not_wait_for_the_others(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left", "x")

    left = threading.Event()
    monkeypatch.setattr(run_module, "running", full)
    monkeypatch.setattr(run_module, "_PARTING_SECONDS", 0.01)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", lambda code: code == 1 and left.set())
    with pytest.raises(OSError, match="No space left"):
        run_module.run(config_of(), "w")
    assert left.wait(10)


def test_an_output_that_is_full_is_named(monkeypatch):
    for number, kind in {28: OSError, 32: BrokenPipeError}.items():

        def write(*_, number=number):
            raise OSError(number, "No")

        stream = SimpleNamespace(write=write, flush=lambda: None)
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(kind, match="No: 'standard output'"):
            processes.say("x")


ABORTED = """
import os
from pathlib import Path
from experiments.runs import lost
lost.filter_errors(Path("w"))
os.write(2, b"E1 Polled an error from coordination service (this can be\\nbefore\\n")
{}
os.write(2, b"*** Check failure stack trace: ***\\n")
os.abort()
"""


@pytest.mark.parametrize(
    "say",
    [
        r'os.write(2, b"F1126 Terminating process because the JAX distributed service '
        r'detected fatal errors. This most\nlikely\n")',
        'print(lost.lost_text(Path("w"), "x"), file=__import__("sys").stderr)',
    ],
)
def test_a_process_that_is_aborted_says_that_it_lost_another(say):
    done = subprocess.run(
        [sys.executable, "-c", ABORTED.format(say)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT
    before, line = done.stderr.splitlines()
    assert before == "before" and line.startswith("error: w: process 0 of 1 has lost")
    assert "start all of them again" in line


# --- Several processes ----------------------------------------------------------------


def test_processes_that_differ_are_told_apart():
    first = {"config.seed": 0, "jax": "1"}
    assert difference_of([first, dict(first)]) is None
    assert difference_of([{"x": float("nan")}, {"x": float("nan")}]) is None
    found = str(difference_of([first, first, first | {"config.seed": 1}]))
    assert found.startswith("the processes do not agree: config.seed is 0 in process 0")
    assert "1 in process 2" in found
    assert "config.x is None in process 0" in str(
        difference_of([first, first | {"config.x": 2}])
    )


@pytest.fixture
def two(monkeypatch):
    """As the second of two processes sees what the first says."""
    said = SimpleNamespace(first=b"")
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.jax, "process_index", lambda: 1)
    monkeypatch.setattr(processes, "from_first", lambda data: said.first)
    return said


@pytest.mark.parametrize(
    ("length", "exchanges"), [(1, 1), (246, 1), (247, 2), (999, 2)]
)
def test_what_is_short_is_told_in_one_exchange(monkeypatch, length, exchanges):
    seen = []

    def of_two(mine):
        seen.append(len(mine))
        return np.stack([mine, mine])

    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", of_two)
    assert processes.gather("x" * length) == ["x" * length] * 2  # and two quotes
    assert len(seen) == exchanges and seen[0] == 256


def test_errors_of_the_first_are_raised_in_all(two):
    two.first = b'{"value": {"a": 1}}'
    assert processes.on_first(lambda: pytest.fail("not here")) == {"a": 1}
    for kind, wanted in (("value", ValueError), ("other", OSError)):
        two.first = json.dumps({"error": "disk full", "kind": kind}).encode()
        with pytest.raises(wanted, match="disk full"):
            processes.on_first(lambda: pytest.fail("not here"))


def test_arrays_of_the_first_come_bit_by_bit(two):
    tree = {"a": np.array([-0.0, np.nan], np.float32), "b": np.ones((2, 1), bool)}
    two.first = tree["a"].tobytes() + tree["b"].tobytes()
    assert_same(processes.share(None, tree), tree)
