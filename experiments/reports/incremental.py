"""What the reports of tasks and of sessions share: folders, matrices, lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.figures import panels, shown_name
from experiments.runs.layout import RESULTS, read_object


def read_seeds(workdir: Path) -> list[dict[str, Any]]:
    """The results of all seeds that are finished, in their order.

    Raises:
      ValueError: if there are none, or a file cannot be read.
    """
    found = [read_object(path) for path in workdir.glob(f"seed=*/{RESULTS}")]
    if not found:
        raise ValueError(f"there is no finished seed in {workdir}")
    return sorted(found, key=lambda one: one["seed"])


def percent(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds, in percent; "" of nothing."""
    shown = 100 * np.asarray(values, float)
    if not shown.size:
        return ""
    text = f"{shown.mean():{sign}.2f}"
    return text if shown.size == 1 else f"{text} ± {shown.std(ddof=1):.2f}"


def draw_lines(
    path: Path,
    lines: Mapping[str, Sequence[float]],
    *,
    label: str,
    along: Sequence[str],
) -> None:
    """Accuracies, in percent, of several things after the other.

    Args:
      path: of the picture.
      lines: accuracies by the name of what has them.
      label: of what is below the axis.
      along: names of the places on it.
    """
    with panels(path, 1, 4.2) as (figure, (place,)):
        for name, values in lines.items():
            shown = 100 * np.asarray(values, float)
            place.plot(range(len(shown)), shown, label=shown_name(name))
        place.set(xlabel=label, ylabel="accuracy, %")
        place.set_xticks(range(len(along)), along, rotation=90 * (len(along) > 10))
        place.grid()
        figure.legend(loc="outside upper left", ncols=3)


def draw_matrices(path: Path, matrices: Mapping[str, np.ndarray]) -> None:
    """Accuracy on every task, across, after every task learned, downward.

    Args:
      path: of the picture.
      matrices: [tasks, tasks] by title, NaN above the diagonal.
    """
    with panels(path, len(matrices), 0.4 + 3.4 * len(matrices)) as (_, places):
        for place, (title, matrix) in zip(places, matrices.items(), strict=True):
            shown = 100 * matrix
            place.imshow(shown, vmin=0, vmax=220, aspect="auto")  # text stays legible
            for (i, j), value in np.ndenumerate(shown):
                if np.isfinite(value) and len(matrix) <= 10:
                    place.text(j, i, f"{value:.0f}", ha="center", va="center")
            ticks = range(len(matrix))
            names = [str(i + 1) for i in ticks]
            place.set_xticks(ticks, names)
            place.set_yticks(ticks, names)
            place.set(title=title, xlabel="task looked at", ylabel="tasks learned")
