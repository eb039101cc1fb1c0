r"""Runs every combination of some values of a configuration's fields.

    python -m experiments.sweep --config=configs/digits.py --out=runs/sweep \
        --grid='method=set,rigl sparsity=0.8,0.9,0.95 seed=0..4'

Names are those of `configs.common.ALIASES` or dotted fields; ``a..b`` are the whole
numbers from a to b; values with commas or spaces are put into quotes. Each combination
has a folder; a finished one is left alone, and one that was broken off goes on. Runs
that are the same until the end of phase 1 train it once: the others branch from the
first, see config.branch_from. At the end all are gathered into OUT/report.
"""

import argparse
import difflib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.common import ALIASES
from experiments import run
from experiments.build import experiment as build
from experiments.command import check_devices, end_with_failures, start
from experiments.config.fields import FIELDS, Config, as_config, check_config, flat
from experiments.config.flags import Parser, folder_path
from experiments.config.reading import Source, as_source
from experiments.config.values import split, unquoted
from experiments.reports.runs import report, report_files
from experiments.runs.branch import branch_of, find_source
from experiments.runs.layout import CHECKPOINTS, folder_name
from experiments.runs.ownership import check_no_run, is_finished
from experiments.runs.stopping import Stopped

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 10_000  # combinations; more are a mistake


class Member(NamedTuple):
    """One combination."""

    name: str  # "method=set,seed=0", of its folder
    config: Config
    path: Path


# --- The grid -------------------------------------------------------------------------


def parse_grid(text: str) -> dict[str, list[str]]:
    """The values of each name, as texts.

    Args:
      text: "name=value,value name=first..last", parted by spaces.

    Raises:
      ValueError: naming the part that is wrong.

    Example:
      >>> parse_grid("method=set,rigl seed=0..2")
      {'method': ['set', 'rigl'], 'seed': ['0', '1', '2']}
    """
    grid: dict[str, list[str]] = {}
    for part in filter(None, split(re.sub(r"\s", " ", text), " ")):
        part = part.strip()
        name, equals, values = part.partition("=")
        if not (name and equals and values):
            raise ValueError(f"--grid has {part!r}; it must look like seed=0..4")
        if name in grid:
            raise ValueError(f"--grid has {name!r} twice")
        grid[name] = [v for word in split(values) for v in _values(part, word)]
        if len(set(grid[name])) < len(grid[name]):
            raise ValueError(f"--grid has a value twice in {part!r}")
    if not grid:
        raise ValueError(
            "--grid is empty; it must look like 'method=set,rigl seed=0..4'"
        )
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > _MOST:
        raise ValueError(f"--grid has {count} combinations, more than {_MOST}")
    return grid


def _values(part: str, word: str) -> list[str]:
    match = _RANGE.fullmatch(word)
    if match is None:
        name = part.partition("=")[0]
        field = FIELDS.get(ALIASES.get(name, name))
        is_path = field is not None and field.kind.startswith("path")
        if not word or (not is_path and (".." in word or "/" in word)):
            raise ValueError(f"--grid has {word!r} in {part!r}, which is no value")
        return [unquoted(word)]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= _MOST:
        raise ValueError(f"--grid has {word!r}, which must go upwards")
    return [str(number) for number in range(first, last + 1)]


def combinations(grid: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of all combinations, the last name of the grid fastest.

    Example:
      >>> combinations({"method": ["set", "rigl"], "seed": ["0"]})
      ['method=set,seed=0', 'method=rigl,seed=0']
    """
    return [folder_name(pairs) for pairs in _pairs(grid)]


def _pairs(grid: Mapping[str, Sequence[str]]) -> list[list[tuple[str, str]]]:
    return [
        list(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]


def check_names(grid: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Raises unless all names are known, and of different fields.

    Args:
      grid: by names.
      fields: dotted names of the configuration's fields.

    Raises:
      ValueError: naming the first that is unknown, and the nearest known one.
    """
    known, seen = [*ALIASES, *fields], {}
    for name in grid:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise ValueError(
                f"--grid has an unknown name {name!r}; did you mean {near[0]!r}?"
            )
        field = ALIASES.get(name, name)
        if field in seen:
            raise ValueError(f"--grid has {name!r} and {seen[field]!r}, one field")
        seen[field] = name


# --- The runs -------------------------------------------------------------------------


def members(
    config: Source | str, grid: Mapping[str, Sequence[str]], out: Path
) -> list[Member]:
    """Every combination with its configuration, names and types checked.

    Args:
      config: "FILE.py" or "FILE.py:name=value,name=value", or that file as it was read.
      grid: of `parse_grid`.
      out: the folder of the sweep.

    Raises:
      ValueError: naming the combination and what is wrong with it.
    """
    source = as_source(config)
    check_names(grid, list(flat(source.make())))
    found = []
    for pairs in _pairs(grid):
        name = folder_name(pairs)
        try:
            made = source.make(pairs)
            check_config(made)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found.append(Member(name, made, out / name))
    return found


def check_members(
    found: Sequence[Member], devices: Sequence[Any] | None
) -> list[int | None]:
    """Builds every run that is not finished, so that no error waits for its turn.

    Returns:
      The steps of an epoch of each; ``None`` if it is finished.

    Raises:
      ValueError: naming the combination and what is wrong with it.
    """
    epochs: list[int | None] = []
    for member in found:
        try:
            if is_finished(member.path, member.config):
                epochs.append(None)
                continue
            built = build.build(member.config, devices=devices)
            built.inputs.close()
            epochs.append(built.plan.epoch_steps)
            if not _is_begun(member):
                built.check_files()
                branch_of(member.config, built)
        except ValueError as error:
            raise ValueError(f"{member.name}: {error}") from error
    return epochs


def _is_begun(member: Member) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any((member.path / CHECKPOINTS).glob("*"))


def branching(member: Member, earlier: Sequence[Member], epoch_steps: int) -> Config:
    """The configuration of a run, to start from an earlier one if they begin alike.

    Args:
      member: the run.
      earlier: those that were run before it.
      epoch_steps: of the run.
    """
    config = as_config(member.config.to_dict())
    if config.branch_from is None and not _is_begun(member):
        others = [(other.path, other.config) for other in earlier]
        source = find_source(config, others, epoch_steps=epoch_steps)
        config.branch_from = None if source is None else str(source)
    return config


def sweep(
    config: Source | str,
    grid: str,
    out: Path,
    *,
    dry_run: bool = False,
    devices: Sequence[Any] | None = None,
) -> dict[str, str]:
    """Runs all combinations, one after the other, and gathers what finished.

    Args:
      config: see `members`.
      grid: see `parse_grid`.
      out: the folder of the sweep.
      dry_run: whether to check and print only.
      devices: by default all.

    Returns:
      The errors of the runs that failed, by their names.

    Raises:
      ValueError: if anything is wrong that can be known before the first run.
      Stopped: after a signal, once the run at work is saved.
    """
    found = members(config, parse_grid(grid), out)
    check_no_run(out)
    report_files(out / "report")
    failed = run_members(found, dry_run=dry_run, devices=devices)
    if not dry_run and len(failed) < len(found):
        folders = [member.path for member in found if member.path.is_dir()]
        print(f"\nreport: {report(folders, out / 'report')}")
    return failed


def run_members(
    found: Sequence[Member],
    *,
    dry_run: bool = False,
    devices: Sequence[Any] | None = None,
) -> dict[str, str]:
    """Runs what is not finished, one after the other.

    Args:
      found: all of them.
      dry_run: whether to check and print only.
      devices: by default all.

    Returns:
      The errors of the runs that failed, by their names.

    Raises:
      ValueError: if anything is wrong that can be known before the first run.
      Stopped: after a signal, once the run at work is saved.
    """
    epochs = check_members(found, devices)
    for member, steps in zip(found, epochs, strict=True):
        begun = "begun" if member.path.exists() else "to do"
        print(f"{member.path}: {'finished' if steps is None else begun}")
    print(f"{len(found)} runs, {epochs.count(None)} of them finished", flush=True)
    if dry_run:
        return {}
    failed: dict[str, str] = {}
    for i, (member, steps) in enumerate(zip(found, epochs, strict=True)):
        print(f"\n{i + 1} of {len(found)}: {member.name}", flush=True)
        try:
            config = member.config
            if steps is not None:
                config = branching(member, found[:i], steps)
            run.run(config, member.path, devices=devices)
        except Stopped:
            raise
        except Exception as error:  # whatever it is, the others can still run
            failed[member.name] = _one_line(error)
            print(f"failed: {failed[member.name]}", file=sys.stderr, flush=True)
    return failed


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.sweep", __doc__)
    parser.add_config()
    folder = "for the runs and their report"
    parser.add_argument(
        "--out", required=True, type=folder_path, metavar="DIR", help=folder
    )
    grid, values = "'name=value,value ...'", "what is combined with what"
    parser.add_argument("--grid", required=True, metavar=grid, help=values)
    parser.add_switch("--dry_run", "check and print only")
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    check_devices()
    failed = sweep(options.config, options.grid, options.out, dry_run=options.dry_run)
    end_with_failures(failed)


if __name__ == "__main__":
    main()
