"""Layer-wise re-scaled initialization: GradInit, for a network that has its masks."""

from sup_tickets.gradinit.adam import RescaleState, rescale_state, rescale_update
from sup_tickets.gradinit.loop import Batches, Rescaled, RescaleHistory, rescaled_init
from sup_tickets.gradinit.slopes import (
    ALGORITHMS,
    Loss,
    Measured,
    lookahead_slopes,
    measure_gradient,
    norm_slopes,
)

__all__ = [
    "ALGORITHMS",
    "Batches",
    "Loss",
    "Measured",
    "RescaleHistory",
    "RescaleState",
    "Rescaled",
    "lookahead_slopes",
    "measure_gradient",
    "norm_slopes",
    "rescale_state",
    "rescale_update",
    "rescaled_init",
]
