"""The report of a SoftNet experiment: accuracy after each session, drops, signs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config.fields import Config
from experiments.reports.page import Block, Heading, Picture, Table, Text
from experiments.reports.systems import (
    draw_lines,
    draw_matrices,
    judged,
    percent,
    read_seeds,
    write_report,
)
from experiments.runs.layout import REPORT

FROZEN = "frozen"
_OWN = "minor-block"
_COLUMNS = ("seed", "base", "rule", "session", "classes_of", "accuracy")

Curves = Mapping[tuple[str, str], np.ndarray]
"""[seeds, sessions] of all classes seen, by base network and rule."""


def write_softnet_report(workdir: Path, config: Config) -> Path:
    """See `write_report`.

    Args:
      workdir: of `experiments.softnet`.
      config: of the experiment.
    """
    results = read_seeds(workdir)
    curves: dict[tuple[str, str], Any] = {}
    parts: dict[tuple[str, str], Any] = {}
    for one in results:
        for row in one["rows"]:
            name = row["base"], row["rule"]
            curves.setdefault(name, []).append(row["accuracy"])
            parts.setdefault(name, []).append(_square(row["parts"]))
    curves = {name: np.array(rows) for name, rows in curves.items()}
    parts = {name: np.array(rows) for name, rows in parts.items()}
    count = len(results[0]["rows"][0]["accuracy"])
    lines: dict[str, dict[str, Any]] = {}
    for (base, rule), found in curves.items():
        lines.setdefault(base, {})[rule] = (range(count), 100 * found.mean(0))
    along = [str(i + 1) for i in range(count)]
    shown = {
        f"{base}, {rule}": found.mean(0)
        for (base, rule), found in parts.items()
        if not _idle(base, rule) or (base, FROZEN) not in parts
    }
    after = Picture(workdir / REPORT / "sessions.png", "Accuracy after each session")
    of_each = Picture(
        workdir / REPORT / "matrix.png",
        "Accuracy on the classes of each session, after each",
    )
    pictures = {
        after: partial(
            draw_lines, shown=lines, across="session", along=along, level=True
        ),
        of_each: partial(draw_matrices, matrices=shown),
    }
    blocks = _blocks(after, config, results, curves, parts)
    blocks += [Heading(2, "What is forgotten"), of_each]
    return write_report(workdir, results, pictures, _COLUMNS, _rows(results), blocks)


def _square(parts: Sequence[Sequence[float]]) -> np.ndarray:
    """[sessions, sessions], NaN where the classes were not shown yet."""
    found = np.full((len(parts), len(parts)), np.nan)
    for i, row in enumerate(parts):
        found[i, : len(row)] = row
    return found


def _blocks(
    after: Picture,
    config: Config,
    results: Sequence[Mapping[str, Any]],
    curves: Curves,
    parts: Curves,
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
        after,
        _sessions(curves, parts),
        Text(
            "The drop is from the first session to the last; the last columns are of "
            "the classes of the base and of those of all sessions, after the last."
        ),
        Heading(2, "What a rule adds"),
        _rules(curves),
        Text(
            "After the last session, paired by seed, less the same network whose "
            "sessions train nothing: the control. Compare drops, not last sessions, "
            "between base networks that begin elsewhere."
        ),
        Text(_signs(curves)),
    ]


def _sessions(curves: Curves, parts: Curves) -> Table:
    count = next(iter(curves.values())).shape[1]
    numbers = map(str, range(1, count + 1))
    head = ["base", "rule", *numbers, "mean", "drop", "base classes", "new classes"]
    rows = []
    for name, found in curves.items():
        last = parts[name][:, -1]
        ends = [
            *(found.mean(1), found[:, 0] - found[:, -1]),
            *(last[:, 0], last[:, 1:].mean(1)),
        ]
        between = (f"{100 * value:.2f}" for value in found.mean(0)[1:-1])
        first, final = (percent(found[:, i].tolist()) for i in (0, -1))
        shown = (percent(values.tolist()) for values in ends)
        rows.append([*name, first, *between, final, *shown])
    return Table(head, rows, texts=2)


def _rules(curves: Curves) -> Table:
    rows = []
    for (base, rule), found in curves.items():
        control = curves.get((base, FROZEN))
        if rule != FROZEN and control is not None:
            gain = percent((found[:, -1] - control[:, -1]).tolist(), "+")
            shown = "no weight is minor" if _idle(base, rule) else gain
            rows.append([base, rule, shown])
    return Table(["base", "rule", f"over {FROZEN}, points"], rows, texts=2)


def _idle(base: str, rule: str) -> bool:
    """Whether sessions train nothing, as if they were frozen."""
    return rule in (_OWN, "minor") and not base.startswith("soft")


def _signs(curves: Curves) -> str:
    """Whether the expected signs are there, in sentences."""
    told = []
    for (base, rule), found in curves.items():
        if not base.startswith("soft"):
            continue
        rival = base.replace("soft", "hard")
        hard, control = curves.get((rival, rule)), curves.get((base, FROZEN))
        if rule == FROZEN and hard is not None:
            gain = judged((100 * (found[:, 0] - hard[:, 0])).tolist(), low=0)
            told.append(f"{base} less {rival} after session 1, above 0: {gain}.")
        if rule != FROZEN and control is not None:
            gains = (100 * (found[:, -1] - control[:, -1])).tolist()
            where, bounds = "below 0", {"high": 0}
            if rule == _OWN:
                where, bounds = "within 0.3", {"low": -0.3, "high": 0.3}
            told.append(f"{base}, {rule}, {where}: {judged(gains, **bounds)}.")
    if not told:
        return "Of the signs that the paper leads to expect none can be looked at."
    return (
        "Signs that the paper leads to expect, in points with the 95% interval over "
        f"seeds: {' '.join(told)}"
    )


def _rows(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in results:
        for row in one["rows"]:
            both = zip(row["accuracy"], row["parts"], strict=True)
            for number, (whole, parts) in enumerate(both, start=1):
                named = {"all": whole} | dict(enumerate(parts, start=1))
                for part, value in named.items():
                    yield {
                        "seed": one["seed"],
                        "base": row["base"],
                        "rule": row["rule"],
                        "session": number,
                        "classes_of": part,
                        "accuracy": value,
                    }
