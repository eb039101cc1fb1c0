import math

import pytest

from experiments.benchmarks.train import MODELS, main

TIMES = ["sparse step / dense step", "run with Sup-tickets", "input pipeline"]
SIZES = ["masks / ", "ever-active masks", "superposition state", "temporary memory"]
PROGRAMS = ["init", "train", "topology", "explore", "superpose", "prepare"]


def tables(text):
    """The cells of each table, without its head."""
    lines = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    return [[row.strip("| ").split(" | ") for row in part[2:]] for part in lines]


@pytest.mark.slow
def test_quick_tables(tmp_path, capsys):
    out = tmp_path / "page.md"
    main(["--quick", "--models=conv", f"--out={out}"])
    text = out.read_text()
    assert text in capsys.readouterr().out
    figures, times, programs = tables(text)

    assert all(math.isfinite(float(row[2])) and float(row[2]) > 0 for row in figures)
    ours = [what for model, what, *_ in figures if model == "conv"]
    for start in [*TIMES, *SIZES, "step of a block of 2"]:
        assert sum(what.startswith(start) for what in ours) == 1, start
    assert [row[0] for row in figures].count("lenet300") == 1
    found = {row[1]: row for row in figures if row[0] == "conv"}
    assert float(found["masks / parameters and slots"][2]) == 0.125  # 1 of 4 + 4 bytes

    assert all(float(cell) > 0 for row in times for cell in row[2:])
    names = {name for _, name, *_ in programs}
    assert {f"sparse {name}" for name in PROGRAMS} | {"dense train"} <= names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models=conv,vgg61"], "unknown model 'vgg61'; did you mean 'vgg1"),
        (["--repeats=0"], "repeats must be a whole number of at least 1, got 0"),
        (["--batch_size=-8"], "batch_size must be a whole number of at least 1"),
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
    with pytest.raises(SystemExit, match="repeats"):
        main(["--repeats=0", f"--models={','.join(MODELS)}"])
