"""``python -m sup_tickets``: what it prints, when it fails, and what it imports."""

import subprocess
import sys

import jax
import pytest

import sup_tickets as st
from sup_tickets import __main__ as command


def test_all_is_well_here(capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"sup-tickets {st.__version__}, Python 3.")
    assert f"\njax {jax.__version__}, " in out
    assert "devices: 8 (cpu: cpu)\n" in out
    assert out.count("\nok ") == len(command.CHECKS)
    assert "\nall is well, " in out


def test_a_wrong_result_and_an_exception_are_told_and_counted(monkeypatch, capsys):
    def wrong():
        return command._same("the mask", [1, 2, 3], [1, 0, 0])

    def broken():
        raise RuntimeError("out of\nmemory")

    checks = {"sum": wrong, "device": broken, "good": lambda: "fine"}
    monkeypatch.setattr(command, "CHECKS", checks)
    assert command.main([]) == 1
    out = capsys.readouterr().out
    assert "FAILED sum: the mask: 2 differ from NumPy's" in out
    assert "FAILED device: out of memory" in out
    assert "ok     good: fine" in out
    assert "2 of 3 checks failed" in out


def test_a_selection_that_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(command, "select", lambda scores, counts: scores)
    with pytest.raises(ValueError, match=r"the mask: [0-9]+ differ"):
        command._check_selection()


def test_without_a_device_it_says_so(monkeypatch, capsys):
    def none():
        raise RuntimeError("no backend\nfound")

    monkeypatch.setattr(jax, "devices", none)
    assert command.main([]) == 2
    assert "error: JAX finds no device: no backend found" in capsys.readouterr().out


def test_it_needs_the_core_alone():
    lines = [
        "import sys, sup_tickets.__main__",
        "print(sorted({'flax', 'matplotlib', 'safetensors'} & set(sys.modules)))",
    ]
    said = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"
