"""The report of a KSM experiment: accuracy per task, what is forgotten, storage."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.build.ksm import METHODS
from experiments.config.fields import Config
from experiments.reports.page import Block, Heading, Picture, Table, Text
from experiments.reports.systems import (
    draw_lines,
    draw_matrices,
    interval,
    percent,
    read_seeds,
    write_report,
)
from experiments.runs.layout import REPORT

CONTROL = "norms"
_MATRICES = ("ksm", "sequential")
_COLUMNS = (
    *("seed", "method", "task", "classes", "accuracy", "accuracy_at_the_end"),
    *("masks", "scales", "norms", "head", "weights", "bytes", "places", "on"),
)

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Of one seed: the rows of its tasks, in order, by method."""


def write_ksm_report(workdir: Path, config: Config) -> Path:
    """See `write_report`.

    Args:
      workdir: of `experiments.ksm`.
      config: of the experiment.
    """
    results = read_seeds(workdir)
    methods = list(dict.fromkeys(row["method"] for row in results[0]["rows"]))
    seeds = [
        {m: [row for row in one["rows"] if row["method"] == m] for m in methods}
        for one in results
    ]
    tasks = [row["task"].removeprefix("task ") for row in seeds[0][methods[0]]]
    places = range(len(tasks))
    lines = {
        m: (places, 100 * np.mean([_accuracies(one[m]) for one in seeds], 0))
        for m in methods
    }
    by_task = Picture(workdir / REPORT / "tasks.png", "Accuracy when it was learned")
    after = Picture(workdir / REPORT / "matrix.png", "Accuracy after each task")
    pictures = {
        by_task: partial(draw_lines, shown={"": lines}, across="task", along=tasks)
    }
    shown = {
        m: np.mean([matrix(one[m]) for one in seeds], 0)
        for m in _MATRICES
        if m in methods
    }
    blocks = _blocks(by_task, config, results, seeds)
    if shown:
        pictures[after] = partial(draw_matrices, matrices=shown)
        blocks += [Heading(2, "What is forgotten"), after]
    return write_report(workdir, results, pictures, _COLUMNS, _rows(results), blocks)


def matrix(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Accuracy after i tasks on task j: [tasks, tasks], NaN where j is not learned.

    A method whose tasks share nothing but the backbone has one accuracy a task: what a
    later task leaves of it is checked by its bits.
    """
    found = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        found[i, : i + 1] = (
            row["accuracy"] if len(row["accuracy"]) > 1 else _accuracies(rows[: i + 1])
        )
    return found


def _forgotten(found: np.ndarray) -> float:
    """What is left of a task less the most that there was, mean over earlier tasks."""
    best = np.nanmax(found, axis=0)[:-1]
    return float(np.mean(best - found[-1][:-1])) if best.size else 0.0


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each task when it was learned."""
    return [row["accuracy"][-1] for row in rows]


def _blocks(
    by_task: Picture,
    config: Config,
    results: Sequence[Mapping[str, Any]],
    seeds: Sequence[Rows],
) -> list[Block]:
    ours, methods = config.ksm, list(seeds[0])
    count = len(seeds[0][methods[0]])
    backbone = [one["backbone_accuracy"] for one in results]
    known = [value for value in backbone if value is not None]
    origin = f"{100 * np.mean(known):.1f}% on its own classes" if known else "a file"
    return [
        Heading(1, f"{count} tasks of {ours.data} on a frozen {config.model.name}"),
        Text(
            f"Seeds {', '.join(str(one['seed']) for one in results)}; the "
            f"{config.evaluate} split. Backbone: {config.data.name}, {origin}. Every "
            "number is of a network put together from the files of its tasks, whose "
            "scales are rounded to 8 bits. Accuracy is that of a task when it was "
            "learned; forgotten is what was the best of an earlier task less what is "
            "left of it, in points. ± is the standard deviation over seeds."
        ),
        Heading(2, "Methods"),
        _methods(results, seeds),
        Text(_verdict(seeds)),
        by_task,
        Heading(2, "What a task adds"),
        _storage(seeds),
        Text(
            "Bits of a task, mean over tasks and seeds: one for each place of a mask, "
            "8 for the scale of one that is off, 32 for all else. What is one network "
            "for all tasks is counted in each."
        ),
    ]


def _methods(results: Sequence[Mapping[str, Any]], seeds: Sequence[Rows]) -> Table:
    head = ["method", "accuracy, %", f"over {CONTROL}", "forgotten", "unchanged"]
    rows = []
    for method in seeds[0]:
        when = [float(np.mean(_accuracies(one[method]))) for one in seeds]
        lost = [_forgotten(matrix(one[method])) for one in seeds]
        gain = ""
        if CONTROL in seeds[0] and method != CONTROL:
            base = [float(np.mean(_accuracies(one[CONTROL]))) for one in seeds]
            gain = percent(np.subtract(when, base).tolist(), "+")
        same = all(one["unchanged"][method] for one in results)
        name = f"{method}: {METHODS[method].text}"
        told = "every bit" if same else "no"
        rows.append([name, percent(when), gain, percent(lost), told])
    return Table(head, rows)


def _verdict(seeds: Sequence[Rows]) -> str:
    """Whether masks do anything that norms alone do not."""
    if not {CONTROL, "ksm"} <= set(seeds[0]):
        return "Without methods 'ksm' and 'norms' nothing says what masks are worth."
    gains = 100 * np.array(
        [
            np.subtract(_accuracies(one["ksm"]), _accuracies(one[CONTROL]))
            for one in seeds
        ]
    )
    # Tasks of one seed share a backbone: with seeds enough only these are independent.
    values, of = gains.mean(1), f"{len(gains)} seeds"
    if len(gains) == 1:
        values, of = gains[0], "the tasks of one seed"
    mean, half = interval(values.tolist())
    text = (
        f"KSM less norms and head alone: {mean:+.2f} points, with a 95% interval of "
        f"± {half:.2f} over {of}. "
    )
    if abs(mean) > half:
        return text + f"The masks {'add something' if mean > 0 else 'do harm'} here."
    return (
        text + "That is within the noise: it is not shown that masks do anything here."
    )


def _storage(seeds: Sequence[Rows]) -> Table:
    head = ["method", "masks", "scales", "norms", "head", "weights", "kB", "on, %"]
    rows = []
    for method in seeds[0]:
        all_rows = [row for one in seeds for row in one[method]]
        bits = {
            name: np.mean([row["bits"][name] for row in all_rows]) for name in head[1:6]
        }
        places = sum(row["places"] for row in all_rows)
        on = (
            f"{100 * sum(row['on'] for row in all_rows) / places:.1f}" if places else ""
        )
        cells = [f"{value:,.0f}" for value in bits.values()]
        rows.append([method, *cells, f"{sum(bits.values()) / 8000:.2f}", on])
    return Table(head, rows)


def _rows(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in results:
        for method in dict.fromkeys(row["method"] for row in one["rows"]):
            rows = [row for row in one["rows"] if row["method"] == method]
            for row, end in zip(rows, matrix(rows)[-1], strict=True):
                ours = {
                    "seed": one["seed"],
                    "accuracy": row["accuracy"][-1],
                    "accuracy_at_the_end": end,
                    "classes": "+".join(map(str, row["classes"])),
                }
                yield {**row, **row["bits"], **ours}
