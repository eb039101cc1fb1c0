"""The pictures of reports, readable in greyscale and on a telephone.

Each function draws one picture into a file, or returns False if there is nothing to be
drawn. Lines differ in style and marker, bars in hatches, maps in grey levels.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Layers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Counts of each sparse leaf by network: ``{"layer", "active", "size"}``."""

_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "x", "*")
_GREYS = ("0.0", "0.45", "0.25", "0.6")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_FILLS = ("0.45", "0.95", "0.75", "0.88", "0.6")
_WIDTH = 5.4  # inches: legible in the width of a telephone
_DPI = 150


def style(i: int) -> dict[str, Any]:
    """The look of the i-th line."""
    return {
        "linestyle": _LINES[i % len(_LINES)],
        "color": _GREYS[i % len(_GREYS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.3,
    }


def panels(
    count: int, height: float, *, share_x: bool = False, ratios: Any = None
) -> tuple[Any, list[Any]]:
    """A figure of panels one above the other.

    Args:
      count: of panels.
      height: of the figure, inches.
      share_x: whether they have one horizontal axis.
      ratios: of the heights of the panels.
    """
    # Not pyplot: it keeps figures, and may look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        count, 1, sharex=share_x, squeeze=False, height_ratios=ratios
    )
    return figure, list(axes[:, 0])


def shown_name(name: str) -> str:
    """A name as it is: Matplotlib takes what is between two $ for mathematics, and
    leaves out of a legend what begins with an underscore.
    """
    plain = name.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


# --- Training -------------------------------------------------------------------------


def draw_curves(path: Path, events: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Training loss, validation accuracy and learning rate over the steps.

    Args:
      path: of the picture.
      events: of each run by its name; the first is the one whose cycles are marked.
    """
    shown = [
        (title, kind, field, scale)
        for title, kind, field, scale in (
            ("training loss, nats", "loss", "loss", 1),
            ("validation accuracy, %", "validation", "accuracy", 100),
            ("learning rate", "loss", "learning_rate", 1),
        )
        if any(_series(run, kind, field)[0] for run in events.values())
    ]
    if not shown:
        return False
    figure, axes = panels(len(shown), 0.4 + 2.3 * len(shown), share_x=True)
    for place, (title, kind, field, scale) in zip(axes, shown, strict=True):
        for i, (name, run) in enumerate(events.items()):
            steps, values = _series(run, kind, field)
            if kind == "loss":
                steps, values = _means(steps, values)
            look = style(i) | ({"marker": ""} if kind == "loss" else {})
            place.plot(
                steps, [scale * v for v in values], label=shown_name(name), **look
            )
        _mark_cycles(place, next(iter(events.values())))
        place.set_ylabel(title)
        if field == "loss":
            place.set_yscale("log")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=2,
        fontsize=8,
    )
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=_DPI)
    return True


def draw_topology(path: Path, events: Sequence[Mapping[str, Any]]) -> bool:
    """How much each change keeps of the masks, and how many weights were ever active.

    Args:
      path: of the picture.
      events: of one run.
    """
    changes = [e for e in events if e.get("event") in ("update", "explore")]
    shown = [
        (title, field)
        for title, field in (
            ("overlap with the\nmasks before, %", "overlap"),
            ("weights active\nat any time, %", "ever_active"),
            ("active weights", "active"),
        )
        if any(_number(e.get(field)) for e in changes)
    ]
    if len({e.get("active") for e in changes}) <= 1:  # a straight line says nothing
        shown = [pair for pair in shown if pair[1] != "active"]
    if not shown:
        return False
    figure, axes = panels(len(shown), 0.5 + 2.0 * len(shown), share_x=True)
    for place, (title, field) in zip(axes, shown, strict=True):
        scale = 1 if field == "active" else 100
        _draw_changes(place, changes, field, scale)
        place.set_ylabel(title)
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=_DPI)
    return True


def _draw_changes(place: Any, changes: Any, field: str, scale: float) -> None:
    steps, values = zip(
        *((e["step"], scale * e[field]) for e in changes if _number(e.get(field))),
        strict=True,
    )
    place.plot(steps, values, color="0.6", linewidth=0.8)
    for i, (kind, label) in enumerate(
        [("update", "topology update"), ("explore", "exploration")]
    ):
        chosen = [e for e in changes if e["event"] == kind and _number(e.get(field))]
        place.plot(
            [e["step"] for e in chosen],
            [scale * e[field] for e in chosen],
            marker="o" if i == 0 else "^",
            markerfacecolor="white" if i == 0 else "black",
            color="black",
            linestyle="",
            markersize=3.5 if i == 0 else 6,
            label=label if chosen else None,
        )


def _series(
    events: Sequence[Mapping[str, Any]], kind: str, field: str
) -> tuple[list[int], list[float]]:
    """Steps and numbers of one kind of event; of a step told twice the last."""
    found = {
        e["step"]: e[field]
        for e in events
        if e.get("event") == kind and _number(e.get(field)) and _number(e.get("step"))
    }
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _means(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Means of about 200 groups of steps; the last may be smaller."""
    size = max(len(values) // 200, 1)
    groups = [slice(i, i + size) for i in range(0, len(values), size)]
    means = [sum(values[g]) / len(values[g]) for g in groups]
    return [steps[g][-1] for g in groups], means


def _mark_cycles(place: Any, events: Sequence[Mapping[str, Any]]) -> None:
    starts = [e["step"] for e in events if e.get("event") == "explore"]
    for i, step in enumerate(sorted(set(starts))):
        label = "a cycle starts" if i == 0 else None
        place.axvline(step, color="0.6", linewidth=0.8, zorder=0, label=label)


# --- Networks -------------------------------------------------------------------------


def draw_layers(path: Path, layers: Layers) -> bool:
    """The sparsity of each layer of some networks, one below the other."""
    names = [row["layer"] for row in next(iter(layers.values()), [])]
    if not names:
        return False
    figure, (place,) = panels(1, 1.2 + max(0.24 * len(names), 0.8))
    rows = np.arange(len(names))
    for i, (network, counts) in enumerate(layers.items()):
        place.plot(
            [100 * (1 - row["active"] / (row["size"] or 1)) for row in counts],
            rows,
            linestyle="",
            marker=("o", "x", "s", "^")[i % 4],
            markersize=8 - 2 * (i % 4),
            markerfacecolor="white" if i % 4 != 1 else "black",
            color="black",
            label=shown_name(network),
        )
    shown = [shown_name(name.removesuffix("/kernel")) for name in names]
    place.set_yticks(rows, shown, fontsize=8)
    place.set_ylim(len(names) - 0.5, -0.5)  # in their order from the top
    place.grid(axis="y", color="0.9")
    place.set_axisbelow(True)
    place.set_xlabel("sparsity, %")
    figure.legend(loc="outside upper right", ncols=len(layers), fontsize=8)
    figure.savefig(path, dpi=_DPI)
    return True


def draw_tickets(path: Path, analysis: Mapping[str, Any]) -> bool:
    """Disagreement and divergence of each pair, and the loss from one to the next."""
    names = analysis.get("tickets", [])
    paths = [p for p in analysis.get("paths", []) if "error" not in p]
    pairs = len(names) > 1 and "disagreement" in analysis and "kl" in analysis
    if not (pairs or paths):
        return False
    heights = [1.0 + 0.5 * len(names)] * pairs + [2.8] * bool(paths)
    figure, axes = panels(len(heights), sum(heights), ratios=heights)
    if pairs:
        _draw_pairs(figure, axes[0], analysis, names)
    if paths:
        _draw_paths(axes[-1], paths)
    figure.savefig(path, dpi=_DPI)
    return True


def _draw_pairs(figure: Any, place: Any, analysis: Mapping[str, Any], names: Any):
    share, kl = (_floats(analysis[name]) for name in ("disagreement", "kl"))
    off = share[~np.eye(len(names), dtype=bool)]
    top = np.nanmax(off, initial=0.0) or 1.0
    # Pale, so that black text stands out on every cell.
    place.imshow(share, cmap="Greys", vmin=0, vmax=1.8 * top, aspect="auto")
    for i in range(len(names)):
        for j in range(len(names)):
            text = "-" if i == j else f"{100 * share[i, j]:.2f}%\n{kl[i, j]:.4f}"
            place.text(j, i, text, ha="center", va="center", fontsize=8)
    shown = [shown_name(str(name)) for name in names]
    place.set_xticks(range(len(names)), shown, fontsize=8)
    place.set_yticks(range(len(names)), shown, fontsize=8)
    place.set_title(
        "different answers, and KL(row || column) in nats", fontsize=9, loc="left"
    )


def _draw_paths(place: Any, paths: Sequence[Mapping[str, Any]]) -> None:
    for i, way in enumerate(paths):
        label = shown_name(f"{way['from']} to {way['to']}")
        if _number(way.get("barrier")):
            label += f", barrier {way['barrier']:.4f}"
        place.plot(way["positions"], _floats(way["losses"]), label=label, **style(i))
    place.set(xlabel="position between the two", ylabel="loss, nats")
    place.legend(fontsize=8)


def draw_plane(path: Path, plane: Mapping[str, Any]) -> bool:
    """The loss in the plane through three tickets, as contours."""
    losses = _floats(plane.get("losses", []))
    if "error" in plane or losses.ndim != 2 or not np.isfinite(losses).any():
        return False
    figure, (place,) = panels(1, 5.2)
    levels = np.unique(np.nanquantile(losses, np.linspace(0, 1, 10)))
    if len(levels) > 2:
        masked = np.ma.masked_invalid(losses)
        # Pale, so that numbers and markers stand out.
        greys = [f"{grey:.3f}" for grey in np.linspace(0.98, 0.5, len(levels) - 1)]
        filled = place.contourf(plane["x"], plane["y"], masked, levels, colors=greys)
        lines = place.contour(
            plane["x"], plane["y"], masked, levels, colors="black", linewidths=0.5
        )
        place.clabel(lines, fontsize=7, fmt="%.3g")
        figure.colorbar(filled, ax=place, label="loss, nats", format="%.3g", shrink=0.8)
    names = [*plane.get("names", []), *plane.get("other_names", [])]
    places = [*plane["corners"], *plane.get("others", [])]
    for i, (name, (x, y)) in enumerate(zip(names, places, strict=False)):
        place.plot(
            *(x, y, _MARKERS[i % 4]),
            color="black",
            markerfacecolor="white",
            markersize=9,
            label=shown_name(name),
        )
    place.set(xlabel="distance in weights", ylabel="distance in weights")
    place.set_aspect("equal", adjustable="box")
    figure.legend(loc="outside upper center", ncols=len(names) or 1, fontsize=8)
    figure.savefig(path, dpi=_DPI)
    return True


def _floats(values: Any) -> np.ndarray:
    """Numbers of JSON, in which ``None`` is not a number."""
    return np.array(values, dtype=float)


# --- Many runs ------------------------------------------------------------------------

Point = tuple[float, float | None]
"""Mean and deviation over seeds, if there is one."""


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
    figure, (place,) = panels(1, 4.2)
    for i, (name, line) in enumerate(lines.items()):
        at = sorted(line)
        # Side by side, so that deviations do not hide each other.
        shift = 0.06 * (i - (len(lines) - 1) / 2)
        place.errorbar(
            [sparsities.index(sparsity) + shift for sparsity in at],
            [line[sparsity][0] for sparsity in at],
            [line[sparsity][1] or 0 for sparsity in at],
            capsize=3,
            label=shown_name(name),
            **_paired_style(name, list(lines)),
        )
    place.set_xticks(range(len(sparsities)), [f"{100 * s:g}" for s in sparsities])
    place.set(xlabel="sparsity, %", ylabel=label)
    figure.legend(loc="outside upper left", ncols=2, fontsize=8)
    figure.savefig(path, dpi=_DPI)
    return True


def _paired_style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """One marker for a method, filled with Sup-tickets and hollow without."""

    def method(line: str) -> str:
        return re.sub(r" (\+ Sup-tickets|alone|without Sup-tickets)", "", line)

    methods = list(dict.fromkeys(map(method, names)))
    i = methods.index(method(name))
    hollow = "+ Sup-tickets" not in name
    return style(i) | {
        "linestyle": "--" if hollow else "-",
        "markersize": 6,
        "markerfacecolor": "white" if hollow else _GREYS[i % len(_GREYS)],
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
    figure, (place,) = panels(1, 1.4 + 0.24 * len(points) + 0.2 * len(bars))
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
                capsize=3,
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
    figure.legend(loc="outside upper left", ncols=2, fontsize=8)
    figure.savefig(path, dpi=_DPI)
    return True


def _new_label(place: Any, name: str) -> str | None:
    known = place.get_legend_handles_labels()[1]
    return None if shown_name(name) in known else shown_name(name)
