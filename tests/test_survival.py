"""Runs that are killed, as a user's are: another process, SIGKILL at random moments."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_experiments import assert_same_results

ROOT = Path(__file__).parent.parent

# Not the cache of the tests, where a disk is full; compiling is slow, and small here.
ENVIRONMENT = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
ENVIRONMENT |= {"JAX_PLATFORMS": "cpu"}

DIGITS = (
    "configs/digits.py:model=mlp,epochs=40,cycles=2,cycle_epochs=5,"
    "method.update_every_steps=20"
)
FEW = DIGITS.replace("epochs=40,cycles=2,cycle_epochs=5", "epochs=6,cycle_epochs=1")
CIFAR10 = (
    "configs/cifar10.py:model=conv,epochs=3,cycles=2,cycle_epochs=1,"
    "data.batch_size=512,data.validation_examples=45000,method.update_every_steps=3"
)


def begin(config, workdir, *words, program=None, stdout=subprocess.PIPE):
    command = [sys.executable, *(program or ["-m", "experiments.main"])]
    command += [f"--config={config}", "--config.checkpoint.every_steps=5"]
    command += [f"--workdir={workdir}", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout == subprocess.PIPE else subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def finished(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def kill_in_training(process, workdir, rng):
    """At a random moment after something was written."""
    log = workdir / "metrics.jsonl"
    before = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (not log.exists() or log.stat().st_size <= before):
        time.sleep(0.01)
        if log.exists():
            before = min(before, log.stat().st_size)
    time.sleep(rng.random())
    process.send_signal(signal.SIGKILL)
    return process.communicate()[0]


def survives(config, tmp_path, *words):
    whole = tmp_path / "whole"
    finished(begin(config, whole, *words))
    killed, rng, kills = tmp_path / "killed", random.Random(0), 0
    for _ in range(5):
        output = kill_in_training(begin(config, killed, *words), killed, rng)
        kills += not (killed / "report" / "summary.md").exists()
        assert "Traceback" not in output
    last = finished(begin(config, killed, *words))
    assert kills and ("going on after" in last or "is finished" in last)
    assert_same_results(killed, whole)
    steps = [e["step"] for e in events(killed) if e["event"] == "loss"]
    assert steps == sorted(steps)
    again = finished(begin(config, killed, *words))
    assert "this run is finished" in again


def events(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_digits_killed_five_times_end_in_the_same_bits(tmp_path):
    survives(DIGITS, tmp_path)


@pytest.mark.slow
def test_cifar_10_killed_five_times_ends_in_the_same_bits(tmp_path):
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not (Path(folder) / "cifar10").exists():
        pytest.skip("TFDS_DATA_DIR has no cifar10")
    survives(CIFAR10, tmp_path, "--config.model.options.features=(8,8)")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as port:
        port.bind(("localhost", 0))
        address = f"localhost:{port.getsockname()[1]}"
    place = tmp_path / "two"
    words = ["--distributed", f"--coordinator={address}", "--processes=2"]
    both = [begin(DIGITS, place, *words, f"--process={i}") for i in (0, 1)]
    outputs = [finished(process) for process in both]
    assert "superposed ticket" in outputs[0] and "superposed" not in outputs[1]
    finished(begin(DIGITS, tmp_path / "one"))
    rows = [
        json.loads((folder / "results.json").read_text())["rows"]
        for folder in (place, tmp_path / "one")
    ]
    for two, one in zip(*rows, strict=True):
        assert (two["network"], two["active"]) == (one["network"], one["active"])
        assert abs(two["accuracy"] - one["accuracy"]) < 0.03
    assert sorted(p.name for p in (place / "checkpoints").iterdir())[-1] == "800"


@pytest.mark.slow
def test_two_processes_branch_as_one(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    finished(begin(DIGITS, first))
    words = [*distributed(), f"--config.branch_from={first}"]
    both = [begin(DIGITS, second, *words, f"--process={i}") for i in (0, 1)]
    outputs = [finished(process) for process in both]
    assert "begins with step" in outputs[0] and "superposed ticket" in outputs[0]
    rows = [
        json.loads((folder / "results.json").read_text())["rows"]
        for folder in (first, second)
    ]
    one, two = (found[0] for found in rows)  # of phase 1: the same network
    assert [one[k] == two[k] for k in ("network", "active", "accuracy")] == [True] * 3


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    with socket.socket() as port:
        port.bind(("localhost", 0))
        address = f"localhost:{port.getsockname()[1]}"
    words = ["--distributed", f"--coordinator={address}", "--processes=2"]
    place = tmp_path / "two"
    both = [begin(DIGITS, place, *words, f"--process={i}") for i in (0, 1)]
    while not list((place / "checkpoints").glob("[1-9][0-9][05]")):
        time.sleep(0.1)
    both[1].send_signal(signal.SIGTERM)  # one is told, both stop
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [143, 143], outputs
    assert "all saved; the same command goes on" in outputs[0]
    both = [begin(DIGITS, place, *words, f"--process={i}") for i in (0, 1)]
    outputs = [finished(process) for process in both]
    assert "going on after" in outputs[0]


@pytest.mark.slow
def test_hosts_need_no_file_system_in_common(tmp_path):
    words = distributed()
    places = [tmp_path / "first" / "run", tmp_path / "second" / "run"]
    both = [
        begin(DIGITS, place, *words, f"--process={i}") for i, place in enumerate(places)
    ]
    outputs = [finished(process) for process in both]
    assert "superposed ticket" in outputs[0]
    assert (places[0] / "report/index.html").exists() and not places[1].exists()


@pytest.mark.slow
def test_processes_with_other_seeds_end_in_one_line_each(tmp_path):
    words = distributed()
    both = [
        begin(DIGITS, tmp_path / "run", *words, f"--process={i}", f"--config.seed={i}")
        for i in (0, 1)
    ]
    for process in both:
        errors = [x for x in process.communicate()[0].splitlines() if "error" in x]
        assert process.returncode != 0 and len(errors) == 1
        assert "config.seed is 0 in process 0 and 1 in process 1" in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_whose_partner_died_says_so(victim, tmp_path):
    words = distributed()
    both = [begin(DIGITS, tmp_path / "run", *words, f"--process={i}") for i in (0, 1)]
    while not list((tmp_path / "run/checkpoints").glob("[1-9]*")):
        time.sleep(0.1)
    both[victim].send_signal(signal.SIGKILL)
    outputs = [process.communicate()[0] for process in both]
    assert "has lost another one" in outputs[1 - victim]
    assert "start all of them again" in outputs[1 - victim]
    assert "Traceback" not in outputs[1 - victim]
    said = outputs[1 - victim].splitlines()
    errors = [
        line for line in said if " phase 1, " not in line and "[Gloo]" not in line
    ]
    assert [line for line in errors if "error" in line.lower()] == errors[-1:], said
    assert errors[-1].startswith("error: ")


@pytest.mark.slow
def test_what_two_have_sharded_goes_on_with_two_and_with_one(tmp_path):
    place = tmp_path / "run"
    for layout in ("true", "false"):
        words = [*distributed(), f"--config.mesh.fsdp={layout}"]
        both = [begin(FEW, place, *words, f"--process={i}") for i in (0, 1)]
        before = newest(place)
        while newest(place) <= before:
            time.sleep(0.1)
            assert not [p for p in both if p.poll() is not None]
        both[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        outputs = [process.communicate()[0] for process in both]
        assert time.monotonic() - killed < 60
        assert both[0].returncode == 1 and "has lost another one" in outputs[0]
        assert ("going on after" in outputs[0]) == (layout == "false")
    alone = finished(begin(FEW, place))
    assert "going on after" in alone and "superposed ticket" in alone


def newest(place):
    """The step of the newest checkpoint."""
    folders = (place / "checkpoints").glob("[1-9]*[0-9]")
    return max((int(path.name) for path in folders), default=0)


def distributed():
    with socket.socket() as port:
        port.bind(("localhost", 0))
        address = f"localhost:{port.getsockname()[1]}"
    return ["--distributed", f"--coordinator={address}", "--processes=2"]


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)
"""
"""Files above a size cannot be written: the checkpoints, not the small ones."""


@pytest.mark.slow
def test_a_disk_that_is_full_ends_in_one_line_and_the_run_goes_on(tmp_path):
    words = [f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (last,) = done.stderr.strip().splitlines()
    assert last.startswith("error: ") and "could not be written" in last
    output = finished(begin(DIGITS, tmp_path / "run"))
    assert "report/index.html" in output


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_of_two_processes_the_second_needs_no_disk_and_both_leave(full, tmp_path):
    words = distributed()
    both = [
        begin(
            DIGITS,
            tmp_path / "run",
            *words,
            f"--process={i}",
            program=["-c", LIMITED] if i == full else None,
        )
        for i in (0, 1)
    ]
    outputs = [process.communicate()[0] for process in both]
    wanted = [1, 1] if full == 0 else [0, 0]
    assert [process.returncode for process in both] == wanted, outputs
    for output in outputs:
        assert ("could not be written" in output) == (full == 0), output


@pytest.mark.slow
def test_an_error_that_one_process_alone_has_ends_both(tmp_path):
    words, begun = distributed(), time.monotonic()
    with open("/dev/full", "w") as full:
        both = [
            begin(DIGITS, tmp_path / "run", *words, f"--process={i}", stdout=stdout)
            for i, stdout in enumerate([full, subprocess.PIPE])
        ]
    errors = [process.communicate()[1 - i] for i, process in enumerate(both)]
    assert [process.returncode for process in both] == [1, 1], errors
    assert time.monotonic() - begun < 200
    assert errors[0] == "error: [Errno 28] No space left on device: 'standard output'\n"
    assert "has lost another one" in errors[1]
