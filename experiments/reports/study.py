"""The table of a study, and what its differences say."""

from collections.abc import Sequence
from math import isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.reports.columns import Column, score
from experiments.reports.gather import Frame, Series, numbers, pair
from experiments.runs.layout import RESULTS, is_ticket, member_name, rounds_of
from experiments.runs.stored import StoredRun, read_run
from experiments.studies.values import Arm, Study

_COSTS = (
    *("seconds", "training_flops", "dense_training_flops"),
    *("inference_flops", "dense_inference_flops"),
)
_MADE_BY = ("device", "jax")


def columns(study: Study) -> tuple[str, ...]:
    """Of the table: accuracies, disagreement and overlap are shares of 1.

    "mean_ticket", "best_ticket" and "ensemble" are of the score that is compared, and
    so is "validation", of the last validation.
    """
    scores = ("accuracy", "nll", "ece", "brier")
    return (
        *("cell", "arm", "seed", "evaluated_on"),
        *(() if study.score in scores else (study.score,)),
        *(() if study.choice is None else ("validation",)),
        *scores,
        *("mean_ticket", "best_ticket", "ensemble", "disagreement", "kl"),
        *("overlap", *_COSTS),
        *_MADE_BY,
    )


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
                    rows.append({**names, **_row(study, read_run(folder), arm)})
    if not rows:
        raise ValueError(f"there is no finished run in {out}")
    return pd.DataFrame(rows, columns=pd.Index(columns(study)), dtype=object)


def _row(study: Study, run: StoredRun, arm: Arm) -> dict[str, Any]:
    main = run.main_row if arm.network is None else run.row(arm.network)
    tickets = [r[study.score] for r in run.rows if is_ticket(r["network"])]
    best = min if score(study.score).less_is_better else max
    analysis = run.results.get("analysis") or {}
    cost, made = (run.results.get(name) or {} for name in ("cost", "made_by"))
    found = _finding_flops(run)
    return {
        **(main or {}),
        "mean_ticket": float(np.mean(tickets)) if tickets else None,
        "best_ticket": best(tickets, default=None),
        "ensemble": (analysis.get("ensemble") or {}).get(study.score),
        "disagreement": _off_diagonal(analysis.get("disagreement")),
        "kl": _off_diagonal(analysis.get("kl")),
        "overlap": _off_diagonal(analysis.get("overlap")),
        **({"validation": _validation(study, run)} if study.choice else {}),
        "evaluated_on": run.results.get("evaluated_on"),
        "seconds": run.results.get("seconds"),
        **{name: cost.get(name) for name in _COSTS if name != "seconds"},
        **({"training_flops": cost["training_flops"] + found} if found else {}),
        **{name: made.get(name) for name in _MADE_BY},
    }


def _validation(study: Study, run: StoredRun) -> float | None:
    found = [e[study.score] for e in run.events if e["event"] == "validation"]
    return found[-1] if found else None


def _finding_flops(run: StoredRun) -> int:
    """Of the rounds that found the masks of a run, if a lottery did."""
    masks = run.config.get("masks")
    row = run.main_row or {}
    total = 0
    for folder in rounds_of(Path(masks)) if masks else ():
        one = read_run(folder)
        last = one.main_row or {}
        if last.get("active", 0) > row.get("active", 0):  # a later one found another
            total += int((one.results.get("cost") or {}).get("training_flops", 0))
    return total


def _off_diagonal(matrix: Sequence[Sequence[float]] | None) -> float | None:
    """The mean over pairs of different tickets."""
    if not matrix or len(matrix) < 2:
        return None
    values = np.asarray(matrix, np.float64)
    return float(values[~np.eye(len(values), dtype=bool)].mean())


# What pandas 3.1 does by itself, and warns of where it is asked to.
_EVERY_DIGIT: Any = (
    {"float_precision": "round_trip"}
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    else {}
)


def read_table(study: Study, path: Path) -> Frame:
    """What `write_page` of `reports.study_page` wrote as CSV.

    Raises:
      ValueError: if it is no such table.
      OSError: if it cannot be read.
    """
    wrong = f"{path} must have rows and the columns {','.join(columns(study))}"
    try:
        rows: Frame = pd.read_csv(path, **_EVERY_DIGIT)
    except ValueError as error:
        raise ValueError(wrong) from error
    if tuple(rows.columns) != columns(study) or not len(rows):
        raise ValueError(wrong)
    return rows


# --- What it says ---------------------------------------------------------------------


def chosen_cells(study: Study, rows: Frame) -> dict[str, str]:
    """For every arm the cell that is best for it, in the mean over seeds.

    It is chosen by the last validation, of which test examples know nothing; a run that
    stopped before one does not count. Of two that are as good it is the first.
    """
    best = "idxmin" if score(study.score).less_is_better else "idxmax"
    means = numbers(rows["validation"]).groupby([rows["arm"], rows["cell"]], sort=False)
    found = means.mean().dropna()
    return {
        str(arm): getattr(of_arm, best)()[1]
        for arm, of_arm in found.groupby(level=0, sort=False)
    }


def at_choice(study: Study, rows: Frame) -> Frame:
    """The rows of every arm in its chosen cell, as if they were of one cell."""
    cells = chosen_cells(study, rows)
    ours = rows[rows["arm"].map(cells) == rows["cell"]]
    return ours.assign(cell=f"chosen {study.choice}")


class Difference(NamedTuple):
    """An arm against another in one cell, paired by seed, in units of the column."""

    cell: str
    column: Column
    by_seed: Series
    mean: float
    half_width: float  # of the 95% interval of the mean, by Student's t; may be NaN
    ours: Series  # mean, std and count
    base: Series

    @property
    def better(self) -> bool:
        """Whether the arm is better on average, as far as two digits show."""
        shown = f"{self.mean:+.2f}"
        return shown not in _NOTHING and self._gain(self.mean) > 0

    @property
    def sign(self) -> int:
        """1 (better) or -1 where the interval leaves out 0, else 0; NaN leaves it."""
        sure = abs(self.mean) > self.half_width
        return (1 if self._gain(self.mean) > 0 else -1) if sure else 0

    @property
    def wins(self) -> int:
        """In how many seeds the arm is better."""
        return int((self._gain(self.by_seed) > 0).sum())

    def _gain(self, difference: Any) -> Any:
        return -difference if self.column.less_is_better else difference


_NOTHING = ("+0.00", "-0.00")


def differences(study: Study, rows: Frame, arm: str, base: str) -> list[Difference]:
    """Of every cell with a seed that both arms have, in the order of the rows."""
    return paired(study.score, rows, arm, base)


def paired(score_name: str, rows: Frame, arm: str, base: str) -> list[Difference]:
    """`differences` in a score, whatever the rows are of."""
    column, found = score(score_name), []
    for cell, same in rows.groupby("cell", sort=False):
        ours, theirs = (
            column.scale
            * numbers(same[same["arm"] == a].set_index("seed")[column.name])
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
            Difference(
                *(str(cell), column, by_seed, mean, half),
                *(paired["ours"], paired["base"]),
            )
        )
    return found


def _half_width(deviation: float, count: int) -> float:
    from scipy import stats

    if count < 2 or isnan(deviation):
        return float("nan")
    return float(stats.t.ppf(0.975, count - 1)) * deviation / sqrt(count)


def verdict(arm: str, base: str, found: Sequence[Difference]) -> str:
    """What the differences say, in two sentences."""
    gains, wins = (sum(getattr(d, name) for d in found) for name in ("better", "wins"))
    sure = [sum(d.sign == s for d in found) for s in (1, -1)]
    pairs = sum(len(d.by_seed) for d in found)
    means = ", ".join(signed(d.mean) for d in found)
    less = found[0].column.less_is_better
    sides = ("below", "above") if less else ("above", "below")
    return (
        f"{arm} against {base}: better on average in {gains} of {len(found)} cells "
        f"({means}{_unit(found[0].column)}), in {wins} of {pairs} pairs of runs. The "
        f"95% interval of the mean is {sides[0]} 0 in {sure[0]} and {sides[1]} 0 in "
        f"{sure[1]} of the cells."
    )


def _unit(column: Column) -> str:
    return " points" if column.unit == "%" else ", less is better"


def signed(difference: float) -> str:
    """A difference with two digits and its sign, "0.00" without one."""
    text = f"{difference:+.2f}"
    return "0.00" if text in _NOTHING else text
