"""Runs a study of `experiments.studies`, and writes its table and its page.

    python -m experiments.study NAME --out=OUT

Every run has a folder; finished ones are left alone, so that the command goes on where
it was stopped. Runs of one cell and seed that begin alike train their phase 1 once.
--part=2/4 does every fourth pair of cell and seed, beginning with the second, beside
three other processes that do the rest in the same OUT. At the end OUT/NAME.csv has a
line for every run that is finished and every network that counts, and OUT/NAME.md what
they say, with pictures. --csv=FILE writes the page from such a table alone.
"""

import argparse
import importlib
import itertools
import pkgutil
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import experiments.studies as studies
from experiments import lottery
from experiments.build.option_rules import check_options, without_unused
from experiments.command import check_devices, end_with_failures, start
from experiments.config.fields import Config, check_config
from experiments.config.flags import Parser, file_path, folder_path
from experiments.config.reading import Pairs, Source, read_source
from experiments.reports.study import gather_study, read_table
from experiments.reports.study_page import page_files, write_page
from experiments.runs.layout import lottery_folder, member_name
from experiments.runs.ownership import check_no_run
from experiments.studies.values import LOTTERY, Arm, Cell, Study
from experiments.sweep import Member, run_members
from sup_tickets.checks import check_one_of

_ROOT = Path(__file__).parents[1]


def study_names() -> tuple[str, ...]:
    """The studies there are."""
    found = (module.name for module in pkgutil.iter_modules(studies.__path__))
    return tuple(name for name in found if name != "values")


def read_study(name: str) -> Study:
    """The study of a name.

    Raises:
      ValueError: if there is none.
    """
    check_one_of("NAME", name, study_names())
    return importlib.import_module(f"experiments.studies.{name}").STUDY


def source_of(study: Study, fields: Pairs = ()) -> Source:
    """The configuration of a study, wherever the command was typed.

    Args:
      study: whose file is one of `configs`.
      fields: that are overridden.
    """
    return read_source(str(_ROOT / study.config), fields)


class Unit(NamedTuple):
    """Runs that one process does: of a seed, a cell and some of the arms."""

    seed: int
    cell: Cell
    arms: tuple[Arm, ...]

    @property
    def drawn(self) -> bool:
        """Whether their masks are a lottery's."""
        return _is_drawn(self.cell, self.arms[0])


def units(study: Study) -> list[list[Unit]]:
    """All runs, the first seed of every cell first; a list is for one process.

    Those of lotteries come last. Cells that differ in mask and sparsity alone share
    the rounds, and so a process.
    """
    plain, drawn = [], {}
    for seed in study.seeds:
        for cell in study.cells:
            groups = [
                tuple(arm for arm in study.arms if _is_drawn(cell, arm) is is_drawn)
                for is_drawn in (False, True)
            ]
            if groups[0]:
                plain.append([Unit(seed, cell, groups[0])])
            if groups[1]:
                unit = Unit(seed, cell, groups[1])
                drawn.setdefault(_lottery(unit), []).append(unit)
    return [*plain, *drawn.values()]


def _is_drawn(cell: Cell, arm: Arm) -> bool:
    return {**cell.fields, **arm.fields}.get("mask") == LOTTERY


def _lottery(unit: Unit) -> tuple[tuple[str, str], ...]:
    """What tells the lottery of a unit from others."""
    fields = unit.cell.fields.items()
    own = [(name, v) for name, v in fields if name not in ("mask", "sparsity")]
    return (("seed", str(unit.seed)), *own)


def members(
    unit: Unit,
    out: Path,
    *,
    source: Source,
    tickets: Mapping[float, Path] = types.MappingProxyType({}),
) -> list[Member]:
    """The runs of a unit, in the order of the arms.

    Args:
      unit: of a study.
      out: the folder of the study.
      source: of the configuration.
      tickets: of the lottery by sparsity; until they are found, masks are random.

    Raises:
      ValueError: naming the run and what is wrong with it.
    """
    found = []
    for arm in unit.arms:
        name = member_name(unit.cell.name, arm.name, unit.seed)
        given = {**unit.cell.fields, **arm.fields, "seed": str(unit.seed)}
        if unit.drawn:
            given["mask"] = "random"
        try:
            config = source.make(list(given.items()))
            if tickets:
                config.masks = str(tickets[config.method.sparsity])
                config.mask.weights = "file"
            check_config(config)
            config = without_unused(config)  # one arm has a use for what another lacks
            check_options(config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found.append(Member(name, config, out / name))
    return found


def run_study(
    study: Study,
    out: Path,
    *,
    part: tuple[int, int] = (1, 1),
    fields: Pairs = (),
    devices: Sequence[Any] | None = None,
) -> dict[str, str]:
    """Trains all runs of a part that are not finished, seed by seed.

    Args:
      study: what to compare.
      out: gets a folder for every run, and one for the rounds of lotteries.
      part: ``(i, n)``, the i-th of n parts, counted from 1.
      fields: that are overridden in all runs.
      devices: by default all.

    Returns:
      The errors of the runs that failed, by their names.

    Raises:
      ValueError: if anything is wrong that can be known before a run.
      Stopped: after a signal, once the run at work is saved.
    """
    check_no_run(out)
    source = source_of(study, fields)
    every = units(study)
    for unit in itertools.chain.from_iterable(every):  # what is wrong is wrong at once
        members(unit, out, source=source)
    failed: dict[str, str] = {}
    for unit in itertools.chain.from_iterable(every[part[0] - 1 :: part[1]]):
        ours = members(unit, out, source=source)
        if unit.drawn:
            targets = {member.config.method.sparsity for member in ours}
            options = lottery.Options(
                prune_fraction=study.prune_fraction, targets=tuple(targets)
            )
            tickets = lottery.find_tickets(
                *(_rounds(unit, source), lottery_folder(out, _lottery(unit)), options),
                devices=devices,
            )
            ours = members(unit, out, source=source, tickets=tickets)
        failed |= run_members(ours, devices=devices)
    return failed


def _rounds(unit: Unit, source: Source) -> Config:
    """What the rounds of a lottery train, whatever the sparsity of the ticket."""
    config = source.make([*_lottery(unit), ("mask", "random")])
    check_config(config)
    return without_unused(config)


def read_part(text: str) -> tuple[int, int]:
    """The type of --part: "2/4".

    Raises:
      argparse.ArgumentTypeError: if it is no part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; it must look like 2/4")
    return int(match[1]), int(match[2])


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.study", __doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(study_names()))
    folder, part = "for the runs and the page", "of the runs (1/1: all)"
    parser.add_argument(
        "--out", required=True, type=folder_path, metavar="DIR", help=folder
    )
    parser.add_argument(
        "--part", default=(1, 1), type=read_part, metavar="I/N", help=part
    )
    table = "a finished table, of which the page is written"
    parser.add_argument("--csv", type=file_path, metavar="FILE", help=table)
    parser.add_fields()
    parser.add_switch("--dry_run", "check and name the runs only")
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    name, out = options.name, options.out
    study = read_study(name)
    page_files(name, out)
    failed: dict[str, str] = {}
    if options.csv is not None:
        rows = read_table(study, options.csv)
    else:
        if options.dry_run:
            source = source_of(study, options.fields)
            for unit in itertools.chain.from_iterable(units(study)):
                for member in members(unit, out, source=source):
                    print(member.path)
            return
        check_devices()
        failed = run_study(study, out, part=options.part, fields=options.fields)
        rows = gather_study(study, out)
    print(f"\n{write_page(study, name, rows, out)}")
    end_with_failures(failed)


if __name__ == "__main__":
    main()
