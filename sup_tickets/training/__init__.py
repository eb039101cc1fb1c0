"""Training: state, jitted steps, mesh, plan, loop, evaluation."""
