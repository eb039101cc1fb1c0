"""Where the states of replicas lie on several devices."""

import jax
import pytest

from sup_tickets.training.calls import Call, alone, begin, whole
from sup_tickets.training.replicas import together
from sup_tickets.training.state import TrainState
from tests.test_replicas import close, experiment_for, seeded
from tests.test_sharded_training import on_first_device
from tests.test_training import counts


def steps_of(devices, seed, seen):
    """A run of two weight steps and an update, which notes what a device has."""
    experiment = seeded(experiment_for("rigl", devices=devices), seed, devices)
    steps, batches = experiment.stages[0].steps, experiment.batches
    state = experiment.init(jax.random.key(seed)).train
    own = on_first_device(state)
    state, _ = yield Call(begin, state, ("these",), 0, tells=False)
    for step in range(2):
        state, _ = yield Call(steps.train, state, (batches(step),), step)
    state, told = yield Call(steps.topology, state, (batches(2),), 2)
    if not isinstance(state, TrainState):
        seen.append(on_first_device(state.stack.state) / own)
    state = whole(state)
    assert on_first_device(state) == own
    return state, told


@pytest.mark.parametrize(
    ("devices", "runs", "share"),
    [
        (2, 2, 1),
        pytest.param(8, 8, 1, marks=pytest.mark.slow),
        pytest.param(2, 3, 3, marks=pytest.mark.slow),  # no even share
    ],
)
def test_runs_are_shared_out_over_devices(devices, runs, share):
    """Each device has some of them whole, if that is even; the results are the same."""
    seen = []
    found = together([steps_of(devices, seed, seen) for seed in range(runs)])
    for error in found:
        if isinstance(error, Exception):
            raise error
    assert seen == [share] * runs
    for seed, (state, told) in enumerate(found):
        wanted, turnover = alone(steps_of(1, seed, []))
        assert counts(state.method.masks) == counts(wanted.method.masks)
        assert (int(told.active), int(told.kept)) == (turnover.active, turnover.kept)
        close(state, wanted, atol=1e-4)
