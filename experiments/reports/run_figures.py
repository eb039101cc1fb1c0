"""The pictures of one run.

Each function draws one picture into a file, or returns False if there is nothing to be
drawn. Maps are in grey levels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.columns import is_number
from experiments.reports.figures import panels, shown_name

Layers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Counts of each sparse leaf by network: ``{"layer", "active", "size"}``."""

_MARKERS = ("o", "s", "^", "D")  # of tickets in a plane


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
            ("validation perplexity", "validation", "perplexity", 1),
            ("validation accuracy, %", "validation", "accuracy", 100),
            ("learning rate", "loss", "learning_rate", 1),
        )
        if any(_series(run, kind, field)[0] for run in events.values())
    ]
    if not shown:
        return False
    height = 0.4 + 2.3 * len(shown)
    with panels(path, len(shown), height, share_x=True) as (figure, axes):
        for place, (title, kind, field, scale) in zip(axes, shown, strict=True):
            for name, run in events.items():
                steps, values = _series(run, kind, field)
                look = {}
                if kind == "loss":
                    steps, values = _means(steps, values)
                    look = {"marker": ""}
                scaled = [scale * v for v in values]
                place.plot(steps, scaled, label=shown_name(name), **look)
            _mark_cycles(place, next(iter(events.values())))
            place.set_ylabel(title)
            if field == "loss":
                place.set_yscale("log")
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside upper left",
            ncols=2,
        )
        axes[-1].set_xlabel("step")
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
        if any(is_number(e.get(field)) for e in changes)
    ]
    if len({e.get("active") for e in changes}) <= 1:  # a straight line says nothing
        shown = [pair for pair in shown if pair[1] != "active"]
    if not shown:
        return False
    height = 0.5 + 2.0 * len(shown)
    with panels(path, len(shown), height, share_x=True) as (_, axes):
        for place, (title, field) in zip(axes, shown, strict=True):
            scale = 1 if field == "active" else 100
            _draw_changes(place, changes, field, scale)
            place.set_ylabel(title)
        axes[0].legend()
        axes[-1].set_xlabel("step")
    return True


def _draw_changes(place: Any, changes: Any, field: str, scale: float) -> None:
    steps, values = zip(
        *((e["step"], scale * e[field]) for e in changes if is_number(e.get(field))),
        strict=True,
    )
    place.plot(steps, values, "-", marker="", color="0.6", linewidth=0.8)
    for i, (kind, label) in enumerate(
        [("update", "topology update"), ("explore", "exploration")]
    ):
        chosen = [e for e in changes if e["event"] == kind and is_number(e.get(field))]
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
        if e.get("event") == kind
        and is_number(e.get(field))
        and is_number(e.get("step"))
    }
    steps = sorted(found)
    return steps, [found[step] for step in steps]


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
    with panels(path, 1, 1.2 + max(0.24 * len(names), 0.8)) as (figure, (place,)):
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
        place.grid(axis="y")
        place.set_xlabel("sparsity, %")
        figure.legend(loc="outside upper right", ncols=len(layers))
    return True


def draw_tickets(path: Path, analysis: Mapping[str, Any]) -> bool:
    """Disagreement and divergence of each pair, and the loss from one to the next."""
    names = analysis.get("tickets", [])
    paths = [p for p in analysis.get("paths", []) if "error" not in p]
    pairs = len(names) > 1 and "disagreement" in analysis and "kl" in analysis
    if not (pairs or paths):
        return False
    heights = [1.0 + 0.5 * len(names)] * pairs + [2.8] * bool(paths)
    with panels(path, len(heights), sum(heights), ratios=heights) as (figure, axes):
        if pairs:
            _draw_pairs(figure, axes[0], analysis, names)
        if paths:
            _draw_paths(axes[-1], paths)
    return True


def _draw_pairs(figure: Any, place: Any, analysis: Mapping[str, Any], names: Any):
    share, kl = (_floats(analysis[name]) for name in ("disagreement", "kl"))
    off = share[~np.eye(len(names), dtype=bool)]
    top = np.nanmax(off, initial=0.0) or 1.0
    # Pale, so that black text stands out on every cell.
    place.imshow(share, vmin=0, vmax=1.8 * top, aspect="auto")
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
    for way in paths:
        label = shown_name(f"{way['from']} to {way['to']}")
        if is_number(way.get("barrier")):
            label += f", barrier {way['barrier']:.4f}"
        place.plot(way["positions"], _floats(way["losses"]), label=label)
    place.set(xlabel="position between the two", ylabel="loss, nats")
    place.legend()


def draw_plane(path: Path, plane: Mapping[str, Any]) -> bool:
    """The loss in the plane through three tickets, as contours."""
    losses = _floats(plane.get("losses", []))
    if "error" in plane or losses.ndim != 2 or not np.isfinite(losses).any():
        return False
    with panels(path, 1, 5.2) as (figure, (place,)):
        levels = np.unique(np.nanquantile(losses, np.linspace(0, 1, 10)))
        if len(levels) > 2:
            masked = np.ma.masked_invalid(losses)
            # Pale, so that numbers and markers stand out.
            greys = [f"{grey:.3f}" for grey in np.linspace(0.98, 0.5, len(levels) - 1)]
            filled = place.contourf(
                plane["x"], plane["y"], masked, levels, colors=greys
            )
            lines = place.contour(
                plane["x"], plane["y"], masked, levels, colors="black", linewidths=0.5
            )
            place.clabel(lines, fontsize=7, fmt="%.3g")
            figure.colorbar(
                filled, ax=place, label="loss, nats", format="%.3g", shrink=0.8
            )
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
        figure.legend(loc="outside upper center", ncols=len(names) or 1)
    return True


def _floats(values: Any) -> np.ndarray:
    """Numbers of JSON, in which ``None`` is not a number."""
    return np.array(values, dtype=float)
