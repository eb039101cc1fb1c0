"""One run, from a configuration to a report."""

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax

from experiments.build.experiment import Run, build, comparisons
from experiments.config.fields import Config
from experiments.reports.networks import table, taken
from experiments.reports.run import write_report
from experiments.runs.branch import Branch, branch_of, branched, going_on
from experiments.runs.folder import RunFolder
from experiments.runs.identity import mesh_fields, named_fields
from experiments.runs.layout import (
    CHECKPOINTS,
    FINAL,
    PHASE1,
    PLAN,
    RESULTS,
    SUPERPOSED,
    file_name,
)
from experiments.runs.lost import lost_text
from experiments.runs.made_by import command, made_by, versions
from experiments.runs.ownership import is_finished, is_trained, outputs
from experiments.runs.progress import Progress
from experiments.runs.results import analysis_of, cost_of, rate_curve
from experiments.runs.stopping import RunCheckpointer, Signals, Stopped
from experiments.runs.stored import read_run, with_others
from sup_tickets.training.calls import Running, alone
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.loop import Outcome, TrainingStopped, training
from sup_tickets.training.processes import (
    check_agreement,
    gather,
    is_first,
    on_first,
    say,
)
from sup_tickets.training.state import RunState

_PARTING_SECONDS = 10.0


class Session(NamedTuple):
    """What a run and those it is compared with share."""

    build: Callable[[Config], Run]
    signals: Signals
    label: str = ""  # in front of its lines where others run beside it
    tells_plan: bool = True


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
    if not os.fspath(workdir).strip():
        raise ValueError("workdir is empty; give the folder for everything written")
    place = Path(workdir)
    try:
        with Signals().caught() as signals:
            session = Session(partial(build, devices=devices), signals)
            results = alone(running(config, place, session, config.method.name))
            if results is not None:
                tell(results, place)
            signals.check(f"{place}: finished, and stopped as asked")
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if _is_lost(error):
            _leave(place, error)
        # Others that know nothing of it are waited for, for minutes, at the way out.
        leave = threading.Timer(_PARTING_SECONDS, os._exit, [1])
        leave.daemon = True
        leave.start()
        raise


def tell(results: dict[str, Any], workdir: Path) -> None:
    """Prints what a run is worth, and where its report is."""
    say(table(results))
    say(f"\n{taken(results)} Report: {workdir}/report/index.html")


def running(config: Config, workdir: Path, session: Session, name: str) -> Running:
    """A whole run; returns the results, or ``None`` if they were there already.

    Args:
      config: of the run.
      workdir: where everything is written.
      session: that it is part of.
      name: what this training is called in files.

    Raises:
      Exception: see `run`.
    """
    check_agreement(named_fields(config) | mesh_fields(config) | versions())
    beside = list(itertools.chain(*gather(outputs(workdir))))
    if on_first(lambda: is_finished(workdir, config, beside=beside)):
        say(f"{workdir}: this run is finished; see {workdir}/report/summary.md")
        return None
    trained = on_first(lambda: is_trained(workdir, config))
    # Whatever can be wrong is found before the folder is touched.
    ours = None if trained else session.build(config)
    branch = None
    try:
        if ours is not None:
            branch = _check_files(config, ours, workdir)
        folder = RunFolder(workdir, config, beside=beside)
        try:
            if ours is None:
                say(f"{workdir}: trained already; what lacks is the report")
                results = folder.results()
            else:
                if session.tells_plan:
                    say(ours.plan_text)
                results = yield from _train(config, ours, folder, session, name, branch)
            return (yield from _compare_and_report(config, folder, results, session))
        finally:
            folder.close()
    finally:
        if ours is not None:
            ours.inputs.close()


def _check_files(config: Config, ours: Run, workdir: Path) -> Branch | None:
    """Checks what a run starts from; once it has begun it needs that no more."""
    if on_first(lambda: any((workdir / CHECKPOINTS).glob("*"))):
        return None
    if config.branch_from is None:
        on_first(ours.check_files)
    return branch_of(config, ours)


def _compare_and_report(
    config: Config,
    folder: RunFolder,
    results: dict[str, Any],
    session: Session,
) -> Running:
    others, signals = [], session.signals
    for other, its_config in comparisons(config).items():
        signals.check(_trained_text(folder))
        plainly = config.tost.parts and not its_config.tost.parts
        how = ", trained without ToST" if plainly else ""
        say(f"{other}, for comparison{how}")
        place = folder.path / file_name(other)
        yield from running(its_config, place, session, other)
        if is_first():
            others.append(read_run(place))
    signals.check(_trained_text(folder))
    on_first(lambda: write_report(folder, results))
    return with_others(results, others)


def _trained_text(folder: RunFolder) -> str:
    return (
        f"{folder.path}: stopped; it is trained, and all is saved; the same command "
        f"goes on: {command()}"
    )


def _train(
    config: Config,
    ours: Run,
    folder: RunFolder,
    session: Session,
    name: str,
    branch: Branch | None,
) -> Running:
    """Trains from wherever the run is, and writes the results."""
    signals = session.signals
    # Others may branch from the end of phase 1.
    checkpoints = Checkpoints(folder.checkpoints, keep=(ours.plan.phase1_steps,))
    progress = None
    try:
        start, notes = _start(ours, folder, checkpoints, branch, name)
        step = int(start.train.step)
        for line in folder.go_on(step):
            say(f"{folder.path}: made by others than before: {line}")
        progress = Progress(
            name,
            ours.plan,
            folder,
            lambda network: ours.score(network, config.evaluate),
            task=ours.experiment.task,
            learning_rate=ours.learning_rate,
            line_steps=config.train.check_every_steps,
            notes=notes,
            step=step,
            label=session.label,
        )
        if not notes:
            progress.began(ours.experiment.network(start.train), step)
        if "rows" not in notes and step == ours.plan.phase1_steps:
            progress.collected(PHASE1, step, ours.experiment.network(start.train))
        checkpointer = RunCheckpointer(
            config, checkpoints, progress, signals, folder, step=step
        )
        outcome = yield from training(ours.experiment, start, progress, checkpointer)
        return _results(config, ours, folder, progress, outcome, signals)
    except TrainingStopped as stop:
        raise Stopped(
            f"{folder.path}: stopped after {stop.step} of {ours.plan.total_steps} "
            f"steps, all saved; the same command goes on: {command()}",
            signals.received,
        ) from stop
    finally:
        if progress is not None:
            progress.close()
        checkpoints.close()


def _start(
    ours: Run,
    folder: RunFolder,
    checkpoints: Checkpoints,
    branch: Branch | None,
    name: str,
) -> tuple[RunState, dict[str, Any]]:
    """The newest good checkpoint, or the beginning."""
    restored = checkpoints.restore(
        ours.like,
        ours.place,
        saved=folder.saved,
        check=folder.check_notes,
    )
    if restored is None:
        if folder.begun:
            say(f"{folder.path}: this run was begun and left no checkpoint")
        # What may fail comes first, and then nothing is removed.
        branch = branch or branch_of(ours.begin.config, ours)
        if branch is None:
            state, notes = ours.init(), {}
        else:
            state, notes = branched(branch, ours)
        folder.start_over()
        folder.write(PLAN, ours.plan_text + "\n")
        if branch is not None:
            notes = going_on(branch, folder, notes, name)
        return state, notes
    for line in restored.broken:
        say(f"{folder.path}: a checkpoint is broken and set aside: {line}")
    say(f"{folder.path}: going on after {restored.step} steps")
    return restored.state, restored.notes


def _results(
    config: Config,
    ours: Run,
    folder: RunFolder,
    progress: Progress,
    outcome: Outcome,
    signals: Signals,
) -> dict[str, Any]:
    """Evaluates what training ended with, and writes ``final/`` and the results."""
    signals.check(_trained_text(folder))
    final = outcome.network
    if outcome.superposed is not None:
        final = ours.finish(outcome.superposed, outcome.state.train)
        progress.add_row(SUPERPOSED, ours.plan.total_steps, final)
    folder.agree()
    folder.save_network(FINAL, final)
    cost = cost_of(config, ours, final, progress.changes)
    signals.check(_trained_text(folder))
    results = {
        "name": progress.run,
        "evaluated_on": config.evaluate,
        "seconds": round(progress.seconds, 1),
        "date": datetime.now(UTC).isoformat(" ", "minutes").replace("+00:00", " UTC"),
        "rows": progress.rows,
        "layers": progress.layers,
        "learning_rate": rate_curve(ours),
        "cost": cost,
        "analysis": analysis_of(config, ours, folder, final),
        "made_by": made_by(),
    }
    folder.write(RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def _is_lost(error: Exception) -> bool:
    """Whether an error is of the communication; JAX gives it one type or another."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in str(error)  # its own memory
    return any(word in str(error) for word in ("Gloo", "Connection closed", "peer"))


def _leave(workdir: Path, error: Exception) -> NoReturn:
    """Ends one of several processes that has lost another, in one line."""
    what = str(error).partition("\n")[0][:200]
    print(lost_text(workdir, what), file=sys.stderr, flush=True)
    # The usual way out waits for the one that is lost, and is aborted in 30 lines.
    os._exit(1)
