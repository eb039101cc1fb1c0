"""The pictures of many runs: scores over the sparsity, and as bars."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports.figures import panels, shown_name

Point = tuple[float, float | None]
"""Mean and standard deviation over seeds, if there is one."""

_HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_FILLS = ("0.45", "0.95", "0.75", "0.88", "0.6")


def draw_by_sparsity(
    path: Path, lines: Mapping[str, Mapping[float, Point]], label: str
) -> bool:
    """A score over the sparsity, with deviations.

    Args:
      path: of the picture.
      lines: ``{name: {sparsity: point}}``.
      label: of the score.
    """
    sparsities = sorted({sparsity for line in lines.values() for sparsity in line})
    if len(sparsities) < 2:
        return False
    with panels(path, 1, 4.2) as (figure, (place,)):
        for i, (name, line) in enumerate(lines.items()):
            at = sorted(line)
            # Side by side, so that deviations do not hide each other.
            shift = 0.06 * (i - (len(lines) - 1) / 2)
            place.errorbar(
                [sparsities.index(sparsity) + shift for sparsity in at],
                [line[sparsity][0] for sparsity in at],
                [line[sparsity][1] or 0 for sparsity in at],
                label=shown_name(name),
                **_paired_style(name, list(lines)),
            )
        place.set_xticks(range(len(sparsities)), [f"{100 * s:g}" for s in sparsities])
        place.set(xlabel="sparsity, %", ylabel=label)
        figure.legend(loc="outside upper left", ncols=2)
    return True


def _paired_style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """One marker for a method, filled with Sup-tickets and hollow without."""
    from matplotlib import rcParams

    def method(line: str) -> str:
        return re.sub(r" (\+ Sup-tickets|alone|without Sup-tickets)", "", line)

    methods = list(dict.fromkeys(map(method, names)))
    looks = list(rcParams["axes.prop_cycle"])
    look = looks[methods.index(method(name)) % len(looks)]
    ours = "+ Sup-tickets" in name
    return look | {
        "linestyle": "-" if ours else "--",
        "markersize": 6,
        "markerfacecolor": look["color"] if ours else "white",
    }


def draw_bars(path: Path, bars: Mapping[str, Mapping[str, Point]], label: str) -> bool:
    """A score of some networks in some settings, with deviations.

    Args:
      path: of the picture.
      bars: ``{setting: {network: point}}``.
      label: of the score.
    """
    networks = list(dict.fromkeys(name for row in bars.values() for name in row))
    points = [point for row in bars.values() for point in row.values()]
    if not points:
        return False
    height = 1.4 + 0.24 * len(points) + 0.2 * len(bars)
    with panels(path, 1, height) as (figure, (place,)):
        ends: list[float] = []
        y, ticks = 0.0, []
        for row in bars.values():
            ticks.append(y + (len(row) - 1) / 2)
            for name, (mean, deviation) in row.items():
                i = networks.index(name)
                place.barh(
                    *(y, mean),
                    xerr=deviation,
                    height=0.85,
                    color=_FILLS[i % 5],
                    hatch=_HATCHES[i % 5],
                    edgecolor="black",
                    label=_new_label(place, name),
                )
                ends += [mean - (deviation or 0), mean + (deviation or 0)]
                y += 1
            y += 0.8
        low, high = min(ends), max(ends)
        # Bars that are all alike from far away are cut, and the axis says so.
        cut = high - low < 0.5 * abs(low)
        place.set_xlim(low - 0.4 * (high - low or 1) if cut else min(0, low), None)
        place.set_yticks(ticks, list(map(shown_name, bars)), fontsize=8)
        place.invert_yaxis()
        place.set_xlabel(f"{label} (axis cut)" if cut else label)
        figure.legend(loc="outside upper left", ncols=2)
    return True


def _new_label(place: Any, name: str) -> str | None:
    known = place.get_legend_handles_labels()[1]
    return None if shown_name(name) in known else shown_name(name)
