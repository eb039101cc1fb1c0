"""Training: state, jitted steps, mesh, plan, loop, evaluation."""

from sup_tickets.checks import check_installed

check_installed("sup_tickets.training", "flax", "safetensors")
