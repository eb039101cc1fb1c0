"""Figures of panels in the style of reports, which is in ``report.mplstyle``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("report.mplstyle")


@contextlib.contextmanager
def panels(
    path: Path, count: int, height: float, *, share_x: bool = False, ratios: Any = None
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of panels one above the other, saved once they are drawn.

    Args:
      path: of the picture.
      count: of panels.
      height: of the figure, inches.
      share_x: whether they have one horizontal axis.
      ratios: of the heights of the panels.
    """
    # Not pyplot: it keeps figures, and may look for a screen.
    from matplotlib import rcParams, style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(_STYLE):
        figure = Figure(figsize=(rcParams["figure.figsize"][0], height))
        FigureCanvasAgg(figure)
        axes = figure.subplots(
            count, 1, sharex=share_x, squeeze=False, height_ratios=ratios
        )
        yield figure, list(axes[:, 0])
        figure.savefig(path)


def shown_name(name: str) -> str:
    """A name as it is: Matplotlib takes what is between two $ for mathematics, and
    leaves out of a legend what begins with an underscore.
    """
    plain = name.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
