"""One run, from a configuration to a report."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from experiments.build import Run, build, comparisons
from experiments.check import Config
from experiments.progress import Progress, say
from experiments.report import table, write_report
from experiments.run_folder import RunFolder
from sup_tickets.training.loop import train


def run(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    devices: Sequence[Any] | None = None,
) -> None:
    """Trains, evaluates, saves and reports.

    Args:
      config: of the run.
      workdir: where everything is written.
      devices: by default all.

    Raises:
      ValueError: one line, if the configuration is wrong, the folder another run's, or
        the training diverges.
    """
    start = time.perf_counter()
    ours = build(config, devices=devices)
    others = {
        name: build(other, devices=devices)
        for name, other in comparisons(config).items()
    }
    folder = RunFolder(workdir, config)
    if folder.finished:
        say(f"{workdir}: this run is finished; see {folder.path}/report/summary.md")
        return
    if folder.restarts:
        say(f"{workdir}: this run was begun and not finished; starting it again")
    say(ours.plan_text)
    folder.write("plan.txt", ours.plan_text + "\n")
    main = _train_main(config, ours, folder)
    for name, other in others.items():
        _train_other(name, other, folder, main)
    results = {
        "evaluated_on": config.evaluate,
        "seconds": round(time.perf_counter() - start, 1),
        "rows": main.rows,
        "layers": main.layers,
    }
    folder.write("results.json", json.dumps(results, indent=2) + "\n")
    write_report(folder, results)
    say(table(results))
    say(f"{results['seconds']:.0f} s; report: {folder.path}/report/summary.md")


def _train_main(config: Config, ours: Run, folder: RunFolder) -> Progress:
    """The run itself; its last network goes to ``final/``."""
    progress = Progress(
        config.method.name, ours.plan, folder, ours.evaluate, is_main=True
    )
    outcome = train(ours.job(progress), ours.init())
    final = outcome.network
    if outcome.superposed is not None:
        final = ours.finish(outcome.superposed, outcome.state)
        progress.add_row("superposed ticket", final)
    folder.save_network("final", final)
    return progress


def _train_other(name: str, other: Run, folder: RunFolder, main: Progress) -> None:
    """A baseline; its last network has a row in the same table."""
    say(f"{name}, for comparison: {other.plan.total_steps} steps")
    progress = Progress(name, other.plan, folder, other.evaluate, is_main=False)
    outcome = train(other.job(progress), other.init())
    main.rows.append(progress.add_row(name, outcome.network))
