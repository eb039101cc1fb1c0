"""Pictures of masks and of training: functions of pytrees that return a figure.

A figure is Matplotlib's, without pyplot and without a screen: save it by
``figure.savefig("masks.png")``, or let a notebook show it. Matplotlib is imported once
something is drawn. Reports have the same pictures.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sup_tickets.checks import check_expression
from sup_tickets.masks import layer_table
from sup_tickets.panels import panels, shown_name
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import named_leaves
from sup_tickets.types import Masks

Curve = Sequence[tuple[float, float]]
"""Steps, and a number at each."""

_MOST_POINTS = 200  # of a curve; of more the means of groups are drawn
_MARKED_POINTS = 40
_CHANGES = {"update": "topology update", "explore": "exploration"}
# Grey levels of places: inactive, kept, dropped, grown.
_GREYS = np.array([1.0, 0.8, 0.5, 0.0], np.float32)


# --- Masks ----------------------------------------------------------------------------


def draw_masks(masks: Masks, leaves: str = "") -> Any:
    """Where the active weights of each layer are: black on white.

    A row is an input of the layer, of a convolution one at one place of its kernel; a
    column is an output (of Flax kernels, whose last axis it is).

    Args:
      masks: concrete masks.
      leaves: a regular expression; leaves whose name has it are drawn, by default all.

    Raises:
      ValueError: if no sparse leaf has such a name.
      ModuleNotFoundError: naming the extra to install, without Matplotlib.
    """
    chosen = _chosen(masks, leaves)
    with panels(len(chosen), 1.9 * len(chosen)) as (figure, places):
        for place, (name, mask) in zip(places, chosen, strict=True):
            share = f"{mask.sum():,} of {mask.size:,}, {100 * mask.mean():.3g}%"
            _show(place, mask.astype(np.float32), f"{name}: {share}")
    return figure


def draw_rewire(before: Masks, after: Masks, leaves: str = "") -> Any:
    """What a rewire did in each layer: which weights it kept, dropped and grew.

    Args:
      before: concrete masks.
      after: masks of the same leaves.
      leaves: as of `draw_masks`.

    Raises:
      ValueError: if the masks differ in their leaves, or no sparse leaf has the name.
      ModuleNotFoundError: naming the extra to install, without Matplotlib.
    """
    _check_alike("after", after, "before", before)
    chosen = list(
        zip(_chosen(before, leaves), _chosen(after, leaves, "after"), strict=True)
    )
    with panels(len(chosen), 0.3 + 1.9 * len(chosen)) as (figure, places):
        from matplotlib.patches import Patch

        for place, ((name, old), (_, new)) in zip(places, chosen, strict=True):
            kinds = np.where(new, np.where(old, 1, 3), np.where(old, 2, 0))
            kept, dropped, grown = ((kinds == kind).sum() for kind in (1, 2, 3))
            what = f"{kept:,} kept, {dropped:,} dropped, {grown:,} grown"
            _show(place, 1 - _GREYS[kinds], f"{name}: {what}")
        names = ("inactive", "kept", "dropped", "grown")
        patches = [
            Patch(facecolor=str(grey), edgecolor="0.5", label=name)
            for name, grey in zip(names, _GREYS, strict=True)
        ]
        figure.legend(handles=patches, loc="outside upper left", ncols=4)
    return figure


def _check_alike(name: str, masks: Masks, like_name: str, like: Masks) -> None:
    check_same_leaves(name, masks, like_name, like)
    check_same_leaves(like_name, like, name, masks)


def _chosen(
    masks: Masks, leaves: str, what: str = "masks"
) -> list[tuple[str, np.ndarray]]:
    """Names and masks to be drawn, on the host."""
    check_expression("leaves", leaves)
    named = [(name, mask) for name, mask in named_leaves(masks) if mask.size]
    found = [(name, np.asarray(m)) for name, m in named if re.search(leaves, name)]
    if not found:
        names = ", ".join(name for name, _ in named) or "none"
        raise ValueError(f"leaves={leaves!r}: {what} have sparse leaves {names}")
    return found


def _show(place: Any, dark: np.ndarray, title: str) -> None:
    """Draws a leaf as a matrix, its last axis to the right."""
    matrix = dark.reshape(-1, dark.shape[-1]) if dark.ndim else dark.reshape(1, 1)
    # What is too large for the page becomes the mean grey of neighbours.
    place.imshow(matrix, vmin=0, vmax=1, aspect="auto", interpolation_stage="rgba")
    place.set_title(shown_name(title), fontsize=8, loc="left")
    place.tick_params(labelsize=7)


# --- Layers ---------------------------------------------------------------------------


def draw_layers(networks: Mapping[str, Masks]) -> Any:
    """How sparse each layer of some networks is.

    Args:
      networks: concrete masks of each by its name; all have the same sparse leaves.

    Raises:
      ValueError: if there is no network, or two have other leaves.
      ModuleNotFoundError: naming the extra to install, without Matplotlib.
    """
    if not networks:
        raise ValueError("networks is empty; give masks by the name of the network")
    first = next(iter(networks))
    for name, masks in networks.items():
        _check_alike(name, masks, first, networks[first])
    return draw_layer_counts(
        {name: [r[:4] for r in layer_table(m)[:-1]] for name, m in networks.items()}
    )


def draw_layer_counts(
    networks: Mapping[str, Sequence[tuple[str, Any, int, int]]],
) -> Any:
    """`draw_layers` of counts: name, shape, size and active weights of each layer."""
    names = [row[0] for row in next(iter(networks.values()))]
    with panels(1, 1.2 + max(0.24 * len(names), 0.8)) as (figure, (place,)):
        for i, (network, rows) in enumerate(networks.items()):
            place.plot(
                [100 * (1 - active / (size or 1)) for _, _, size, active in rows],
                range(len(names)),
                linestyle="",
                marker=("o", "x", "s", "^")[i % 4],
                markersize=8 - 2 * (i % 4),
                markerfacecolor="white" if i % 4 != 1 else "black",
                color="black",
                label=shown_name(network),
            )
        shown = [shown_name(name.removesuffix("/kernel")) for name in names]
        place.set_yticks(range(len(names)), shown, fontsize=8)
        place.set_ylim(len(names) - 0.5, -0.5)  # in their order from the top
        place.grid(axis="y")
        place.set_xlabel("sparsity, %")
        figure.legend(loc="outside upper right", ncols=len(networks))
    return figure


# --- Training -------------------------------------------------------------------------


def draw_turnover(history: Sequence[tuple[int, Masks]]) -> Any:
    """How much each change of the topology kept, and how much was ever active.

    Args:
      history: steps, and the masks after each; the first is what training began with.

    Raises:
      ValueError: if there are fewer than two masks, or their leaves differ.
      ModuleNotFoundError: naming the extra to install, without Matplotlib.
    """
    if len(history) < 2:
        raise ValueError(f"history must have at least two masks, got {len(history)}")
    changes = []
    before, ever = history[0][1], _bits(history[0][1])
    old = ever
    for step, masks in history[1:]:
        _check_alike(f"masks of step {step}", masks, "those before", before)
        new = _bits(masks)
        ever = ever | new
        active = int(new.sum())
        kept = int((old & new).sum()) / active if active else 1.0
        change = {"event": "update", "step": step, "overlap": kept}
        changes.append(change | {"active": active, "ever_active": float(ever.mean())})
        before, old = masks, new
    return draw_changes(changes)


def _bits(masks: Masks) -> np.ndarray:
    """All masks in one vector."""
    leaves = [np.ravel(np.asarray(mask)) for mask in jax.tree.leaves(masks)]
    return np.concatenate([np.zeros(0, bool), *leaves])


def draw_changes(changes: Sequence[Mapping[str, Any]]) -> Any:
    """`draw_turnover` of numbers.

    Args:
      changes: of each change "step" and "event" ("update" or "explore"), and as far as
        they are known "overlap" (the share of the active weights that were active
        before), "ever_active" (a share of all) and "active" (their number).

    Raises:
      ValueError: if nothing is known of any change.
      ModuleNotFoundError: naming the extra to install, without Matplotlib.
    """
    titles = {
        "overlap": "overlap with the\nmasks before, %",
        "ever_active": "weights active\nat any time, %",
        "active": "active weights",
    }
    if len({change.get("active") for change in changes}) <= 1:
        del titles["active"]  # a straight line says nothing
    known = {
        field: [change for change in changes if change.get(field) is not None]
        for field in titles
    }
    known = {field: found for field, found in known.items() if found}
    if not known:
        raise ValueError("changes have neither overlap, ever_active nor active")
    with panels(len(known), 0.5 + 2.0 * len(known), share_x=True) as (figure, places):
        for place, (field, found) in zip(places, known.items(), strict=True):
            _draw_field(place, found, field)
            place.set_ylabel(titles[field])
        places[0].legend()
        places[-1].set_xlabel("step")
    return figure


def _draw_field(place: Any, changes: Sequence[Mapping[str, Any]], field: str) -> None:
    scale = 1 if field == "active" else 100
    points = [(change["step"], scale * change[field]) for change in changes]
    place.plot(*_columns(points), "-", marker="", color="0.6", linewidth=0.8)
    for kind, label in _CHANGES.items():
        chosen = [
            point
            for point, change in zip(points, changes, strict=True)
            if change["event"] == kind
        ]
        place.plot(
            *_columns(chosen),
            marker="o" if kind == "update" else "^",
            markerfacecolor="white" if kind == "update" else "black",
            color="black",
            linestyle="",
            markersize=3.5 if kind == "update" else 6,
            label=label if chosen else None,
        )


def draw_curves(
    quantities: Mapping[str, Mapping[str, Curve]],
    *,
    log: Sequence[str] = (),
    marks: Sequence[float] = (),
    mark: str = "a cycle starts",
) -> Any:
    """Loss, accuracy and whatever else over the steps, one below the other.

    Args:
      quantities: ``{"training loss": {"rigl": [(step, value), ...], ...}, ...}``. Of a
        curve of more than 200 points the means of groups are drawn.
      log: quantities with a logarithmic axis.
      marks: steps that are marked by a line.
      mark: what these are.

    Raises:
      ValueError: if there is no quantity, or ``log`` names one that is not there.
      ModuleNotFoundError: naming the extra to install, without Matplotlib.
    """
    if not quantities:
        raise ValueError("quantities is empty; give curves by the name of the quantity")
    if unknown := set(log) - set(quantities):
        raise ValueError(f"log has {unknown}, not among {list(quantities)}")
    count = len(quantities)
    with panels(count, 0.4 + 2.3 * count, share_x=True) as (figure, places):
        for place, (title, runs) in zip(places, quantities.items(), strict=True):
            for name, curve in runs.items():
                steps, values = _columns(_means(curve))
                look = {} if len(curve) <= _MARKED_POINTS else {"marker": ""}
                place.plot(steps, values, label=shown_name(name), **look)
            for i, step in enumerate(sorted(set(marks))):
                label = mark if i == 0 else None
                place.axvline(step, color="0.6", linewidth=0.8, zorder=0, label=label)
            place.set_ylabel(title)
            if title in log:
                place.set_yscale("log")
        shown = places[0].get_legend_handles_labels()
        figure.legend(*shown, loc="outside upper left", ncols=2)
        places[-1].set_xlabel("step")
    return figure


def _means(curve: Curve) -> Curve:
    """About as many points as are drawn, each the last step and mean of a group."""
    size = max(len(curve) // _MOST_POINTS, 1)
    groups = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(g[-1][0], sum(value for _, value in g) / len(g)) for g in groups]


def _columns(points: Curve) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
