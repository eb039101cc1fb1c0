"""The report of a STAMP experiment: tables, pictures, and what they say, of all seeds.

A row of results.csv is an arm on a target after an epoch, of one seed.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.reports.gather import Frame, numbers, spread
from experiments.reports.page import Block, Heading, Picture, Table, Text
from experiments.reports.study import paired
from experiments.reports.systems import (
    Lines,
    draw_lines,
    percent,
    read_seeds,
    write_report,
)
from experiments.runs.layout import REPORT

COLUMNS = (
    *("cell", "target", "epoch", "arm", "seed", "accuracy", "loss", "share"),
    *("measured_share", "flops", "measured", "target_flops"),
)
_OURS, _WRONG, _DENSE = "generator", "wrong set", "dense-prune"
_SHOWN = 60  # points of a curve of episodes


def write_stamp_report(workdir: Path, report_epochs: Sequence[int]) -> Path:
    """See `write_report`.

    Args:
      workdir: of the experiment.
      report_epochs: after which tables have the accuracy.
    """
    seeds = read_seeds(workdir)
    rows = [row for results in seeds for row in _rows(results)]
    frame: Frame = pd.DataFrame(rows, columns=pd.Index(COLUMNS), dtype=object)
    layers = [name.removeprefix("params/") for name in seeds[0]["layers"]]
    shown = (
        ("accuracy", "Accuracy by the operations spent on a target", _by_cost(frame)),
        ("channels", "Channels that each way keeps, by layer", _by_layer(seeds)),
        ("episodes", "Episodes of meta-learning", _by_episode(seeds)),
    )
    axes: tuple[dict[str, Any], ...] = (
        {"across": "G operations on the target"},
        {"across": "layer", "up": "kept, %", "along": layers},
        {"across": "episode", "up": ""},
    )
    pictures = {
        Picture(workdir / REPORT / f"{name}.png", caption): partial(
            draw_lines, shown=lines, **ours
        )
        for (name, caption, lines), ours in zip(shown, axes, strict=True)
    }
    blocks = [*_blocks(seeds, frame, report_epochs), Heading(2, "Pictures"), *pictures]
    return write_report(workdir, seeds, pictures, COLUMNS, rows, blocks)


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **{name: row[name] for name in COLUMNS if name in row},
            "cell": f"{row['target']}, {epoch}",
            "epoch": epoch,
            "seed": results["seed"],
            "accuracy": accuracy,
            "loss": loss,
            "target_flops": row["before_flops"] + epoch * row["epoch_flops"],
        }
        for row in results["rows"]
        for epoch, (accuracy, loss) in enumerate(
            zip(row["accuracy"], row["loss"], strict=True), start=1
        )
    ]


# --- Text and tables ------------------------------------------------------------------


def _blocks(
    seeds: Sequence[Mapping[str, Any]], frame: Frame, epochs: Sequence[int]
) -> list[Block]:
    arms = list(frame["arm"].unique())
    some: Frame = frame[frame["epoch"].isin(list(epochs))]
    blocks: list[Block] = [
        Heading(1, "STAMP, a reconstruction"),
        Text(
            "Ways to get a small network for a target, at equal operations. The "
            "method is our reconstruction from the paper's abstract, and no number "
            "here is comparable with the paper's. Seeds: "
            f"{', '.join(str(results['seed']) for results in seeds)}; accuracies are "
            f"of the {seeds[0]['evaluated_on']} split, mean ± standard deviation."
        ),
        Heading(2, "Accuracy, %"),
        _accuracies(some, arms),
    ]
    if _OURS in arms and len(arms) > 1:
        blocks += [
            Heading(2, "Points of the generator more than"),
            _differences(some, [arm for arm in arms if arm != _OURS]),
            Text(
                "Paired by seed, with the 95% interval where there are seeds enough. "
                "The number after a target is that of epochs."
            ),
        ]
    blocks += [Heading(2, "Operations"), _costs(frame, arms), Text(_equal(frame))]
    blocks += [Text(_shared(seeds))]
    if {_OURS, _DENSE} <= {*arms}:
        blocks.append(_break_even(seeds, frame))
    blocks += [
        Heading(2, "Does the set decide?"),
        _overlaps(seeds),
        Text(
            "Channels that both sets keep, by those that either keeps. Where sets of "
            "another target agree as well as another set of the same one, the "
            "generator is a fixed way to prune."
        ),
    ]
    if {_OURS, _WRONG} <= {*arms}:
        blocks.append(Text(_verdict(some)))
    return blocks


def _accuracies(frame: Frame, arms: Sequence[str]) -> Table:
    lines = []
    for cell, same in frame.groupby("cell", sort=False):
        found = [percent(same[same["arm"] == arm]["accuracy"].tolist()) for arm in arms]
        lines.append([cell, *found])
    return Table(["target, epochs", *arms], lines)


def _differences(frame: Frame, others: Sequence[str]) -> Table:
    columns = [paired("accuracy", frame, _OURS, other) for other in others]
    cells = zip(*columns, strict=True)
    lines = [[same[0].cell, *map(_difference, same)] for same in cells]
    return Table(["target, epochs", *others], lines)


def _difference(found: Any) -> str:
    if isnan(found.half_width):
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ± {found.half_width:.2f}"


def _costs(frame: Frame, arms: Sequence[str]) -> Table:
    lines = []
    for target, same in frame.groupby("target", sort=False):
        for arm in arms:
            own = same[same["arm"] == arm]
            share, measured = (
                spread(own[name])["mean"] for name in ("share", "measured_share")
            )
            spent = (
                spread(own[own["epoch"] == epoch]["target_flops"])["mean"] / 1e9
                for epoch in (1, own["epoch"].max())
            )
            shown = "" if isnan(measured) else f"{measured:.4f}"
            ends = (f"{value:.3f}" for value in spent)
            lines.append([str(target), arm, f"{share:.4f}", shown, *ends])
    names = "target, arm, share, measured share, to epoch 1 (G), to the end (G)"
    return Table(names.split(", "), lines, texts=2)


def _apart(shares: Any) -> float:
    return float(np.ptp(numbers(shares)))


def _equal(frame: Frame) -> str:
    apart = {
        name: 100 * float(frame.groupby("target")[name].agg(_apart).max())
        for name in ("share", "measured_share")
    }
    return (
        "Operations of a forward pass to those of the whole network, of kernels alone "
        "(the convention of papers) and as the compiler counts them; and all that "
        "were spent on the target. Within a target the measured shares, which are "
        f"made equal, are {apart['measured_share']:.2f} points apart at most, those of "
        f"kernels {apart['share']:.2f}."
    )


def _shared(seeds: Sequence[Mapping[str, Any]]) -> str:
    pretrain, meta = (
        np.mean([results[name] for results in seeds]) / 1e9
        for name in ("pretrain_flops", "meta_flops")
    )
    accuracy = 100 * np.mean([r["reference"]["accuracy"][-1] for r in seeds])
    return (
        f"All targets share the reference network, {pretrain:.3f} G ({accuracy:.1f}% "
        f"on its classes), and the episodes, {meta:.3f} G."
    )


def _break_even(seeds: Sequence[Mapping[str, Any]], frame: Frame) -> Table:
    """Targets after which the episodes have paid, at an accuracy that both reach."""
    lines = []
    for target, same in frame.groupby("target", sort=False):
        saved = []
        for results in seeds:
            of_seed = same[same["seed"] == results["seed"]]
            curves = [of_seed[of_seed["arm"] == arm] for arm in (_OURS, _DENSE)]
            level = min(float(curve["accuracy"].max()) for curve in curves)
            reached = [
                float(curve[curve["accuracy"] >= level]["target_flops"].min())
                for curve in curves
            ]
            saved.append((level, *reached, results["meta_flops"]))
        level, ours, dense, meta = np.mean(saved, axis=0)
        targets = f"{meta / (dense - ours):.1f}" if dense > ours else "never"
        cells = [f"{100 * level:.2f}", f"{ours / 1e9:.3f}", f"{dense / 1e9:.3f}"]
        lines.append([str(target), *cells, targets])
    head = (
        *("target", "accuracy that both reach, %", "generator, G"),
        *("dense-prune, G", "targets that pay for the episodes"),
    )
    return Table(head, lines)


def _overlaps(seeds: Sequence[Mapping[str, Any]]) -> Table:
    first = seeds[0]["overlaps"]
    names = list(next(iter(first.values())))
    lines = []
    for target in first:
        values = ([r["overlaps"][target][name] for r in seeds] for name in names)
        lines.append([target, *(percent(same, digits=1) for same in values)])
    return Table(["target", *(f"{name}, %" for name in names)], lines)


def _verdict(frame: Frame) -> str:
    signs = [found.sign for found in paired("accuracy", frame, _OURS, _WRONG)]
    better, worse = signs.count(1), signs.count(-1)
    return (
        f"The right set is better than a wrong one in {better} of {len(signs)} cells "
        f"and worse in {worse}, by intervals that leave out 0; "
        + (
            "what the generator gains is adapted to the target."
            if better > len(signs) / 2
            else "so nothing here says that the generator adapts to the target."
        )
    )


# --- Pictures -------------------------------------------------------------------------


def _by_cost(frame: Frame) -> dict[str, Lines]:
    """Accuracy, %, by target and arm, over the operations."""
    found: dict[str, Any] = {}
    for (target, arm), own in frame.groupby(["target", "arm"], sort=False):
        means = own.groupby("epoch")[["target_flops", "accuracy"]].agg(
            lambda values: float(np.mean(values))
        )
        line = means["target_flops"] / 1e9, 100 * means["accuracy"]
        found.setdefault(str(target), {})[str(arm)] = line
    return found


def _by_layer(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Lines]:
    """Channels that are kept, %, by target and arm, over the layers."""
    sizes, found = seeds[0]["layers"], {}
    for row in seeds[0]["rows"]:
        same = row["target"], row["arm"]
        kept = [
            [other["kept"][name].count("1") / size for name, size in sizes.items()]
            for results in seeds
            for other in results["rows"]
            if (other["target"], other["arm"]) == same
        ]
        line = range(len(sizes)), 100 * np.mean(kept, axis=0)
        found.setdefault(row["target"], {})[row["arm"]] = line
    return found


def _by_episode(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Lines]:
    """What every episode ends with, means over some, a line for each seed."""
    found: dict[str, Any] = {}
    for title, name in {"loss, nats": "loss", "operations, share": "flops"}.items():
        for results in seeds:
            values = np.array(results["meta"][name])
            parts = np.array_split(values, min(_SHOWN, len(values)))
            line = np.cumsum(list(map(len, parts))), [part.mean() for part in parts]
            found.setdefault(title, {})[f"seed {results['seed']}"] = line
    return found
