"""How far apart tickets are, and what superposing them adds; of the page of a study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.reports.columns import DIVERSITY, score
from experiments.reports.figures import panels, shown_name
from experiments.reports.gather import Frame, Series, numbers
from experiments.reports.page import Table, Text
from experiments.studies.values import Study

APART = tuple(c for c in DIVERSITY if c.name in ("disagreement", "kl", "overlap"))
"""Columns of the table of a study that say how far apart the tickets of a run are."""

_FEWEST = 4  # runs of which a correlation is worth a line


def with_gains(study: Study, rows: Frame) -> Frame:
    """The runs that have tickets, with "gain": of the superposed over the mean one.

    Args:
      study: whose runs they are.
      rows: of `gather_study` or `read_table`.

    Returns:
      The rows with a gain in units of the column of the score, more being better.
    """
    column = score(study.score)
    sign = -column.scale if column.less_is_better else column.scale
    gain = sign * (numbers(rows[column.name]) - numbers(rows["mean_ticket"]))
    return rows.assign(gain=gain)[gain.notna()]


def correlations(rows: Frame) -> Table | None:
    """Spearman's correlations of the gain; of too few runs none.

    Args:
      rows: of `with_gains`.
    """
    gain, lines = numbers(rows["gain"]), []
    groups = [rows["cell"], rows["arm"]]
    for column in APART:
        apart = numbers(rows[column.name])
        both: Frame = pd.DataFrame({"gain": gain, "apart": apart}).dropna()
        if len(both) < _FEWEST:
            continue
        of_group: Any = both.groupby(groups, sort=False)
        # A single seed has no other that it could differ from.
        several = of_group["gain"].transform("size") > 1
        within: Any = (both - of_group.transform("mean"))[several]
        cells = [_spearman(each["gain"], each["apart"]) for each in (both, within)]
        lines.append([column.title, str(len(both)), *cells])
    head = ["with", "runs", "over all runs", "between seeds of a cell and an arm"]
    return Table(head, lines) if lines else None


def _spearman(gain: Series, apart: Series) -> str:
    """The correlation and its p-value; "" where either is always the same."""
    from scipy import stats

    if min(gain.nunique(), apart.nunique()) < 2:
        return ""
    found: Any = stats.spearmanr(gain, apart)
    return f"{found.statistic:+.2f} (p {found.pvalue:.2g})"


def correlation_text(study: Study) -> Text:
    """What the table of `correlations` has."""
    return Text(
        "Spearman's rank correlation of what superposing adds to the mean ticket, in "
        f"{score(study.score).title}, with how far apart the tickets are, means over "
        "pairs of them. Arms differ in more than that; seeds of one cell and arm, each "
        "less their mean, do not."
    )


def draw_gains(path: Path, study: Study, rows: Frame) -> None:
    """The gain of each run over the distance of its tickets, a colour for each arm.

    Args:
      path: of the picture.
      study: whose runs they are.
      rows: of `with_gains`.
    """
    shown = [c for c in APART if numbers(rows[c.name]).notna().any()]
    some = numbers(rows[shown[0].name]).notna()  # a single ticket has no pairs
    arms: Sequence[str] = list(rows[some]["arm"].unique())
    with panels(path, len(shown), 1.0 + 2.6 * len(shown)) as (figure, places):
        for place, column in zip(places, shown, strict=True):
            for i, arm in enumerate(arms):
                own = rows[rows["arm"] == arm]
                x, y = column.scale * numbers(own[column.name]), numbers(own["gain"])
                place.plot(
                    *(x, y, "o^sDvPX*"[i % 8]),
                    color=f"C{i}",
                    markersize=4,
                    label=shown_name(arm) if place is places[0] else None,
                )
            place.axhline(0, color="0.5", linewidth=0.8)
            place.set_xlabel(column.heading)
            unit = score(study.score)
            place.set_ylabel(f"gain, {'points' if unit.unit == '%' else unit.title}")
        figure.legend(loc="outside upper left", ncols=3, fontsize=8)
