"""Replicas are what the single runs are: counts exactly, values to rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets.models import ConvNet
from sup_tickets.training.calls import Call, alone, begin, whole
from sup_tickets.training.gradients import written_out
from sup_tickets.training.loop import (
    TrainingDiverged,
    TrainingStopped,
    train,
    training,
)
from sup_tickets.training.replicas import together
from sup_tickets.training.state import TrainState
from sup_tickets.training.steps import Spec, compile_steps
from tests import helpers
from tests.test_sharded_training import experiment_of as sharded_experiment
from tests.test_sharded_training import on_first_device
from tests.test_training import (
    RATE,
    Recorder,
    batches_of,
    counts,
    experiment_of,
    make_optimizer,
    method_of,
    place_of,
    start_of,
    task_of,
)

SEEDS = (0, 1, 2)


def close(one, other, atol=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol),
        *map(data, (one, other)),
    )


def data(tree):
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else np.asarray(x, np.float32)
        ),
        tree,
    )


@functools.cache
def steps_for(name, block_steps, convolves, devices=1):
    """Of a perceptron with batch norm, or of a convolutional network."""
    model = ConvNet(features=(4, 4)) if convolves else None
    spec = Spec(
        task_of(model),
        method_of(name),
        make_optimizer("sgd", weight_decay=5e-4),
        RATE,
        block_steps=block_steps,
        block_at=batches_of().at,
    )
    return compile_steps(spec, place_of(devices).replicated)


@functools.cache
def experiment_for(name, block_steps=1, convolves=False, devices=1):
    steps = steps_for(name, block_steps, convolves, devices)
    return experiment_of(name, devices, steps=steps, validate_every_steps=5)


def seeded(experiment, seed, devices=1):
    """The experiment with the batches of a seed."""
    ours = batches_of(devices, seed)
    whole = experiment.batches(0).examples  # on the devices once
    shared = ours._replace(
        batch=lambda step: ours.batch(step)._replace(examples=whole),
        block=lambda step, n: ours.block(step, n)._replace(examples=whole),
    )
    return dataclasses.replace(experiment, batches=shared)


def alone_of(experiment, seed, **options):
    recorder = Recorder()
    outcome = train(seeded(experiment, seed), start_of(experiment, seed), recorder)
    return outcome, recorder


def run_of(experiment, seed, recorder, start=None, checkpointer=None, devices=1):
    start = start or start_of(experiment, seed)
    return training(seeded(experiment, seed, devices), start, recorder, checkpointer)


@pytest.mark.parametrize(
    ("name", "block_steps", "convolves"),
    [
        ("rigl", 1, False),
        pytest.param("set", 2, False, marks=pytest.mark.slow),
        pytest.param("rigl", 1, True, marks=pytest.mark.slow),
    ],
)
def test_each_is_the_run_of_its_seed(name, block_steps, convolves):
    experiment = experiment_for(name, block_steps, convolves)
    told = [Recorder() for _ in SEEDS]
    pairs = zip(SEEDS, told, strict=True)
    ours = together([run_of(experiment, seed, to) for seed, to in pairs])
    for seed, outcome, recorder in zip(SEEDS, ours, told, strict=True):
        wanted, record = alone_of(experiment, seed)
        assert recorder.events == record.events
        assert list(recorder.networks) == list(record.networks)
        for turned, other in zip(recorder.turnovers, record.turnovers, strict=True):
            assert (turned.active, turned.size) == (other.active, other.size)
        assert counts(outcome.network.masks) == counts(wanted.network.masks)
        assert counts(outcome.superposed.masks) == counts(wanted.superposed.masks)
        assert recorder.loss.keys() == record.loss.keys()
        ours_, theirs = (list(each.loss.values()) for each in (recorder, record))
        np.testing.assert_allclose(ours_, theirs, atol=1e-4)
        close(outcome.state, wanted.state, atol=1e-4)
        close(outcome.superposed, wanted.superposed, atol=1e-4)
        assert [step for step, _ in recorder.metrics] == [5, 10, 12, 15, 16, 20]
    assert len({tuple(to.loss.values()) for to in told}) == len(SEEDS)


def test_masks_are_the_same_given_the_same_scores():
    """A topology step of stacked states, bit by bit."""
    steps = steps_for("rigl", 1, False)
    experiment = experiment_for("rigl")
    states = [start_of(experiment, seed).train for seed in SEEDS]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    batch = experiment.batches(0)
    step = steps.topology.__wrapped__
    both = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, batch)[0]
    for i, state in enumerate(states):
        wanted = jax.jit(step)(state, batch)[0]
        for a, b in zip(
            jax.tree.leaves(both.method.masks),
            jax.tree.leaves(wanted.method.masks),
            strict=True,
        ):
            np.testing.assert_array_equal(a[i], b)


class Keeper:
    """Keeps every state, and stops a run after some steps."""

    def __init__(self, stop=10**9):
        self.states, self._stop = {}, stop

    def due(self, step):
        return step % 3 == 0

    def stopping(self, step):
        return step == self._stop

    def save(self, state):
        self.states[int(state.train.step)] = jax.tree.map(jnp.copy, state)


def test_they_go_on_to_the_bit_wherever_each_was():
    experiment = experiment_for("rigl")

    def runs(keepers, starts=(None, None, None)):
        given = zip(SEEDS, starts, keepers, strict=True)
        return [run_of(experiment, s, Recorder(), at, to) for s, at, to in given]

    whole = together(runs([Keeper() for _ in SEEDS]))
    cut = [Keeper(7), Keeper(9), Keeper(14)]
    stopped = together(runs(cut))
    assert all(isinstance(found, TrainingStopped) for found in stopped)
    starts = [keeper.states[max(keeper.states)] for keeper in cut]
    again = together(runs([Keeper() for _ in SEEDS], starts))
    for outcome, wanted in zip(again, whole, strict=True):
        for a, b in zip(
            *map(jax.tree.leaves, map(data, (outcome, wanted))), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    # Of one that is not there any more the others do not notice.
    left = runs([Keeper() for _ in SEEDS])
    rest = together([left[0], None, left[2]])
    assert rest[1] is None
    for row in (0, 2):
        for a, b in zip(
            *map(jax.tree.leaves, map(data, (rest[row], whole[row]))), strict=True
        ):
            np.testing.assert_array_equal(a, b)


class Failing(Recorder):
    """Cannot write."""

    def changed(self, kind, step, network, turnover):
        if step == 8:
            raise OSError("no space left")


def test_one_that_fails_leaves_the_others():
    experiment = experiment_for("rigl")
    broken = start_of(experiment, 1)
    bad = jax.tree.map(lambda p: p * jnp.nan, broken.train.params)
    broken = broken.replace(train=broken.train.replace(params=bad))
    found = together(
        [
            run_of(experiment, 0, Recorder()),
            run_of(experiment, 1, Recorder(), broken),
            run_of(experiment, 2, Failing()),
        ]
    )
    assert isinstance(found[1], TrainingDiverged)
    assert isinstance(found[2], OSError)
    wanted, _ = alone_of(experiment, 0)
    close(found[0].state, wanted.state, atol=1e-4)


class Interrupted(Recorder):
    """Is where Ctrl-C arrives."""

    def changed(self, kind, step, network, turnover):
        raise KeyboardInterrupt


def test_an_interrupt_ends_all():
    experiment = experiment_for("rigl")
    runs = [run_of(experiment, 0, Recorder()), run_of(experiment, 1, Interrupted())]
    with pytest.raises(KeyboardInterrupt):
        together(runs)
    for run in runs:
        with pytest.raises(StopIteration):
            next(run)


def test_an_error_of_a_step_is_that_of_the_run():
    """It leaves a run through the run, which closes what it has opened."""

    def fails(state, batch):
        raise OSError("no memory")

    seen = []

    def run():
        experiment = experiment_for("rigl")
        begun = start_of(experiment).train
        state, _ = yield Call(begin, begun, ("same",), 0, tells=False)
        try:
            yield Call(fails, state, (0,), 0)
        finally:
            seen.append("closed")

    for found in together([run(), run()]):
        with pytest.raises(OSError, match="no memory"):
            raise found
    with pytest.raises(OSError, match="no memory"):
        alone(run())
    assert seen == ["closed"] * 3


@pytest.mark.slow
def test_eight_devices_are_as_one():
    helpers.need_devices(8)
    experiment = experiment_for("rigl", devices=8)
    runs = [run_of(experiment, seed, Recorder(), devices=8) for seed in SEEDS]
    for seed, outcome in zip(SEEDS, together(runs), strict=True):
        wanted, _ = alone_of(experiment_for("rigl"), seed)
        assert counts(outcome.network.masks) == counts(wanted.network.masks)
        close(outcome.state.train.params, wanted.state.train.params, atol=1e-4)


@pytest.mark.slow
def test_states_that_are_spread_over_devices_stay_so():
    experiment, own = sharded_experiment("8x1"), []
    steps = experiment.stages[0].steps

    def run(seed):
        state = experiment.init(jax.random.key(seed)).train
        own.append(on_first_device(state))
        given = (experiment.stages,)
        state, _ = yield Call(begin, state, given, 0, tells=False)
        for step in range(2):
            batch = experiment.batches(step)
            state, _ = yield Call(steps.train, state, (batch,), step)
        given = (experiment.batches(2),)
        state, _ = yield Call(steps.topology, state, given, 2)
        if not isinstance(state, TrainState):
            assert on_first_device(state.stack.state) == sum(own)
        return whole(state)

    found = together([run(seed) for seed in (0, 1)])
    for seed, state in enumerate(found):
        wanted = alone(run(seed))
        assert on_first_device(state) == own[0]
        assert counts(state.method.masks) == counts(wanted.method.masks)
        close(state, wanted)


def test_convolutions_are_written_out_under_vmap():
    params = {"conv": jnp.ones((3, 3, 1, 2)), "w": jnp.ones((2, 3))}
    images = jnp.ones((4, 1, 5, 5, 1))

    def apply(params, image, scale):
        found = jax.lax.conv(
            image.transpose(0, 3, 1, 2),
            params["conv"].transpose(3, 2, 0, 1),
            (1, 1),
            "SAME",
        )
        return scale * found.sum(), params["w"] * scale

    mapped = jax.vmap(written_out(apply, params), in_axes=(None, 0, None))
    text = str(jax.make_jaxpr(mapped)(params, images, 2.0))
    assert text.count("conv_general_dilated[") == 4
    plain = jax.vmap(apply, in_axes=(None, 0, None))
    for a, b in zip(
        jax.tree.leaves(mapped(params, images, 2.0)),
        jax.tree.leaves(plain(params, images, 2.0)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b)
    matrices = {"w": params["w"]}
    assert written_out(apply, matrices) is apply
