"""The report of many runs: grouped over seeds, with Sup-tickets beside without."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.reports.about import with_notes
from experiments.reports.columns import (
    COMPARED,
    COSTS,
    CSV,
    DIVERSITY,
    RUN_FIELDS,
    SCORES,
    Column,
    shown,
    shown_spread,
)
from experiments.reports.gather import (
    WITHOUT,
    Frame,
    Group,
    base_rows,
    bases_of,
    differing,
    group_runs,
    network_scores,
    numbers,
    pair,
    rivals_of,
    sparsity_text,
    spread,
    spreads,
    superposed_rows,
    write_csv,
)
from experiments.reports.page import (
    Block,
    Heading,
    Picture,
    Table,
    Text,
    to_html,
    to_markdown,
)
from experiments.reports.runs_figures import Point, draw_bars, draw_by_sparsity
from experiments.runs.layout import is_ticket, run_folders
from experiments.runs.stored import StoredRun, read_runs
from experiments.runs.written import Outputs

_CSV, _TEXT, _PAGE = "results.csv", "report.md", "index.html"


def report_files(out: Path) -> Outputs:
    """The files of `report`.

    Raises:
      ValueError: naming one that is there, and that no report wrote.
    """
    pictures = (f"{column.name}*.png" for column in COMPARED)
    return Outputs(out, _CSV, _TEXT, _PAGE, *pictures)


def report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Gathers runs into ``results.csv``, pictures, ``report.md`` and ``index.html``.

    Args:
      runs: folders of runs, or folders with such within.
      out: the folder for the report, made if it is not there.

    Returns:
      The path of ``index.html``, which is written last.

    Raises:
      ValueError: if there is no finished run, a file of one cannot be read, or one
        would be replaced that no report wrote.
    """
    folders, files = [Path(run) for run in runs], report_files(Path(out))
    unfinished = run_folders(folders, finished=False)
    found = read_runs(folders)
    groups = group_runs(found)
    scores = network_scores(groups)
    files.write(_CSV, lambda path: write_csv(path, list(_csv_rows(found)), CSV))
    blocks = [
        *_overview(found, groups, unfinished),
        *_versus(groups, base_rows(found)),
        *_pictures(files, groups, scores),
        *_all_networks(groups, scores),
        *_diversity(groups),
        *_costs(groups),
        *_settings(groups),
    ]
    blocks = with_notes(blocks, [run.results for run in found])
    files.write(_TEXT, to_markdown(blocks))
    files.write(_PAGE, to_html(blocks))
    return files.folder / _PAGE


def _csv_rows(runs: Sequence[StoredRun]) -> Iterator[dict[str, Any]]:
    for run in itertools.chain.from_iterable((one, *one.others) for one in runs):
        shared = {name: value(run) for name, value in RUN_FIELDS.items()}
        # The operations are those of the last network, and of the way to it.
        cost = run.results.get("cost") or {}
        for row in run.results.get("rows", ()):
            yield {**shared, **row, **(cost if row is run.main_row else {})}


def _overview(
    runs: Sequence[StoredRun], groups: Sequence[Group], unfinished: Sequence[Path]
) -> list[Block]:
    splits = sorted({str(run.results.get("evaluated_on", "?")) for run in runs})
    texts = [
        f"{_many(len(runs), 'run')} in {_many(len(groups), 'setting')}, evaluated on: "
        f"{', '.join(splits)}. Runs that differ in their seed alone are one setting; "
        "numbers are means over seeds ± standard deviations (n - 1)."
    ]
    if unfinished:
        texts.append(f"Not finished, and left out: {', '.join(map(str, unfinished))}.")
    counted = {run.path for group in groups for run in group.runs}
    again = [str(run.path) for run in runs if run.path not in counted]
    if again:
        listed = ", ".join(again)
        texts.append(f"The same setting and seed again, and left out: {listed}.")
    return [Heading(1, "Results"), *map(Text, texts)]


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


# --- With and without Sup-tickets -----------------------------------------------------


def _versus(groups: Sequence[Group], base: Frame) -> list[Block]:
    rows, left_out = [], []
    for group in groups:
        ours = superposed_rows(group)
        theirs = bases_of(group, base)
        if ours.empty or theirs.empty:
            if not ours.empty and (rivals := rivals_of(group, base)):
                left_out.append(f"{group.name} (bases differ in {', '.join(rivals)})")
            continue
        row = [group.name.replace(" + Sup-tickets", "")]
        for column in COMPARED:
            pairing = pair(ours[column.name], theirs[column.name])
            if len(row) == 1:
                row.append(str(len(pairing.seeds)))
            p = pairing.p_value
            row += [
                shown_spread(pairing.spreads["base"], column),
                shown_spread(pairing.spreads["ours"], column),
                shown_spread(pairing.spreads["difference"], column, "+"),
                "-" if p is None else f"{p:.3f}",
            ]
        rows.append(row)
    title = Heading(2, "The method alone, and with Sup-tickets")
    out = Text(f"More than one base, and left out: {'; '.join(left_out)}.")
    if not rows:
        return [title, out] if left_out else []
    head = ["setting", "seeds"]
    for column in COMPARED:
        alone = f"alone, {column.title} {column.unit}".rstrip()
        head += [alone, "+ Sup-tickets", "difference", "p"]
    note = Text(
        "Over the seeds that both have. p is that of a paired t-test, two-sided; "
        "- where there are fewer than two pairs, or they do not vary."
    )
    return [title, Table(head, rows), note, *([out] if left_out else [])]


# --- Pictures -------------------------------------------------------------------------


def _pictures(files: Outputs, groups: Sequence[Group], scores: Frame) -> list[Block]:
    fields = [f for f in ("data.name", "model.name") if f in differing(groups)]
    titles = pd.Series(
        [" ".join(str(group.setting.get(f)) for f in fields) for group in groups]
    )
    found: list[Block] = []
    for column in COMPARED:
        for title, same in titles.groupby(titles, sort=False):
            chosen = [
                (groups[i], _points(groups[i], scores, i, column)) for i in same.index
            ]
            stem = "_".join([column.name, *str(title).split()])
            name = f"{''.join(c if c.isalnum() else '_' for c in stem)}.png"
            if files.write(name, partial(_draw, chosen=chosen, column=column)):
                label = column.heading
                where = f" ({title})" if title else ""
                text = f"{label[0].upper()}{label[1:]}{where}"
                found.append(Picture(files.folder / name, text))
    return found


Points = Mapping[str, Point]
"""Of networks by their names."""


def _points(group: Group, scores: Frame, number: int, column: Column) -> Points:
    """The networks worth a line: the last of the run and those compared with it."""
    others = {other.name for run in group.runs for other in run.others}
    wanted = {_main_network(group), "mean of the tickets", *others, "dense"}
    found = {}
    for network, row in _of_group(scores, number).iterrows():
        mean, deviation, _ = column.scale * row[column.name]
        if (network in wanted or network.endswith(WITHOUT)) and not isnan(mean):
            found[network] = (mean, None if isnan(deviation) else deviation)
    return found


def _of_group(scores: Frame, number: int) -> Frame:
    """Scores by network."""
    return scores[scores.index.get_level_values("group") == number].droplevel("group")


def _main_network(group: Group) -> str | None:
    return (group.runs[0].main_row or {}).get("network")


def _draw(path: Path, chosen: Sequence[tuple[Group, Points]], column: Column) -> bool:
    lines, bars = _lines(chosen), _bars(chosen)
    label = column.heading
    return draw_by_sparsity(path, lines, label) or draw_bars(path, bars, label)


def _lines(chosen: Sequence[tuple[Group, Points]]) -> dict[str, dict[float, Point]]:
    lines: dict[str, dict[float, Point]] = {}
    for group, points in chosen:
        sparsity = group.setting.get("method.sparsity")
        if not isinstance(sparsity, (int, float)):
            continue
        short = group.name.replace(f" {sparsity_text(sparsity)}", "")
        for network, point in points.items():
            if network != "mean of the tickets":
                label = short if network == _main_network(group) else network
                lines.setdefault(label, {}).setdefault(sparsity, point)
    return lines


def _bars(chosen: Sequence[tuple[Group, Points]]) -> dict[str, dict[str, Point]]:
    return {
        group.name: {
            WITHOUT if network.endswith(WITHOUT) else network: point
            for network, point in points.items()
        }
        for group, points in chosen
    }


# --- Tables ---------------------------------------------------------------------------


def _all_networks(groups: Sequence[Group], scores: Frame) -> list[Block]:
    rows = []
    texts = any(row[SCORES[0].name]["count"] for _, row in scores.iterrows())
    columns = SCORES if texts else SCORES[1:]
    for (number, network), row in scores.iterrows():
        if is_ticket(network):
            continue  # their mean has a row; each is in the CSV file
        count = max(int(row[column.name]["count"]) for column in columns)
        cells = (shown_spread(row[column.name], column) for column in columns)
        rows.append([groups[number].name, network, str(count), *cells])
    head = ["setting", "network", "seeds", *(column.heading for column in columns)]
    return [Heading(2, "All networks"), Table(head, rows, texts=2)]


def _diversity(groups: Sequence[Group]) -> list[Block]:
    """What the tickets of a run have in common, as the paper's Table 6."""
    found = _over_runs(groups, "analysis", _diversity_of, [c.name for c in DIVERSITY])
    rows = [
        [name, *(shown_spread(row[column.name], column) for column in DIVERSITY)]
        for name, row in found
    ]
    if not rows:
        return []
    head = ["setting", *(column.heading for column in DIVERSITY)]
    note = (
        "Means over all pairs of tickets; the barrier is the largest on the lines "
        "from each ticket to the next."
    )
    return [Heading(2, "Diversity of the tickets"), Table(head, rows), Text(note)]


def _diversity_of(analysis: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("disagreement", "kl", "overlap"):
        matrix = analysis.get(key) or []
        pairs = [x for i, row in enumerate(matrix) for j, x in enumerate(row) if i != j]
        found[key] = spread(pairs)["mean"]
    barriers = [path.get("barrier") for path in analysis.get("paths") or []]
    return found | {"barrier": numbers(pd.Series(barriers, dtype=object)).max()}


def _costs(groups: Sequence[Group]) -> list[Block]:
    found = _over_runs(groups, "cost", _ratios, [cost.share for cost in COSTS])
    rows = [
        [name, *(shown(row[cost.share]["mean"], ".4f") for cost in COSTS)]
        for name, row in found
    ]
    if not rows:
        return []
    head = ["setting", *(cost.share for cost in COSTS)]
    return [Heading(2, "Cost, as a share of the dense network's"), Table(head, rows)]


def _over_runs(
    groups: Sequence[Group],
    section: str,
    of: Callable[[dict[str, Any]], Mapping[str, Any]],
    names: Sequence[str],
) -> list[tuple[str, Any]]:
    """Spreads of numbers of a section of the results, where there are any."""
    rows = [
        {"group": i, **of(run.results.get(section) or {})}
        for i, group in enumerate(groups)
        for run in group.runs
    ]
    found = spreads(rows, ["group"], names)
    known = found[found.xs("count", axis=1, level=1).any(axis=1)]
    return [(groups[i].name, row) for i, row in known.iterrows()]


def _ratios(costs: Mapping[str, Any]) -> dict[str, float]:
    return {
        cost.share: costs[cost.sparse] / costs[cost.dense]
        for cost in COSTS
        if costs.get(cost.sparse) and costs.get(cost.dense)
    }


def _settings(groups: Sequence[Group]) -> list[Block]:
    """In what the settings differ, and where their runs are."""
    fields = differing(groups)
    rows = [
        [
            group.name,
            ", ".join(str(run.seed) for run in group.runs),
            *(str(group.setting.get(field, "-")) for field in fields),
            ", ".join(str(run.path) for run in group.runs),
        ]
        for group in groups
    ]
    head = ["setting", "seeds", *fields, "folders"]
    return [Heading(2, "Settings"), Table(head, rows, texts=len(head))]
