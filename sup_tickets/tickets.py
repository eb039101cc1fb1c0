"""The phases of Sup-tickets: normal sparse training, then cycles of cheap tickets."""

import dataclasses
from typing import NamedTuple

import jax

from sup_tickets.checks import check_whole
from sup_tickets.counting import exact_portion


@dataclasses.dataclass(frozen=True)
class TicketPlan:
    """The phases of Sup-tickets in steps: phase 1, then ``cycles`` cycles of tickets.

    ``step`` is everywhere the number of *completed* steps, an int or an integer array.
    Where a cycle ends and the next begins both `ticket_due` and `explore_due` hold: the
    ticket is collected first.

    Example:
      >>> plan = TicketPlan(phase1_steps=10, cycle_steps=4, cycles=2)
      >>> plan.total_steps
      18
      >>> [step for step in range(30) if plan.explore_due(step)]
      [10, 14]
      >>> [step for step in range(30) if plan.ticket_due(step)]
      [14, 18]
    """

    phase1_steps: int  # steps of normal sparse training, at least 0
    cycle_steps: int  # steps of one cycle, at least 1
    cycles: int  # number of tickets, at least 0

    def __post_init__(self) -> None:
        check_whole("phase1_steps", self.phase1_steps, 0)
        check_whole("cycle_steps", self.cycle_steps, 1)
        check_whole("cycles", self.cycles, 0)

    @property
    def total_steps(self) -> int:
        """Steps of both phases."""
        return self.phase1_steps + self.cycles * self.cycle_steps

    def explore_due(self, step: int | jax.Array) -> bool | jax.Array:
        """Whether a cycle starts: exactly once a cycle, before its first step."""
        return self._at_boundary(step) & (step < self.total_steps)

    def ticket_due(self, step: int | jax.Array) -> bool | jax.Array:
        """Whether ``step`` completed steps end a cycle."""
        at_end = (step > self.phase1_steps) & (step <= self.total_steps)
        return self._at_boundary(step) & at_end

    def in_tickets(self, step: int | jax.Array) -> bool | jax.Array:
        """Whether phase 1 is over: no scheduled topology update any more."""
        return step >= self.phase1_steps

    def _at_boundary(self, step: int | jax.Array) -> bool | jax.Array:
        whole = (step - self.phase1_steps) % self.cycle_steps == 0
        return self.in_tickets(step) & whole


class TicketBudget(NamedTuple):
    """How epochs are split between the two phases; see `ticket_budget`."""

    phase1_epochs: int  # normal sparse training
    phase2_epochs: int  # cycles * cycle_epochs
    cycles: int  # number of tickets
    milestones: tuple[int, int]  # epochs, at a half and three quarters of phase 1


def ticket_budget(
    epochs: int,
    *,
    fraction: float = 0.1,
    cycle_epochs: int = 8,
    cycles: int | None = None,
) -> TicketBudget:
    """Splits the epochs into phase 1 and whole cycles of cheap tickets.

    Phase 2 takes ``fraction`` of the epochs, rounded down to whole cycles; where not
    one fits, there is no phase 2. All in exact arithmetic.

    Args:
      epochs: of both phases.
      fraction: of the epochs that phase 2 may take, in [0, 1]; not used if ``cycles``
        is given.
      cycle_epochs: length of a cycle.
      cycles: number of cycles; by default as many as ``fraction`` allows.

    Raises:
      ValueError: if an argument is out of its range, or if less than one epoch is left
        for phase 1.

    Example:
      >>> ticket_budget(250)
      TicketBudget(phase1_epochs=226, phase2_epochs=24, cycles=3, milestones=(113, 169))
      >>> ticket_budget(100, cycle_epochs=2, cycles=4).phase1_epochs
      92

    References:
      Yin et al., Superposing Many Tickets into One, 2022, Algorithm 1 and Table 5,
      https://arxiv.org/abs/2205.15322
    """
    check_whole("epochs", epochs, 1)
    check_whole("cycle_epochs", cycle_epochs, 1)
    if cycles is None:
        cycles = exact_portion(epochs, fraction, "floor") // cycle_epochs
    phase2 = check_whole("cycles", cycles, 0) * cycle_epochs
    phase1 = epochs - phase2
    if phase1 < 1:
        raise ValueError(
            f"cycles={cycles} of cycle_epochs={cycle_epochs} take {phase2} of "
            f"epochs={epochs}; phase 1 needs at least 1"
        )
    return TicketBudget(phase1, phase2, cycles, (phase1 // 2, 3 * phase1 // 4))
