"""What the reports of KSM, SoftNet and STAMP share: seeds, numbers, pictures, files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.about import with_notes
from experiments.reports.figures import panels, shown_name
from experiments.reports.gather import write_csv
from experiments.reports.page import Block, Picture, to_html, to_markdown
from experiments.runs.layout import REPORT, RESULTS, read_object
from experiments.runs.written import Outputs

Lines = Mapping[str, tuple[Any, Any]]
"""x and y by the name of what has them."""


def read_seeds(workdir: Path) -> list[dict[str, Any]]:
    """The results of all seeds that are finished, in their order.

    Raises:
      ValueError: if there are none, or a file cannot be read.
    """
    found = [read_object(path) for path in workdir.glob(f"seed=*/{RESULTS}")]
    if not found:
        raise ValueError(f"there is no finished seed in {workdir}")
    return sorted(found, key=lambda one: one["seed"])


def write_report(
    workdir: Path,
    results: Sequence[Mapping[str, Any]],
    pictures: Mapping[Picture, Callable[[Path], None]],
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    blocks: Sequence[Block],
) -> Path:
    """Writes ``report/`` from all seeds that are finished.

    Args:
      workdir: of the experiment.
      results: of those seeds.
      pictures: what draws each.
      columns: of results.csv.
      rows: likewise.
      blocks: of the page, those pictures among them. What made it is added, and what
        its words mean.

    Returns:
      The path of its Markdown.

    Raises:
      ValueError: if a file is there that no report wrote.
    """
    texts = "summary.md", "index.html", "results.csv"
    files = Outputs(workdir / REPORT, *texts, *(one.path.name for one in pictures))
    blocks = with_notes(blocks, results)
    for one, draw in pictures.items():
        files.write(one.path.name, draw)
    files.write("results.csv", partial(write_csv, rows=rows, columns=columns))
    files.write("index.html", to_html(blocks))
    files.write("summary.md", to_markdown(blocks))
    return workdir / REPORT / "summary.md"


# --- Numbers --------------------------------------------------------------------------


def percent(values: Sequence[float], sign: str = "", digits: int = 2) -> str:
    """Mean and standard deviation over seeds, in percent; "" of nothing."""
    shown = 100 * np.asarray(values, float)
    if not shown.size:
        return ""
    text = f"{shown.mean():{sign}.{digits}f}"
    return text if shown.size == 1 else f"{text} ± {shown.std(ddof=1):.{digits}f}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval by Student's t; NaN of one value.

    Example:
      >>> mean, half = interval([1.0, 2.0, 3.0])
      >>> mean, round(half, 3)
      (2.0, 2.484)
    """
    from scipy import stats

    shown = np.asarray(values, float)
    if shown.size < 2:
        return float(shown.mean()), nan
    deviation = shown.std(ddof=1) / shown.size**0.5
    return float(shown.mean()), float(stats.t.ppf(0.975, shown.size - 1) * deviation)


def judged(values: Sequence[float], low: float = -inf, high: float = inf) -> str:
    """A mean with its interval, and whether that is where it was expected.

    Args:
      values: of the seeds.
      low: the least that was expected.
      high: the most.

    Example:
      >>> judged([1.0, 1.1, 0.9], low=0)
      '+1.00 ± 0.25, as expected'
    """
    mean, half = interval(values)
    if isnan(half):
        return f"{mean:+.2f}, of one seed, which settles nothing"
    told = "not resolved"
    if low <= mean - half and mean + half <= high:
        told = "as expected"
    elif mean + half < low or mean - half > high:
        told = "not as expected"
    return f"{mean:+.2f} ± {half:.2f}, {told}"


# --- Pictures -------------------------------------------------------------------------


def draw_lines(
    path: Path,
    shown: Mapping[str, Lines],
    *,
    across: str,
    up: str = "accuracy, %",
    along: Sequence[str] = (),
    level: bool = False,
) -> None:
    """Lines in a panel for each title; all panels have the names of the first.

    Args:
      path: of the picture.
      shown: lines by title; "" is none.
      across: the label of the horizontal axis.
      up: of the vertical ones.
      along: names of the places 0, 1, ... on the horizontal axis.
      level: whether all panels have one vertical scale.
    """
    height = 1.2 + (3 if len(shown) == 1 else 2.4) * len(shown)
    with panels(path, len(shown), height) as (figure, places):
        for place, (title, lines) in zip(places, shown.items(), strict=True):
            if level and place is not places[0]:
                place.sharey(places[0])
            for name, (x, y) in lines.items():
                label = shown_name(name) if place is places[0] else None
                place.plot(x, y, label=label)
            place.set_title(shown_name(title), fontsize=9, loc="left")
            place.set_ylabel(up)
            if along:
                turned = max(map(len, along)) * len(along) > 40
                turn = {"rotation": 30, "ha": "right"} if turned else {}
                place.set_xticks(range(len(along)), map(shown_name, along), **turn)
            place.grid()
        places[-1].set_xlabel(across)
        figure.legend(loc="outside upper left", ncols=4)


def draw_matrices(path: Path, matrices: Mapping[str, np.ndarray]) -> None:
    """Accuracy on every task, across, after every task learned, downward.

    Args:
      path: of the picture.
      matrices: [tasks, tasks] by title, NaN above the diagonal.
    """
    across = min(len(matrices), 2)
    down = -(-len(matrices) // across)
    with panels(path, 1, 0.6 + down * (2.5 if across > 1 else 3.6)) as (figure, (one,)):
        one.remove()
        places = figure.subplots(down, across, squeeze=False)
        for place in places.flat[len(matrices) :]:
            place.remove()
        image = None
        for place, (title, matrix) in zip(places.flat, matrices.items(), strict=False):
            image = place.imshow(100 * matrix, vmin=0, vmax=100, aspect="auto")
            size = 8 if len(matrix) <= 6 else 5.5 if len(matrix) <= 10 else 0
            for (i, j), value in np.ndenumerate(100 * matrix):
                if np.isfinite(value) and size:
                    ink = "white" if value > 60 else "black"
                    middle: dict[str, Any] = {"ha": "center", "va": "center"}
                    text = f"{value:.1f}"
                    place.text(j, i, text, color=ink, fontsize=size, **middle)
            ticks = range(0, len(matrix), 1 if len(matrix) <= 10 else 2)
            names = [str(i + 1) for i in ticks]
            place.set_xticks(ticks, names, fontsize=7)
            place.set_yticks(ticks, names, fontsize=7)
            place.set_title(shown_name(title), fontsize=9)
        figure.supxlabel("accuracy on this one, %", fontsize=9)
        figure.supylabel("once this one is learned", fontsize=9)
        figure.colorbar(image, ax=list(places[:, -1]) if down == 1 else places[0, -1])
