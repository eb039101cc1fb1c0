"""The report of a run: a summary and two figures, readable in greyscale."""

from pathlib import Path
from typing import Any

from experiments.run_folder import RunFolder

_STYLES = ("-", "--", ":", "-.")
_HATCHES = ("", "///", "...", "xxx")
_GREYS = ("0.35", "0.95", "0.65", "0.8")


def write_report(folder: RunFolder, results: dict[str, Any]) -> None:
    """Writes ``report/``; ``summary.md`` last, since it says that the run is done.

    Args:
      folder: of the run.
      results: rows, layers, seconds, and the name of the split evaluated on.
    """
    folder.make("report/curves.png", lambda p: _draw_curves(p, folder.metrics()))
    layers = _compared_layers(results["layers"])
    if any(layers.values()):
        folder.make("report/layer_sparsity.png", lambda p: _draw_layers(p, layers))
    folder.write("report/summary.md", _summary(folder, results, layers))


def table(results: dict[str, Any]) -> str:
    """The final table as aligned text, which is Markdown too."""
    split = results["evaluated_on"]
    head = [
        "network",
        f"{split} accuracy",
        f"{split} NLL",
        "active / total",
        "sparsity",
    ]
    rows = [head, ["---"] * len(head)] + [_cells(row) for row in results["rows"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        fill = "-" if row[0] == "---" else " "
        cells = (c.ljust(w, fill) for c, w in zip(row, widths, strict=True))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_gain(results["rows"])])


def _cells(row: dict[str, Any]) -> list[str]:
    active, total = row["active"], row["total"]
    sparse = total > 0
    return [
        row["network"],
        f"{100 * row['accuracy']:.2f}%",
        f"{row['nll']:.4f}",
        f"{active} / {total}" if sparse else "all",
        f"{100 * (1 - active / total):.3f}%" if sparse else "0%",
    ]


def _gain(rows: list[dict[str, Any]]) -> list[str]:
    """How the superposed ticket compares with the tickets it was made of."""
    tickets = [r["accuracy"] for r in rows if r["network"].startswith("ticket ")]
    ours = [r["accuracy"] for r in rows if r["network"] == "superposed ticket"]
    if not (tickets and ours):
        return []
    over_mean = 100 * (ours[0] - sum(tickets) / len(tickets))
    over_best = 100 * (ours[0] - max(tickets))
    return [
        "",
        f"superposed ticket: {over_mean:+.2f} points over the mean ticket, "
        f"{over_best:+.2f} over the best",
    ]


def _summary(folder: RunFolder, results: dict[str, Any], layers: dict) -> str:
    plan = (folder.path / "plan.txt").read_text().rstrip()
    parts = [
        "# Run",
        table(results),
        f"{results['seconds']:.0f} s in all, the configuration is in `config.json`.",
        "## Plan",
        f"```\n{plan}\n```",
        "## Training",
        "![Loss and validation accuracy](curves.png)",
    ]
    if any(layers.values()):
        parts += [
            "## Sparsity of each layer",
            _layer_table(layers),
            "![Sparsity of each layer](layer_sparsity.png)",
        ]
    return "\n\n".join(parts) + "\n"


def _compared_layers(layers: dict[str, list]) -> dict[str, list[dict[str, Any]]]:
    """Before and after superposition: the last ticket, and what was made of them."""
    names = list(layers)
    if "superposed ticket" not in names:
        return {name: layers[name] for name in names[-1:]}
    return {name: layers[name] for name in names[-2:]}


def _layer_table(layers: dict[str, list[dict[str, Any]]]) -> str:
    names = list(layers)
    lines = [
        "| layer | weights | " + " | ".join(f"{n}: active, sparsity" for n in names),
        "| --- " * (2 + len(names)),
    ]
    for rows in zip(*layers.values(), strict=True):
        cells = [
            f"{row['active']}, {100 * (1 - row['active'] / row['size']):.2f}%"
            for row in rows
        ]
        lines.append(f"| {rows[0]['layer']} | {rows[0]['size']} | " + " | ".join(cells))
    return "\n".join(f"{line} |" for line in lines)


# --- Figures --------------------------------------------------------------------------


def _figure(columns: int, width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _draw_curves(path: Path, metrics: list[dict[str, Any]]) -> None:
    figure, (left, right) = _figure(2, 10)
    runs = list(dict.fromkeys(event["run"] for event in metrics))
    for i, name in enumerate(runs):
        style = {"linestyle": _STYLES[i % 4], "color": f"{0.25 * (i % 3)}"}
        events = [event for event in metrics if event["run"] == name]
        losses = [e for e in events if e["event"] == "loss"]
        steps, means = _means([e["step"] for e in losses], [e["loss"] for e in losses])
        left.plot(steps, means, label=name, linewidth=1.2, **style)
        checks = [e for e in events if e["event"] == "validation"]
        right.plot(
            [e["step"] for e in checks],
            [100 * e["accuracy"] for e in checks],
            marker="osv^"[i % 4],
            markersize=4,
            label=name,
            **style,
        )
    _mark(right, [e for e in metrics if e["event"] == "explore"])
    left.set(xlabel="step", ylabel="training loss, nats", yscale="log")
    right.set(xlabel="step", ylabel="validation accuracy, %")
    left.legend()
    figure.savefig(path, dpi=120)


def _mark(axes: Any, explorations: list[dict[str, Any]]) -> None:
    for i, event in enumerate(explorations):
        label = "a cycle starts" if i == 0 else None
        axes.axvline(event["step"], color="0.6", linewidth=0.8, label=label)
    axes.legend()


def _means(steps: list[int], losses: list[float]) -> tuple[list, list]:
    """Means of about 200 groups of steps; the last may be smaller."""
    size = max(len(losses) // 200, 1)
    groups = [slice(i, i + size) for i in range(0, len(losses), size)]
    means = [sum(losses[g]) / len(losses[g]) for g in groups]
    return [steps[g][-1] for g in groups], means


def _draw_layers(path: Path, layers: dict[str, list[dict[str, Any]]]) -> None:
    count = len(next(iter(layers.values())))
    figure, axes = _figure(1, max(6.0, 0.9 * count))
    width = 0.8 / len(layers)
    for i, (name, rows) in enumerate(layers.items()):
        axes.bar(
            [place + (i + 0.5) * width - 0.4 for place in range(count)],
            [100 * (1 - row["active"] / row["size"]) for row in rows],
            width,
            label=name,
            color=_GREYS[i % 4],
            hatch=_HATCHES[i % 4],
            edgecolor="black",
        )
    names = [
        row["layer"].removesuffix("/kernel") for row in next(iter(layers.values()))
    ]
    axes.set_xticks(range(count), names, rotation=30 if count > 6 else 0)
    axes.set_ylabel("sparsity, %")
    axes.legend()
    figure.savefig(path, dpi=120)
