"""Networks that finished runs left in their folders, by name."""

from collections.abc import Sequence
from pathlib import Path

from experiments.runs.layout import (
    CHECKPOINTS,
    CONFIG,
    FINAL,
    LAST,
    MADE_BY,
    SUFFIX,
    read_object,
)
from sup_tickets.checks import did_you_mean


def network_files(run: Path) -> dict[str, Path]:
    """The networks of a run by name: "final", then "tickets/ticket-1", ...

    Args:
      run: its folder.

    Raises:
      ValueError: if there is none, and how to go on with a run that is not finished.
    """
    files = {LAST: run / f"{FINAL}{SUFFIX}"}
    tickets = sorted((run / "tickets").glob(f"*{SUFFIX}"), key=_in_order)
    files |= {f"tickets/{path.name.removesuffix(SUFFIX)}": path for path in tickets}
    found = {name: path for name, path in files.items() if path.is_file()}
    if not found:
        raise ValueError(
            _unfinished(run)
            or f"{run} has no network; is it the folder of a finished run?"
        )
    return found


def _unfinished(run: Path) -> str | None:
    """What to say of a run that has no last network yet; ``None`` of others."""
    if (run / f"{FINAL}{SUFFIX}").exists() or not (run / CONFIG).exists():
        return None
    saved = [int(p.name) for p in (run / CHECKPOINTS).glob("*") if p.name.isdigit()]
    text = f"{run} is not finished: it was saved up to step {max(saved, default=0)}"
    try:
        command = read_object(run / MADE_BY)["sessions"][-1]["by"]["command"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"{text}; start its command again to go on"
    return f"{text}; to go on: {command}"


def chosen_files(run: Path, names: Sequence[str]) -> dict[str, Path]:
    """Some of the networks of a run.

    Args:
      run: its folder.
      names: of `network_files`, or "all"; the folder "tickets/" may be left out, and
        spaces be written for hyphens.

    Raises:
      ValueError: naming the first that there is not, and the nearest that there is;
        or how to go on with a run that is not finished.
    """
    known = network_files(run)
    chosen: dict[str, Path] = {}
    for name in names:
        if name == "all":
            chosen |= known
            continue
        plain = name.replace(" ", "-").removesuffix(SUFFIX)
        full = plain if plain in known else f"tickets/{plain}"
        if full not in known:
            hint = did_you_mean(plain, known)
            unfinished = _unfinished(run) if plain == LAST else None
            raise ValueError(unfinished or f"{run} has no network {name!r}{hint}")
        chosen[full] = known[full]
    return chosen


def _in_order(path: Path) -> tuple[int, str]:
    """Sorts ticket-2 before ticket-10."""
    return len(path.name), path.name
