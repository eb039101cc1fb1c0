"""The plan of a run in whole numbers: made once, printed first, stored with the run."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sup_tickets.dynamic import Method
from sup_tickets.tickets import TicketBudget, TicketPlan
from sup_tickets.types import Schedule
from sup_tickets.update_times import scheduled


class Plan(NamedTuple):
    """What happens after how many completed steps."""

    epoch_steps: int
    tickets: TicketPlan
    milestones: tuple[int, ...]  # steps at which the rate of phase 1 falls
    updates: tuple[int, ...]  # steps, scheduled changes of the topology
    explorations: tuple[int, ...]  # steps, one at the start of each cycle
    collections: tuple[int, ...]  # steps, one at the end of each cycle

    @property
    def phase1_steps(self) -> int:
        """Steps of phase 1."""
        return self.tickets.phase1_steps

    @property
    def total_steps(self) -> int:
        """Steps of both phases, those consumed by updates included."""
        return self.tickets.total_steps

    def phase_of(self, step: int) -> str:
        """The phase of the step after ``step`` completed ones."""
        if step < self.phase1_steps or not self.tickets.cycles:
            return "phase 1"
        cycle = (step - self.phase1_steps) // self.tickets.cycle_steps
        return f"cycle {min(cycle + 1, self.tickets.cycles)}/{self.tickets.cycles}"


def ticket_plan(
    budget: TicketBudget, *, epoch_steps: int, cycle_epochs: int
) -> TicketPlan:
    """The budget in steps.

    Args:
      budget: of `ticket_budget`.
      epoch_steps: steps of an epoch.
      cycle_epochs: epochs of a cycle.
    """
    return TicketPlan(
        phase1_steps=budget.phase1_epochs * epoch_steps,
        cycle_steps=cycle_epochs * epoch_steps,
        cycles=budget.cycles,
    )


def drop_steps(phase1_steps: int, *, epoch_steps: int) -> tuple[int, ...]:
    """The steps at a half and three quarters of phase 1, at which its rate falls.

    Rounded down to whole epochs, as in the paper; where phase 1 is too short for two
    different epochs after the first (1 or 2 epochs), to whole steps. Steps that are the
    first of all, or the same, are left out.

    Args:
      phase1_steps: steps of phase 1.
      epoch_steps: steps of an epoch.

    Example:
      >>> [drop_steps(10 * epochs, epoch_steps=10) for epochs in (226, 4, 2, 1)]
      [(1130, 1690), (20, 30), (10, 15), (5, 7)]
    """
    epochs = phase1_steps // epoch_steps
    half, late = epochs // 2, 3 * epochs // 4
    if 0 < half < late:
        return half * epoch_steps, late * epoch_steps
    steps = (phase1_steps // 2, 3 * phase1_steps // 4)
    return tuple(sorted({step for step in steps if step > 0}))


def make_plan(
    method: Method,
    tickets: TicketPlan,
    *,
    epoch_steps: int,
    milestones: tuple[int, ...] = (),
) -> Plan:
    """The plan of a method with cheap tickets.

    An update falls after so many completed steps, before the next weight step or in its
    place; none after the last step, since what it grew would never be trained.

    Args:
      method: of sparse training.
      tickets: the two phases; with 0 cycles there is only the first.
      epoch_steps: steps of an epoch.
      milestones: steps at which the rate of phase 1 falls, for the text.
    """
    # All steps at once: one call of a traced schedule a step takes seconds.
    steps = jnp.arange(tickets.total_steps + 1)
    return Plan(
        epoch_steps=epoch_steps,
        tickets=tickets,
        milestones=milestones,
        updates=_where(scheduled(method, steps[:-1], tickets), tickets.total_steps),
        explorations=_where(tickets.explore_due(steps), len(steps)),
        collections=_where(tickets.ticket_due(steps), len(steps)),
    )


def describe(plan: Plan, method: Method, learning_rate: Schedule) -> str:
    """The plan as a text of a few lines."""
    cycles, total = plan.tickets.cycles, plan.total_steps
    lines = [
        f"plan: {method.name}, sparsity {method.sparsity:g}, {total} steps in "
        f"{total // plan.epoch_steps} epochs of {plan.epoch_steps} steps",
        f"phase 1: {_span(plan, 0, plan.phase1_steps)}; {_updates(plan, method)}",
        f"  learning rate {_rates(plan, learning_rate)}",
    ]
    if not cycles:
        return "\n".join([*lines, "no cheap tickets"])
    for i, (start, end) in enumerate(
        zip(plan.explorations, plan.collections, strict=True), start=1
    ):
        rates = np.asarray(learning_rate(jnp.arange(start, end)))
        lines.append(
            f"cycle {i} of {cycles}: {_span(plan, start, end)}; explore, train with "
            f"frozen masks at {rates[0]:.3g} to {rates.max():.3g} to {rates[-1]:.3g}, "
            "collect the ticket"
        )
    return "\n".join(lines)


def _where(due: Any, steps: int) -> tuple[int, ...]:
    """The steps at which something is due."""
    return tuple(map(int, np.flatnonzero(np.broadcast_to(np.asarray(due), steps))))


def _span(plan: Plan, start: int, end: int) -> str:
    epochs = f"epochs {start // plan.epoch_steps + 1} to {end // plan.epoch_steps}"
    return f"steps {start} to {end - 1}, {epochs}"


def _updates(plan: Plan, method: Method) -> str:
    if not plan.updates:
        return "no topology updates"
    how = "in place of" if method.consumes_step else "before"
    even = method.update_every and not method.sparsity_stairs
    every = f"every {method.update_every} steps " if even else ""
    return (
        f"{len(plan.updates)} topology updates {how} a weight step, {every}"
        f"from {plan.updates[0]} to {plan.updates[-1]}"
    )


def _rates(plan: Plan, learning_rate: Schedule) -> str:
    parts = [f"{float(learning_rate(0)):.3g}"]
    parts += [
        f"{float(learning_rate(s)):.3g} from step {s}"
        for s in plan.milestones
        if s < plan.phase1_steps
    ]
    return ", ".join(parts)
