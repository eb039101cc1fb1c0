"""Many runs by one program: their states stacked, their steps side by side.

    outcomes = together([training(experiment, start, callbacks) for ... in seeds])

Runs whose experiments share their stages make the same calls of the same steps, each
with its own state and batch. A call of all of them is one program: `jax.vmap` of the
step over the stacked states, but for gradients of convolutions on a CPU, which are
written out one after the other within it, see `gradients.written_out`. Each run gets
what it would have got alone, counts exactly and values to the order of a reduction; a
run that ends, or fails, leaves the others as they are.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.training.alike import Alike, Unlike, alike, family_of
from sup_tickets.training.calls import Call, Running, begin
from sup_tickets.training.experiment import Experiment, Stage
from sup_tickets.training.stacks import Stack, at
from sup_tickets.training.state import TrainState


def together(runs: Sequence[Running | None]) -> list[Any]:
    """What each run returns, or the exception that it ended with.

    Args:
      runs: not yet begun. ``None`` stands for one that is not there: the program is as
        wide as if it were, so that what is left of some runs goes on to the bit.

    Raises:
      BaseException: what is not an `Exception` ends them all, as Ctrl-C.
    """
    return _Together(runs).results()


def shared(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The experiments with steps that are one program, told which by a number.

    Args:
      experiments: which do the same at the same steps, to states of the same shapes;
        within their steps constants may differ.

    Raises:
      Unlike: if anything else does.
    """
    first = experiments[0]
    for other in experiments[1:]:
        if _times(other) != _times(first):
            raise Unlike("they do something at other steps")
    stages = [
        _shared_steps(experiments, [e.stages[i] for e in experiments])
        for i in range(len(first.stages))
    ]
    return [
        dataclasses.replace(ours, stages=own)
        for ours, own in zip(experiments, zip(*stages, strict=True), strict=True)
    ]


def _times(ours: Experiment) -> Any:
    """All that says when which step is called."""
    stages = [(s.until, s.then, s.steps.spec.block_steps) for s in ours.stages]
    validates = ours.validation is not None and ours.validate_every_steps
    method = [stage.steps.spec.method.consumes_step for stage in ours.stages]
    plan = ours.plan._replace(milestones=())
    return plan, stages, validates, method, ours.keep_steps


_SHARED = ("train", "block", "topology", "explore", "validated")


def _shared_steps(
    experiments: Sequence[Experiment], stages: Sequence[Stage]
) -> list[Stage]:
    first, stage = experiments[0], stages[0]
    states = [e.like(stage.until - 1).train for e in experiments]
    kinds = [(jax.tree.structure(s), jax.tree.leaves(s)) for s in states]
    if any(kind != kinds[0] for kind in kinds):
        raise Unlike("their states have other shapes")
    families = {
        name: alike([getattr(stage.steps, name) for stage in stages])
        for name in _SHARED
    }
    number, batch = np.int32(0), first.batches(0)
    for name, given in _calls_of(first, stage, batch).items():
        jax.eval_shape(family_of(families[name][0]), states[0], number, *given)
    return [
        dataclasses.replace(
            stage,
            steps=stage.steps._replace(**{n: f[i] for n, f in families.items()}),
        )
        for i, stage in enumerate(stages)
    ]


def _calls_of(ours: Experiment, stage: Stage, batch: Any) -> dict[str, tuple[Any, ...]]:
    """The arguments of the steps that a stage may call, but for the state."""
    spec, plan = stage.steps.spec, ours.plan
    calls: dict[str, tuple[Any, ...]] = {"train": (batch,), "validated": (0.0,)}
    if spec.block_steps > 1:
        blocks: Any = ours.batches
        calls["block"] = (blocks.block(0, spec.block_steps),)
    if plan.updates:
        calls["topology"] = (batch,)
    if plan.explorations:
        calls["explore"] = (batch, ours.explore_fraction)
    return calls


class _Member:
    """A run and its state: its own, or a row of a stack."""

    def __init__(self, row: int, state: TrainState, programs: Any):
        self.row, self.own, self.programs = row, state, programs
        self.stack: Stack | None = None

    def whole(self) -> TrainState:
        """A copy of the state."""
        if self.stack is None:
            return self.own
        return self.stack.row(self.row)

    def leave(self) -> None:
        """Has the state to itself from here on."""
        self.own, self.stack = self.whole(), None


class _Together:
    """Sends every run what it asked for, until none asks for more."""

    def __init__(self, runs: Sequence[Running | None]):
        self._runs = runs
        self._results: list[Any] = [None] * len(runs)
        self._members: dict[int, _Member] = {}
        self._calls: dict[int, Call] = {}  # that wait
        self._programs: dict[Any, Callable[..., Any]] = {}

    def results(self) -> list[Any]:
        """Of all runs."""
        try:
            for row, run in enumerate(self._runs):
                if run is not None:
                    self._let(row, run.send, None)
            while self._calls:
                self._do(self._next_rows())
        finally:
            for run in self._runs:
                if run is not None:
                    run.close()
        return self._results

    def _let(self, row: int, go_on: Callable[[Any], Call], given: Any) -> None:
        """Lets a run go on until it asks for steps.

        Args:
          row: its number.
          go_on: ``send`` of it, or ``throw``.
          given: to that.
        """
        run = self._runs[row]
        assert run is not None
        self._calls.pop(row, None)
        try:
            call = go_on(given)
            while call.function is begin:
                member = _Member(row, call.state, *call.arguments)  # pyright: ignore
                self._members[row] = member
                call = run.send((member, None))
            self._calls[row] = call
        except StopIteration as end:
            self._results[row] = end.value
            self._members.pop(row, None)
        except Exception as error:
            self._results[row] = error
            self._members.pop(row, None)

    def _next_rows(self) -> list[int]:
        """The rows of a call: of most runs that go together the one furthest behind."""
        kin: dict[Any, list[int]] = {}
        for row in sorted(self._calls):
            kin.setdefault(self._members[row].programs, []).append(row)
        rows = max(kin.values(), key=len)
        behind = min(self._calls[row].step for row in rows)
        rows = [row for row in rows if self._calls[row].step == behind]
        function = family_of(self._calls[rows[0]].function)
        return [r for r in rows if family_of(self._calls[r].function) is function]

    def _do(self, rows: list[int]) -> None:
        """One call of some runs; the others' rows compute what nobody looks at."""
        stack, calls = self._stack_of(rows), [self._calls[row] for row in rows]
        known = {row: i for i, row in enumerate(rows)}
        given = [_arguments(calls[known.get(r, 0)]) for r in range(len(self._runs))]
        flat = [jax.tree.flatten(arguments) for arguments in given]
        structure = flat[0][1]
        columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
        same = tuple(all(leaf is c[0] for leaf in c) for c in columns)
        shared = [c[0] for c, is_one in zip(columns, same, strict=True) if is_one]
        own = [c for c, is_one in zip(columns, same, strict=True) if not is_one]
        what = (family_of(calls[0].function), calls[0].tells, structure, same)
        if what not in self._programs:
            self._programs[what] = _program(
                *what,
                place=stack.places(calls[0].tells),
                split=stack.split,
            )
        try:
            stack.state, told = self._programs[what](stack.state, shared, own)
        except Exception as error:  # as of memory that is full: it is of all of them
            for row in rows:
                self._let(row, self._runs[row].throw, error)  # pyright: ignore
            return
        for row in rows:
            answer = (self._members[row], told[row])
            self._let(row, self._runs[row].send, answer)  # pyright: ignore

    def _stack_of(self, rows: list[int]) -> Stack:
        """A stack with the states of just these runs that still ask for anything."""
        ours = [self._members[row] for row in rows]
        stack = ours[0].stack
        if stack is None or any(member.stack is not stack for member in ours):
            wholes = {member.row: member.whole() for member in ours}
            first = wholes[rows[0]]
            every = [wholes.get(row, first) for row in range(len(self._runs))]
            stack = Stack(every)
            for member in ours:
                member.stack, member.own = stack, None  # pyright: ignore
        for member in self._members.values():
            if member.stack is stack and member not in ours:
                member.leave()
        return stack


def _arguments(call: Call) -> tuple[Any, ...]:
    """All but the state, of a family first the number of the function."""
    ours = call.function
    # An array, never the one of another call: each run has its own.
    number = (np.asarray(ours.number, np.int32),) if isinstance(ours, Alike) else ()
    return (*number, *call.arguments)


def _program(
    function: Callable[..., Any],
    tells: bool,
    structure: Any,
    same: Any,
    *,
    place: Any,
    split: Any,
) -> Callable[..., Any]:
    """A call of all runs at once.

    Args:
      function: of a call.
      tells: see `Call`.
      structure: of its arguments.
      same: of each leaf of them, whether it is one for all runs.
      place: shardings of what it gives, or ``None``.
      split: of the runs over devices, or ``None``.

    Returns:
      ``(stacked state, leaves that are one, rows of the others) -> (stacked state, what
      is told to each)``; it donates the state.
    """
    # Without the shardings that a jitted step asks for; these are for all.
    function = getattr(function, "__wrapped__", function)

    def run(state: TrainState, shared: Any, own: Any) -> tuple[TrainState, list[Any]]:
        runs = jax.tree.leaves(state)[0].shape[0]

        def one(state: TrainState, *mine: Any) -> tuple[TrainState, Any]:
            ours, theirs = iter(shared), iter(mine)
            leaves = [next(ours if is_one else theirs) for is_one in same]
            given = function(state, *jax.tree.unflatten(structure, leaves))
            return given if tells else (given, None)

        columns = [jnp.stack([jnp.asarray(leaf) for leaf in column]) for column in own]
        if split is not None:  # the batches too: each device trains runs of its own
            columns = lax.with_sharding_constraint(columns, split)
        state, told = jax.vmap(one)(state, *columns)
        # Here, and not outside: a slice by itself is a program of its own.
        return state, [at(told, i) for i in range(runs)]

    return jax.jit(run, donate_argnums=0, out_shardings=place)
