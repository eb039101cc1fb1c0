"""The phases of a run, on the host: phase 1, then explore, train, collect, superpose.

The batch of step t is a function of t. A change of the topology after t completed steps
looks at the batch of step t: RigL's update consumes it, and the others leave it to the
weight step that follows.

Superposing reads the live network and never writes it: training goes on from the
ticket.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from sup_tickets.iterate_averaging import is_averaging
from sup_tickets.superposition import SuperpositionState
from sup_tickets.training.alike import family_of
from sup_tickets.training.calls import Call, Running, alone, begin, whole
from sup_tickets.training.evaluation import evaluate
from sup_tickets.training.experiment import Experiment, Stage
from sup_tickets.training.plan import Plan
from sup_tickets.training.state import (
    Network,
    RunState,
    as_trees,
    from_trees,
)
from sup_tickets.training.steps import Turnover
from sup_tickets.training.task import Metrics, Report


class TrainingDiverged(ValueError):
    """A loss that is not finite."""


class TrainingStopped(Exception):
    """The run was asked to stop, and all that it had done was kept."""

    def __init__(self, step: int):
        super().__init__(f"stopped after {step} steps")
        self.step = step


class Callbacks(Protocol):
    """What the loop tells while it runs; all arguments are on the host or copied."""

    def reported(
        self, phase: str, steps: Sequence[int], report: Mapping[str, np.ndarray]
    ) -> None:
        """Reports of some steps, with finite losses; every ``check_every_steps``."""

    def validated(
        self, phase: str, step: int, metrics: Metrics, network: Network
    ) -> None:
        """The live network did well enough to have a finite loss."""

    def changed(
        self, kind: str, step: int, network: Network, turnover: Turnover
    ) -> None:
        """The topology was changed, "update" or "explore"."""

    def collected(self, name: str, step: int, network: Network) -> None:
        """The end of phase 1, or a ticket; valid until this returns."""

    def kept(self, step: int, network: Network) -> None:
        """A network to be kept, as of the last stage; valid until this returns."""


class Checkpointer(Protocol):
    """Keeps states safe, and says when to."""

    def due(self, step: int) -> bool:
        """Whether it is time to save, ``step`` steps being completed."""
        ...

    def stopping(self, step: int) -> bool:
        """Whether the run was asked to stop, ``step`` steps being completed."""
        ...

    def save(self, state: RunState) -> None:
        """Saves; the state is valid until this returns."""


class Outcome(NamedTuple):
    """What a run ends with."""

    state: RunState  # the live network and the average, at the end
    superposed: Network | None  # with averaged statistics ("AV"), or none
    network: Network  # the live one


def train(
    experiment: Experiment,
    start: RunState,
    callbacks: Callbacks,
    checkpointer: Checkpointer | None = None,
) -> Outcome:
    """Runs all phases, from wherever the state is.

    Args:
      experiment: what to compute.
      start: of its ``init``, or a state that the checkpointer was given; donated.
      callbacks: whom to tell.
      checkpointer: whom to give the state to.

    Raises:
      ValueError: if the state is past the end of phase 1 and lacks the average.
      TrainingDiverged: naming the first step whose loss is not finite.
      TrainingStopped: if the checkpointer says so, once the state is saved.
    """
    return alone(training(experiment, start, callbacks, checkpointer))


def training(
    experiment: Experiment,
    start: RunState,
    callbacks: Callbacks,
    checkpointer: Checkpointer | None = None,
) -> Running:
    """`train` as a run that yields its calls; returns the `Outcome`."""
    ours, plan = experiment, experiment.plan
    average, step = start.average, int(start.train.step)
    _check_start(ours, step, average)
    if step in ours.keep_steps and not step:
        callbacks.kept(step, ours.final_form(start.train, step))
    programs = tuple(family_of(stage.steps.train) for stage in ours.stages)
    state, _ = yield Call(begin, start.train, (programs,), step, tells=False)
    advance, add = _Advance(ours, callbacks), _collector(ours, callbacks)
    watch = _LossWatch(ours, callbacks)
    while step < plan.total_steps:
        stage = ours.stage_at(step)
        state, report = yield from advance(stage, state, step)
        watch.add(step, report)
        step += report["loss"].size
        if step == stage.until and stage is not ours.stages[-1]:
            state, _ = yield Call(stage.then, state, (), step, tells=False)
        ends = step == plan.phase1_steps or step in plan.collections
        if ends or _every(ours.validate_every_steps, step):
            watch.check()
            state = yield from _validated(ours, callbacks, step, state)
        if step in ours.keep_steps:
            callbacks.kept(step, ours.final_form(whole(state), step))
        if ends:
            average = add(step, average, ours.network(whole(state)))
        if checkpointer is not None:
            stops = checkpointer.stopping(step)
            if ends or stops or checkpointer.due(step):
                watch.check()
                checkpointer.save(RunState(whole(state), average))
            if stops:
                raise TrainingStopped(step)
    superposed, last = _superposed(ours, average), whole(state)
    return Outcome(RunState(last, average), superposed, ours.network(last))


def _check_start(ours: Experiment, step: int, average: Any) -> None:
    begun = ours.superposition is not None and step >= ours.plan.phase1_steps
    if begun and average is None:
        raise ValueError(
            f"the state is at step {step}, past the end of phase 1 at step "
            f"{ours.plan.phase1_steps}, and lacks the average of the tickets"
        )


class _Advance:
    """One weight step, or several in a call; before it what else is due.

    What is done in one call depends on the step alone, so that a run that goes on from
    a checkpoint computes the same bits.
    """

    def __init__(self, ours: Experiment, callbacks: Callbacks):
        plan = ours.plan
        self._ours, self._callbacks = ours, callbacks
        self._updates = frozenset(plan.updates)
        self._explorations = frozenset(plan.explorations)
        validations = range(0, plan.total_steps, ours.validate_every_steps or 10**12)
        self._breaks = sorted(
            {*plan.updates, *plan.explorations, *plan.collections, *validations}
            | {plan.phase1_steps, plan.total_steps, *ours.keep_steps}
            | {stage.until for stage in ours.stages}
        )

    def __call__(self, stage: Stage, state: Any, step: int) -> Running:
        """The state afterwards, and the reports of the steps that were done."""
        ours, steps, changed = self._ours, stage.steps, self._callbacks.changed
        if step in self._explorations:
            given = (ours.batches(step), ours.explore_fraction)
            state, turnover = yield Call(steps.explore, state, given, step)
            changed("explore", step, ours.network(whole(state)), turnover)
        if step in self._updates:
            given = (ours.batches(step),)
            state, turnover = yield Call(steps.topology, state, given, step)
            changed("update", step, ours.network(whole(state)), turnover)
            if steps.spec.method.consumes_step:
                return state, turnover.report
        count = steps.spec.block_steps
        if self._fits(step, count):
            blocks: Any = ours.batches
            given = (blocks.block(step, count),)
            return (yield Call(steps.block, state, given, step))
        return (yield Call(steps.train, state, (ours.batches(step),), step))

    def _fits(self, step: int, count: int) -> bool:
        """Whether a block of steps may begin here and meets nothing on its way."""
        if count == 1 or step % count:
            return False
        return self._breaks[bisect_right(self._breaks, step)] >= step + count


class _LossWatch:
    """Keeps reports on the device, and fetches them every so many steps."""

    def __init__(self, ours: Experiment, callbacks: Callbacks):
        self._ours, self._callbacks = ours, callbacks
        self._pending: list[tuple[int, Report]] = []
        self._count = 0

    def add(self, step: int, report: Report) -> None:
        self._pending.append((step, report))
        self._count += report["loss"].size
        if self._count >= self._ours.check_every_steps:
            self.check()

    def check(self) -> None:
        if not self._pending:
            return
        first, on_device = zip(*self._pending, strict=True)
        self._pending, self._count = [], 0
        fetched: Any = jax.device_get(on_device)
        steps = [
            start + i
            for start, part in zip(first, fetched, strict=True)
            for i in range(np.size(part["loss"]))
        ]
        report = {
            name: np.concatenate([np.ravel(p[name]) for p in fetched]).astype(
                np.float32
            )
            for name in fetched[0]
        }
        losses = report["loss"]
        finite = np.isfinite(losses)
        good = len(losses) if finite.all() else int(np.argmin(finite))
        plan = self._ours.plan
        if good:
            told = {name: values[:good] for name, values in report.items()}
            self._callbacks.reported(plan.phase_of(steps[0]), steps[:good], told)
        if good < len(losses):
            raise _diverged(plan, steps[good], f"the loss is {losses[good]}")


def _collector(
    ours: Experiment, callbacks: Callbacks
) -> Callable[..., SuperpositionState | None]:
    """``(step, average, network) -> average``; names what is collected."""
    plan, sup = ours.plan, ours.superposition
    # The average is ours alone; the live network must outlive the call.
    update = sup and jax.jit(sup.update, donate_argnums=0)

    def add(
        step: int, average: SuperpositionState | None, network: Network
    ) -> SuperpositionState | None:
        phase1 = step == plan.phase1_steps
        name = "phase 1" if phase1 else f"ticket {1 + plan.collections.index(step)}"
        callbacks.collected(name, step, network)
        if phase1 or update is None:
            return ours.first_average(network)
        return update(average, *as_trees(network))

    return add


def _superposed(ours: Experiment, average: SuperpositionState | None) -> Network | None:
    if ours.superposition is None or average is None or not ours.plan.collections:
        return None
    return from_trees(*jax.jit(ours.superposition.result)(average))


def _validated(
    ours: Experiment, callbacks: Callbacks, step: int, state: Any
) -> Running:
    """The state after a look at the validation split, if there is one."""
    if ours.validation is None:
        return state
    stage, now = ours.stage_at(step), whole(state)
    network, task = ours.network(now), stage.task
    metrics = evaluate(task, network, ours.validation(), step)
    # A step's loss is that before its update; this is the first look at the last one.
    loss = task.value_of(metrics)
    if not np.isfinite(loss):
        raise _diverged(ours.plan, step - 1, f"the validation loss is {loss}")
    callbacks.validated(ours.plan.phase_of(step - 1), step, metrics, network)
    if not is_averaging(now.opt_state):
        return state
    validated = stage.steps.validated
    return (yield Call(validated, state, (loss,), step, tells=False))[0]


def _diverged(plan: Plan, step: int, what: str) -> TrainingDiverged:
    epoch = step // plan.epoch_steps + 1
    return TrainingDiverged(
        f"training diverged: {what} at step {step} ({plan.phase_of(step)}, epoch "
        f"{epoch}); try a lower learning rate"
    )


def _every(interval: int, done: int) -> bool:
    return interval > 0 and done % interval == 0
