r"""Compares ways to train a mask, over masks, sparsities and seeds.

    python -m experiments.tost_study --out=OUT --seeds=0..9 --sparsities=0.95,0.98 \
        --config=configs/fashion_mnist.py:epochs=10,data.crop_padding=0 \
        --masks=random,snip,lottery --tost=false,true,soft,skips,rescale,labels

Masks are those of `experiments.build.start.MASKS`, and "lottery": tickets of iterative
magnitude pruning, found for every seed by `experiments.lottery` without ToST. Every
combination is a run in a folder of its own; finished ones are left alone, so that the
command goes on where it was stopped, and a second one can do other seeds beside it.
Then OUT/tost.md has a table of means and standard deviations over seeds, and of
differences from the first way to train, and OUT/tost.csv a line for every run.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.build.rules import without_unused
from experiments.build.start import MASKS
from experiments.command import check_devices, end_with_failures, start
from experiments.config.fields import check_config
from experiments.config.flags import Parser, folder_path
from experiments.config.reading import Source, as_source
from experiments.lottery import Options, find_tickets
from experiments.reports.gather import Frame, Series, numbers, pair, spread, write_csv
from experiments.reports.page import Block, Heading, Table, Text, to_markdown
from experiments.runs.ownership import check_no_run
from experiments.runs.stored import StoredRun, read_run
from experiments.runs.written import Outputs
from experiments.sweep import Member, parse_grid, run_members
from sup_tickets.checks import check_one_of

LOTTERY = "lottery"

_COLUMNS = ("sparsity", "mask", "tost", "seed", "accuracy", "nll", "ece", "seconds")
_TITLES = {"false": "plain", "true": "all of ToST"}  # in tables; others as they are


class Study(NamedTuple):
    """What is compared; texts as in the argument of a configuration."""

    config: Source
    seeds: Sequence[str]
    sparsities: Sequence[str]
    masks: Sequence[str]  # of `MASKS`, or `LOTTERY`
    tost: Sequence[str]  # ways to train; the first is what others are compared with
    lottery: Options = Options()  # its targets are the sparsities


def study_of(
    config: Source | str, options: Mapping[str, str], lottery: Options
) -> Study:
    """A study from lists of values.

    Args:
      config: "FILE.py" or "FILE.py:name=value", or that file as it was read.
      options: "seeds", "sparsities", "masks" and "tost", as values of a sweep's grid.
      lottery: see `Study`.

    Raises:
      ValueError: naming the list that is wrong.
    """
    lists = {
        name: parse_grid(f"{name}={values}")[name] for name, values in options.items()
    }
    for mask in lists["masks"]:
        check_one_of("masks", mask, (*MASKS, LOTTERY))
    try:
        targets = tuple(map(float, lists["sparsities"]))
    except ValueError as error:
        raise ValueError(f"sparsities must be numbers: {error}") from error
    return Study(as_source(config), **lists, lottery=lottery._replace(targets=targets))


def run_study(
    study: Study, out: Path, *, devices: Sequence[Any] | None = None
) -> dict[str, str]:
    """Finds tickets and trains all combinations, seed by seed.

    Args:
      study: what to compare.
      out: gets a folder for every run, and one for the lotteries.
      devices: by default all.

    Returns:
      The errors of the runs that failed, by their names.

    Raises:
      ValueError: if anything is wrong that can be known before the runs of a seed.
      Stopped: after a signal, once the run at work is saved.
    """
    check_no_run(out)
    _tables(out)
    for seed in study.seeds:
        _members(study, out, seed, tickets={})  # what is wrong is wrong at once
    failed: dict[str, str] = {}
    for seed in study.seeds:
        tickets: dict[float, Path] = {}
        if LOTTERY in study.masks:
            config = _config(study, seed=seed, mask="random")
            folder = out / LOTTERY / f"seed={seed}"
            tickets = find_tickets(config, folder, study.lottery, devices=devices)
        failed |= run_members(_members(study, out, seed, tickets), devices=devices)
    return failed


def _members(
    study: Study, out: Path, seed: str, tickets: Mapping[float, Path]
) -> list[Member]:
    found = []
    grid = itertools.product(study.sparsities, study.masks, study.tost)
    for sparsity, mask, tost in grid:
        name = f"seed={seed},sparsity={sparsity},mask={mask},tost={tost}"
        own = {"mask": "random" if mask == LOTTERY else mask, "tost": tost}
        try:
            config = _config(study, seed=seed, sparsity=sparsity, **own)
            if mask == LOTTERY and tickets:
                config.masks = str(tickets[float(sparsity)])
                config.mask.weights = "file"
            check_config(config)
            # What one way has no use for, another has.
            config = without_unused(config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found.append(Member(name, config, out / name))
    return found


def _config(study: Study, **values: str) -> Any:
    return study.config.make(list(values.items()))


# --- The tables -----------------------------------------------------------------------


def write_tables(out: Path) -> Path:
    """Writes ``tost.csv`` and ``tost.md`` from all runs that are finished.

    Raises:
      ValueError: if there are none, or a table is there that no study wrote.
    """
    files = _tables(out)
    runs = [
        (dict(part.split("=", 1) for part in folder.name.split(",")), read_run(folder))
        for folder in sorted(out.glob("seed=*,sparsity=*,mask=*,tost=*"))
        if (folder / "results.json").exists()
    ]
    if not runs:
        raise ValueError(f"there is no finished run in {out}")
    rows: Frame = pd.DataFrame([_row(names, run) for names, run in runs], dtype=object)
    rows["seed"] = rows["seed"].astype(int)
    rows = rows.sort_values(["sparsity", "mask", "seed"])
    lines = rows.to_dict("records")
    files.write("tost.csv", lambda path: write_csv(path, lines, _COLUMNS))
    files.write("tost.md", to_markdown(_blocks(rows)))
    return out / "tost.md"


def _tables(out: Path) -> Outputs:
    return Outputs(out, "tost.csv", "tost.md")


def _row(names: Mapping[str, str], run: StoredRun) -> dict[str, Any]:
    scores = {**(run.main_row or {}), "seconds": run.results.get("seconds")}
    return {name: names.get(name, scores.get(name)) for name in _COLUMNS}


def _blocks(rows: Frame) -> list[Block]:
    ways: list[str] = list(rows["tost"].unique())
    base = "false" if "false" in ways else ways[0]
    ways = [base, *(way for way in ways if way != base)]
    titles = [_TITLES.get(way, way) for way in ways]
    masks = list(rows["mask"].unique())
    cells = pd.MultiIndex.from_product([masks, ways])
    blocks: list[Block] = [
        Heading(1, "Ways to train a mask"),
        Text(
            f"{len(rows)} runs of {numbers(rows['seconds']).sum() / 3600:.1f} hours in "
            "all. Mean (standard deviation) over seeds; differences are paired by "
            "seed, with p of a two-sided t-test that is not corrected for the number "
            "of tests."
        ),
    ]
    for sparsity, same in rows.groupby("sparsity", sort=False):
        # Of each mask and way a column, of each seed a row.
        by_seed = same.pivot(index="seed", columns=["mask", "tost"])
        accuracy, nll = (by_seed[s].reindex(columns=cells) for s in ("accuracy", "nll"))
        score = [[m, *(_score(accuracy[m, w], 100, 2) for w in ways)] for m in masks]
        gain = [
            [m, *(_gain(accuracy[m, w], accuracy[m, base]) for w in ways[1:])]
            for m in masks
        ]
        losses = [[m, *(_score(nll[m, w], 1, 3) for w in ways)] for m in masks]
        blocks += [
            Heading(2, f"Sparsity {sparsity}"),
            Table(["accuracy, %", *titles], score),
            Table([f"difference from {titles[0]}", *titles[1:]], gain),
            Table(["NLL, nats", *titles], losses),
        ]
    return blocks


def _score(by_seed: Series, scale: float, digits: int) -> str:
    found = scale * spread(by_seed)
    if isnan(found["mean"]):
        return ""
    text = f"{found['mean']:.{digits}f}"
    return text if isnan(found["std"]) else f"{text} ({found['std']:.{digits}f})"


def _gain(ours: Series, base: Series) -> str:
    found = pair(ours, base)
    mean, deviation, _ = 100 * found.spreads["difference"]
    if isnan(mean):
        return ""
    if isnan(deviation):
        return f"{mean:+.2f}"
    p = "" if found.p_value is None else f", p {found.p_value:.2g}"
    return f"{mean:+.2f} ({deviation:.2f}{p})"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.tost_study", __doc__)
    parser.add_config(required=False)
    parser.add_argument("--out", required=True, type=folder_path, metavar="DIR")
    parser.add_argument("--seeds", default="0..2")
    parser.add_argument("--sparsities", default="0.95,0.98")
    parser.add_argument("--masks", default=",".join((*MASKS, LOTTERY)))
    parser.add_argument("--tost", default="false,true,soft,skips,rescale,labels")
    parser.add_argument("--prune_fraction", type=float, default=0.2, help="of a round")
    parser.add_argument("--rewind_epoch", type=int, default=0)
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    lists = {n: getattr(options, n) for n in ("seeds", "sparsities", "masks", "tost")}
    lottery = Options("iterative", options.prune_fraction, options.rewind_epoch)
    failed: dict[str, str] = {}
    if options.config:  # else the tables alone
        check_devices()
        failed = run_study(study_of(options.config, lists, lottery), options.out)
    print(f"\n{write_tables(options.out)}")
    end_with_failures(failed)


if __name__ == "__main__":
    main()
