"""The table of a study, and the page that says what it shows."""

from collections.abc import Mapping, Sequence
from math import isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.reports.figures import panels, shown_name
from experiments.reports.gather import Frame, Series, numbers, pair, spread, write_csv
from experiments.reports.page import (
    Block,
    Code,
    Heading,
    Picture,
    Table,
    Text,
    to_markdown,
)
from experiments.runs.layout import RESULTS, is_ticket, member_name
from experiments.runs.stored import StoredRun, read_run
from experiments.runs.written import Outputs
from experiments.studies.values import Arm, Cell, Study

COLUMNS = (
    *("cell", "arm", "seed", "evaluated_on", "accuracy", "nll", "ece", "brier"),
    *("mean_ticket", "best_ticket", "ensemble", "disagreement", "overlap"),
    *("seconds", "training_flops", "dense_training_flops"),
    *("inference_flops", "dense_inference_flops", "device", "jax"),
)
"""Of the table: accuracies, disagreement and overlap are shares of 1."""


_NOTHING = ("+0.00", "-0.00")


class Difference(NamedTuple):
    """An arm against another in one cell, paired by seed; in points of accuracy."""

    cell: str
    by_seed: Series
    mean: float
    half_width: float  # of the 95% interval of the mean, by Student's t; may be NaN
    ours: Series  # mean, std and count
    base: Series

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out 0, else 0; NaN leaves it open."""
        sure = abs(self.mean) > self.half_width
        return (1 if self.mean > 0 else -1) if sure else 0

    @property
    def wins(self) -> str:
        """Seeds in which the arm is better, "4 of 5"."""
        return f"{int((self.by_seed > 0).sum())} of {len(self.by_seed)}"


# --- The table ------------------------------------------------------------------------


def gather_study(study: Study, out: Path) -> Frame:
    """A row for every run of the study that is finished.

    Args:
      study: whose runs they are.
      out: its folder.

    Raises:
      ValueError: if there are none.
    """
    rows = []
    for cell in study.cells:
        for arm in study.arms:
            for seed in study.seeds:
                folder = out / member_name(cell.name, arm.name, seed)
                if (folder / RESULTS).exists():
                    names = {"cell": cell.name, "arm": arm.name, "seed": seed}
                    rows.append({**names, **_row(read_run(folder), arm)})
    if not rows:
        raise ValueError(f"there is no finished run in {out}")
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS), dtype=object)


def _row(run: StoredRun, arm: Arm) -> dict[str, Any]:
    main = run.main_row if arm.network is None else run.row(arm.network)
    tickets = [r["accuracy"] for r in run.rows if is_ticket(r["network"])]
    analysis = run.results.get("analysis") or {}
    cost, made = (run.results.get(name) or {} for name in ("cost", "made_by"))
    return {
        **(main or {}),
        "mean_ticket": float(np.mean(tickets)) if tickets else None,
        "best_ticket": max(tickets, default=None),
        "ensemble": (analysis.get("ensemble") or {}).get("accuracy"),
        "disagreement": _off_diagonal(analysis.get("disagreement")),
        "overlap": _off_diagonal(analysis.get("overlap")),
        "evaluated_on": run.results.get("evaluated_on"),
        "seconds": run.results.get("seconds"),
        **{name: cost.get(name) for name in COLUMNS if name.endswith("flops")},
        **{name: made.get(name) for name in ("device", "jax")},
    }


def _off_diagonal(matrix: Sequence[Sequence[float]] | None) -> float | None:
    """The mean over pairs of different tickets."""
    if not matrix or len(matrix) < 2:
        return None
    values = np.asarray(matrix, np.float64)
    return float(values[~np.eye(len(values), dtype=bool)].mean())


def read_table(path: Path) -> Frame:
    """What `write_page` wrote as CSV.

    Raises:
      ValueError: if it is no such table.
      OSError: if it cannot be read.
    """
    wrong = f"{path} must have rows and the columns {','.join(COLUMNS)}"
    try:
        rows: Frame = pd.read_csv(path)
    except ValueError as error:
        raise ValueError(wrong) from error
    if list(rows.columns) != list(COLUMNS) or not len(rows):
        raise ValueError(wrong)
    return rows


# --- What it says ---------------------------------------------------------------------


def differences(rows: Frame, arm: str, base: str) -> list[Difference]:
    """Of every cell with a seed that both arms have, in the order of the rows."""
    found = []
    for cell, same in rows.groupby("cell", sort=False):
        ours, theirs = (
            100 * numbers(same[same["arm"] == a].set_index("seed")["accuracy"])
            for a in (arm, base)
        )
        both: Frame = pd.concat([ours, theirs], axis=1, join="inner").dropna()
        if not len(both):
            continue
        paired = pair(ours, theirs).spreads
        by_seed = both.iloc[:, 0] - both.iloc[:, 1]
        mean, deviation, _ = paired["difference"]
        half = _half_width(deviation, len(both))
        found.append(
            Difference(str(cell), by_seed, mean, half, paired["ours"], paired["base"])
        )
    return found


def _half_width(deviation: float, count: int) -> float:
    from scipy import stats

    if count < 2 or isnan(deviation):
        return float("nan")
    return float(stats.t.ppf(0.975, count - 1)) * deviation / sqrt(count)


def verdict(arm: str, base: str, found: Sequence[Difference]) -> str:
    """What the differences say, in two sentences."""
    gains = sum(f"{d.mean:+.2f}" not in _NOTHING and d.mean > 0 for d in found)
    sure = [sum(d.sign == s for d in found) for s in (1, -1)]
    every: Series = pd.concat([d.by_seed for d in found])
    wins = int((every > 0).sum())
    means = ", ".join(_signed(d.mean) for d in found)
    return (
        f"{arm} against {base}: better on average in {gains} of {len(found)} cells "
        f"({means} points), in {wins} of {len(every)} pairs of runs. The 95% interval "
        f"of the mean is above 0 in {sure[0]} and below 0 in {sure[1]} of the cells."
    )


def _signed(points: float) -> str:
    text = f"{points:+.2f}"
    return "0.00" if text in _NOTHING else text


# --- The page -------------------------------------------------------------------------


def page_files(name: str, out: Path) -> Outputs:
    """The files of `write_page`.

    Raises:
      ValueError: naming one that is there, and that no study wrote.
    """
    return Outputs(out, *(f"{name}.{kind}" for kind in ("csv", "md", "png")))


def write_page(study: Study, name: str, rows: Frame, out: Path) -> Path:
    """Writes ``NAME.csv``, ``NAME.md`` and ``NAME.png``; returns the page.

    Args:
      study: what was compared.
      name: of the study.
      rows: of `gather_study` or `read_table`.
      out: the folder, made if it is not there.

    Raises:
      ValueError: as `page_files` does.
    """
    files = page_files(name, out)
    lines = rows.astype(object).where(rows.notna(), None).to_dict("records")
    files.write(f"{name}.csv", lambda path: write_csv(path, lines, COLUMNS))
    compared = [(a, b, differences(rows, a, b)) for a, b in study.versus]
    compared = [(a, b, found) for a, b, found in compared if found]
    blocks = _blocks(study, name, rows, compared)
    if compared:
        picture = out / f"{name}.png"
        files.write(picture.name, lambda path: _draw(path, compared))
        caption = (
            "Differences in points of accuracy, with 95% intervals; dots are seeds"
        )
        blocks.append(Picture(picture, caption))
    files.write(f"{name}.md", to_markdown(blocks))
    return out / f"{name}.md"


def _blocks(
    study: Study, name: str, rows: Frame, compared: Sequence[Any]
) -> list[Block]:
    hours = numbers(rows["seconds"]).sum() / 3600
    seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
    makers = rows[["device", "jax"]].dropna().drop_duplicates().to_dict("records")
    made = " and ".join(f"{m['device']}, jax {m['jax']}" for m in makers)
    split = " and ".join(map(str, rows["evaluated_on"].unique()))
    blocks: list[Block] = [
        Heading(1, study.title),
        Text(f"{study.question} ({study.mirrors})"),
        Code(
            f"python -m experiments.study {name} --out=OUT\n"
            f"# configuration: {study.config}"
        ),
        Text(
            f"{len(rows)} runs, {hours:.1f} hours in all, with a phase 1 that several "
            f"share counted in each; seeds {seeds}; on {made}. "
            f"Scores are of the {split} images: mean (standard deviation) over seeds. "
            "Differences are paired by seed, with the 95% interval of their mean by "
            "Student's t, which is not corrected for the number of cells."
        ),
        *([Text(study.remarks)] if study.remarks else []),
        *(Text(verdict(*each)) for each in compared),
    ]
    if compared:
        blocks += [Heading(2, "Differences"), _differences_table(compared)]
    arms = [arm.name for arm in study.arms if (rows["arm"] == arm.name).any()]
    for score, title, scale, digits in (
        ("accuracy", "Accuracy, %", 100, 2),
        ("nll", "NLL, nats", 1, 3),
        ("ece", "ECE, %", 100, 1),
    ):
        cells = [
            _scores(c, same, arms, score, scale, digits) for c, same in _cells(rows)
        ]
        blocks += [Heading(2, title), Table(["cell", *arms], cells)]
    if tickets := _tickets(rows, arms):
        blocks += [Heading(2, "The tickets"), tickets]
    return [*blocks, Heading(2, "The arms"), _arms(study, rows)]


def _cells(rows: Frame) -> Any:
    return rows.groupby("cell", sort=False)


def _differences_table(compared: Sequence[Any]) -> Table:
    return Table(
        [
            *("arm", "against", "cell", "arm, %", "other, %"),
            *("difference", "95% interval", "better in"),
        ],
        [
            [
                *(arm, base, d.cell, _mean(d.ours), _mean(d.base), _signed(d.mean)),
                f"{d.mean - d.half_width:+.2f} to {d.mean + d.half_width:+.2f}",
                d.wins,
            ]
            for arm, base, found in compared
            for d in found
        ],
        texts=3,
    )


def _scores(
    cell: str, same: Frame, arms: Sequence[str], score: str, scale: float, digits: int
) -> list[str]:
    values = [scale * spread(same[same["arm"] == arm][score]) for arm in arms]
    return [cell, *(_mean(value, digits) for value in values)]


def _mean(found: Series, digits: int = 2) -> str:
    if isnan(found["mean"]):
        return ""
    text = f"{found['mean']:.{digits}f}"
    return text if isnan(found["std"]) else f"{text} ({found['std']:.{digits}f})"


def _tickets(rows: Frame, arms: Sequence[str]) -> Table | None:
    names = {
        "mean_ticket": "mean ticket, %",
        "best_ticket": "best ticket, %",
        "accuracy": "superposed, %",
        "ensemble": "ensemble, %",
        "disagreement": "different answers, %",
        "overlap": "overlap of masks, %",
    }
    lines = []
    for cell, same in _cells(rows):
        for arm in arms:
            of_arm = same[same["arm"] == arm]
            if numbers(of_arm["mean_ticket"]).notna().any():
                means = (100 * spread(of_arm[name]) for name in names)
                lines.append([cell, arm, *map(_mean, means)])
    return Table(["cell", "arm", *names.values()], lines, texts=2) if lines else None


def _arms(study: Study, rows: Frame) -> Table:
    def text(fields: Mapping[str, str]) -> str:
        return ", ".join(f"{name}={value}" for name, value in fields.items())

    def line(kind: str, one: Cell | Arm) -> list[str]:
        there = (rows[kind] == one.name).any()
        return [kind, one.name, text(one.fields), "" if there else "not run"]

    lines = [line("cell", cell) for cell in study.cells]
    lines += [line("arm", arm) for arm in study.arms]
    return Table(["", "name", "fields", ""], lines, texts=4)


def _draw(path: Path, compared: Sequence[tuple[str, str, list[Difference]]]) -> None:
    rows = [max(len(found), 1) for _, _, found in compared]
    height = 0.9 * len(compared) + 0.3 * sum(rows)
    with panels(path, len(compared), height, share_x=True, ratios=rows) as (_, places):
        for place, (arm, base, found) in zip(places, compared, strict=True):
            for i, d in enumerate(found):
                place.plot(d.by_seed, [i] * len(d.by_seed), ".", color="0.6")
                place.errorbar(
                    [d.mean],
                    [i],
                    xerr=[d.half_width],
                    fmt="o",
                    color="black",
                    capsize=3,
                )
            place.axvline(0, color="0.5", linewidth=0.8)
            place.set_yticks(range(len(found)), [shown_name(d.cell) for d in found])
            place.set_ylim(len(found) - 0.5, -0.5)
            place.set_title(shown_name(f"{arm} - {base}"), fontsize=9, loc="left")
        places[-1].set_xlabel("points of accuracy")
