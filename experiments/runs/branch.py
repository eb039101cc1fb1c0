"""A run that starts with another run's state at the end of that one's phase 1."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.build.branch import (
    Course,
    course_of,
    difference_before,
    difference_of_blocks,
    words_of,
)
from experiments.build.experiment import Run
from experiments.build.mesh import to_read
from experiments.build.parts import make_superposition
from experiments.config.fields import Config, as_config
from experiments.runs.events import read_events
from experiments.runs.folder import RunFolder
from experiments.runs.identity import CONTENTS, TEXT, identity_of
from experiments.runs.layout import CHECKPOINTS, LOG, read_config
from experiments.runs.made_by import changed, made_by
from experiments.runs.ownership import made_by_of
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.checkpoint_files import check_checkpoint
from sup_tickets.training.processes import on_first, say
from sup_tickets.training.state import RunState

_NOTES = ("changes", "lines", "seconds")  # that go on; rows are made anew


class Branch(NamedTuple):
    """Where a run starts."""

    path: Path  # of the other run
    course: Course  # of the other run

    @property
    def step(self) -> int:
        """Completed steps: the end of the other run's phase 1."""
        return self.course.plan.phase1_steps


def branch_of(config: Config, ours: Run) -> Branch | None:
    """The run to start from, checked; ``None`` without ``config.branch_from``.

    Raises:
      ValueError: one line, if it is no run, computes something else before the end of
        its phase 1, or has not kept that state.
    """
    if config.branch_from is None:
        return None
    path, name = Path(config.branch_from), f"config.branch_from={config.branch_from!r}"
    epoch_steps = ours.plan.epoch_steps
    theirs = to_read(as_config(on_first(lambda: read_config(path))))
    branch = Branch(path, course_of(theirs, epoch_steps=epoch_steps))
    ours_course = course_of(config, epoch_steps=epoch_steps)
    found = difference_before(branch.course, ours_course)
    found = found or on_first(lambda: _other_files(path, config))
    if found is not None:
        raise ValueError(f"{name} is not what this run does until then: {found}")
    early = _passed(ours_course, branch.step)
    if early is not None:
        raise ValueError(
            f"config.checkpoint.keep_epochs={tuple(config.checkpoint.keep_epochs)}: "
            f"epoch {early} is over where {name} ends its phase 1"
        )
    on_first(lambda: _check_kept(name, branch))
    return branch


def _passed(ours: Course, step: int) -> int | None:
    """The first epoch whose network is to be kept and that ends by a step."""
    epochs = ours.config.checkpoint.keep_epochs
    return next((e for e in epochs if e * ours.plan.epoch_steps <= step), None)


def _check_kept(name: str, branch: Branch) -> None:
    try:
        check_checkpoint(branch.path / CHECKPOINTS, branch.step)
    except FileNotFoundError as error:
        raise ValueError(
            f"{name} has no checkpoint of step {branch.step}, the end of its phase 1; "
            "it is not trained so far, or was by an earlier version"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def find_source(
    config: Config, others: Iterable[tuple[Path, Config]], *, epoch_steps: int
) -> Path | None:
    """The first run that a run can start from, or ``None``.

    Args:
      config: of the run.
      others: folders of runs, begun or not, with their configurations.
      epoch_steps: steps of an epoch of the run.
    """
    words, ours, missed = words_of(config), None, None
    for path, other in others:
        if words_of(other) != words:
            continue
        ours = ours or course_of(config, epoch_steps=epoch_steps)
        theirs = course_of(other, epoch_steps=epoch_steps)
        step = theirs.plan.phase1_steps
        found = difference_before(theirs, ours)
        if found is not None and found != difference_of_blocks(theirs, ours):
            continue
        if _other_files(path, config) or _passed(ours, step) is not None:
            continue
        if not _is_whole(path, step):
            continue
        if found is None:
            return path
        missed = missed or (path, found)
    if missed is not None:
        say(f"phase 1 of {missed[0]} is not taken, for this alone: {missed[1]}")
    return None


def _is_whole(path: Path, step: int) -> bool:
    try:
        check_checkpoint(path / CHECKPOINTS, step)
    except (FileNotFoundError, ValueError):
        return False
    return True


def branched(branch: Branch, ours: Run) -> tuple[RunState, dict[str, Any]]:
    """The state that the run starts with, and the notes that were kept with it.

    Raises:
      ValueError: if the other run's checkpoint cannot be read.
    """
    step, experiment = branch.step, ours.experiment
    like = RunState(experiment.like(step).train)
    theirs = make_superposition(
        branch.course.config, branch.course.method, experiment.view
    )
    if theirs is not None:  # its checkpoint has the beginning of an average
        other = dataclasses.replace(experiment, superposition=theirs)
        average = jax.eval_shape(
            lambda state: other.first_average(other.network(state)), like.train
        )
        like = like.replace(average=average)
    checkpoints = Checkpoints(branch.path / CHECKPOINTS, read_only=True)
    try:
        found = checkpoints.at(step, like, ours.place)
    finally:
        checkpoints.close()
    state, average = found.state.train, None
    if step == ours.plan.phase1_steps:
        average = experiment.first_average(experiment.network(state))
    return RunState(state, average), found.notes


def going_on(
    branch: Branch, folder: RunFolder, notes: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Copies the lines of the log, and says from where; the notes to go on with.

    Args:
      branch: where the run starts.
      folder: of the run, empty.
      notes: of `branched`.
      name: of the run, in its lines.
    """
    say(f"{folder.path}: begins with step {branch.step} of {branch.path}")
    for line in on_first(lambda: _other_maker(branch.path)):
        say(f"{folder.path}: made by others than the steps before: {line}")
    if folder.writes:
        _copy_log(branch.path, folder, notes, name)
    known = {name: notes[name] for name in _NOTES if name in notes}
    return known | {"logged_bytes": folder.logged_bytes()}


def _other_files(path: Path, config: Config) -> str | None:
    """Of files that both start from, those whose contents differ."""
    there, here = made_by_of(path), identity_of(config)
    return next(filter(None, (_other(n, there, here) for n in (CONTENTS, TEXT))), None)


def _other(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    old, new = there.get(name), here[name]
    return None if None in (old, new) or old == new else f"{name} are others now"


def _other_maker(path: Path) -> list[str]:
    sessions = made_by_of(path).get("sessions") or []
    return changed(sessions[-1]["by"], made_by()) if sessions else []


def _copy_log(
    path: Path, folder: RunFolder, notes: Mapping[str, Any], name: str
) -> None:
    """The lines of phase 1, as those of this run; without its table."""
    log = path / LOG
    size = notes.get("logged_bytes", 0)
    if not log.is_file() or log.stat().st_size < size:
        say(f"{folder.path}: {log} is cut; the report will lack its lines")
        return
    for event in read_events(log, size=size):
        if event.get("event") != "network":
            folder.log(event | {"run": name})
