"""Figures of panels that are saved as files, in the look of all pictures."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sup_tickets import panels as drawn
from sup_tickets.panels import shown_name

__all__ = ["panels", "shown_name"]


@contextlib.contextmanager
def panels(
    path: Path, count: int, height: float, *, share_x: bool = False, ratios: Any = None
) -> Iterator[tuple[Any, list[Any]]]:
    """`sup_tickets.panels.panels`, saved once they are drawn.

    Args:
      path: of the picture.
      count: of panels.
      height: of the figure, inches.
      share_x: whether they have one horizontal axis.
      ratios: of the heights of the panels.
    """
    with drawn.panels(count, height, share_x=share_x, ratios=ratios) as (figure, axes):
        yield figure, axes
        figure.savefig(path)
