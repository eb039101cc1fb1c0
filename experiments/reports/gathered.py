"""The report of many runs: grouped over seeds, with Sup-tickets beside without."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports.figures import Point, draw_bars, draw_by_sparsity
from experiments.reports.gather import (
    Group,
    Pairing,
    Spread,
    base_rows,
    base_setting,
    differing,
    group_runs,
    network_scores,
    pair,
    spread,
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
from experiments.runs.layout import is_ticket
from experiments.runs.stored import StoredRun
from sup_tickets.files import atomic_write

_COLUMNS = (
    *("run", "data", "model", "method", "sparsity", "sup", "seed", "evaluated_on"),
    *("network", "accuracy", "nll", "ece", "brier", "examples", "active", "total"),
    *("inference_flops", "dense_inference_flops"),
    *("training_flops", "dense_training_flops"),
)
_WITHOUT = "without Sup-tickets"
_NAMED = {
    "data.name": "data",
    "model.name": "model",
    "method.name": "method",
    "method.sparsity": "sparsity",
    "sup.enabled": "Sup-tickets",
}
_SHOWN = {
    "accuracy": ("accuracy, %", 100, ".2f"),
    "nll": ("NLL", 1, ".4f"),
    "ece": ("ECE", 1, ".4f"),
    "brier": ("Brier", 1, ".4f"),
}


def write_gathered(
    out: Path, runs: Sequence[StoredRun], unfinished: Sequence[Path] = ()
) -> Path:
    """Writes ``results.csv``, pictures, ``report.md`` and ``index.html``.

    Args:
      out: the folder, made if it is not there.
      runs: all of them.
      unfinished: folders of runs that have no results.

    Returns:
      The path of ``index.html``, which is written last.
    """
    groups = group_runs(runs)
    names = _group_names(groups)
    atomic_write(out / "results.csv", lambda path: _write_csv(path, runs))
    blocks: list[Block] = [Heading(1, "Results"), Text(_overview(runs, groups))]
    if unfinished:
        listed = ", ".join(map(str, unfinished))
        blocks.append(Text(f"Not finished, and left out: {listed}."))
    counted = {run.path for group in groups for run in group.runs}
    again = [str(run.path) for run in runs if run.path not in counted]
    if again:
        twice = f"The same setting and seed again, and left out: {', '.join(again)}."
        blocks.append(Text(twice))
    blocks += _versus(groups, names, base_rows(runs))
    blocks += _pictures(out, groups, names)
    blocks += _all_networks(groups, names)
    blocks += _diversity(groups, names)
    blocks += _costs(groups, names)
    blocks += _settings(groups, names)
    atomic_write(out / "report.md", to_markdown(blocks))
    atomic_write(out / "index.html", to_html(blocks))
    return out / "index.html"


def _overview(runs: Sequence[StoredRun], groups: Sequence[Group]) -> str:
    splits = sorted({str(run.results.get("evaluated_on", "?")) for run in runs})
    return (
        f"{_many(len(runs), 'run')} in {_many(len(groups), 'setting')}, evaluated on: "
        f"{', '.join(splits)}. Runs that differ in their seed alone are one setting; "
        "numbers are means over seeds ± standard deviations (n - 1)."
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _group_names(groups: Sequence[Group]) -> list[str]:
    """A short name for each setting: model, method, sparsity, and what differs."""
    fields = [f for f in differing(groups) if f not in _NAMED]
    always = ["method.name", "method.sparsity"]
    varied = [f for f in ("data.name", "model.name") if f in differing(groups)]
    names = []
    for group in groups:
        setting = group.setting
        parts = [_value(f, setting.get(f)) for f in (*varied, *always) if f in setting]
        if "sup.enabled" in setting:
            parts.append("+ Sup-tickets" if setting["sup.enabled"] else "alone")
        # Options of what is not there would only confuse.
        parts += [
            f"{f}={setting[f]}"
            for f in fields
            if f in setting
            and not (f.startswith("sup.") and not setting.get("sup.enabled"))
        ]
        names.append(" ".join(parts) or group.runs[0].name)
    return names


def _value(field: str, value: Any) -> str:
    if field == "method.sparsity" and isinstance(value, (int, float)):
        return f"{100 * value:g}%"
    return str(value)


def _write_csv(path: Path, runs: Sequence[StoredRun]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        for one in (one for run in runs for one in (run, *run.others)):
            writer.writerows(_csv_rows(one))


def _csv_rows(run: StoredRun) -> list[dict[str, Any]]:
    shared = {
        "run": str(run.path),
        "data": run.config.get("data.name"),
        "model": run.config.get("model.name"),
        "method": run.config.get("method.name"),
        "sparsity": run.config.get("method.sparsity"),
        "sup": run.superposes,
        "seed": run.seed,
        "evaluated_on": run.results.get("evaluated_on"),
    }
    # The operations are those of the last network, and of the way to it.
    cost = run.results.get("cost") or {}
    return [
        {**shared, **row, **(cost if row is run.main_row else {})}
        for row in run.results.get("rows", ())
    ]


# --- With and without Sup-tickets -----------------------------------------------------


def _versus(
    groups: Sequence[Group],
    names: Sequence[str],
    base: Mapping[str, Mapping[Any, Mapping[str, Any]]],
) -> list[Block]:
    rows = []
    for group, name in zip(groups, names, strict=True):
        ours = {run.seed: run.main_row for run in group.runs if run.superposes}
        ours = {seed: row for seed, row in ours.items() if row}
        theirs = base.get(base_setting(group.setting), {})
        if not (ours and theirs):
            continue
        accuracy, nll = (pair(ours, theirs, score) for score in ("accuracy", "nll"))
        rows.append(
            [
                name.replace(" + Sup-tickets", ""),
                str(len(accuracy.seeds)),
                *(_of(r, accuracy, "accuracy", 100, ".2f") for r in (theirs, ours)),
                *_difference(accuracy, 100, ".2f"),
                *(_of(r, nll, "nll", 1, ".4f") for r in (theirs, ours)),
                *_difference(nll, 1, ".4f"),
            ]
        )
    if not rows:
        return []
    head = ["setting", "seeds", "alone, accuracy %", "+ Sup-tickets", "difference", "p"]
    note = (
        "Over the seeds that both have. p is that of a paired t-test, two-sided; "
        "- where there are fewer than two pairs, or they do not vary."
    )
    return [
        Heading(2, "The method alone, and with Sup-tickets"),
        Table([*head, "alone, NLL", "+ Sup-tickets", "difference", "p"], rows),
        Text(note),
    ]


def _of(
    rows: Mapping[Any, Mapping[str, Any]],
    pairing: Pairing,
    score: str,
    scale: float,
    form: str,
) -> str:
    return shown(spread(rows[s].get(score) for s in pairing.seeds), scale, form)


def _difference(pairing: Pairing, scale: float, form: str) -> list[str]:
    p = pairing.p_value
    return [
        shown(pairing.difference, scale, "+" + form),
        "-" if p is None else f"{p:.3f}",
    ]


def shown(value: Spread | None, scale: float, form: str) -> str:
    """A mean and its deviation, "97.87 ± 0.70"; "-" if there is none."""
    if value is None:
        return "-"
    mean = format(scale * value.mean, form)
    if value.deviation is None:
        return mean
    return f"{mean} ± {format(scale * value.deviation, form.lstrip('+'))}"


# --- Pictures -------------------------------------------------------------------------


def _pictures(out: Path, groups: Sequence[Group], names: Sequence[str]) -> list[Block]:
    found: list[Block] = []
    for score in ("accuracy", "nll"):
        label, scale, _ = _SHOWN[score]
        for title, chosen in _by_task(groups, names).items():
            stem = "_".join([score, *title.split()]) if title else score
            path = out / f"{''.join(c if c.isalnum() else '_' for c in stem)}.png"

            def draw(to: Path, chosen=chosen, score=score, scale=scale, label=label):
                lines = _lines(chosen, score, scale)
                if draw_by_sparsity(to, lines, label):
                    return True
                return draw_bars(to, _bars(chosen, score, scale), label)

            if atomic_write(path, draw):
                where = f" ({title})" if title else ""
                found.append(Picture(path, f"{label[0].upper()}{label[1:]}{where}"))
    return found


def _by_task(
    groups: Sequence[Group], names: Sequence[str]
) -> dict[str, list[tuple[str, Group]]]:
    """Groups with their names, of each data set and model."""
    fields = [f for f in ("data.name", "model.name") if f in differing(groups)]
    found: dict[str, list[tuple[str, Group]]] = {}
    for name, group in zip(names, groups, strict=True):
        title = " ".join(str(group.setting.get(field)) for field in fields)
        found.setdefault(title, []).append((name, group))
    return found


def _main_networks(group: Group) -> dict[str, dict[str, Spread]]:
    """The networks worth a line: the last of the run and those compared with it."""
    scores = network_scores(group)
    main = (group.runs[0].main_row or {}).get("network")
    others = {other.name for run in group.runs for other in run.others} | {
        name for name in scores if name.endswith(_WITHOUT)
    }
    wanted = [main, "mean of the tickets", *others, "dense"]
    return {name: s for name, s in scores.items() if name in wanted}


def _lines(
    chosen: Sequence[tuple[str, Group]], score: str, scale: float
) -> dict[str, dict[float, Point]]:
    lines: dict[str, dict[float, Point]] = {}
    for name, group in chosen:
        sparsity = group.setting.get("method.sparsity")
        if not isinstance(sparsity, (int, float)):
            continue
        short = name.replace(f" {_value('method.sparsity', sparsity)}", "")
        for network, scores in _main_networks(group).items():
            if score in scores and network != "mean of the tickets":
                label = short if _is_main(group, network) else network
                lines.setdefault(label, {}).setdefault(
                    sparsity, _point(scores[score], scale)
                )
    return lines


def _bars(
    chosen: Sequence[tuple[str, Group]], score: str, scale: float
) -> dict[str, dict[str, Point]]:
    return {
        name: {
            _WITHOUT if network.endswith(_WITHOUT) else network: _point(
                scores[score], scale
            )
            for network, scores in _main_networks(group).items()
            if score in scores
        }
        for name, group in chosen
    }


def _is_main(group: Group, network: str) -> bool:
    return network == (group.runs[0].main_row or {}).get("network")


def _point(value: Spread, scale: float) -> Point:
    deviation = None if value.deviation is None else scale * value.deviation
    return scale * value.mean, deviation


# --- Tables ---------------------------------------------------------------------------


def _all_networks(groups: Sequence[Group], names: Sequence[str]) -> list[Block]:
    rows = []
    for group, name in zip(groups, names, strict=True):
        for network, scores in network_scores(group).items():
            if is_ticket(network):
                continue  # their mean has a row; each is in the CSV file
            cells = (
                shown(scores.get(score), scale, form)
                for score, (_, scale, form) in _SHOWN.items()
            )
            count = str(max((s.count for s in scores.values()), default=0))
            rows.append([name, network, count, *cells])
    head = ["setting", "network", "seeds", *(label for label, *_ in _SHOWN.values())]
    return [Heading(2, "All networks"), Table(head, rows, texts=2)]


def _diversity(groups: Sequence[Group], names: Sequence[str]) -> list[Block]:
    """What the tickets of a run have in common, as the paper's Table 6."""
    rows = []
    for group, name in zip(groups, names, strict=True):
        found = [_diversity_of(run.results.get("analysis") or {}) for run in group.runs]
        cells = [
            shown(spread(one.get(key) for one in found), scale, form)
            for key, scale, form in (
                ("disagreement", 100, ".2f"),
                ("kl", 1, ".4f"),
                ("overlap", 100, ".1f"),
                ("barrier", 1, ".4f"),
            )
        ]
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])
    if not rows:
        return []
    head = ["setting", "different answers, %", "KL, nats", "overlap of masks, %"]
    return [
        Heading(2, "Diversity of the tickets"),
        Table([*head, "largest barrier, nats"], rows),
        Text(
            "Means over all pairs of tickets; the barrier is the largest on the lines "
            "from each ticket to the next."
        ),
    ]


def _diversity_of(analysis: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("disagreement", "kl", "overlap"):
        matrix = analysis.get(key) or []
        pairs = [x for i, row in enumerate(matrix) for j, x in enumerate(row) if i != j]
        value = spread(pairs)
        found[key] = value.mean if value else None
    barriers = [p.get("barrier") for p in analysis.get("paths") or []]
    known = [b for b in barriers if b is not None]
    return found | {"barrier": max(known) if known else None}


def _costs(groups: Sequence[Group], names: Sequence[str]) -> list[Block]:
    rows = []
    for group, name in zip(groups, names, strict=True):
        costs = [run.results.get("cost") or {} for run in group.runs]
        cells = [
            _ratio(costs, *keys)
            for keys in (
                ("active_parameters", "parameters"),
                ("bytes_sparse", "bytes_dense"),
                ("inference_flops", "dense_inference_flops"),
                ("training_flops", "dense_training_flops"),
            )
        ]
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])
    if not rows:
        return []
    head = ["setting", "parameters", "file", "FLOPs, inference", "FLOPs, training"]
    return [Heading(2, "Cost, as a share of the dense network's"), Table(head, rows)]


def _ratio(costs: Sequence[Mapping[str, Any]], sparse: str, dense: str) -> str:
    ratios = [c[sparse] / c[dense] for c in costs if c.get(sparse) and c.get(dense)]
    value = spread(ratios)
    return "-" if value is None else f"{value.mean:.4f}"


def _settings(groups: Sequence[Group], names: Sequence[str]) -> list[Block]:
    """In what the settings differ, and where their runs are."""
    fields = differing(groups)
    rows = [
        [
            name,
            ", ".join(str(run.seed) for run in group.runs),
            *(str(group.setting.get(field, "-")) for field in fields),
            ", ".join(str(run.path) for run in group.runs),
        ]
        for group, name in zip(groups, names, strict=True)
    ]
    head = ["setting", "seeds", *fields, "folders"]
    return [Heading(2, "Settings"), Table(head, rows, texts=len(head))]
