"""The networks of one run beside each other, in its report and on the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reports.columns import (
    Column,
    is_number,
    score_cells,
    score_titles,
    scores_in,
)
from experiments.reports.gather import WITHOUT
from experiments.reports.page import Table, aligned
from experiments.runs.layout import PHASE1, SUPERPOSED, is_ticket


def table(results: Mapping[str, Any]) -> str:
    """The final table as aligned text, and what superposing gained as another.

    Args:
      results: the content of ``results.json``, with whatever `with_others` added.
    """
    tables = [networks(results), *gain(results["rows"])]
    return "\n\n".join(map(aligned, tables))


def networks(results: Mapping[str, Any]) -> Table:
    """How good each network is, and how sparse."""
    split = results.get("evaluated_on", "test")
    scores = scores_in(results["rows"])
    head = ["network", *score_titles(split, scores), "active / total"]
    rows = [_cells(row, scores) for row in results["rows"]]
    ensemble = (results.get("analysis") or {}).get("ensemble")
    if ensemble:
        rows.append(_cells({**ensemble, "network": "ensemble of the tickets"}, scores))
    return Table([*head, "sparsity"], rows)


def _cells(row: Mapping[str, Any], scores: Sequence[Column]) -> list[str]:
    active, total = row.get("active"), row.get("total")
    if active is None or total is None:
        counts = ["-", "-"]
    elif total:
        counts = [f"{active} / {total}", f"{100 * (1 - active / total):.3f}%"]
    else:
        counts = ["all", "0%"]
    return [
        str(row["network"]),
        *score_cells(row, scores),
        *counts,
    ]


def gain(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The superposed ticket beside the other networks, if there is one."""
    texts = any(is_number(row.get("perplexity")) for row in rows)
    name, scale, best = ("perplexity", 1, min) if texts else ("accuracy", 100, max)
    known = {r["network"]: scale * r[name] for r in rows if is_number(r.get(name))}
    tickets = [value for network, value in known.items() if is_ticket(network)]
    if not tickets or SUPERPOSED not in known:
        return []
    others = {
        f"mean of the {len(tickets)} tickets": sum(tickets) / len(tickets),
        "best of the tickets": best(tickets),
        "phase 1, where the tickets begin": known.get(PHASE1),
    }
    alone = (network for network in known if network.endswith(WITHOUT))
    others |= {f"{network}, as many steps": known[network] for network in alone}
    unit = "perplexity, lower is better" if texts else "points of accuracy"
    beside = [
        [other, f"{known[SUPERPOSED] - value:+.2f}"]
        for other, value in others.items()
        if value is not None
    ]
    return [Table(["the superposed ticket against", unit], beside)]


def taken(results: Mapping[str, Any]) -> str:
    """How long it took, in a sentence; empty if that is not known.

    Args:
      results: as of `table`.
    """
    own = results.get("seconds")
    if not is_number(own):
        return ""
    of_all = results.get("seconds_of_all", own)
    beside = f", {of_all:.0f} s with the runs for comparison" if of_all > own else ""
    return f"Training and evaluation took {own:.0f} s{beside}."
