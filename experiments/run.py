"""One run, from a configuration to a report."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.build.experiment import Run, build, comparisons
from experiments.config.fields import Config
from experiments.report import table, write_report
from experiments.reports.gather import read_run, with_others
from experiments.runs.folder import RunFolder, is_finished
from experiments.runs.progress import Progress, file_name, say
from experiments.runs.results import analysis_of, cost_of
from experiments.runs.stopping import RunKeeper, Signals, Stopped
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.loop import Outcome, TrainingStopped, train
from sup_tickets.training.state import RunState, network_of


def run(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    devices: Sequence[Any] | None = None,
) -> None:
    """Trains, evaluates, saves and reports; goes on from the newest good checkpoint.

    Args:
      config: of the run.
      workdir: where everything is written.
      devices: by default all.

    Raises:
      ValueError: one line, if the configuration is wrong, the folder another run's or
        in use, or the training diverges.
      OSError: one line, if something cannot be written.
      Stopped: after a signal, once everything is saved.
    """
    with Signals().caught() as signals:
        results = _run(config, Path(workdir), devices, signals, config.method.name)
    if results is not None:
        say(table(results))
        say(f"{results['seconds']:.0f} s; report: {workdir}/report/index.html")


def _run(
    config: Config,
    workdir: Path,
    devices: Sequence[Any] | None,
    signals: Signals,
    name: str,
) -> dict[str, Any] | None:
    """The results, or ``None`` if they were there already."""
    if is_finished(workdir, config):
        say(f"{workdir}: this run is finished; see {workdir}/report/summary.md")
        return None
    ours = build(config, devices=devices)
    if not any((workdir / "checkpoints").glob("*")):
        ours.check_files()  # before anything is written; later they are not needed
    folder = RunFolder(workdir, config)
    try:
        say(ours.plan_text)
        results = _train(config, ours, folder, signals, name)
        others = []
        for other, its_config in comparisons(config).items():
            plainly = config.tost.parts and not its_config.tost.parts
            how = ", trained without ToST" if plainly else ""
            say(f"{other}, for comparison{how}")
            place = workdir / file_name(other)
            _run(its_config, place, devices, signals, other)
            others.append(read_run(place))
        if folder.writes:
            write_report(folder, results)
        folder.sync()
        return with_others(results, others)
    finally:
        folder.close()
        ours.inputs.close()


def _train(
    config: Config, ours: Run, folder: RunFolder, signals: Signals, name: str
) -> dict[str, Any]:
    """Trains from wherever the run is, and writes the results."""
    checkpoints = Checkpoints(folder.checkpoints)
    progress = None
    try:
        start, notes = _start(ours, folder, checkpoints)
        step = int(start.train.step)
        progress = Progress(
            name,
            ours.plan,
            folder,
            lambda network: ours.score(network, config.evaluate),
            learning_rate=ours.learning_rate,
            notes=notes,
            step=step,
        )
        if not notes:
            progress.began(network_of(start.train), step)
        keeper = RunKeeper(config, checkpoints, progress, signals, step=step)
        outcome = train(ours.experiment, start, progress, keeper)
        return _results(config, ours, folder, progress, outcome)
    except TrainingStopped as stop:
        raise Stopped(
            f"{folder.path}: stopped after {stop.step} of {ours.plan.total_steps} "
            f"steps, all saved; the same command goes on: {_command()}",
            signals.received,
        ) from stop
    finally:
        if progress is not None:
            progress.close()
        checkpoints.close()


def _command() -> str:
    """What was typed; of ``python -m MODULE`` the interpreter shows the file alone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["-m", spec.name] if spec else [sys.argv[0]]
    return shlex.join(["python", *words, *sys.argv[1:]])


def _start(
    ours: Run, folder: RunFolder, checkpoints: Checkpoints
) -> tuple[RunState, dict[str, Any]]:
    """The newest good checkpoint, or the beginning."""
    restored = checkpoints.restore(ours.like, ours.shardings.replicated)
    if restored is None:
        if folder.begun:
            say(f"{folder.path}: this run was begun and left no checkpoint")
        folder.empty()
        folder.write("plan.txt", ours.plan_text + "\n")
        return ours.init(), {}
    for line in restored.broken:
        say(f"{folder.path}: a checkpoint is broken and set aside: {line}")
    say(f"{folder.path}: going on after {restored.step} steps")
    return restored.state, restored.notes


def _results(
    config: Config, ours: Run, folder: RunFolder, progress: Progress, outcome: Outcome
) -> dict[str, Any]:
    """Evaluates what training ended with, and writes ``final/`` and the results."""
    final = outcome.network
    if outcome.superposed is not None:
        final = ours.finish(outcome.superposed, outcome.state.train)
        progress.add_row("superposed ticket", ours.plan.total_steps, final)
    folder.save_network("final/network", final)
    results = {
        "name": progress.run,
        "evaluated_on": config.evaluate,
        "seconds": round(progress.seconds, 1),
        "rows": progress.rows,
        "layers": progress.layers,
        "cost": cost_of(config, ours, folder, final),
        "analysis": analysis_of(config, ours, folder, final),
    }
    folder.write("results.json", json.dumps(results, indent=2) + "\n")
    folder.sync()
    return results
