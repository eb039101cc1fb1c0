"""Experiments of several trainings: a folder for every seed, and a report of all.

A seed's folder has ``phases/``, what it is gone on with from, and at last its results.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.build.data_checks import check_different
from experiments.config.fields import Config, Field, as_config, check_config
from experiments.runs.folder import locked
from experiments.runs.identity import named_fields
from experiments.runs.layout import RESULTS
from experiments.runs.made_by import made_by
from experiments.runs.ownership import check_no_run
from experiments.runs.phases import Phases
from experiments.runs.stopping import Signals
from experiments.runs.written import claim
from sup_tickets.files import atomic_write
from sup_tickets.training.processes import say


class Experiment(NamedTuple):
    """What tells one kind of experiment from another."""

    name: str  # of the kind, "KSM"
    fields: Mapping[str, Field]  # of its configurations
    known: Mapping[str, Any]  # what it is known by, besides these
    aside: Sequence[str]  # those that say only where something is
    one_seed: Callable[[Config, Path, Phases], dict[str, Any]]
    """``(config, folder, phases) -> results``, JSON, after all trainings of a seed."""
    report: Callable[[Path], Path]
    """``workdir -> report``, written from all seeds that are finished."""


def run_seeds(
    experiment: Experiment, config: Config, workdir: Path, seeds: Sequence[int] = ()
) -> Path:
    """Trains everything that is not finished, and writes the report.

    Args:
      experiment: its kind.
      config: of all seeds.
      workdir: gets a folder for every seed.
      seeds: by default the configuration's.

    Returns:
      The report as Markdown.

    Raises:
      ValueError: one line, if something is wrong with the arguments; before the folder
        is touched.
      Stopped: after a signal, once everything is saved.
    """
    seeds = tuple(seeds) or (config.seed,)
    check_different("seeds", seeds)
    configs = [_of_seed(experiment, config, seed) for seed in seeds]
    check_no_run(workdir)
    fields = named_fields(config)
    for name in ("seed", *experiment.aside):
        del fields[f"config.{name}"]
    file = workdir / f"{experiment.name.lower()}.json"
    what = f"{experiment.name} experiment"
    claim(file, what, {**fields, **experiment.known}, workdir.glob("seed=*"))
    lock = locked(workdir)
    try:
        with Signals().caught() as signals:
            for ours in configs:
                _run_seed(experiment, ours, workdir / f"seed={ours.seed}", signals)
                signals.check(f"{workdir}: stopped after seed {ours.seed}, all saved")
        return experiment.report(workdir)
    finally:
        lock.release()


def _of_seed(experiment: Experiment, config: Config, seed: int) -> Config:
    ours = as_config(config.to_dict())
    ours.seed = seed
    check_config(ours, experiment.fields)
    return ours


def _run_seed(
    experiment: Experiment, config: Config, folder: Path, signals: Signals
) -> None:
    if (folder / RESULTS).exists():
        say(f"{folder}: finished")
        return
    often = config.checkpoint
    phases = Phases(
        folder / "phases", signals, 60 * often.every_minutes, often.every_steps
    )
    results = {
        "seed": config.seed,
        "evaluated_on": config.evaluate,
        **experiment.one_seed(config, folder, phases),
        "seconds": round(phases.seconds(), 1),
        "made_by": made_by(),
    }
    atomic_write(folder / RESULTS, json.dumps(results, indent=1) + "\n")
