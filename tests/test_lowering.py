"""Every program of a run can be lowered for accelerators that are not there."""

import jax
import pytest

from configs.digits import get_config
from experiments.build.experiment import build
from sup_tickets import superposition
from sup_tickets.training.state import as_trees, network_of

METHODS = ("rigl", "granet", "snfs", "rigl-itop")


@pytest.fixture(scope="module", params=METHODS)
def programs(request):
    """Names, programs and shapes of their arguments, of one method."""
    argument = "model=conv,data.batch_size=64,epochs=12,cycles=2,cycle_epochs=1"
    config = get_config(f"{argument},method={request.param}")
    run = build(config, devices=jax.devices()[:1])
    steps, last = run.steps, run.plan.total_steps
    state, batch = run.like(last).train, run.inputs.batches(0)
    tree, masks = as_trees(network_of(state))
    ours = superposition("cia", sparsity=0.95)
    average = jax.eval_shape(ours.init, tree, masks)
    return {
        "init": (steps.init, (jax.random.key(0),)),
        "train": (steps.train, (state, batch)),
        "topology": (steps.topology, (state, batch)),
        "explore": (steps.explore, (state, batch, 0.5)),
        "superpose": (jax.jit(ours.update), (average, tree, masks)),
        "result": (jax.jit(ours.result), (average,)),
    }


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_run_can_be_lowered(programs, platform):
    for name, (program, arguments) in programs.items():
        traced = program.trace(*arguments)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "func.func public @main" in text, name
