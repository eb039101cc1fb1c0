"""The report of a KSM experiment: accuracy per task, what is forgotten, storage."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.build.ksm import METHODS
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

CONTROL = "norms"
_MATRICES = ("ksm", "sequential")
_COLUMNS = (
    *("seed", "method", "task", "classes", "accuracy", "accuracy_at_the_end"),
    *("masks", "scales", "norms", "head", "weights", "bytes", "places", "on"),
)

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Of one seed: the rows of its tasks, in order, by method."""


def write_ksm_report(workdir: Path, config: Config) -> Path:
    """Writes ``report/`` from all seeds that are finished.

    Args:
      workdir: of `experiments.ksm`.
      config: of the experiment.

    Returns:
      The path of its Markdown.

    Raises:
      ValueError: if there is no finished seed, or a file is there that no report wrote.
    """
    names = "summary.md", "index.html", "tasks.png", "matrix.png", "results.csv"
    files = Outputs(workdir / REPORT, *names)
    results = read_seeds(workdir)
    methods = list(dict.fromkeys(row["method"] for row in results[0]["rows"]))
    seeds = [
        {m: [row for row in one["rows"] if row["method"] == m] for m in methods}
        for one in results
    ]
    tasks = [row["task"].removeprefix("task ") for row in seeds[0][methods[0]]]
    lines = {m: np.mean([_accuracies(one[m]) for one in seeds], 0) for m in methods}
    files.write(
        "tasks.png", partial(draw_lines, lines=lines, label="task", along=tasks)
    )
    shown = {
        m: np.mean([matrix(one[m]) for one in seeds], 0)
        for m in _MATRICES
        if m in methods
    }
    if shown:
        files.write("matrix.png", partial(draw_matrices, matrices=shown))
    files.write("results.csv", partial(_write_csv, results=results))
    blocks = _blocks(workdir / REPORT, config, results, seeds, bool(shown))
    files.write("summary.md", to_markdown(blocks))
    files.write("index.html", to_html(blocks))
    return workdir / REPORT / "summary.md"


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


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each task when it was learned."""
    return [row["accuracy"][-1] for row in rows]


def _blocks(
    report: Path,
    config: Config,
    results: Sequence[Mapping[str, Any]],
    seeds: Sequence[Rows],
    has_matrix: bool,
) -> list[Block]:
    ours, methods = config.ksm, list(seeds[0])
    count = len(seeds[0][methods[0]])
    backbone = [one["backbone_accuracy"] for one in results]
    known = [value for value in backbone if value is not None]
    origin = f"{100 * np.mean(known):.1f}% on its own classes" if known else "a file"
    blocks: list[Block] = [
        Heading(1, f"{count} tasks of {ours.data} on a frozen {config.model.name}"),
        Text(
            f"Seeds {', '.join(str(one['seed']) for one in results)}; the "
            f"{config.evaluate} split. Backbone: {config.data.name}, {origin}. Every "
            "number is of a network put together from the files of its tasks, whose "
            "scales are rounded to 8 bits. ± is the standard deviation over seeds."
        ),
        Heading(2, "Methods"),
        _methods(results, seeds),
        Text(_verdict(seeds)),
        Picture(report / "tasks.png", "Accuracy of each task when it was learned"),
        Heading(2, "What a task adds"),
        _storage(seeds),
        Text(
            "Bits of a task, mean over tasks and seeds: one for each place of a mask, "
            "8 for the scale of one that is off, 32 for all else."
        ),
    ]
    if has_matrix:
        blocks += [
            Heading(2, "What is forgotten"),
            Picture(report / "matrix.png", "Accuracy on each task after each task"),
        ]
    return blocks


def _methods(results: Sequence[Mapping[str, Any]], seeds: Sequence[Rows]) -> Table:
    head = ["method", "accuracy, %", f"over {CONTROL}", "at the end, %", "unchanged"]
    rows = []
    for method in seeds[0]:
        when = [float(np.mean(_accuracies(one[method]))) for one in seeds]
        end = [float(np.mean(matrix(one[method])[-1])) for one in seeds]
        gain = ""
        if CONTROL in seeds[0] and method != CONTROL:
            base = [float(np.mean(_accuracies(one[CONTROL]))) for one in seeds]
            gain = percent(np.subtract(when, base).tolist(), "+")
        same = all(one["unchanged"][method] for one in results)
        name = f"{method}: {METHODS[method].text}"
        told = "every bit" if same else "no"
        rows.append([name, percent(when), gain, percent(end), told])
    return Table(head, rows)


def _verdict(seeds: Sequence[Rows]) -> str:
    """Whether masks do anything that norms alone do not."""
    if not {CONTROL, "ksm"} <= set(seeds[0]):
        return "Without methods 'ksm' and 'norms' nothing says what masks are worth."
    gains = 100 * np.concatenate(
        [
            np.subtract(_accuracies(one["ksm"]), _accuracies(one[CONTROL]))
            for one in seeds
        ]
    )
    wide = 2 * gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.inf
    text = (
        f"KSM less norms and head alone: {gains.mean():+.2f} points over {len(gains)} "
    )
    text += f"pairs of task and seed (two standard errors: {wide:.2f}). "
    if gains.mean() > wide:
        return text + "The masks add something here."
    if gains.mean() < -wide:
        return text + "The masks do harm here."
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


def _write_csv(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    lines = []
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
                lines.append({**row, **row["bits"], **ours})
    write_csv(path, lines, _COLUMNS)
