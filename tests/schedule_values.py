"""What the tests of schedules share."""

import optax

from sup_tickets.learning_rates import cheap_ticket_schedule

# float32 holds a value to 6e-8 of itself; a formula costs a few roundings.
CLOSE = {"rtol": 3e-7, "atol": 1e-9}


def values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def tickets(**changes):
    options = {
        "phase1_steps": 100,
        "cycle_steps": 8,
        "cycles": 3,
        "lr_min": 0.001,
        "lr_max": 0.005,
    }
    base = changes.pop("base", optax.constant_schedule(0.1))
    return cheap_ticket_schedule(base, **(options | changes))
