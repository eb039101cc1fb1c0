"""Groups finished runs over seeds, and compares them with and without Sup-tickets."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np

from experiments.runs.identity import ASIDE
from experiments.runs.layout import SUPERPOSED, is_ticket
from experiments.runs.stored import StoredRun

_SCORES = ("accuracy", "nll", "ece", "brier")


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    setting: dict[str, Any]  # the configuration that they share
    runs: tuple[StoredRun, ...]  # by seed


class Spread(NamedTuple):
    """A number over seeds."""

    mean: float
    deviation: float | None  # with n - 1 in the denominator; none of a single one
    count: int


class Pairing(NamedTuple):
    """The same setting with Sup-tickets and without, over the seeds that both have."""

    difference: Spread | None  # with less without
    p_value: float | None  # of a paired t-test, two-sided; none if there cannot be one
    seeds: tuple[Any, ...]


def setting_of(run: StoredRun) -> dict[str, Any]:
    """What of a configuration says what is trained, but for the seed."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in sorted(run.config.items())
        if not name.startswith(ASIDE)
    }


def group_runs(runs: Iterable[StoredRun]) -> list[Group]:
    """Groups in the order of their first run; of runs with one seed the first."""
    found: dict[str, dict[Any, StoredRun]] = {}
    for run in runs:
        key = json.dumps(setting_of(run), default=str)
        found.setdefault(key, {}).setdefault(run.seed, run)
    groups = []
    for by_seed in found.values():
        ordered = tuple(by_seed[seed] for seed in sorted(by_seed, key=_by_number))
        groups.append(Group(setting_of(ordered[0]), ordered))
    return groups


def _by_number(seed: Any) -> tuple[bool, Any]:
    number = isinstance(seed, (int, float))
    return (not number, seed if number else str(seed))


def differing(groups: Sequence[Group]) -> list[str]:
    """The names of the fields in which groups differ."""
    names = dict.fromkeys(name for group in groups for name in group.setting)
    return [
        name
        for name in names
        if len({str(group.setting.get(name)) for group in groups}) > 1
    ]


def spread(values: Iterable[Any]) -> Spread | None:
    """Mean and deviation of the numbers among some values; none without a number."""
    numbers = [float(v) for v in values if v is not None and isfinite(v)]
    if not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    if len(numbers) == 1:
        return Spread(mean, None, 1)
    squares = sum((number - mean) ** 2 for number in numbers)
    return Spread(mean, sqrt(squares / (len(numbers) - 1)), len(numbers))


def network_scores(group: Group) -> dict[str, dict[str, Spread]]:
    """Scores of each network of a group, over seeds.

    Besides the networks of the tables "mean of the tickets" and "ensemble of the
    tickets", if there are tickets.
    """
    tables: dict[str, dict[str, list[Any]]] = {}
    for run in group.runs:
        for name, scores in _all_networks(run).items():
            columns = tables.setdefault(name, {score: [] for score in _SCORES})
            for score in _SCORES:
                columns[score].append(scores.get(score))
    found = {}
    for name, columns in tables.items():
        spreads = {score: spread(values) for score, values in columns.items()}
        found[name] = {score: s for score, s in spreads.items() if s is not None}
    return found


def _all_networks(run: StoredRun) -> dict[str, dict[str, Any]]:
    rows = {row["network"]: row for row in run.rows}
    tickets = [row for name, row in rows.items() if is_ticket(name)]
    known: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        if name == SUPERPOSED and tickets:
            known["mean of the tickets"] = {
                score: mean.mean
                for score in _SCORES
                if (mean := spread(row.get(score) for row in tickets))
            }
            ensemble = (run.results.get("analysis") or {}).get("ensemble")
            if ensemble:
                known["ensemble of the tickets"] = ensemble
        known[name] = row
    return known


# --- Base and Sup-tickets -------------------------------------------------------------


def base_setting(setting: Mapping[str, Any]) -> str:
    """What a setting and the same without Sup-tickets have in common."""
    shared = {k: v for k, v in setting.items() if not k.startswith("sup.")}
    return json.dumps(shared, default=str)


def base_rows(runs: Iterable[StoredRun]) -> dict[str, dict[Any, dict[str, Any]]]:
    """The last networks without Sup-tickets: ``base_setting -> seed -> row``.

    From runs of their own, from runs within others, and from rows of others' tables.
    """
    found: dict[str, dict[Any, dict[str, Any]]] = {}
    for run in runs:
        for one in (run, *run.others):
            row = one.main_row if not one.superposes else _row_without(one)
            if row is not None:
                key = base_setting(setting_of(one))
                found.setdefault(key, {}).setdefault(one.seed, row)
    return found


def _row_without(run: StoredRun) -> dict[str, Any] | None:
    for row in run.results.get("rows", ()):
        if row["network"].endswith("without Sup-tickets"):
            return row
    return None


def pair(
    ours: Mapping[Any, Any], base: Mapping[Any, Any], score: str = "accuracy"
) -> Pairing:
    """The difference of a score over the seeds that both sides have.

    Args:
      ours: row by seed.
      base: row by seed.
      score: a column of the rows.
    """
    seeds = tuple(sorted(ours.keys() & base.keys(), key=_by_number))
    a, b = ([rows[s].get(score) for s in seeds] for rows in (ours, base))
    both = [
        (x, y, s)
        for x, y, s in zip(a, b, seeds, strict=True)
        if x is not None and y is not None and isfinite(x) and isfinite(y)
    ]
    differences = [x - y for x, y, _ in both]
    return Pairing(
        difference=spread(differences),
        p_value=_p_value(differences),
        seeds=tuple(s for *_, s in both),
    )


def _p_value(differences: Sequence[float]) -> float | None:
    """Of Student's t-test of the mean against 0; none without any variance."""
    from scipy import stats

    # Differences of rounded numbers are equal up to rounding.
    if len(differences) < 2 or np.ptp(differences) <= 1e-12:
        return None
    result: Any = stats.ttest_rel(differences, np.zeros(len(differences)))
    return float(result.pvalue)
