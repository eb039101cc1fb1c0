"""Reports: of one run, written at its end, and of any number of runs, by a command.

    python -m experiments.report RUN [RUN ...] --out=DIR

gathers all runs at or under the given folders into DIR: `report.md`, `results.csv`,
pictures, and `index.html`, which holds all of it in one file.
"""

import json
import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from experiments.command import Parser, folder_path, start
from experiments.config.fields import flat
from experiments.reports.figures import (
    draw_curves,
    draw_layers,
    draw_plane,
    draw_tickets,
    draw_topology,
)
from experiments.reports.gathered import write_gathered
from experiments.reports.page import (
    Block,
    Code,
    Heading,
    Picture,
    Table,
    Text,
    aligned,
    to_html,
    to_markdown,
)
from experiments.runs.events import read_events
from experiments.runs.layout import (
    CONFIG,
    LOG,
    MADE_BY,
    PLAN,
    REPORT,
    RESULTS,
    SUMMARY,
    SUPERPOSED,
    is_ticket,
    read_object,
    run_folders,
)
from experiments.runs.stored import (
    StoredRun,
    check_results,
    read_run,
    read_runs,
    with_others,
)
from sup_tickets.files import atomic_write

# --- One run --------------------------------------------------------------------------


def write_report(folder: Any, results: Mapping[str, Any]) -> None:
    """Writes ``report/``; ``summary.md`` last, since it says that the run is done.

    Args:
      folder: the path of the run, or an object with such a ``path``.
      results: the content of ``results.json``; of it "rows" must be there.
    """
    path, others = _others(folder)
    check_results(path / RESULTS, results)
    record = getattr(folder, "record", lambda name: None)
    for name in (*_PICTURES, "index.html", "summary.md"):
        record(f"{REPORT}/{name}")
    blocks = _run_blocks(path, with_others(results, others), others)
    atomic_write(path / REPORT / "index.html", to_html(blocks))
    atomic_write(path / SUMMARY, to_markdown(blocks))


def table(results: Mapping[str, Any]) -> str:
    """The final table as aligned text, and what superposing gained.

    Args:
      results: as of `write_report`, with whatever `with_others` added.
    """
    return "\n".join(
        [aligned(_networks(results)), "", *_gain(results["rows"])]
    ).rstrip()


def _others(folder: Any) -> tuple[Path, list[StoredRun]]:
    """The path of a run, and the finished runs within it."""
    path = Path(getattr(folder, "path", folder))
    inner = [inside for inside in run_folders([path]) if inside != path]
    return path, [read_run(inside) for inside in inner]


def _run_blocks(
    path: Path, results: Mapping[str, Any], others: Sequence[StoredRun]
) -> list[Block]:
    analysis, config = results.get("analysis") or {}, _config(path)
    blocks: list[Block] = [
        Heading(1, _title(path, config)),
        _networks(results),
        *map(Text, _gain(results["rows"])),
    ]
    if _number(results.get("seconds")):
        blocks.append(Text(f"It took {results['seconds']:.0f} s in all."))
    report = path / REPORT
    blocks += _training(report, read_events(path / LOG), others)
    blocks += _tickets(report, analysis)
    blocks += _layers(report, results.get("layers") or {})
    blocks += _cost(results.get("cost") or {})
    if (path / PLAN).is_file():
        text = (path / PLAN).read_text(encoding="utf-8", errors="replace")
        blocks += [Heading(2, "Plan"), Code(text)]
    if config:
        lines = (f"{name}: {json.dumps(value)}" for name, value in config.items())
        blocks += [Heading(2, "Configuration"), Code("\n".join(lines))]
    return blocks + _made_by(path, results)


def _made_by(path: Path, results: Mapping[str, Any]) -> list[Block]:
    """Versions, device and command of all that trained, and of who evaluated."""
    try:
        sessions = read_object(path / MADE_BY).get("sessions", [])
    except (OSError, ValueError):
        sessions = []
    texts = [
        _maker(f"trained from step {session.get('from_step')}", session.get("by"))
        for session in sessions
        if isinstance(session, dict)
    ]
    if results.get("made_by"):
        texts.append(_maker("evaluated", results["made_by"]))
    return [Heading(2, "Made by"), Code("\n\n".join(texts))] if texts else []


def _maker(what: str, by: Any) -> str:
    named = by if isinstance(by, dict) else {}
    return "\n".join([f"{what}:", *(f"  {name}: {v}" for name, v in named.items())])


def _config(path: Path) -> dict[str, Any]:
    """By dotted names; empty if there is none."""
    try:
        return flat(read_object(path / CONFIG))
    except (OSError, ValueError):
        return {}


def _title(path: Path, config: Mapping[str, Any]) -> str:
    """Like "Run: rigl, sparsity 0.9, conv on digits, seed 0", as far as is known."""
    method, sparsity = config.get("method.name"), config.get("method.sparsity")
    parts = [method or path.name]
    if sparsity is not None and method != "dense":
        parts.append(f"sparsity {sparsity}")
    if "model.name" in config:
        parts.append(f"{config['model.name']} on {config.get('data.name', '?')}")
    if "seed" in config:
        parts.append(f"seed {config['seed']}")
    return f"Run: {', '.join(map(str, parts))}"


def _networks(results: Mapping[str, Any]) -> Table:
    split = results.get("evaluated_on", "test")
    head = ["network", f"{split} accuracy", "NLL", "ECE", "Brier", "active / total"]
    rows = [_cells(row) for row in results["rows"]]
    ensemble = (results.get("analysis") or {}).get("ensemble")
    if ensemble:
        scores = _cells({**ensemble, "network": "ensemble of the tickets"})
        rows.append(scores)
    return Table([*head, "sparsity"], rows)


def _cells(row: Mapping[str, Any]) -> list[str]:
    active, total = row.get("active"), row.get("total")
    if active is None or total is None:
        counts = ["-", "-"]
    elif total:
        counts = [f"{active} / {total}", f"{100 * (1 - active / total):.3f}%"]
    else:
        counts = ["all", "0%"]
    return [
        str(row["network"]),
        _shown(row.get("accuracy"), "{:.2f}%", 100),
        *(_shown(row.get(score), "{:.4f}") for score in ("nll", "ece", "brier")),
        *counts,
    ]


def _gain(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the superposed ticket compares with the tickets it was made of."""
    known = [r for r in rows if _number(r.get("accuracy"))]
    tickets = [r["accuracy"] for r in known if is_ticket(r["network"])]
    ours = [r["accuracy"] for r in known if r["network"] == SUPERPOSED]
    if not (tickets and ours):
        return []
    over_mean = 100 * (ours[0] - sum(tickets) / len(tickets))
    over_best = 100 * (ours[0] - max(tickets))
    return [
        f"superposed ticket: {over_mean:+.2f} points over the mean ticket, "
        f"{over_best:+.2f} over the best"
    ]


def _training(
    report: Path, events: list[dict[str, Any]], others: Sequence[StoredRun]
) -> list[Block]:
    by_run: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_run.setdefault(str(event.get("run", "run")), []).append(event)
    main = next(iter(by_run.values()), [])
    for other in others:
        by_run.setdefault(other.name, other.events)
    pictures = [
        *_picture(
            report / "curves.png",
            "Training loss, validation accuracy and learning rate",
            lambda path: draw_curves(path, by_run),
        ),
        *_picture(
            report / "topology.png",
            "What changes of the topology kept, and weights active so far",
            lambda path: draw_topology(path, main),
        ),
    ]
    return [Heading(2, "Training"), *pictures] if pictures else []


def _tickets(report: Path, analysis: Mapping[str, Any]) -> list[Block]:
    plane = analysis.get("plane") or {}
    blocks: list[Block] = [
        *_picture(
            report / "tickets.png",
            "How often two tickets answer differently, how far their probabilities "
            "are apart, and the loss on the line from each ticket to the next",
            lambda path: draw_tickets(path, analysis),
        ),
        *_picture(
            report / "plane.png",
            "The loss in the plane through three tickets",
            lambda path: draw_plane(path, plane),
        ),
    ]
    if "overlap" in analysis and len(analysis.get("tickets", ())) > 1:
        blocks.append(_overlaps(analysis))
    for part in [*analysis.get("paths", []), plane]:
        if "error" in part:
            blocks.append(Text(f"Left out: {part['error']}."))
    return [Heading(2, "Tickets"), *blocks] if blocks else []


def _overlaps(analysis: Mapping[str, Any]) -> Table:
    names = list(analysis["tickets"])
    rows = [
        [name, *(_shown(share, "{:.2f}%", 100) for share in shares)]
        for name, shares in zip(names, analysis["overlap"], strict=True)
    ]
    ours = analysis.get("superposed_overlap")
    if ours:
        shares = (_shown(share, "{:.2f}%", 100) for share in ours)
        rows.append([SUPERPOSED, *shares])
    return Table(["overlap of masks", *names], rows)


def _layers(report: Path, layers: Mapping[str, Any]) -> list[Block]:
    chosen = _before_and_after(layers)
    if not any(chosen.values()):
        return []
    head = ["layer", "weights"]
    for name in chosen:
        head += [f"{name}: active", "sparsity"]
    rows = []
    for counts in zip(*chosen.values(), strict=True):
        cells = [counts[0]["layer"], str(counts[0]["size"])]
        for row in counts:
            share = 1 - row["active"] / (row["size"] or 1)
            cells += [str(row["active"]), f"{100 * share:.2f}%"]
        rows.append(cells)
    return [
        Heading(2, "Sparsity of each layer"),
        *_picture(
            report / "layer_sparsity.png",
            "Sparsity of each layer",
            lambda path: draw_layers(path, chosen),
        ),
        Table(head, rows),
    ]


def _before_and_after(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The last ticket and what was made of them all; else the last network."""
    names = list(layers)
    if SUPERPOSED not in names:
        return {name: layers[name] for name in names[-1:]}
    tickets = [name for name in names if is_ticket(name)]
    return {name: layers[name] for name in [*tickets[-1:], SUPERPOSED]}


_PICTURES = (
    *("curves.png", "topology.png", "tickets.png", "plane.png"),
    "layer_sparsity.png",
)
_COSTS = (
    ("parameters", "active_parameters", "parameters", "{:,.0f}", 1.0),
    ("bytes_dense", "bytes_sparse", "file, MB", "{:.3f}", 1e-6),
    (
        *("dense_inference_flops", "inference_flops"),
        *("FLOPs of an example, forward", "{:.3g}", 1.0),
    ),
    (
        *("dense_training_flops", "training_flops"),
        *("FLOPs of the training", "{:.3g}", 1.0),
    ),
)


def _cost(cost: Mapping[str, Any]) -> list[Block]:
    rows = []
    for dense, sparse, name, form, scale in _COSTS:
        values = [cost.get(dense), cost.get(sparse)]
        if not any(map(_number, values)):
            continue
        ratio = (
            values[1] / values[0] if all(map(_number, values)) and values[0] else None
        )
        shown = [_shown(value, form, scale) for value in values]
        rows.append([name, *shown, _shown(ratio, "{:.4f}")])
    if _number(cost.get("measured_step_flops")):
        measured = _shown(cost["measured_step_flops"], "{:.3g}")
        rows.append(["FLOPs of a step as compiled", measured, "-", "-"])
    if not rows:
        return []
    note = (
        "FLOPs are counted as in papers, 2 for each use of an active weight; the "
        "compiled program also works on zeros."
    )
    return [
        Heading(2, "Cost"),
        Table(["", "dense", "sparse", "ratio"], rows),
        Text(note),
    ]


def _picture(path: Path, caption: str, draw: Any) -> list[Block]:
    try:
        return [Picture(path, caption)] if atomic_write(path, draw) else []
    except (KeyError, IndexError, TypeError, ValueError) as error:
        # A file that somebody changed; the rest of the report is as good as ever.
        what = f"{type(error).__name__}: {error}"
        return [Text(f"Left out: {path.name}, whose numbers are not whole ({what}).")]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)


def _shown(value: Any, form: str, scale: float = 1.0) -> str:
    return form.format(scale * value) if _number(value) else "-"


# --- Many runs ------------------------------------------------------------------------


def report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Gathers runs into one report.

    Args:
      runs: folders of runs, or folders with such within.
      out: the folder for the report.

    Returns:
      The path of ``index.html``.

    Raises:
      ValueError: if there is no finished run, or a file of one cannot be read.
    """
    folders = [Path(run) for run in runs]
    unfinished = run_folders(folders, finished=False)
    return write_gathered(Path(out), read_runs(folders), unfinished)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.report", __doc__)
    parser.add_argument(
        "runs", nargs="+", type=folder_path, metavar="RUN", help="folders, looked into"
    )
    parser.add_argument(
        "--out", required=True, type=folder_path, metavar="DIR", help="for the report"
    )
    start(parser, lambda options: print(report(options.runs, options.out)), argv)


if __name__ == "__main__":
    main()
