"""The table of a study: a row for every run, and what arms differ by."""

from collections.abc import Sequence
from math import isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.reports.gather import Frame, Series, numbers, pair
from experiments.runs.layout import RESULTS, is_ticket, member_name
from experiments.runs.stored import StoredRun, read_run
from experiments.studies.values import Arm, Study

COLUMNS = (
    *("cell", "arm", "seed", "evaluated_on", "accuracy", "nll", "ece", "brier"),
    *("mean_ticket", "best_ticket", "ensemble", "disagreement", "overlap"),
    *("seconds", "training_flops", "dense_training_flops"),
    *("inference_flops", "dense_inference_flops", "device", "jax"),
)
"""Of the table: accuracies, disagreement and overlap are shares of 1."""


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


# --- Differences ----------------------------------------------------------------------


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
