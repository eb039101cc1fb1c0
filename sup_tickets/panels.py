"""Figures of panels in one look, for pictures and reports: ``panels.mplstyle``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sup_tickets.checks import check_installed

_STYLE = Path(__file__).with_suffix(".mplstyle")


@contextlib.contextmanager
def panels(
    count: int, height: float, *, share_x: bool = False, ratios: Any = None
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of panels one above the other, in the style of all pictures.

    Args:
      count: of panels.
      height: of the figure, inches.
      share_x: whether they have one horizontal axis.
      ratios: of the heights of the panels.

    Raises:
      ModuleNotFoundError: naming the extra to install, without Matplotlib.
    """
    check_installed("a picture", "matplotlib")
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


def shown_name(name: str) -> str:
    """A name as it is: Matplotlib takes what is between two $ for mathematics, and
    leaves out of a legend what begins with an underscore.
    """
    plain = name.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
