"""Where everything is in the folder of a run, and what networks are called."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CONFIG = "config.json"
MADE_BY = "made_by.json"  # versions, device and command of every process that trained
WRITTEN = "written.json"  # the names of all that the run wrote
RECORD = ".written.json"  # likewise, of a command with --out
PLAN = "plan.txt"
LOG = "metrics.jsonl"  # one line an event
RESULTS = "results.json"  # the last file that a run writes before its report
CHECKPOINTS = "checkpoints"
BOARD = "tensorboard"
REPORT = "report"
SUMMARY = f"{REPORT}/summary.md"  # the last of all: the run is finished
LOCK = ".lock"

_LONGEST = 255  # bytes of a name

SUFFIX = ".safetensors"
FINAL = "final/network"

PHASE1 = "phase 1"
LAST = "final"  # without Sup-tickets
SUPERPOSED = "superposed ticket"
MAIN_NETWORKS = (SUPERPOSED, LAST)
"""What a run is judged by: with Sup-tickets and without."""


def is_ticket(network: str) -> bool:
    """Whether a network is one of the tickets that are superposed."""
    return network.startswith("ticket ")


def ticket_name(number: int) -> str:
    """What the ticket of a cycle is called; cycles count from 1."""
    return f"ticket {number}"


def file_name(network: str) -> str:
    """The name of a network without spaces, "ticket-1"."""
    return network.replace(" ", "-")


def ticket_file(network: str) -> str:
    """Where a ticket, or the network of phase 1, is kept; without the suffix."""
    return f"tickets/{file_name(network)}"


def epoch_file(epoch: int) -> str:
    """Where the network after some epochs is kept; without the suffix."""
    return f"networks/epoch-{epoch}"


def folder_name(pairs: Sequence[tuple[str, str]]) -> str:
    """One name of a folder for names and values; slashes are written as in addresses.

    Raises:
      ValueError: if it is too long for one.
    """
    name = ",".join(
        f"{name}={value.replace('%', '%25').replace('/', '%2F')}"
        for name, value in pairs
    )
    if len(os.fsencode(name)) > _LONGEST:
        raise ValueError(f"it makes a folder's name of over {_LONGEST} bytes: {name}")
    return name


def member_name(cell: str, arm: str, seed: int) -> str:
    """The name of the folder of a study's run.

    Example:
      >>> member_name("RigL 90%", "to the end", 0)
      'cell=RigL-90%25,arm=to-the-end,seed=0'
    """
    names = {"cell": file_name(cell), "arm": file_name(arm), "seed": str(seed)}
    return folder_name(list(names.items()))


def lottery_folder(out: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """Where a study has the rounds of a lottery, which names and values tell apart."""
    return out / "lottery" / folder_name(pairs)


def rounds_of(ticket: Path) -> list[Path]:
    """The folders of the rounds of the lottery that a ticket's file is of."""
    return sorted(p.parent for p in ticket.parent.glob(f"round-*/{RESULTS}"))


def run_folders(paths: Iterable[Path], *, finished: bool = True) -> list[Path]:
    """Folders of runs at or under some paths, in order.

    Args:
      paths: where to look.
      finished: those with results; otherwise those without.

    Raises:
      ValueError: naming the first path that is not a folder.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"there is no folder {str(path)!r}")
        for config in sorted(path.rglob(CONFIG)):
            if (config.parent / RESULTS).exists() == finished:
                found.append(config.parent)
    return list(dict.fromkeys(found))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: if it cannot be read, naming the file.
      OSError: if it is not there.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} cannot be read: it holds a {type(value).__name__}, not an object"
        )
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a folder.

    Raises:
      ValueError: if there is none, or it cannot be read.
    """
    try:
        return read_object(path / CONFIG)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not the folder of a run: no {CONFIG}") from error
