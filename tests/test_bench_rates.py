import math
from functools import partial

import jax
import pytest

from experiments.benchmarks.rates import main
from experiments.benchmarks.rates_page import Ceilings, Change, Found, Rate, page
from experiments.benchmarks.rates_programs import (
    BATCH_SIZES,
    CHANGES,
    KINDS,
    Wanted,
    make_pairs,
    tracings,
)
from experiments.benchmarks.timing import compiled_together
from experiments.benchmarks.trainer import Scale
from sup_tickets import place_counts, selection
from sup_tickets.models import MODELS
from sup_tickets.training.mesh import data_mesh, data_shardings
from tests.test_bench_train import tables

QUICK = Scale(0, 1, 0, 2, 0.0, True)


def pairs_of(model):
    place = data_shardings(data_mesh(jax.devices()[:1]), batch_size=1)
    return make_pairs(model, Wanted((model,), "bfloat16", None, QUICK), place)


@pytest.mark.slow
def test_quick_tables(tmp_path, capsys):
    out = tmp_path / "page.md"
    main(["--quick", "--models=resnet18", "--batch_size=4", f"--out={out}"])
    text = out.read_text()
    assert text in capsys.readouterr().out and "Left out" not in text
    rates, changes = tables(text)
    assert [row[:2] for row in rates] == [["resnet18", "4"]]
    figures = [cell.rstrip("%") for row in rates for cell in row[2:]]
    figures += [cell.rstrip("%") for row in changes for cell in row[3:]]
    assert all(math.isfinite(float(each)) and float(each) > 0 for each in figures)
    assert [row[1] for row in changes] == list(CHANGES)
    assert float(changes[0][4]) == 1  # a pass is one pass


def test_what_is_not_compiled_in_time_is_left_out(capsys):
    main(["--quick", "--models=conv", "--compile_s=0", "--dtype=float32"])
    text = capsys.readouterr().out
    assert tables(text) == [[], []] and "256 x 256 x 256 in float32" in text
    for what in ("conv, batch 8", "conv, changes"):
        why = "TimeoutError: not compiled: 0 s were over"
        assert f"- Left out: {what}: {why}" in text


def test_figures_of_the_page():
    """A device of 1 TFLOP/s and 1 GB/s."""
    rate = Rate(
        "m", 10, 10**9, {"dense": 100.0, "sparse": 200.0}, dict.fromkeys(KINDS, 0)
    )
    change = Change("m", "rewire", 7, 10.0, 2.5, 4 * 10**6)
    found = Found(Ceilings(64, 1e12, 1e9), [rate], [change], {"x": "Error: y"})
    text = page("command", "bfloat16", 10, found)
    rates, changes = tables(text)
    # 100 images a second, 3 forward passes of 1 GFLOP each.
    assert rates[0][2:10] == [
        "100",
        "50",
        "0.500",
        "3",
        "0.3",
        "0.15",
        "30.0%",
        "15.0%",
    ]
    assert changes == [["m", "rewire", "7", "10", "2.5", "0.004", "40.0%"]]
    assert text.endswith("- Left out: x: Error: y\n")


def test_every_program_lowers_for_a_gpu(monkeypatch):
    """As it is traced where there is one."""
    for module in (place_counts, selection):
        monkeypatch.setattr(module, "on_one_cpu", lambda _: False)
    jax.clear_caches()
    dense, rest = tracings(pairs_of("resnet18"))
    assert list(dense) == ["resnet18, batch 8: dense"]
    assert next(iter(rest)) == "resnet18, batch 8: sparse"
    found = dense | rest
    assert len(found) == 2 + 2 + len(CHANGES) + 1
    for name, trace in found.items():
        text = trace().lower(lowering_platforms=("cuda",)).as_text()
        assert "func.func public @main" in text, name
    jax.clear_caches()


def test_what_fails_does_not_stop_the_others():
    def fails():
        raise ValueError("no")

    def add(what):
        return lambda: jax.jit(lambda x: x + what).trace(1.0)

    waves = [{"bad": fails, "good": add(1)}, {"later": add(2)}]
    found = compiled_together(waves, math.inf)
    assert str(found["bad"]) == "no"
    assert found["good"].call(1.0) == 2 and found["good"].compile_s > 0
    assert found["later"].call(1.0) == 3


def test_waves_are_compiled_in_turn_and_none_when_it_is_too_late():
    seen = []

    def trace(name):
        seen.append(name)
        return jax.jit(lambda x: x).trace(1.0)

    waves = [{name: partial(trace, name)} for name in "ab"]
    found = compiled_together(waves, 0.0)  # too late for both
    assert seen == [] and {str(each) for each in found.values()} == {
        "not compiled: 0 s were over"
    }
    assert list(compiled_together(waves, math.inf)) == seen == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models=resnet18,vgg61"], "unknown model 'vgg61'; did you mean 'vgg1"),
        (["--repeats=0"], "--repeats must be a whole number of at least 1, got 0"),
        (["--batch_size=0"], "--batch_size must be a whole number of at least 1"),
        (["--batch_size=65"], "batch_size=65 is more than the 64 examples"),
        (["--dtype=bf16"], "--dtype must be one of 'bfloat16', 'float32', got 'bf16'"),
        (["--compile_s=-1"], "--compile_s must be at least 0, got -1.0"),
        (["--out=/no/such/page.md"], "--out=/no/such/page.md: there is no such folder"),
    ],
)
def test_errors_are_one_line(words, message):
    with pytest.raises(SystemExit) as caught:
        main(["--quick", *words])
    text = str(caught.value)
    assert caught.value.code == 2
    assert text.startswith("error: ") and message in text and "\n" not in text


def test_the_models_by_default_are_known():
    assert set(BATCH_SIZES) <= set(MODELS)
