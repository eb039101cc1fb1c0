"""The phases of a run, on the host: phase 1, then explore, train, collect, superpose.

The batch of step t is a function of t. A change of the topology after t completed steps
looks at the batch of step t: RigL's update consumes it, and the others leave it to the
weight step that follows.

Superposing reads the live network and never writes it: training goes on from the
ticket.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from sup_tickets.superposition import Superposition, SuperpositionState
from sup_tickets.training.evaluation import Scores
from sup_tickets.training.plan import Plan
from sup_tickets.training.state import Network, TrainState, network_of
from sup_tickets.training.steps import Steps
from sup_tickets.types import Number


class TrainingDiverged(ValueError):
    """A loss that is not finite."""


class Listener(Protocol):
    """What the loop tells while it runs; all arguments are on the host or copied."""

    def losses(self, phase: str, steps: Sequence[int], losses: np.ndarray) -> None:
        """Losses of some steps, finite all of them; every ``check_every_steps``."""

    def validated(self, phase: str, step: int, scores: Scores, net: Network) -> None:
        """The live network did well enough to have finite likelihoods."""

    def changed(self, kind: str, step: int, network: Network) -> None:
        """The topology was changed, "update" or "explore"."""

    def collected(self, name: str, step: int, network: Network) -> None:
        """The end of phase 1, or a ticket; valid until this returns."""


class Job(NamedTuple):
    """All that a run needs, as objects."""

    plan: Plan
    steps: Steps
    batch: Callable[[int], Any]  # step -> training batch
    validate: Callable[[Network], Scores]
    listener: Listener
    consumes_step: bool  # whether a topology update replaces the weight step
    explore_fraction: Number = 0.0  # of each layer's active weights, once a cycle
    superposition: Superposition | None = None
    include_phase1: bool = False  # whether phase 1's network is a ticket, as released
    validate_every_steps: int = 0  # besides the end of each phase; 0 for never
    check_every_steps: int = 50  # the loss is fetched, and looked at for NaN


class Outcome(NamedTuple):
    """What a run ends with."""

    state: TrainState  # the live network, at the end
    superposed: Network | None  # with averaged statistics ("AV"), or none

    @property
    def network(self) -> Network:
        """The live network."""
        return network_of(self.state)


def train(job: Job, state: TrainState) -> Outcome:
    """Runs all phases, from wherever the state is.

    Args:
      job: what to do.
      state: of ``job.steps.init``, or of an earlier step; donated.

    Raises:
      ValueError: if the state is past the first ticket that is to be superposed.
      TrainingDiverged: naming the first step whose loss is not finite.
    """
    plan, steps = job.plan, job.steps
    _check_start(job, int(state.step))
    updates, explorations = frozenset(plan.updates), frozenset(plan.explorations)
    watch = _LossWatch(job)
    average = _Average(job)
    for step in range(int(state.step), plan.total_steps):
        batch = job.batch(step)
        if step in explorations:
            state, _ = steps.explore(state, batch, job.explore_fraction)
            job.listener.changed("explore", step, network_of(state))
        if step in updates:
            state, loss = steps.topology(state, batch)
            job.listener.changed("update", step, network_of(state))
        if step not in updates or not job.consumes_step:
            state, loss = steps.train(state, batch)
        watch.add(step, loss)  # pyright: ignore[reportPossiblyUnboundVariable]
        done = step + 1
        ends = done == plan.phase1_steps or done in plan.collections
        if ends or _every(job.validate_every_steps, done):
            watch.check()
            _validate(job, step, state)
        if ends:
            average.add(done, network_of(state))
    return Outcome(state, average.result())


def _check_start(job: Job, step: int) -> None:
    first = job.plan.phase1_steps + (not job.include_phase1)
    if job.superposition is not None and job.plan.collections and step >= first:
        raise ValueError(
            f"the state is at step {step}, within the tickets that began at step "
            f"{job.plan.phase1_steps}; their average so far is not part of it"
        )


class _LossWatch:
    """Keeps losses on the device, and fetches them every so many steps."""

    def __init__(self, job: Job):
        self._job = job
        self._pending: list[tuple[int, jax.Array]] = []

    def add(self, step: int, loss: jax.Array) -> None:
        self._pending.append((step, loss))
        if len(self._pending) >= self._job.check_every_steps:
            self.check()

    def check(self) -> None:
        if not self._pending:
            return
        steps, on_device = zip(*self._pending, strict=True)
        self._pending = []
        losses = np.array(jax.device_get(on_device), np.float32)
        good = (
            len(losses)
            if np.isfinite(losses).all()
            else int(np.argmin(np.isfinite(losses)))
        )
        if good:
            phase = self._job.plan.phase_of(steps[0])
            self._job.listener.losses(phase, steps[:good], losses[:good])
        if good < len(losses):
            raise _diverged(self._job.plan, steps[good], f"the loss is {losses[good]}")


class _Average:
    """The superposed ticket so far; names what is collected."""

    def __init__(self, job: Job):
        self._job = job
        self._state: SuperpositionState | None = None
        if job.superposition is not None:
            # The average is ours alone; the live network must outlive the call.
            self._update = jax.jit(job.superposition.update, donate_argnums=0)

    def add(self, done: int, network: Network) -> None:
        plan, ours = self._job.plan, self._job.superposition
        phase1 = done == plan.phase1_steps
        name = "phase 1" if phase1 else f"ticket {1 + plan.collections.index(done)}"
        self._job.listener.collected(name, done, network)
        if ours is None:
            return
        tree, masks = _as_trees(network)
        if self._state is None:
            include = phase1 and self._job.include_phase1
            self._state = ours.init(tree, masks, as_ticket=include)
        if not phase1:
            self._state = self._update(self._state, tree, masks)

    def result(self) -> Network | None:
        if self._state is None or not self._job.plan.collections:
            return None
        assert self._job.superposition is not None
        tree, masks = jax.jit(self._job.superposition.result)(self._state)
        return Network(masks=masks["params"], **tree)


def _as_trees(network: Network) -> tuple[Any, Any]:
    """Weights with their masks, and statistics, which have none, as one network."""
    none = jax.tree.map(lambda _: None, network.batch_stats)
    return (
        {"params": network.params, "batch_stats": network.batch_stats},
        {"params": network.masks, "batch_stats": none},
    )


def _validate(job: Job, step: int, state: TrainState) -> None:
    network = network_of(state)
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
