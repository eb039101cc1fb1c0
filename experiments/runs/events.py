"""The events of a run: one line of JSON each, evidence that nothing relies on."""

import json
from pathlib import Path
from typing import Any

CHANGES = ("update", "explore")
"""Events that change the topology."""


def read_events(path: Path, *, size: int | None = None) -> list[dict[str, Any]]:
    """The lines of a file of events; lines that were cut short are left out.

    Args:
      path: of the file; one that is not there has none.
      size: bytes to look at; by default all.
    """
    try:
        lines = path.read_bytes()[:size].decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
