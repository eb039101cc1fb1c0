r"""Runs every combination of some values of a configuration's fields.

    python -m experiments.sweep --config=configs/digits.py --out=runs/sweep \
        --grid='method=set,rigl sparsity=0.8,0.9,0.95 seed=0..4'

Names are those of `configs.common.ALIASES` or dotted fields; ``a..b`` are the whole
numbers from a to b; values with commas or spaces are put into quotes. Each combination
has a folder; a finished one is left alone, and one that was broken off goes on. Runs
that are the same until the end of phase 1 train it once: the others branch from the
first, see config.branch_from. Runs of a small network that differ in seeds, and in
numbers that are no shapes, are trained by one program, at most --replicas of them, see
docs/replicas.md. At the end all are gathered into OUT/report.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import run
from experiments.build.shared import builder, weights_of
from experiments.command import check_devices, end_with_failures, start
from experiments.config.fields import Config, as_config, check_config, flat
from experiments.config.flags import Parser, folder_path
from experiments.config.reading import Source, as_source
from experiments.grid import check_names, pairs_of, parse_grid
from experiments.replicas import Member, run_together
from experiments.reports.runs import report, report_files
from experiments.runs.branch import branch_of, find_source
from experiments.runs.layout import folder_name
from experiments.runs.ownership import check_no_run, is_finished
from experiments.runs.stopping import Stopped
from experiments.turns import Checked, in_turn, is_begun
from sup_tickets.checks import check_whole

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
    for pairs in pairs_of(grid):
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
) -> list[Checked | None]:
    """Builds every run that is not finished, so that no error waits for its turn.

    Returns:
      What is known of each; ``None`` if it is finished.

    Raises:
      ValueError: naming the combination and what is wrong with it.
    """
    checked: list[Checked | None] = []
    build = builder(devices)
    for member in found:
        try:
            if is_finished(member.path, member.config):
                checked.append(None)
                continue
            built = build(member.config)
            built.inputs.close()
            checked.append(Checked(built.plan.epoch_steps, weights_of(built)))
            if not is_begun(member):
                built.check_files()
                branch_of(member.config, built)
        except ValueError as error:
            raise ValueError(f"{member.name}: {error}") from error
    return checked


def branching(member: Member, earlier: Sequence[Member], epoch_steps: int) -> Config:
    """The configuration of a run, to start from an earlier one if they begin alike.

    Args:
      member: the run.
      earlier: those that were run before it.
      epoch_steps: of the run.
    """
    config = as_config(member.config.to_dict())
    if config.branch_from is None and not is_begun(member):
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
    replicas: int | None = None,
) -> dict[str, str]:
    """Runs all combinations, and gathers what finished.

    Args:
      config: see `members`.
      grid: see `parse_grid`.
      out: the folder of the sweep.
      dry_run: whether to check and print only.
      devices: by default all.
      replicas: at most so many that differ in seeds and other numbers that are no
        shapes are trained by one program; by default 8 of a small network, and 1 of
        others.

    Returns:
      The errors of the runs that failed, by their names.

    Raises:
      ValueError: if anything is wrong that can be known before the first run.
      Stopped: after a signal, once the run at work is saved.
    """
    found = members(config, parse_grid(grid), out)
    check_no_run(out)
    report_files(out / "report")
    failed = run_members(found, dry_run=dry_run, devices=devices, replicas=replicas)
    if not dry_run and len(failed) < len(found):
        folders = [member.path for member in found if member.path.is_dir()]
        print(f"\nreport: {report(folders, out / 'report')}")
    return failed


def run_members(
    found: Sequence[Member],
    *,
    dry_run: bool = False,
    devices: Sequence[Any] | None = None,
    replicas: int | None = None,
) -> dict[str, str]:
    """Runs what is not finished, one after the other or some together.

    Args:
      found: all of them.
      dry_run: whether to check and print only.
      devices: by default all.
      replicas: at most so many that differ in seeds and other numbers that are no
        shapes are trained by one program; by default 8 of a small network, and 1 of
        others.

    Returns:
      The errors of the runs that failed, by their names.

    Raises:
      ValueError: if anything is wrong that can be known before the first run.
      Stopped: after a signal, once the run at work is saved.
    """
    checked = check_members(found, devices)
    for member, known in zip(found, checked, strict=True):
        begun = "begun" if member.path.exists() else "to do"
        print(f"{member.path}: {'finished' if known is None else begun}")
    print(f"{len(found)} runs, {checked.count(None)} of them finished", flush=True)
    if dry_run:
        return {}
    failed: dict[str, str] = {}
    done: list[Member] = []
    for rows in in_turn(found, checked, replicas, devices):
        ours: list[Member] = []
        for i in rows:
            member, known = found[i], checked[i]
            if known is not None:
                config = branching(member, done, known.epoch_steps)
                member = member._replace(config=config)
            ours.append(member)
        names = ", ".join(member.name for member in ours)
        numbers = ", ".join(str(i + 1) for i in rows)
        print(f"\n{numbers} of {len(found)}: {names}", flush=True)
        failed |= _run(ours, devices)
        done += [found[i] for i in rows]
    return failed


def _run(ours: Sequence[Member], devices: Sequence[Any] | None) -> dict[str, str]:
    """Runs one, or some together; the errors by name."""
    try:
        if len(ours) == 1:
            run.run(ours[0].config, ours[0].path, devices=devices)
            return {}
        errors = run_together(ours, devices=devices)
    except Stopped:
        raise
    except Exception as error:  # whatever it is, the others can still run
        errors = {member.name: error for member in ours}
    failed = {name: _one_line(error) for name, error in errors.items()}
    for name, text in failed.items():
        print(f"{name} failed: {text}", file=sys.stderr, flush=True)
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
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="at most so many runs by one program; 1: each alone; by default 8 of a "
        "small network",
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    if options.replicas is not None:
        check_whole("--replicas", options.replicas, 1)
    check_devices()
    failed = sweep(
        options.config,
        options.grid,
        options.out,
        dry_run=options.dry_run,
        replicas=options.replicas,
    )
    end_with_failures(failed)


if __name__ == "__main__":
    main()
