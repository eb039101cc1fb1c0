"""Networks that finished runs left in their folders, by name."""

from collections.abc import Sequence
from pathlib import Path

from experiments.runs.layout import FINAL, LAST, SUFFIX
from sup_tickets.checks import did_you_mean


def network_files(run: Path) -> dict[str, Path]:
    """The networks of a run by name: "final", then "tickets/ticket-1", ...

    Args:
      run: its folder.

    Raises:
      ValueError: if there is none.
    """
    files = {LAST: run / f"{FINAL}{SUFFIX}"}
    tickets = sorted((run / "tickets").glob(f"*{SUFFIX}"), key=_in_order)
    files |= {f"tickets/{path.name.removesuffix(SUFFIX)}": path for path in tickets}
    found = {name: path for name, path in files.items() if path.is_file()}
    if not found:
        raise ValueError(f"{run} has no network; is it the folder of a finished run?")
    return found


def chosen_files(run: Path, names: Sequence[str]) -> dict[str, Path]:
    """Some of the networks of a run.

    Args:
      run: its folder.
      names: of `network_files`, or "all"; the folder "tickets/" may be left out, and
        spaces be written for hyphens.

    Raises:
      ValueError: naming the first that there is not, and the nearest that there is.
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
            raise ValueError(f"{run} has no network {name!r}{hint}")
        chosen[full] = known[full]
    return chosen


def _in_order(path: Path) -> tuple[int, str]:
    """Sorts ticket-2 before ticket-10."""
    return len(path.name), path.name
