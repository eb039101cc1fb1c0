"""When the topology changes: by the schedule of a `Method`, and with cheap tickets."""

from typing import Any

import jax.numpy as jnp

from sup_tickets.dynamic import Method
from sup_tickets.schedules import (
    update_due,
)
from sup_tickets.tickets import TicketPlan
from sup_tickets.types import Number


def topology_due(method: Method, step: Number) -> Any:
    """Whether the topology changes after ``step`` steps by the method's own schedule.

    Args:
      method: the method.
      step: number of completed steps: a Python integer, or an integer array of any
        shape, traced or not.

    Returns:
      A bool, or a bool array of that shape.
    """
    due: Any = jnp.zeros(jnp.shape(step), bool) if _is_array(step) else False
    if method.where is None:
        return due
    if method.update_every:
        due |= update_due(
            every=method.update_every, begin=method.begin_step, end=method.end_step
        )(step)
    for stair, _ in method.sparsity_stairs[1:]:
        due |= step == stair
    return due


def scheduled(method: Method, step: Number, tickets: TicketPlan | None = None) -> Any:
    """`topology_due`, with cheap tickets.

    Cheap tickets train with frozen masks, so from their first step on it never is; nor
    shortly before (a quarter of the interval), because an exploration would drop first
    of all the weights that have only just been grown.

    Args:
      method: the method.
      step: number of completed steps, Python or traced.
      tickets: the plan of the cheap-ticket phase, if there is one.

    Raises:
      ValueError: if the method is still pruning when the tickets begin.
    """
    due = topology_due(method, step)
    if tickets is None or not tickets.cycles:
        return due
    if method.settled_step >= tickets.phase1_steps:
        raise ValueError(
            f"method {method.name!r} prunes until step {method.settled_step}, but the "
            f"tickets begin at phase1_steps={tickets.phase1_steps}; "
            "prune_end_step must be below it"
        )
    last = max(method.settled_step, tickets.phase1_steps - method.update_every // 4 - 1)
    return due & (step <= last)


def _is_array(step: Any) -> bool:
    return hasattr(step, "dtype")
