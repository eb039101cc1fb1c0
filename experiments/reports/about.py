"""What a page says of itself: when and by what it was made, and what its words mean."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reports.columns import is_number
from experiments.reports.page import (
    Block,
    Heading,
    Picture,
    Table,
    Text,
)

GLOSSARY = {
    "accuracy": "share of the examples whose most probable label is right",
    "perplexity": "exp of the mean NLL of a word or letter; less is better",
    "NLL": "negative log-likelihood of the labels, mean, in nats; less is better",
    "ECE": "expected calibration error: how far confidence is from accuracy, over 15 "
    "bins of confidence; less is better",
    "Brier": "squared error of the probabilities; less is better",
    "sparsity": "share of the prunable weights that are exactly 0",
    "phase 1": "training before the cheap tickets",
    "ticket": "the sparse network at the end of one short cycle of training",
    "superposed ticket": "the average of the tickets, pruned back to their sparsity",
    "ensemble of the tickets": "their mean prediction; costs all of them at inference",
    "exploration": "at the start of a cycle: a share of the weights is replaced",
    "topology update": "some active weights are dropped, others grown",
    "overlap": "of masks: active in both, over active in either; of an update: the "
    "share of the active weights that were active before",
    "KL": "Kullback-Leibler divergence of the predictions of two networks",
    "barrier": "how far the loss rises above its ends on the line between two networks",
    "FLOPs": "operations, 2 for each use of an active weight",
}
"""Words of reports, in this order."""


def with_notes(
    blocks: Sequence[Block], results: Sequence[Mapping[str, Any]]
) -> list[Block]:
    """A page with what made it below its title, and with a glossary at its end.

    Args:
      blocks: of the page; the first is its title.
      results: of its runs, as of ``results.json``.
    """
    title, *others = blocks
    return [title, *_made_lines(results), *others, *_glossary(blocks)]


def _made_lines(found: Sequence[Mapping[str, Any]]) -> list[Block]:
    """When results were made, by which versions and by which command."""
    makers = [one.get("made_by") for one in found]
    known = [by for by in makers if isinstance(by, dict)]
    parts = [_dates([str(one["date"]) for one in found if one.get("date")])]
    for name in ("sup-tickets", "jax", "python"):
        versions = sorted({str(by[name]) for by in known if by.get(name)})
        parts.append(f"{name} {', '.join(versions)}" if versions else "")
    devices = {
        f"{by.get('devices')} x {by['device']}" for by in known if "device" in by
    }
    parts.append(", ".join(sorted(devices)))
    spent = [one["seconds"] for one in found if is_number(one.get("seconds"))]
    hours = sum(spent) / 3600
    parts.append(f"{hours:.1f} hours in all" if hours >= 0.1 else "")
    lines = [f"Made {'; '.join(filter(None, parts))}."] if any(parts) else []
    commands = list(
        dict.fromkeys(str(by["command"]) for by in known if "command" in by)
    )
    if commands:
        more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
        lines.append(f"Command: {commands[0]}{more}")
    return [*map(Text, lines)]


def _dates(dates: Sequence[str]) -> str:
    days = sorted({date[:10] for date in dates})
    return f"{days[0]} to {days[-1]}" if len(days) > 1 else (max(dates, default=""))


def _glossary(blocks: Sequence[Block]) -> list[Block]:
    """The meaning of those words of `GLOSSARY` that a page has."""
    text = "\n".join(_text(block) for block in blocks)
    rows = [
        [word, meaning]
        for word, meaning in GLOSSARY.items()
        if re.search(rf"\b{re.escape(word)}\b", text)
    ]
    if not rows:
        return []
    return [Heading(2, "What the words mean"), Table(["word", "meaning"], rows, 2)]


def _text(block: Block) -> str:
    """What of a block has words of ours: not plans and configurations."""
    match block:
        case Table(head, rows):
            return "\n".join([*head, *(row[0] for row in rows if row)])
        case Heading(_, text) | Text(text) | Picture(_, text):
            return text
    return ""
