"""The phases of a run, on the host: phase 1, then explore, train, collect, superpose.

The batch of step t is a function of t. A change of the topology after t completed steps
looks at the batch of step t: RigL's update consumes it, and the others leave it to the
weight step that follows.

Superposing reads the live network and never writes it: training goes on from the
ticket.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from sup_tickets.superposition import Superposition, SuperpositionState
from sup_tickets.training.evaluation import Scores
from sup_tickets.training.plan import Plan
from sup_tickets.training.state import Network, RunState, TrainState, network_of
from sup_tickets.training.steps import Steps, Turnover
from sup_tickets.types import Number


class TrainingDiverged(ValueError):
    """A loss that is not finite."""


class TrainingStopped(Exception):
    """The run was asked to stop, and all that it had done was kept."""

    def __init__(self, step: int):
        super().__init__(f"stopped after {step} steps")
        self.step = step


class Listener(Protocol):
    """What the loop tells while it runs; all arguments are on the host or copied."""

    def losses(self, phase: str, steps: Sequence[int], losses: np.ndarray) -> None:
        """Losses of some steps, finite all of them; every ``check_every_steps``."""

    def validated(self, phase: str, step: int, scores: Scores, net: Network) -> None:
        """The live network did well enough to have finite likelihoods."""

    def changed(
        self, kind: str, step: int, network: Network, turnover: Turnover
    ) -> None:
        """The topology was changed, "update" or "explore"."""

    def collected(self, name: str, step: int, network: Network) -> None:
        """The end of phase 1, or a ticket; valid until this returns."""

    def kept(self, step: int, network: Network) -> None:
        """A network to be kept, without ghosts; valid until this returns."""


class Keeper(Protocol):
    """Keeps states safe, and says when to."""

    def due(self, step: int) -> bool:
        """Whether it is time to save, ``step`` steps being completed."""
        ...

    def stopping(self, step: int) -> bool:
        """Whether the run was asked to stop, ``step`` steps being completed."""
        ...

    def save(self, state: RunState) -> None:
        """Saves; the state is valid until this returns."""


class Source(Protocol):
    """Training batches by step."""

    def __call__(self, step: int) -> Any:
        """The batch of a step."""

    def block(self, step: int, count: int) -> Any:
        """The batches of ``count`` steps, for `Steps.block`."""


class Job(NamedTuple):
    """All that a run needs, as objects."""

    plan: Plan
    steps: Steps
    batches: Source | Callable[[int], Any]  # the latter if block_steps is 1
    validate: Callable[[Network], Scores] | None  # None without a validation split
    listener: Listener
    consumes_step: bool  # whether a topology update replaces the weight step
    explore_fraction: Number = 0.0  # of each layer's active weights, once a cycle
    superposition: Superposition | None = None
    include_phase1: bool = False  # whether phase 1's network is a ticket, as released
    validate_every_steps: int = 0  # besides the end of each phase; 0 for never
    check_every_steps: int = 50  # the loss is fetched, and looked at for NaN
    block_steps: int = 1  # weight steps a call where nothing else is due
    keeper: Keeper | None = None
    ghosts: "Ghosts | None" = None
    keep_steps: Sequence[int] = ()  # completed steps after which the network is kept


class Ghosts(NamedTuple):
    """How a run begins whose network has ghosts at first."""

    until: int  # completed steps after which they are gone
    steps: Steps  # of the network with them
    remove: Callable[[Any], Any]  # from any tree
    validate: Callable[[Network, int], Scores] | None  # the network as of a step


class Outcome(NamedTuple):
    """What a run ends with."""

    state: RunState  # the live network and the average, at the end
    superposed: Network | None  # with averaged statistics ("AV"), or none

    @property
    def network(self) -> Network:
        """The live network."""
        return network_of(self.state.train)


def train(job: Job, start: RunState) -> Outcome:
    """Runs all phases, from wherever the state is.

    Args:
      job: what to do.
      start: ``RunState(job.steps.init(key))``, or a state that the keeper was given;
        donated.

    Raises:
      ValueError: if the state is past the end of phase 1 and lacks the average.
      TrainingDiverged: naming the first step whose loss is not finite.
      TrainingStopped: if the keeper says so, once the state is saved.
    """
    plan, keeper = job.plan, job.keeper
    state, average, step = start.train, start.average, int(start.train.step)
    _check_start(job, step, average)
    if step in job.keep_steps and not step:
        job.listener.kept(step, network_of(_plain(job, state, step)))
    advance, watch, add = _Advance(job), _LossWatch(job), _collector(job)
    while step < plan.total_steps:
        state, losses = advance(state, step)
        watch.add(step, losses)
        step += losses.size
        if job.ghosts and step == job.ghosts.until:
            state = job.ghosts.remove(state)
        ends = step == plan.phase1_steps or step in plan.collections
        if ends or _every(job.validate_every_steps, step):
            watch.check()
            _validate(job, step - 1, state)
        if step in job.keep_steps:
            job.listener.kept(step, network_of(_plain(job, state, step)))
        if ends:
            average = add(step, average, network_of(state))
        if keeper is not None:
            stops = keeper.stopping(step)
            if ends or stops or keeper.due(step):
                watch.check()
                keeper.save(RunState(state, average))
            if stops:
                raise TrainingStopped(step)
    return Outcome(RunState(state, average), _superposed(job, average))


def average_like(job: Job, state: TrainState, step: int) -> SuperpositionState | None:
    """The shapes of the average that a run has after ``step`` steps, or ``None``.

    Args:
      job: the run.
      state: its train state, arrays or shapes.
      step: completed steps.
    """
    if job.superposition is None or step < job.plan.phase1_steps:
        return None
    tree, masks = _as_trees(network_of(state))
    return jax.eval_shape(job.superposition.init, tree, masks)


def _plain(job: Job, state: TrainState, step: int) -> TrainState:
    """The state without ghosts."""
    haunted = job.ghosts and step < job.ghosts.until
    return job.ghosts.remove(state) if haunted and job.ghosts else state


def _check_start(job: Job, step: int, average: Any) -> None:
    begun = job.superposition is not None and step >= job.plan.phase1_steps
    if begun and average is None:
        raise ValueError(
            f"the state is at step {step}, past the end of phase 1 at step "
            f"{job.plan.phase1_steps}, and lacks the average of the tickets"
        )


def _steps_at(job: Job, step: int) -> Steps:
    return job.ghosts.steps if job.ghosts and step < job.ghosts.until else job.steps


class _Advance:
    """One weight step, or several in a call; before it what else is due.

    What is done in one call depends on the step alone, so that a run that goes on from
    a checkpoint computes the same bits.
    """

    def __init__(self, job: Job):
        plan = job.plan
        self._job = job
        self._updates = frozenset(plan.updates)
        self._explorations = frozenset(plan.explorations)
        validations = range(0, plan.total_steps, job.validate_every_steps or 10**12)
        gone = job.ghosts.until if job.ghosts else 0
        self._breaks = sorted(
            {*plan.updates, *plan.explorations, *plan.collections, *validations}
            | {plan.phase1_steps, plan.total_steps, gone, *job.keep_steps}
        )

    def __call__(
        self, state: TrainState, step: int
    ) -> tuple[TrainState, jax.Array | np.ndarray]:
        """The state afterwards, and the losses of the steps that were done."""
        steps, changed = _steps_at(self._job, step), self._job.listener.changed
        if step in self._explorations:
            batch = self._job.batches(step)
            state, turnover = steps.explore(state, batch, self._job.explore_fraction)
            changed("explore", step, network_of(state), turnover)
        if step in self._updates:
            state, turnover = steps.topology(state, self._job.batches(step))
            changed("update", step, network_of(state), turnover)
            if self._job.consumes_step:
                return state, turnover.loss
        if self._fits(step):
            count = self._job.block_steps
            return steps.block(state, self._job.batches.block(step, count))  # pyright: ignore
        return steps.train(state, self._job.batches(step))

    def _fits(self, step: int) -> bool:
        """Whether a block of steps may begin here and meets nothing on its way."""
        count = self._job.block_steps
        if count == 1 or step % count:
            return False
        return self._breaks[bisect_right(self._breaks, step)] >= step + count


class _LossWatch:
    """Keeps losses on the device, and fetches them every so many steps."""

    def __init__(self, job: Job):
        self._job = job
        self._pending: list[tuple[int, Any]] = []
        self._count = 0

    def add(self, step: int, losses: Any) -> None:
        self._pending.append((step, losses))
        self._count += losses.size
        if self._count >= self._job.check_every_steps:
            self.check()

    def check(self) -> None:
        if not self._pending:
            return
        first, on_device = zip(*self._pending, strict=True)
        self._pending, self._count = [], 0
        fetched = [np.ravel(part) for part in jax.device_get(on_device)]
        steps = [
            start + i
            for start, part in zip(first, fetched, strict=True)
            for i in range(part.size)
        ]
        losses = np.concatenate(fetched).astype(np.float32)
        finite = np.isfinite(losses)
        good = len(losses) if finite.all() else int(np.argmin(finite))
        if good:
            phase = self._job.plan.phase_of(steps[0])
            self._job.listener.losses(phase, steps[:good], losses[:good])
        if good < len(losses):
            raise _diverged(self._job.plan, steps[good], f"the loss is {losses[good]}")


def _collector(job: Job) -> Callable[..., SuperpositionState | None]:
    """``(step, average, network) -> average``; names what is collected."""
    plan, ours = job.plan, job.superposition
    # The average is ours alone; the live network must outlive the call.
    update = ours and jax.jit(ours.update, donate_argnums=0)

    def add(
        step: int, average: SuperpositionState | None, network: Network
    ) -> SuperpositionState | None:
        phase1 = step == plan.phase1_steps
        name = "phase 1" if phase1 else f"ticket {1 + plan.collections.index(step)}"
        job.listener.collected(name, step, network)
        if ours is None or update is None:
            return None
        tree, masks = _as_trees(network)
        if phase1:
            return ours.init(tree, masks, as_ticket=job.include_phase1)
        return update(average, tree, masks)

    return add


def _superposed(job: Job, average: SuperpositionState | None) -> Network | None:
    if job.superposition is None or average is None or not job.plan.collections:
        return None
    tree, masks = jax.jit(job.superposition.result)(average)
    return Network(masks=masks["params"], **tree)


def _as_trees(network: Network) -> tuple[Any, Any]:
    """Weights with their masks, and statistics, which have none, as one network."""
    none = jax.tree.map(lambda _: None, network.batch_stats)
    return (
        {"params": network.params, "batch_stats": network.batch_stats},
        {"params": network.masks, "batch_stats": none},
    )


def _validate(job: Job, step: int, state: TrainState) -> None:
    if job.validate is None:
        return
    network = network_of(state)
    if job.ghosts and job.ghosts.validate and step + 1 < job.ghosts.until:
        scores = job.ghosts.validate(network, step + 1)
    else:
        scores = job.validate(network)
    # A step's loss is that before its update; this is the first look at the last one.
    if not np.isfinite(scores.nll):
        raise _diverged(job.plan, step, f"the validation loss is {scores.nll}")
    job.listener.validated(job.plan.phase_of(step), step + 1, scores, network)


def _diverged(plan: Plan, step: int, what: str) -> TrainingDiverged:
    epoch = step // plan.epoch_steps + 1
    return TrainingDiverged(
        f"training diverged: {what} at step {step} ({plan.phase_of(step)}, epoch "
        f"{epoch}); try a lower learning rate"
    )


def _every(interval: int, done: int) -> bool:
    return interval > 0 and done % interval == 0
