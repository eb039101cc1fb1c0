"""The report of one run, written at its end."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.fields import flat
from experiments.reports.about import with_notes
from experiments.reports.columns import COSTS, Cost, is_number, shown
from experiments.reports.networks import gain, networks, taken
from experiments.reports.page import (
    Block,
    Code,
    Heading,
    Picture,
    Table,
    Text,
    to_html,
    to_markdown,
)
from experiments.reports.run_figures import (
    draw_curves,
    draw_layers,
    draw_plane,
    draw_tickets,
    draw_topology,
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
from experiments.runs.stored import StoredRun, check_results, read_run, with_others
from sup_tickets.files import atomic_write

_PICTURES = (
    *("curves.png", "topology.png", "tickets.png", "plane.png"),
    "layer_sparsity.png",
)


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
        networks(results),
        *gain(results["rows"]),
    ]
    if text := taken(results):
        blocks.append(Text(text))
    report = path / REPORT
    blocks += _training(report, results, read_events(path / LOG), others)
    blocks += _tickets(report, analysis)
    blocks += _layers(report, results.get("layers") or {})
    blocks += _cost(results.get("cost") or {})
    blocks = with_notes(blocks, [results])
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


def _training(
    report: Path,
    results: Mapping[str, Any],
    events: list[dict[str, Any]],
    others: Sequence[StoredRun],
) -> list[Block]:
    by_run: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_run.setdefault(str(event.get("run", "run")), []).append(event)
    main = next(iter(by_run.values()), [])
    for other in others:
        by_run.setdefault(other.name, other.events)
    of_runs = {str(results.get("name")): results} | {o.name: o.results for o in others}
    rates: dict[str, Any] = {
        name: results["learning_rate"]
        for name, results in of_runs.items()
        if name in by_run and results.get("learning_rate")
    }
    pictures = [
        *_picture(
            report / "curves.png",
            "Training loss, validation accuracy and learning rate",
            lambda path: draw_curves(path, by_run, rates),
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
        [name, *(shown(share, ".2f", 100, "%") for share in shares)]
        for name, shares in zip(names, analysis["overlap"], strict=True)
    ]
    ours = analysis.get("superposed_overlap")
    if ours:
        shares = (shown(share, ".2f", 100, "%") for share in ours)
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


def _cost(cost: Mapping[str, Any]) -> list[Block]:
    rows = [_cost_row(cost, part) for part in COSTS]
    measured = shown(cost.get("measured_step_flops"), ".3g")
    rows.append(["FLOPs of a step as compiled", measured, "-", "-"])
    rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
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


def _cost_row(cost: Mapping[str, Any], part: Cost) -> list[str]:
    values: list[Any] = [cost.get(part.dense), cost.get(part.sparse)]
    dense, sparse = values
    known = all(map(is_number, values)) and dense
    ratio = sparse / dense if known else None
    cells = (shown(value, part.form, part.scale) for value in values)
    return [part.title, *cells, shown(ratio, ".4f")]


def _picture(path: Path, caption: str, draw: Callable[[Path], bool]) -> list[Block]:
    try:
        return [Picture(path, caption)] if atomic_write(path, draw) else []
    except (KeyError, IndexError, TypeError, ValueError) as error:
        # A file that somebody changed; the rest of the report is as good as ever.
        what = f"{type(error).__name__}: {error}"
        return [Text(f"Left out: {path.name}, whose numbers are not whole ({what}).")]
