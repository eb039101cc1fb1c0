"""The report of a SoftNet experiment: accuracy after each session, drops, signs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config.fields import Config
from experiments.reports.gather import write_csv
from experiments.reports.incremental import (
    draw_lines,
    draw_matrices,
    percent,
    read_seeds,
)
from experiments.reports.page import (
    Block,
    Heading,
    Picture,
    Table,
    Text,
    to_html,
    to_markdown,
)
from experiments.runs.layout import REPORT
from experiments.runs.written import Outputs

FROZEN = "frozen"
_OWN = "minor-block"
_COLUMNS = ("seed", "base", "rule", "session", "classes_of", "accuracy")

Curves = Mapping[tuple[str, str], np.ndarray]
"""[seeds, sessions] of all classes seen, by base network and rule."""


def write_softnet_report(workdir: Path, config: Config) -> Path:
    """Writes ``report/`` from all seeds that are finished.

    Args:
      workdir: of `experiments.softnet`.
      config: of the experiment.

    Returns:
      The path of its Markdown.

    Raises:
      ValueError: if there is no finished seed, or a file is there that no report wrote.
    """
    names = "summary.md", "index.html", "sessions.png", "matrix.png", "results.csv"
    files = Outputs(workdir / REPORT, *names)
    results = read_seeds(workdir)
    curves: dict[tuple[str, str], Any] = {}
    parts: dict[tuple[str, str], Any] = {}
    for one in results:
        for row in one["rows"]:
            name = row["base"], row["rule"]
            curves.setdefault(name, []).append(row["accuracy"])
            parts.setdefault(name, []).append(_square(row["parts"]))
    curves = {name: np.array(rows) for name, rows in curves.items()}
    sessions = range(1, 1 + len(results[0]["rows"][0]["accuracy"]))
    files.write(
        "sessions.png",
        partial(
            draw_lines,
            lines={f"{b}, {r}": rows.mean(0) for (b, r), rows in curves.items()},
            label="session",
            along=list(map(str, sessions)),
        ),
    )
    shown = {f"{b}, {r}": np.mean(rows, 0) for (b, r), rows in parts.items()}
    files.write("matrix.png", partial(draw_matrices, matrices=shown))
    files.write("results.csv", partial(_write_csv, results=results))
    blocks = _blocks(workdir / REPORT, config, results, curves)
    files.write("summary.md", to_markdown(blocks))
    files.write("index.html", to_html(blocks))
    return workdir / REPORT / "summary.md"


def _square(parts: Sequence[Sequence[float]]) -> np.ndarray:
    """[sessions, sessions], NaN where the classes were not shown yet."""
    found = np.full((len(parts), len(parts)), np.nan)
    for i, row in enumerate(parts):
        found[i, : len(row)] = row
    return found


def _blocks(
    report: Path, config: Config, results: Sequence[Mapping[str, Any]], curves: Curves
) -> list[Block]:
    ours = config.softnet
    seeds = ", ".join(str(one["seed"]) for one in results)
    draws = f", the mean of {ours.draws} draws" if ours.draws > 1 else ""
    return [
        Heading(1, f"{config.data.name}: {ours.base_classes} classes, then few shots"),
        Text(
            f"{config.model.name}, seeds {seeds}, the {config.evaluate} split; "
            f"{ours.ways} classes of {ours.shots} examples a session, split "
            f"{ours.split!r}{draws}. Accuracy in percent on all classes seen, by the "
            f"nearest mean ({ours.metric}). ± is the standard deviation over seeds."
        ),
        Picture(report / "sessions.png", "Accuracy after each session"),
        _sessions(curves),
        Heading(2, "What a rule adds"),
        _rules(curves),
        Text(
            "After the last session, paired by seed, less the same network whose "
            "sessions train nothing: the control. Compare drops, not last sessions, "
            "between base networks that begin elsewhere."
        ),
        Text(_signs(curves)),
        Heading(2, "What is forgotten"),
        Picture(
            report / "matrix.png", "Accuracy on the classes of each session, after each"
        ),
    ]


def _sessions(curves: Curves) -> Table:
    count = next(iter(curves.values())).shape[1]
    head = ["base", "rule", *map(str, range(1, count + 1)), "drop"]
    rows = [
        [
            *name,
            *(f"{100 * value:.2f}" for value in found.mean(0)[1:-1]),
            percent(found[:, -1].tolist()),
            percent((found[:, 0] - found[:, -1]).tolist()),
        ]
        for name, found in curves.items()
    ]
    for row, found in zip(rows, curves.values(), strict=True):
        row.insert(2, percent(found[:, 0].tolist()))
    return Table(head, rows, texts=2)


def _rules(curves: Curves) -> Table:
    rows = []
    for (base, rule), found in curves.items():
        control = curves.get((base, FROZEN))
        if rule != FROZEN and control is not None:
            gain = found[:, -1] - control[:, -1]
            rows.append([base, rule, percent(gain.tolist(), "+")])
    return Table(["base", "rule", f"over {FROZEN}, points"], rows, texts=2)


def _signs(curves: Curves) -> str:
    """Whether the expected signs are there, in sentences."""
    told = []
    for (base, rule), found in curves.items():
        hard = curves.get((base.replace("soft", "hard"), rule))
        if base.startswith("soft") and rule == FROZEN and hard is not None:
            gain = 100 * (found[:, 0] - hard[:, 0]).mean()
            told.append(
                f"{base} less {base.replace('soft', 'hard')} after session 1: "
                f"{gain:+.2f} points (expected: above 0)."
            )
        control = curves.get((base, FROZEN))
        if control is None or rule == FROZEN or not base.startswith("soft"):
            continue
        gain = 100 * (found[:, -1] - control[:, -1]).mean()
        wanted = "within 0.3" if rule == _OWN else "far below 0"
        told.append(f"{base}, {rule}: {gain:+.2f} points over frozen ({wanted}).")
    return " ".join(told) or "Of the expected signs none can be looked at."


def _write_csv(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for one in results:
        for row in one["rows"]:
            both = zip(row["accuracy"], row["parts"], strict=True)
            for number, (whole, parts) in enumerate(both, start=1):
                named = {"all": whole} | dict(enumerate(parts, start=1))
                lines += [
                    {
                        "seed": one["seed"],
                        "base": row["base"],
                        "rule": row["rule"],
                        "session": number,
                        "classes_of": part,
                        "accuracy": value,
                    }
                    for part, value in named.items()
                ]
    write_csv(path, lines, _COLUMNS)
