"""Groups finished runs over seeds, and compares them with and without Sup-tickets."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from experiments.reports.columns import SCORES, is_number
from experiments.runs.identity import ASIDE
from experiments.runs.layout import SUPERPOSED, is_ticket
from experiments.runs.stored import StoredRun

Frame: TypeAlias = Any
Series: TypeAlias = Any
"""Of pandas; what is in them the type checker cannot know."""

WITHOUT = "without Sup-tickets"
"""How the name of a network ends that is compared with the superposed ticket."""

_SPREAD = ["mean", "std", "count"]
_SCORES = [score.name for score in SCORES]
_NAMED = ("data.name", "model.name", "method.name", "method.sparsity", "sup.enabled")


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    name: str  # model, method, sparsity, and in what it differs from others
    setting: dict[str, Any]  # the configuration that they share
    runs: tuple[StoredRun, ...]  # by seed


class Pairing(NamedTuple):
    """The same setting with Sup-tickets and without, over the seeds that both have."""

    spreads: Frame  # of "ours", "base", "difference"; see `spread`
    p_value: float | None  # of a paired t-test, two-sided; none if there cannot be one
    seeds: tuple[Any, ...]


# --- Groups ---------------------------------------------------------------------------


def setting_of(run: StoredRun) -> dict[str, Any]:
    """What of a configuration says what is trained, but for the seed."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in sorted(run.config.items())
        if not name.startswith(ASIDE)
    }


def group_runs(runs: Sequence[StoredRun]) -> list[Group]:
    """Groups in the order of their first run; of runs with one seed the first."""
    settings = [setting_of(run) for run in runs]
    frame: Frame = pd.DataFrame(
        {
            "setting": [json.dumps(setting, default=str) for setting in settings],
            "seed": pd.Series([run.seed for run in runs], dtype=object),
        }
    ).drop_duplicates()
    found = [
        sorted(same.index, key=lambda i: _by_number(runs[i].seed))
        for _, same in frame.groupby("setting", sort=False)
    ]
    groups = [
        Group("", settings[i], tuple(runs[j] for j in (i, *more))) for i, *more in found
    ]
    fields = differing(groups)
    return [group._replace(name=_name(group, fields)) for group in groups]


def _by_number(seed: Any) -> tuple[bool, Any]:
    number = isinstance(seed, (int, float))
    return (not number, seed if number else str(seed))


def differing(groups: Sequence[Group]) -> list[str]:
    """The names of the fields in which groups differ."""
    texts: Frame = pd.DataFrame(
        [{k: str(v) for k, v in group.setting.items()} for group in groups]
    ).fillna("None")
    return [str(name) for name in texts if texts[name].nunique() > 1]


def _name(group: Group, fields: Sequence[str]) -> str:
    """Method, sparsity, and what differs between groups."""
    setting = group.setting
    varied = [f for f in ("data.name", "model.name") if f in fields]
    always = [f for f in (*varied, "method.name") if f in setting]
    parts = [str(setting[f]) for f in always]
    if "method.sparsity" in setting:
        parts.append(sparsity_text(setting["method.sparsity"]))
    if "sup.enabled" in setting:
        parts.append("+ Sup-tickets" if setting["sup.enabled"] else "alone")
    # Options of what is not there would only confuse.
    parts += [
        f"{f}={setting[f]}"
        for f in fields
        if f in setting
        and f not in _NAMED
        and not (f.startswith("sup.") and not setting.get("sup.enabled"))
    ]
    return " ".join(parts) or group.runs[0].name


def sparsity_text(value: Any) -> str:
    """A sparsity in a name, "90%"."""
    return f"{100 * value:g}%" if isinstance(value, (int, float)) else str(value)


# --- Numbers over seeds ---------------------------------------------------------------


def spread(values: Iterable[Any]) -> Series:
    """Of the numbers among some values "mean", "std" (with n - 1) and "count".

    What there is not, as the deviation of a single number, is NaN.
    """
    return numbers(pd.Series(list(values), dtype=object)).agg(_SPREAD)


def spreads(
    rows: Sequence[Mapping[str, Any]], by: Sequence[str], names: Sequence[str]
) -> Frame:
    """Of each group of rows the `spread` of each column.

    Args:
      rows: of anything; what is no number is left out.
      by: columns whose values name a group.
      names: columns of numbers.

    Returns:
      A row for each group, in the order of the first of it; columns (name, "mean").
    """
    frame: Frame = pd.DataFrame(rows, columns=pd.Index([*by, *names]), dtype=object)
    values = frame[list(names)].apply(numbers)
    return values.groupby([frame[name] for name in by], sort=False).agg(_SPREAD)


def numbers(values: Series) -> Series:
    """The same as float64; what is no finite number is NaN."""
    return values.map(lambda v: v if is_number(v) else np.nan).astype("float64")


def network_scores(groups: Sequence[Group]) -> Frame:
    """The `spread` over seeds of each score of each network.

    Besides the networks of the tables "mean of the tickets" and "ensemble of the
    tickets", if there are tickets.

    Returns:
      Rows (number of the group, network), columns (score, "mean").
    """
    rows = [
        {"group": i, "network": network, **scores}
        for i, group in enumerate(groups)
        for run in group.runs
        for network, scores in _all_networks(run).items()
    ]
    return spreads(rows, ["group", "network"], _SCORES)


def _all_networks(run: StoredRun) -> dict[str, Mapping[str, Any]]:
    rows = {row["network"]: row for row in run.rows}
    tickets = [row for name, row in rows.items() if is_ticket(name)]
    known: dict[str, Mapping[str, Any]] = {}
    for name, row in rows.items():
        if name == SUPERPOSED and tickets:
            frame: Frame = pd.DataFrame(tickets, columns=pd.Index(_SCORES))
            known["mean of the tickets"] = frame.apply(numbers).mean().to_dict()
            ensemble = (run.results.get("analysis") or {}).get("ensemble")
            if ensemble:
                known["ensemble of the tickets"] = ensemble
        known[name] = row
    return known


# --- With and without Sup-tickets -----------------------------------------------------


def base_setting(setting: Mapping[str, Any]) -> str:
    """What a setting and the same without Sup-tickets have in common."""
    shared = {k: v for k, v in setting.items() if not k.startswith("sup.")}
    return json.dumps(shared, default=str)


def base_rows(runs: Iterable[StoredRun]) -> Frame:
    """The last networks without Sup-tickets, of each setting and seed the first.

    From runs of their own, from runs within others, and from rows of others' tables.

    Returns:
      Columns "setting", as of `base_setting`, "origin", "epochs", "split", "seed", the
      scores.
    """
    rows = [
        {
            **row,
            "setting": base_setting(setting_of(one)),
            "origin": origin_of(one),
            "epochs": one.config.get("train.epochs"),
            "split": one.config.get("evaluate"),
            "seed": one.seed,
        }
        for run in runs
        for one in (run, *run.others)
        if (row := _row_without(one)) is not None
    ]
    columns = pd.Index(["setting", "origin", "epochs", "split", "seed", *_SCORES])
    frame: Frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return frame.drop_duplicates(["setting", "seed"])


def bases_of(group: Group, base: Frame) -> Frame:
    """The rows of `base_rows` that a group is compared with, by seed.

    Those of the same setting but for Sup-tickets; else those of the same phase 1, from
    which one branched, as many epochs and the same split: of several settings the one
    that differs in the fewest fields, and of equals none, see `rivals_of`.
    """
    same = base[base["setting"] == base_setting(group.setting)]
    if not len(same):
        alike = _of_one_phase1(group, base)
        nearest = _nearest(group, alike)
        same = alike[alike["setting"].isin(nearest if len(nearest) == 1 else [])]
    return same.set_index("seed")


def rivals_of(group: Group, base: Frame) -> list[str]:
    """Fields in which equally near bases of a group differ, of which none is taken."""
    if (base["setting"] == base_setting(group.setting)).any():
        return []
    nearest = [json.loads(s) for s in _nearest(group, _of_one_phase1(group, base))]
    names = sorted({name for setting in nearest for name in setting})
    return [n for n in names if any(s.get(n) != nearest[0].get(n) for s in nearest)]


def _of_one_phase1(group: Group, base: Frame) -> Frame:
    origins = [origin_of(run) for run in group.runs]
    alike = base["origin"].isin(origins)
    alike &= base["epochs"] == group.setting.get("train.epochs")
    return base[alike & (base["split"] == group.setting.get("evaluate"))]


def _nearest(group: Group, alike: Frame) -> list[str]:
    """Of the settings of some bases those that differ in the fewest fields."""
    ours = json.loads(base_setting(group.setting))

    def distance(text: str) -> int:
        theirs = json.loads(text)
        return sum(ours.get(n) != theirs.get(n) for n in ours.keys() | theirs.keys())

    distances = {text: distance(text) for text in alike["setting"].unique()}
    least = min(distances.values(), default=0)
    return [text for text, far in distances.items() if far == least]


def origin_of(run: StoredRun) -> str:
    """The folder of the run that trained phase 1: another's, or its own.

    Of runs that were moved together, the folder beside this one.
    """
    source = run.config.get("branch_from")
    if not source:
        return str(run.path.resolve())
    beside = run.path.parent / Path(source).name
    moved = not Path(source).is_dir() and beside.is_dir()
    return str((beside if moved else Path(source)).resolve())


def _row_without(run: StoredRun) -> dict[str, Any] | None:
    if not run.superposes:
        return run.main_row
    rows = run.results.get("rows", ())
    return next((row for row in rows if row["network"].endswith(WITHOUT)), None)


def superposed_rows(group: Group) -> Frame:
    """The last networks of a group with Sup-tickets: by seed, the scores."""
    rows = {run.seed: run.main_row for run in group.runs if run.superposes}
    known = {seed: row for seed, row in rows.items() if row}
    index, columns = pd.Index(list(known), dtype=object), pd.Index(_SCORES)
    return pd.DataFrame(
        [[row.get(name) for name in _SCORES] for row in known.values()],
        index=index,
        columns=columns,
        dtype=object,
    )


def pair(ours: Series, base: Series) -> Pairing:
    """The difference of a score over the seeds that both sides have.

    Args:
      ours: a score by seed; what is no number is left out.
      base: likewise, of what it is compared with.
    """
    sides = {"ours": numbers(ours), "base": numbers(base)}
    both: Frame = pd.concat(sides, axis=1, join="inner").dropna()
    both["difference"] = both["ours"] - both["base"]
    return Pairing(both.agg(_SPREAD), _p_value(both["difference"]), tuple(both.index))


def _p_value(differences: Series) -> float | None:
    """Of Student's t-test of the mean against 0; none without any variance."""
    from scipy import stats

    # Differences of rounded numbers are equal up to rounding.
    if len(differences) < 2 or np.ptp(differences) <= 1e-12:
        return None
    result: Any = stats.ttest_1samp(differences, 0)
    return float(result.pvalue)


# --- Files ----------------------------------------------------------------------------


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]
) -> None:
    """Writes rows as CSV; a number is as Python writes it, and ``None`` is empty."""
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    frame: Frame = pd.DataFrame(cells, columns=pd.Index(columns), dtype=object)
    frame.to_csv(path, index=False, na_rep="nan", lineterminator="\n")


def _cell(value: Any) -> Any:
    return "" if value is None else value
