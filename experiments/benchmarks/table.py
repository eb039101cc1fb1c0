"""The page of a benchmark that is one table, and its command."""

import argparse
import os
import platform
import resource
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from experiments.command import check_devices, start
from experiments.config.flags import Parser
from sup_tickets.checks import check_whole

_PAGES = Path(__file__).parents[2] / "docs" / "results"


class Row(NamedTuple):
    """One line of the table."""

    what: str
    figure: float
    target: float | None  # which the figure should not exceed
    note: str

    def cells(self) -> tuple[str, ...]:
        """As they are printed."""
        target = "" if self.target is None else f"{self.target:.3g}"
        return self.what, f"{self.figure:.3g}", target, self.note


def table_command(
    name: str,
    description: str | None,
    rows: Callable[[argparse.Namespace], Iterable[Row]],
    *,
    repeats: int,
    switches: Mapping[str, str] = {},
    flags: Mapping[str, str] = {},
    argv: Sequence[str] | None = None,
) -> None:
    """A command that prints the page, each row as soon as it is measured.

    Args:
      name: of the module in `experiments.benchmarks`.
      description: its docstring, whose first line is the title of the page.
      rows: from the flags to what is measured.
      repeats: timed calls of each program by default.
      switches: further flags and what they do.
      flags: further ones that have a value, likewise.
      argv: the words after the command; by default those of the process.
    """
    parser = Parser(f"experiments.benchmarks.{name}", description)
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="timed calls of each"
    )
    for flag, text in switches.items():
        parser.add_switch(flag, text)
    for flag, text in flags.items():
        parser.add_argument(flag, help=text)
    words = sys.argv[1:] if argv is None else argv
    command = " ".join([f"python -m experiments.benchmarks.{name}", *words])

    def body(options: argparse.Namespace) -> None:
        check_whole("--repeats", options.repeats, 1)
        check_devices()
        _print_page(command, description or "", rows(options))

    start(parser, body, argv)


def _print_page(command: str, description: str, rows: Iterable[Row]) -> None:
    begun = time.perf_counter()
    title, _, about = description.partition("\n")
    _, _, about = about.strip().partition("\n\n")  # without the command
    print(f"# {title.rstrip('.')}\n\n`{command}`\n\n{about.strip()}\n")
    print("| what | figure | at most | from |\n| --- | --- | --- | --- |", flush=True)
    found = []
    for row in rows:
        found.append(row)
        print(f"| {' | '.join(row.cells())} |", flush=True)
    print("\n" + "\n".join(f"- {line}" for line in (*machine(), _cost(begun))))
    worst, what = max((r.figure / r.target, r.what) for r in found if r.target)
    print(f"- worst: {worst:.2f} of its target: {what}")


def figure_of(page: str, what: str) -> float | None:
    """A figure on the page of a benchmark in ``docs/results``, ``None`` without one."""
    file = _PAGES / f"bench_{page}.md"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == what:
            return float(cells[1])
    return None


def page_file(options: argparse.Namespace, default: str) -> Path | None:
    """Where a command with the flags ``--out`` and ``--quick`` writes its page.

    Raises:
      ValueError: if its folder is not there.
    """
    out = options.out or (None if options.quick else Path(default))
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out={out}: there is no such folder")
    return out


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(text: str) -> str:
    """A paragraph."""
    return textwrap.fill(text, 88, break_long_words=False, break_on_hyphens=False)


def _cost(begun: float) -> str:
    """Of the process so far; ``ru_maxrss`` is in kilobytes on Linux."""
    wall, own = time.perf_counter() - begun, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"took {wall:.0f} s, {own:.0f} s of processor time, {peak:.1f} GB at most"


def machine() -> list[str]:
    """Where and when this is."""
    cores = f"{os.cpu_count()} cores"
    if hasattr(os, "getloadavg"):
        cores += f", load {os.getloadavg()[0]:.1f} at the end"
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return [
        f"machine: {_processor()}, {cores}; device: {devices}",
        f"python {platform.python_version()}, jax {jax.__version__}, optax "
        f"{optax.__version__}, {datetime.now(UTC):%Y-%m-%d}",
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
