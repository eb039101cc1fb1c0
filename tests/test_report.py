import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.report import main
from experiments.reports.columns import CSV, SCORES, Column
from experiments.reports.figures import shown_name
from experiments.reports.gather import (
    base_rows,
    bases_of,
    differing,
    group_runs,
    network_scores,
    origin_of,
    pair,
    rivals_of,
    spread,
    write_csv,
)
from experiments.reports.networks import table
from experiments.reports.page import (
    Heading,
    Picture,
    Table,
    Text,
    aligned,
    to_html,
)
from experiments.reports.run import write_report
from experiments.reports.run_figures import draw_curves, draw_layers, draw_plane
from experiments.reports.runs import report
from experiments.reports.runs_figures import draw_bars, draw_by_sparsity
from experiments.runs.events import read_events
from experiments.runs.stored import read_run, read_runs, with_others
from sup_tickets.files import atomic_write
from tests.fabricated import config_of, row, write_run
from tests.helpers import quick

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(HTMLParser):
    """Fails for tags that do not match; keeps what is looked at in the tests."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}>, open: {self.open}"

    def handle_data(self, data):
        self.text.append(data)


def checked(text):
    """A page that is balanced, and needs nothing but itself."""
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert text.startswith("<!DOCTYPE html>")
    for tag, attrs in checker.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:")
        if tag == "img":
            assert attrs["alt"]
    assert "http" not in text and "url(" not in text
    names = [attrs.get("name") for tag, attrs in checker.tags if tag == "meta"]
    assert "viewport" in names
    # On a telephone what is wide scrolls in its frame, wraps, or shrinks.
    frames = text.count('<div class="scroll" tabindex="0"><table>')
    assert frames == text.count("<table>") > 0
    style = text.partition("<style>")[2].partition("</style>")[0]
    for rule in (".scroll { overflow-x: auto;", "pre { overflow-x: auto;"):
        assert rule in style
    assert re.search(r"img \{[^}]*width: 100%;", style)
    assert not re.search(r"[^-]width: *\d{3,}px", style)
    return checker


def png(path):
    return path.read_bytes()[1:4] == b"PNG"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run with its comparisons."""
    path = tmp_path_factory.mktemp("one") / "run"
    results = write_run(path, config_of(), name="rigl")
    without = config_of(sup=False)
    write_run(path / "without", without, accuracy=0.94, name="rigl without Sup-tickets")
    dense = config_of(sup=False, method="dense")
    write_run(path / "dense", dense, accuracy=0.96)
    write_report(path, results)
    return path


# --- One run --------------------------------------------------------------------------


def test_a_run_has_every_part_of_its_report(one):
    names = {path.name for path in (one / "report").iterdir()}
    pictures = {"curves", "topology", "layer_sparsity", "tickets", "plane"}
    assert names == {"summary.md", "index.html", *(f"{p}.png" for p in pictures)}
    assert all(png(one / "report" / f"{p}.png") for p in pictures)
    summary = (one / "report/summary.md").read_text()
    assert all(f"({p}.png)" in summary for p in pictures)
    assert summary.startswith("# Run: rigl, sparsity 0.9, conv on digits, seed 0\n")
    assert "| superposed ticket        | 95.00%" in summary
    assert "| rigl without Sup-tickets | 94.00%" in summary
    assert "| dense                    | 96.00%" in summary
    assert "| ensemble of the tickets  | 95.50%" in summary
    assert re.search(r"\| mean of the 3 tickets +\| \+0.60 ", summary)
    assert re.search(r"\| rigl without Sup-tickets, as many steps +\| \+1.00 ", summary)
    assert "took 12 s, 37 s with the runs for comparison." in summary
    assert "0.1409" in summary  # FLOPs of the training


MADE = {"jax": "0.10.2", "python": "3.11.7", "device": "cpu", "devices": 8}
MADE |= {"sup-tickets": "0.1.0", "command": "python -m experiments.main --config=a.py"}


def test_a_page_says_when_and_by_what_it_was_made(tmp_path):
    for seed, date in enumerate(["2026-11-26 09:15 UTC", "2026-11-28 10:00 UTC"]):
        path = tmp_path / str(seed)
        results = write_run(path, config_of() | {"seed": seed}, full=False)
        results |= {"date": date, "made_by": MADE | {"jax": f"0.1{seed}.2"}}
        (path / "results.json").write_text(json.dumps(results))
    write_report(path, results)
    summary = (path / "report/summary.md").read_text()
    versions = "sup-tickets 0.1.0; jax 0.11.2; python 3.11.7; 8 x cpu."
    assert f"\nMade 2026-11-28 10:00 UTC; {versions}\n" in summary
    assert f"\nCommand: {MADE['command']}\n" in summary
    text = report([tmp_path], tmp_path / "out").with_name("report.md").read_text()
    both = versions.replace("0.11.2", "0.10.2, 0.11.2")
    assert f"\nMade 2026-11-26 to 2026-11-28; {both}\n" in text
    assert text.count(MADE["command"]) == 1


def test_words_are_explained_where_they_are_used(one):
    summary = (one / "report/summary.md").read_text()
    words = summary.partition("## What the words mean")[2].partition("## ")[0]
    explained = [line.split("|")[1].strip() for line in words.splitlines()[4:] if line]
    assert {"NLL", "ECE", "ticket", "superposed ticket", "FLOPs"} <= set(explained)
    assert "perplexity" not in explained


def test_the_page_of_a_run_is_valid_and_whole(one):
    checker = checked((one / "report/index.html").read_text())
    tags = [tag for tag, _ in checker.tags]
    assert tags.count("img") == 5
    text = " ".join(checker.text)
    assert "phase 1: <700> steps" in text  # escaped, and read back
    assert "model.options.features: [16, 16]" in text


def test_the_table_has_the_comparisons(one):
    run = read_run(one)
    lines = table(with_others(run.results, run.others)).splitlines()
    networks = [line.split(" | ")[0].strip("| ") for line in lines[7:10]]
    assert networks == ["dense", "rigl without Sup-tickets", "ensemble of the tickets"]


def test_optional_parts_are_left_out(tmp_path):
    results = write_run(tmp_path / "run", config_of(sup=False), full=False)
    del results["layers"], results["seconds"]
    results["rows"] = [{"network": "final", "accuracy": 0.9, "nll": None}]
    (tmp_path / "run/report").mkdir()
    (tmp_path / "run/report/plane.png").write_text("of an older report")
    write_report(tmp_path / "run", results)
    names = {path.name for path in (tmp_path / "run/report").iterdir()}
    assert names == {"summary.md", "index.html"}
    checked((tmp_path / "run/report/index.html").read_text())
    summary = (tmp_path / "run/report/summary.md").read_text()
    assert "| final   | 90.00%        | -   | -   | -     |" in summary


def test_the_summary_is_written_last(tmp_path, monkeypatch):
    results = write_run(tmp_path / "run", config_of(), full=False)

    def fails(_):
        raise OSError("disk full")

    monkeypatch.setattr("experiments.reports.run.to_html", fails)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "run", results)
    assert not (tmp_path / "run/report/summary.md").exists()


def test_an_analysis_that_failed_is_told(tmp_path):
    results = write_run(tmp_path / "run", config_of())
    results["analysis"]["plane"] = {"error": "the three networks must span a plane"}
    results["analysis"]["paths"][0] = {"from": "a", "to": "b", "error": "the ends"}
    write_report(tmp_path / "run", results)
    summary = (tmp_path / "run/report/summary.md").read_text()
    assert "Left out: the three networks must span a plane." in summary
    assert "Left out: the ends." in summary
    assert not (tmp_path / "run/report/plane.png").exists()


def test_the_final_table():
    rows = [row("ticket 1", 0.93), row("ticket 2", 0.95), row("dense", 0.96, total=0)]
    rows.append(row("superposed ticket", 0.97))
    lines = table({"evaluated_on": "validation", "rows": rows})
    lines = lines.splitlines()
    assert lines[0].split(" | ")[1].strip() == "validation accuracy"
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        *("| ticket 1         ", "| ticket 2         ", "| dense            "),
        "| superposed ticket",
    ]
    assert "| all            | 0%       |" in lines[4]
    assert "| 100 / 1000     | 90.000%  |" in lines[5]
    assert lines[7:] == [
        "| the superposed ticket against | points of accuracy |",
        "| ----------------------------- | ------------------ |",
        "| mean of the 2 tickets         | +3.00              |",
        "| best of the tickets           | +2.00              |",
    ]
    assert len({len(line) for line in lines[:6]}) == 1


# --- Many runs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods, two sparsities, three seeds, with Sup-tickets and without."""
    root = tmp_path_factory.mktemp("sweep")
    for method in ("set", "rigl"):
        for sparsity in (0.8, 0.9):
            for seed in range(3):
                for sup in (True, False):
                    name = f"method={method},sparsity={sparsity},seed={seed},sup={sup}"
                    config = config_of(
                        method=method, sparsity=sparsity, seed=seed, sup=sup
                    )
                    accuracy = 0.9 + 0.01 * seed + sup * (0.005 + 0.001 * seed**2)
                    write_run(root / name, config, accuracy=accuracy, full=seed == 0)
    (root / "unfinished").mkdir()
    (root / "unfinished/config.json").write_text(json.dumps(config_of(seed=9)))
    out = root.parent / "report"
    main([str(root), f"--out={out}"])
    return root, out


def test_a_report_of_many_runs(sweep):
    _, out = sweep
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("report.md", "index.html", "results.csv", "accuracy.png", "nll.png"),
        ".written.json",
    }
    text = (out / "report.md").read_text()
    assert text.startswith("# Results\n\n24 runs in 8 settings, evaluated on: test.")
    # 0.90, 0.91, 0.92 alone; 0.5, 0.6 and 0.9 points more with Sup-tickets.
    p = stats.ttest_rel([0.905, 0.916, 0.929], [0.90, 0.91, 0.92]).pvalue
    line = next(x for x in text.splitlines() if x.startswith("| set 80%  "))
    assert "91.00 ± 1.00" in line and "91.67 ± 1.20" in line
    assert f"+0.67 ± 0.21 | {p:.3f}" in line
    assert "Not finished, and left out: " in text and "unfinished" in text
    checker = checked((out / "index.html").read_text())
    assert [tag for tag, _ in checker.tags].count("img") == 2


def test_the_csv_has_a_row_for_each_network(sweep):
    root, out = sweep
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * (5 + 1)
    mine = [
        r
        for r in rows
        if r["run"] == str(root / "method=set,sparsity=0.8,seed=0,sup=True")
    ]
    assert [r["network"] for r in mine] == [
        *("phase 1", "ticket 1", "ticket 2", "ticket 3", "superposed ticket")
    ]
    assert (mine[-1]["method"], mine[-1]["sup"], mine[-1]["seed"]) == (
        "set",
        "True",
        "0",
    )
    assert float(mine[-1]["accuracy"]) == 0.905
    assert [bool(r["training_flops"]) for r in mine] == [False] * 4 + [True]


def test_comparisons_within_a_run_are_its_base(one, tmp_path):
    runs = read_runs([one.parent])
    assert [run.path for run in runs] == [one]
    assert [other.name for other in runs[0].others] == [
        "dense",
        "rigl without Sup-tickets",
    ]
    report([one], tmp_path)
    text = (tmp_path / "report.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| rigl 90% | 1"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3:7] == ["94.00", "95.00", "+1.00", "-"]
    assert png(tmp_path / "accuracy.png")
    with open(tmp_path / "results.csv", newline="") as file:
        rows = [(r["method"], r["sup"], r["network"]) for r in csv.DictReader(file)]
    assert rows[-3:] == [
        ("rigl", "True", "superposed ticket"),
        ("dense", "False", "final"),
        ("rigl", "False", "final"),
    ]
    networks = [x.split("|")[2].strip() for x in text.splitlines() if "+ Sup" in x]
    assert "dense" in networks and "ensemble of the tickets" in networks


def test_a_report_replaces_only_reports(one, tmp_path):
    (tmp_path / "accuracy.png").write_text("mine")
    with pytest.raises(ValueError, match=r"accuracy.png is in the way.*another --out"):
        report([one], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.png"]
    (tmp_path / "accuracy.png").unlink()
    (tmp_path / "mine.png").write_text("mine")
    report([one], tmp_path)
    record = json.loads((tmp_path / ".written.json").read_text())["written"]
    assert {*record, "mine.png", ".written.json"} == {
        path.name for path in tmp_path.iterdir()
    }
    report([one], tmp_path)
    with pytest.raises(ValueError, match=r"index.html is in the way"):
        report([one], one / "report")


def test_rows_of_older_results_are_a_base_too(tmp_path):
    results = write_run(tmp_path / "run", config_of(), full=False)
    results["rows"].append(row("rigl without Sup-tickets", 0.9))
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    base = base_rows(read_runs([tmp_path]))
    assert base[["seed", "accuracy"]].values.tolist() == [[0, 0.9]]


def test_a_base_of_the_same_phase_1_is_paired_by_it(tmp_path):
    """Its rate falls at other shares of its own epochs, and nothing else differs."""
    for seed, accuracy in enumerate((0.90, 0.80)):
        first = tmp_path / f"first{seed}"
        write_run(first, config_of(seed=seed), accuracy=accuracy + 0.02, full=False)
        more = {"train__drop_epochs": [4], "seed": seed, "sup": False}
        ending = {"branch_from": str(first)} | config_of(**more)
        write_run(tmp_path / f"base{seed}", ending, accuracy=accuracy, full=False)
        longer = {"branch_from": str(first)} | config_of(**more, train__epochs=20)
        write_run(tmp_path / f"longer{seed}", longer, accuracy=0.5, full=False)
        other = ending | {"evaluate": "validation"}
        write_run(tmp_path / f"a-split{seed}", other, accuracy=0.4, full=False)
    runs = read_runs([tmp_path])
    groups = group_runs(runs)
    # Whatever they branch from.
    assert [len(group.runs) for group in groups] == [2, 2, 2, 2]
    ours = next(group for group in groups if group.setting["sup.enabled"])
    found = bases_of(ours, base_rows(runs))
    assert found["accuracy"].to_dict() == {0: 0.90, 1: 0.80}


def test_of_several_bases_the_nearest_is_paired_and_of_equals_none(tmp_path):
    write_run(tmp_path / "first", config_of(), full=False)
    alone = {"branch_from": str(tmp_path / "first"), "sup.enabled": False}
    endings = {
        "far": {"train__drop_epochs": [4], "method__drop_fraction": 0.1},
        "near": {"train__drop_epochs": [4]},
        "other": {"train__drop_epochs": [5]},
    }
    for accuracy, (name, more) in enumerate(endings.items()):
        config = config_of(**more) | alone
        write_run(tmp_path / name, config, accuracy=accuracy / 10, full=False)

    def bases(names):
        runs = read_runs([tmp_path / name for name in ("first", *names)])
        groups = group_runs(runs)
        base = base_rows(runs)
        return bases_of(groups[0], base), rivals_of(groups[0], base)

    found, rivals = bases(["far", "near"])
    assert found["accuracy"].to_dict() == {0: 0.1} and not rivals
    found, rivals = bases(["far", "near", "other"])
    assert found.empty and rivals == ["train.drop_epochs"]
    report([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "More than one base, and left out: rigl 90% + Sup-tickets" in text
    assert "(bases differ in train.drop_epochs)" in text


def test_runs_that_were_moved_together_are_paired(tmp_path, monkeypatch):
    """The folder of phase 1 is where it was, or beside the run."""
    first, away = tmp_path / "first", tmp_path / "away"
    write_run(first, config_of(), full=False)
    for name, source in (("a", str(first)), ("b", "/gone/first"), ("c", "/gone/x")):
        write_run(tmp_path / name, config_of() | {"branch_from": source}, full=False)
    away.mkdir()
    monkeypatch.chdir(away)
    origins = [origin_of(run) for run in read_runs([tmp_path])]
    assert origins[:3] == [str(first)] * 2 + ["/gone/x"]


def test_only_the_seed_is_set_aside(tmp_path):
    for i, more in enumerate(
        [{}, {"seed": 1}, {"train__epochs": 20}, {"report__path_points": 3}]
    ):
        write_run(tmp_path / str(i), config_of(**more), full=False)
    groups = group_runs(read_runs([tmp_path]))
    assert [[run.path.name for run in group.runs] for group in groups] == [
        *(["0", "1"], ["2"]),  # the fourth is the first again
    ]
    assert differing(groups) == ["train.epochs"]
    report([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "rigl 90% + Sup-tickets train.epochs=20" in text
    assert f"seed again, and left out: {tmp_path / '3'}." in text


def test_scores_of_a_group(sweep):
    root, _ = sweep
    groups = group_runs(read_runs([root]))
    number, group = next(
        (i, g) for i, g in enumerate(groups) if g.setting["sup.enabled"]
    )
    assert group.name == "rigl 80% + Sup-tickets"
    scores = network_scores(groups).loc[number]
    assert list(scores.index)[-3:] == [
        *("mean of the tickets", "ensemble of the tickets", "superposed ticket")
    ]
    assert scores.loc["superposed ticket", ("accuracy", "count")] == 3
    # Tickets are 0.008, 0.006 and 0.004 below.
    means = [0.905 - 0.006, 0.916 - 0.006, 0.929 - 0.006]
    np.testing.assert_allclose(
        scores.loc["mean of the tickets", "accuracy"][["mean", "std"]].tolist(),
        (np.mean(means), np.std(means, ddof=1)),
    )


def test_errors_end_in_one_line(tmp_path, capsys):
    for words, message in [
        ([str(tmp_path), "--out=x"], "error: no finished run in"),
        ([str(tmp_path / "nowhere"), "--out=x"], "error: there is no folder"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main(words)
    write_run(tmp_path / "run", config_of(), full=False)
    (tmp_path / "run/results.json").write_text("{")
    with pytest.raises(SystemExit, match=r"error: .*results.json cannot be read"):
        main([str(tmp_path), f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, r"rows must be a list, got None"),
        ({"rows": {}}, r"rows must be a list"),
        ({"rows": [None]}, r"rows\[0\] must be an object, got None"),
        ({"rows": [{"accuracy": 0.5}]}, r"rows\[0\] lacks a name"),
        ({"rows": [{"network": 3}]}, r"rows\[0\] lacks a name"),
        (
            {"rows": [{"network": "a", "nll": "low"}]},
            r"rows\[0\].nll must be a number or null, got 'low'",
        ),
        ({"layers": [1]}, r"layers must be an object"),
        ({"layers": {"a": [{"layer": "k", "active": 1}]}}, r"layers\['a'\]\[0\] lacks"),
        ({"layers": {"a": 3}}, r"layers\['a'\]\[0\] lacks the counts"),
        ({"cost": 3}, r"cost must be an object"),
        ({"analysis": "x"}, r"analysis must be an object"),
    ],
)
def test_results_that_are_not_whole_are_told_in_one_line(tmp_path, change, message):
    results = write_run(tmp_path / "run", config_of(), full=False)
    (tmp_path / "run/results.json").write_text(json.dumps(results | change))
    for act in (
        lambda: read_run(tmp_path / "run"),
        lambda: write_report(tmp_path / "run", results | change),
    ):
        with pytest.raises(ValueError, match=rf"results.json .*{message}") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_rows_without_numbers_are_shown_without(tmp_path):
    rows = [{"network": "ticket 1"}, {"network": "superposed ticket", "accuracy": None}]
    results = write_run(tmp_path / "run", config_of(), full=False) | {"rows": rows}
    results["analysis"] = {"tickets": ["a", "b"], "kl": [[0]], "disagreement": "x"}
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    write_report(tmp_path / "run", results)
    summary = (tmp_path / "run/report/summary.md").read_text()
    assert "| superposed ticket | -" in summary
    assert "Left out: tickets.png, whose numbers are not whole" in summary
    report([tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["a$b$c", r"a\$b^_{$", "$", r"\alpha", "_hidden", "x^2"]
)
def test_names_are_no_mathematics(tmp_path, name):
    path = tmp_path / "x.png"
    assert draw_curves(path, {name: [{"event": "loss", "step": 0, "loss": 1.0}]})
    assert draw_bars(path, {name: {name: (1.0, None)}}, "x")
    assert draw_by_sparsity(path, {name: {0.9: (1.0, None), 0.8: (2.0, 0.1)}}, "x")
    counts = [{"layer": f"{name}/kernel", "active": 0, "size": 0}]
    assert draw_layers(path, {name: counts})
    assert shown_name(name).strip().replace(r"\$", "$") in (
        name,
        name.replace(r"\$", "$"),
    )


# --- Numbers --------------------------------------------------------------------------


@quick
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6
    ).filter(lambda xy: np.ptp([a - b for a, b in xy]) > 1e-3)
)
def test_pairs_agree_with_scipy(values):
    ours = {seed: a for seed, (a, _) in enumerate(values)} | {77: 1.0}
    theirs = {seed: b for seed, (_, b) in enumerate(values)} | {78: 0.0}
    got = pair(pd.Series(ours), pd.Series(theirs))
    a, b = np.array(values).T
    mean, deviation, count = got.spreads["difference"]
    np.testing.assert_allclose(mean, np.mean(a - b), atol=1e-12)
    np.testing.assert_allclose(deviation, np.std(a - b, ddof=1))
    assert count == len(values)
    for side, mine in (("ours", a), ("base", b)):
        np.testing.assert_allclose(got.spreads[side]["mean"], mine.mean(), atol=1e-12)
    np.testing.assert_allclose(got.p_value, stats.ttest_rel(a, b).pvalue)
    assert got.seeds == tuple(range(len(values)))


def test_pairs_without_a_test():
    one = pair(pd.Series({0: 0.5}), pd.Series({0: 0.25}))
    pd.testing.assert_series_equal(
        one.spreads["difference"], spread([0.25]), check_names=False
    )
    assert one.p_value is None
    # The same difference twice, up to rounding.
    ours = pd.Series({0: 0.3, 1: 0.8})
    assert pair(ours, pd.Series({0: 0.2, 1: 0.7})).p_value is None
    for theirs in ({7: 1.0}, {0: None}, {0: np.inf}, {0: "x"}, {}):
        none = pair(ours, pd.Series(theirs, dtype=object))
        assert none[1:] == (None, ())
        assert none.spreads["difference"]["count"] == 0
        assert none.spreads.loc["mean"].isna().all()
    # Runs whose configuration names no seed are one pair.
    unnamed = pd.Index([None], dtype=object)
    same = pair(pd.Series([0.5], unnamed), pd.Series([0.25], unnamed))
    assert same.spreads["difference"]["mean"] == 0.25


def test_spreads():
    for nothing in ([], [None, float("nan")], [float("inf"), "x"]):
        assert spread(nothing)["count"] == 0
        assert spread(nothing)[["mean", "std"]].isna().all()
    assert spread([2.0])[["mean", "count"]].tolist() == [2.0, 1]
    assert np.isnan(spread([2.0])["std"])
    assert spread([1, 3, None]).tolist() == [2.0, pytest.approx(2**0.5), 2]


def test_a_csv_file_keeps_the_text_of_numbers(tmp_path):
    rows = [
        {"a": 0.1 + 0.2, "b": 10000, "c": True, "d": 'x, "y"'},
        {"a": float("nan"), "b": None, "c": 1e-300, "d": "", "e": 1},
        {"a": float("inf"), "b": 2**70, "c": -0.0},
    ]
    write_csv(tmp_path / "x.csv", rows, ("a", "b", "c", "d"))
    assert (tmp_path / "x.csv").read_bytes().decode() == (
        'a,b,c,d\n0.30000000000000004,10000,True,"x, ""y"""\nnan,,1e-300,\n'
        "inf,1180591620717411303424,-0.0,\n"
    )


def test_columns_show_numbers_with_their_units():
    score = Column("perplexity", "perplexity", ".1f", 1, "")
    assert (score.heading, score.shown(12.34), score.shown(None)) == (
        *("perplexity", "12.3"),
        "-",
    )
    values = [SCORES[1].shown(x) for x in (0.5, float("nan"), "x", None)]
    assert values == ["50.00%", "-", "-", "-"]
    assert SCORES[1].heading == "accuracy, %"
    assert CSV[9:14] == ("perplexity", "accuracy", "nll", "ece", "brier")


# --- Parts ----------------------------------------------------------------------------


def test_events_are_read_as_far_as_they_go(tmp_path):
    (tmp_path / "m").write_text('{"a": 1}\n[3]\n\n{"b": 2}\n{"c": ')
    assert read_events(tmp_path / "m") == [{"a": 1}, {"b": 2}]
    assert read_events(tmp_path / "none") == []


def test_a_run_is_read_with_what_is_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "results.json").write_text('{"rows": []}')
    run = read_run(tmp_path)
    assert (run.seed, run.superposes, run.rows, run.main_row) == (None, False, [], None)


def test_special_characters_in_tables_and_pages(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    blocks = [
        Heading(1, "a < b & c"),
        Table(["x|y", "n"], [["<b>", "1"]]),
        Text("1 < 2"),
        Picture(tmp_path / "a.png", 'a "quoted" caption'),
    ]
    checker = checked(to_html(blocks))
    assert "<b>" in checker.text and "x|y" in checker.text
    assert [a["alt"] for tag, a in checker.tags if tag == "img"] == [
        'a "quoted" caption'
    ]
    assert aligned(blocks[1]).splitlines()[0] == r"| x\|y | n   |"


def test_files_are_whole_or_not_there(tmp_path):
    def fails(path):
        path.write_text("ha")
        raise OSError("disk full")

    (tmp_path / "note").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "note", fails)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("note", "old")]


def test_pictures_of_little(tmp_path):
    path = tmp_path / "x.png"
    assert draw_curves(path, {}) is False
    assert (
        draw_curves(path, {"a": [{"event": "loss", "step": 0, "loss": None}]}) is False
    )
    assert draw_curves(path, {"a": [{"event": "loss", "step": 0, "loss": 1.0}]})
    flat = {"corners": [[0, 0], [1, 0], [0, 1]], "names": ["a", "b", "c"]}
    assert draw_plane(path, {**flat, "losses": [[None]], "x": [0], "y": [0]}) is False
    assert draw_plane(
        path, {**flat, "losses": [[1, 1], [1, 1]], "x": [0, 1], "y": [0, 1]}
    )
    assert draw_bars(path, {}, "x") is False
    assert draw_bars(path, {"a": {"n": (1.0, None)}}, "x")
    assert draw_by_sparsity(path, {"a": {0.9: (1.0, None)}}, "x") is False
    assert draw_by_sparsity(path, {"a": {0.9: (1.0, None), 0.8: (2.0, 0.1)}}, "x")
