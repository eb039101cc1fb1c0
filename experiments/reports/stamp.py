"""The report of a STAMP experiment: tables, pictures, and what they say, of all seeds.

A row of results.csv is an arm on a target after an epoch, of one seed.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.reports.figures import panels, shown_name
from experiments.reports.gather import Frame, numbers, spread, write_csv
from experiments.reports.page import (
    Block,
    Heading,
    Picture,
    Table,
    Text,
    to_html,
    to_markdown,
)
from experiments.reports.study import paired
from experiments.runs.layout import REPORT, RESULTS, read_object
from sup_tickets.files import atomic_write

COLUMNS = (
    *("cell", "target", "epoch", "arm", "seed", "accuracy", "loss", "share"),
    *("measured_share", "flops", "measured", "target_flops"),
)
_OURS, _WRONG, _DENSE = "generator", "wrong set", "dense-prune"
_SHOWN = 60  # points of a curve of episodes


def write_stamp_report(workdir: Path, report_epochs: Sequence[int]) -> str:
    """Writes ``report/`` from all seeds that are finished.

    Args:
      workdir: of the experiment.
      report_epochs: after which tables have the accuracy.

    Returns:
      The report as Markdown.
    """
    seeds = [read_object(path) for path in sorted(workdir.glob(f"seed=*/{RESULTS}"))]
    rows = [row for results in seeds for row in _rows(results)]
    frame: Frame = pd.DataFrame(rows, columns=pd.Index(COLUMNS), dtype=object)
    folder = workdir / REPORT
    atomic_write(folder / "results.csv", lambda path: write_csv(path, rows, COLUMNS))
    drawn = {
        "accuracy.png": (
            "Accuracy by the operations spent on a target",
            _draw_accuracy,
        ),
        "channels.png": ("Channels that each way keeps, by layer", _draw_channels),
        "episodes.png": ("Episodes of meta-learning", _draw_episodes),
    }
    pictures = []
    for name, (caption, draw) in drawn.items():
        path = folder / name
        atomic_write(path, lambda to, draw=draw: draw(to, seeds, frame))
        pictures.append(Picture(path, caption))
    blocks = [*_blocks(seeds, frame, report_epochs), Heading(2, "Pictures"), *pictures]
    text = to_markdown(blocks)
    atomic_write(folder / "index.html", to_html(blocks))
    atomic_write(folder / "summary.md", text)
    return text


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
            f"of the {seeds[0]['evaluated_on']} split, mean (standard deviation)."
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
        found = [100 * spread(same[same["arm"] == arm]["accuracy"]) for arm in arms]
        lines.append([cell, *map(_mean, found)])
    return Table(["target, epochs", *arms], lines)


def _differences(frame: Frame, others: Sequence[str]) -> Table:
    columns = [paired("accuracy", frame, _OURS, other) for other in others]
    return Table(
        ["target, epochs", *others],
        [
            [same[0].cell, *map(_difference, same)]
            for same in zip(*columns, strict=True)
        ],
    )


def _difference(found: Any) -> str:
    if isnan(found.half_width):
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ± {found.half_width:.2f}"


def _costs(frame: Frame, arms: Sequence[str]) -> Table:
    lines = []
    for target, same in frame.groupby("target", sort=False):
        for arm in arms:
            own = same[same["arm"] == arm]
            first, last = (
                own[own["epoch"] == 1],
                own[own["epoch"] == own["epoch"].max()],
            )
            measured = spread(own["measured_share"])["mean"]
            lines.append(
                [
                    str(target),
                    arm,
                    f"{spread(own['share'])['mean']:.4f}",
                    "" if isnan(measured) else f"{measured:.4f}",
                    f"{spread(first['target_flops'])['mean'] / 1e9:.3f}",
                    f"{spread(last['target_flops'])['mean'] / 1e9:.3f}",
                ]
            )
    head = [
        "target",
        "arm",
        "share",
        "measured share",
        "to epoch 1, G",
        "to the end, G",
    ]
    return Table(head, lines, texts=2)


def _equal(frame: Frame) -> str:
    apart = {
        name: 100 * float(frame.groupby("target")[name].agg(_range).max())
        for name in ("share", "measured_share")
    }
    return (
        "Operations of a forward pass to those of the whole network, of kernels alone "
        "(the convention of papers) and as the compiler counts them; and all that "
        "were spent on the target. Within a target the measured shares, which are "
        f"made equal, are {apart['measured_share']:.2f} points apart at most, those of "
        f"kernels {apart['share']:.2f}."
    )


def _range(shares: Any) -> float:
    values = numbers(shares)
    return float(values.max() - values.min())


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
    return Table(
        [
            *("target", "accuracy that both reach, %", "generator, G"),
            *("dense-prune, G", "targets that pay for the episodes"),
        ],
        lines,
    )


def _overlaps(seeds: Sequence[Mapping[str, Any]]) -> Table:
    first = seeds[0]["overlaps"]
    names = list(next(iter(first.values())))
    lines = [
        [
            target,
            *(
                _mean(100 * spread([r["overlaps"][target][name] for r in seeds]), 1)
                for name in names
            ),
        ]
        for target in first
    ]
    return Table(["target", *(f"{name}, %" for name in names)], lines)


def _verdict(frame: Frame) -> str:
    signs = [found.sign for found in paired("accuracy", frame, _OURS, _WRONG)]
    better, worse = signs.count(1), signs.count(-1)
    return (
        f"The right set is better than a wrong one in {better} of {len(signs)} cells "
        f"and worse in {worse}, by intervals that leave out 0; "
        + (
            "what the generator gains is adapted to the target."
            if better > worse
            else "so nothing here says that the generator adapts to the target."
        )
    )


def _mean(found: Any, digits: int = 2) -> str:
    if isnan(found["mean"]):
        return ""
    text = f"{found['mean']:.{digits}f}"
    return text if isnan(found["std"]) else f"{text} ({found['std']:.{digits}f})"


# --- Pictures -------------------------------------------------------------------------


def _draw_accuracy(path: Path, seeds: Any, frame: Frame) -> None:
    del seeds
    targets = list(frame["target"].unique())
    with panels(path, len(targets), 0.6 + 2.6 * len(targets)) as (figure, places):
        for place, target in zip(places, targets, strict=True):
            same = frame[frame["target"] == target]
            for arm in frame["arm"].unique():
                own = same[same["arm"] == arm].groupby("epoch")
                cost, score = (
                    own[name].agg(lambda values: float(np.mean(values)))
                    for name in ("target_flops", "accuracy")
                )
                label = shown_name(arm) if place is places[0] else None
                place.plot(cost / 1e9, 100 * score, label=label)
            place.set_title(shown_name(target), fontsize=9, loc="left")
            place.set(xlabel="G operations on the target", ylabel="accuracy, %")
        figure.legend(loc="outside upper left", ncols=4)


def _draw_channels(path: Path, seeds: Any, frame: Frame) -> None:
    del frame
    layers, targets = seeds[0]["layers"], list(seeds[0]["overlaps"])
    names = [name.removeprefix("params/") for name in layers]
    with panels(path, len(targets), 1.2 + 2.4 * len(targets)) as (figure, places):
        for place, target in zip(places, targets, strict=True):
            for row in (row for row in seeds[0]["rows"] if row["target"] == target):
                arm = row["arm"]
                found = [
                    other["kept"]
                    for results in seeds
                    for other in results["rows"]
                    if (other["target"], other["arm"]) == (target, arm)
                ]
                shares = [
                    100 * np.mean([kept[name].count("1") / size for kept in found])
                    for name, size in layers.items()
                ]
                label = shown_name(arm) if place is places[0] else None
                place.plot(range(len(layers)), shares, label=label)
            place.set_title(shown_name(target), fontsize=9, loc="left")
            place.set_xticks(range(len(layers)), names, rotation=30, ha="right")
            place.set_ylabel("kept, %")
        figure.legend(loc="outside upper left", ncols=4)


def _draw_episodes(path: Path, seeds: Any, frame: Frame) -> None:
    del frame
    with panels(path, 2, 4.4, share_x=True) as (_, places):
        titles = {"loss": "loss, nats", "flops": "operations, share"}
        for place, (name, title) in zip(places, titles.items(), strict=True):
            for results in seeds:
                values = np.array(results["meta"][name])
                parts = np.array_split(values, min(_SHOWN, len(values)))
                ends = np.cumsum([len(part) for part in parts])
                place.plot(ends, [part.mean() for part in parts], marker="")
            place.set_ylabel(title)
        places[-1].set_xlabel("episode; means over some, a line for each seed")
