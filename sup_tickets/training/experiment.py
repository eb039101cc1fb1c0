"""All that a run computes, as one value: its stages, its data, what is superposed.

A run is a short list of stages. Each says after how many completed steps it ends, by
which compiled steps it trains (and so which task), and what its state becomes then.
"""

import dataclasses
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Protocol

import jax

from sup_tickets.dynamic import Method
from sup_tickets.superposition import Superposition, SuperpositionState
from sup_tickets.training.plan import Plan
from sup_tickets.training.state import (
    Network,
    RunState,
    Start,
    TrainState,
    as_trees,
    network_of,
)
from sup_tickets.training.steps import Steps
from sup_tickets.training.task import Task
from sup_tickets.training.viewed import check_view
from sup_tickets.types import Number
from sup_tickets.views.view import View


class Source(Protocol):
    """Training batches by step."""

    def __call__(self, step: int) -> Any:
        """The batch of a step."""

    def block(self, step: int, count: int) -> Any:
        """The batches of ``count`` steps, for `Steps.block`."""


def _unchanged(state: TrainState) -> TrainState:
    return state


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """Part of a run with one task."""

    until: int  # completed steps at which it ends
    steps: Steps
    then: Callable[[TrainState], TrainState] = _unchanged
    """From its last state to the first of the next stage; pure. Of its tree of
    parameters it may leave out parts, with their masks, slots and statistics."""

    @property
    def task(self) -> Task:
        """What it trains."""
        return self.steps.spec.task


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """All that a run computes.

    Raises:
      ValueError: unless the stages end one after the other, the last with the plan; or
        if masks are explored, and the view does not take it.
    """

    plan: Plan
    stages: tuple[Stage, ...]
    batches: Source | Callable[[int], Any]  # the latter if block_steps is 1
    validation: Callable[[], Iterable[Any]] | None = None  # None without such a split
    superposition: Superposition | None = None
    include_phase1: bool = False  # whether phase 1's network is a ticket, as released
    explore_fraction: Number = 0.0  # of each layer's active weights, once a cycle
    validate_every_steps: int = 0  # besides the end of each phase; 0 for never
    check_every_steps: int = 50  # the report is fetched, and looked at for NaN
    keep_steps: tuple[int, ...] = ()  # completed steps after which the network is kept

    def __post_init__(self) -> None:
        """Checks the stages."""
        ends = [0, *(stage.until for stage in self.stages)]
        ordered = all(a < b for a, b in pairwise(ends))
        if not self.stages or not ordered or ends[-1] != self.plan.total_steps:
            raise ValueError(
                f"stages must end one after the other, the last at step "
                f"{self.plan.total_steps}, got {ends[1:]}"
            )
        explores = bool(self.plan.explorations)
        check_view(self.view, self.method, explores=explores)

    @property
    def task(self) -> Task:
        """That of the last stage, whose networks are the run's result."""
        return self.stages[-1].task

    @property
    def method(self) -> Method:
        """Of the last stage."""
        return self.stages[-1].steps.spec.method

    @property
    def view(self) -> View | None:
        """What the forward pass sees of the weights; ``None`` for themselves."""
        return self.stages[-1].steps.spec.view

    def network(self, state: TrainState) -> Network:
        """The live network as the forward pass sees it, see `network_of`."""
        return network_of(state, self.view)

    def stage_at(self, step: int) -> Stage:
        """The stage of the step after ``step`` completed ones."""
        found = (stage for stage in self.stages if step < stage.until)
        return next(found, self.stages[-1])

    def init(self, key: jax.Array, start: Start | None = None) -> RunState:
        """The state before the first step.

        Args:
          key: consumed.
          start: what not to draw; its step says at which stage the run begins.
        """
        step = 0 if start is None else int(start.step)
        steps = self.stage_at(step).steps
        return RunState(steps.init(key, start, self._first_batch(steps)))

    def like(self, step: int) -> RunState:
        """The shapes of the state after ``step`` completed steps."""
        steps = self.stage_at(step).steps
        batch = self._first_batch(steps)
        state = jax.eval_shape(steps.init, jax.random.key(0), None, batch)
        if step < self.plan.phase1_steps:
            return RunState(state)
        average = jax.eval_shape(lambda s: self.first_average(self.network(s)), state)
        return RunState(state, average)

    def first_average(self, network: Network) -> SuperpositionState | None:
        """What the average of the tickets begins with, at the end of phase 1."""
        if self.superposition is None:
            return None
        tree, masks = as_trees(network)
        return self.superposition.init(tree, masks, as_ticket=self.include_phase1)

    def final_form(self, state: TrainState, step: int) -> Network:
        """The network after ``step`` steps as that of the last stage."""
        at = self.stages.index(self.stage_at(step))
        for stage in self.stages[at:-1]:
            state = stage.then(state)
        return self.network(state)

    def _first_batch(self, steps: Steps) -> Any:
        return self.batches(0) if steps.spec.task.carry is not None else None
