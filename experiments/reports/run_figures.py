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
from sup_tickets import pictures
from sup_tickets.pictures import Curve

Layers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Counts of each sparse leaf by network: ``{"layer", "active", "size"}``."""

_MARKERS = ("o", "s", "^", "D")  # of tickets in a plane


# --- Training -------------------------------------------------------------------------


def draw_curves(
    path: Path,
    events: Mapping[str, Sequence[Mapping[str, Any]]],
    rates: Mapping[str, Curve] | None = None,
) -> bool:
    """Training loss, validation accuracy and learning rate over the steps.

    Args:
      path: of the picture.
      events: of each run by its name; the first is the one whose cycles are marked.
      rates: learning rates by the name of the run; of a run without, as far as its
        events tell.
    """
    quantities: dict[str, dict[str, Any]] = {
        title: {
            name: [(step, scale * value) for step, value in _series(run, kind, field)]
            for name, run in events.items()
        }
        for title, kind, field, scale in (
            ("training loss, nats", "loss", "loss", 1),
            ("validation perplexity", "validation", "perplexity", 1),
            ("validation accuracy, %", "validation", "accuracy", 100),
            ("learning rate", "loss", "learning_rate", 1),
        )
        if any(_series(run, kind, field) for run in events.values())
    }
    if not quantities:
        return False
    if "learning rate" in quantities:
        quantities["learning rate"] |= rates or {}
    first = next(iter(events.values()))
    marks = [e["step"] for e in first if e.get("event") == "explore"]
    log = [title for title in quantities if title.startswith("training loss")]
    pictures.draw_curves(quantities, log=log, marks=marks).savefig(path)
    return True


def draw_topology(path: Path, events: Sequence[Mapping[str, Any]]) -> bool:
    """How much each change keeps of the masks, and how many weights were ever active.

    Args:
      path: of the picture.
      events: of one run.
    """
    fields = ("overlap", "ever_active", "active")
    changes = [
        {"event": e["event"], "step": e["step"]}
        | {field: e[field] for field in fields if is_number(e.get(field))}
        for e in events
        if e.get("event") in ("update", "explore")
    ]
    varies = len({change.get("active") for change in changes}) > 1
    if not any(change.keys() & fields[: 2 + varies] for change in changes):
        return False
    pictures.draw_changes(changes).savefig(path)
    return True


def _series(
    events: Sequence[Mapping[str, Any]], kind: str, field: str
) -> list[tuple[int, float]]:
    """Steps and numbers of one kind of event; of a step told twice the last."""
    found = {
        e["step"]: e[field]
        for e in events
        if e.get("event") == kind
        and is_number(e.get(field))
        and is_number(e.get("step"))
    }
    return sorted(found.items())


# --- Networks -------------------------------------------------------------------------


def draw_layers(path: Path, layers: Layers) -> bool:
    """The sparsity of each layer of some networks, one below the other."""
    counts = {
        network: [(row["layer"], None, row["size"], row["active"]) for row in rows]
        for network, rows in layers.items()
    }
    if not next(iter(counts.values()), []):
        return False
    pictures.draw_layer_counts(counts).savefig(path)
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
