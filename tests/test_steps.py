"""The options of the training step: blocks, accumulation, decay, clipping, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sup_tickets.masks import layer_table
from sup_tickets.models import ConvNet, make_model
from sup_tickets.slots import reset_slots
from sup_tickets.training.gradients import unrolled
from sup_tickets.training.loop import _Advance
from sup_tickets.training.losses import cross_entropy, smoothed_cross_entropy
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.steps import Spec, compile_steps
from tests import helpers
from tests.helpers import assert_same
from tests.test_training import (
    RATE,
    Recorder,
    assert_dead_are_zero,
    batches_of,
    experiment_of,
    method_of,
    model_of,
    place_of,
    prepare,
    run,
    steps_of,
    task_of,
)


def with_options(name="rigl", *, model=None, devices=1, loss=cross_entropy, **options):
    tx = make_optimizer("sgd", weight_decay=5e-4)
    spec = Spec(task_of(model, loss=loss), method_of(name), tx, RATE, **options)
    return compile_steps(spec, place_of(devices).replicated)


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# --- Several steps a call -------------------------------------------------------------


def test_a_block_is_its_steps():
    batches = batches_of()
    steps = with_options(block_steps=4, block_at=batches.at)
    one = steps.init(jax.random.key(0))
    losses = []
    for step in range(4):
        one, report = steps.train(one, batches(step))
        losses.append(report["loss"])
    block, found = steps.block(steps.init(jax.random.key(0)), batches.block(0, 4))
    assert int(block.step) == 4 and found["loss"].shape == (4,)
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
    close(block.params, one.params)
    assert_same(jax.tree.leaves(block.method.masks), jax.tree.leaves(one.method.masks))
    assert_dead_are_zero(block)


def test_a_run_in_blocks_meets_every_event():
    batches = batches_of()
    plain, told = run(experiment_of("rigl", validate_every_steps=7))
    sizes = []
    steps = with_options(block_steps=3, block_at=batches.at)

    def counted(state, block):
        sizes.append(int(state.step))
        return steps.block(state, block)

    ours = experiment_of(
        "rigl", steps=steps._replace(block=counted), validate_every_steps=7
    )
    outcome, recorder = run(ours)
    # Updates at 4 and 8, the ends of phases at 12, 16 and 20, looks at 7 and 14.
    assert sizes == [0, 9]
    assert recorder.events == told.events
    assert [s for s, _ in recorder.metrics] == [s for s, _ in told.metrics]
    assert sorted(recorder.loss) == list(range(20))
    close(outcome.network.params, plain.network.params, atol=1e-4)
    assert (
        layer_table(outcome.superposed.masks)[-1]
        == layer_table(plain.superposed.masks)[-1]
    )


def test_blocks_are_the_same_from_any_start():
    fits = _Advance(experiment_of("rigl"), Recorder())._fits
    assert [s for s in range(20) if fits(s, 2)] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [s for s in range(20) if fits(s, 5)] == []
    fits = _Advance(experiment_of("static"), Recorder())._fits
    assert [s for s in range(20) if fits(s, 5)] == [0, 5]


def test_a_block_needs_to_know_its_batches():
    with pytest.raises(ValueError, match="block_steps=2 needs block_at"):
        with_options(block_steps=2)
    with pytest.raises(ValueError, match="block_steps"):
        with_options(block_steps=0)


@helpers.CPU_ONLY
def test_loops_of_convolutions_are_unrolled_on_a_cpu():
    convolution, matrix = {"k": jnp.zeros((3, 3, 1, 1))}, {"k": jnp.zeros((3, 3))}
    assert unrolled(7, convolution) == 7
    assert unrolled(7, matrix) == 1
    batches = batches_of()
    steps = with_options(
        model=ConvNet(features=(4, 4)), block_steps=2, block_at=batches.at
    )
    state = steps.init(jax.random.key(0))
    text = steps.block.lower(state, batches.block(0, 2)).as_text()
    assert "convolution" in text
    bodies = text.split("stablehlo.while")[1:]
    assert not any("stablehlo.convolution" in body for body in bodies)


# --- Accumulation ---------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulated_parts_are_the_whole_batch(devices):
    model = make_model("mlp", features=(16,))  # batch norm sees the parts
    whole = with_options(model=model, devices=devices)
    parts = with_options(model=model, devices=devices, accumulate=2)
    batches = batches_of(devices)
    a, loss = whole.train(whole.init(jax.random.key(0)), batches(0))
    b, other = parts.train(parts.init(jax.random.key(0)), batches(0))
    np.testing.assert_allclose(loss["loss"], other["loss"], rtol=1e-5)
    close(a.params, b.params)
    grown = [s.topology(state, batches(1))[0] for s, state in ((whole, a), (parts, b))]
    assert_same(grown[0].method.masks, grown[1].method.masks)


def test_batch_norm_sees_each_part():
    steps = with_options(accumulate=2)
    state = steps.init(jax.random.key(0))
    params, key = jax.device_get(state.params), state.key
    batch = batches_of()(0)
    inputs, _ = prepare(batch, jax.random.fold_in(key, 0))
    hidden = np.asarray(inputs).reshape(8, -1) @ params["dense1"]["kernel"]
    state, _ = steps.train(state, batch)
    mean = 0.0
    for part in (hidden[0::2], hidden[1::2]):
        mean = 0.9 * mean + 0.1 * part.mean(0)
    np.testing.assert_allclose(state.model_state["bn1"]["mean"], mean, atol=1e-6)


def test_accumulation_must_divide_the_batch():
    steps = with_options(accumulate=3)
    with pytest.raises(ValueError, match="accumulate=3 does not divide the batch of 8"):
        steps.train(steps.init(jax.random.key(0)), batches_of()(0))
    with pytest.raises(ValueError, match="accumulate"):
        with_options(accumulate=0)


# --- Loss and optimizer ---------------------------------------------------------------


def test_the_loss_told_is_plain_and_the_gradient_is_not():
    plain, soft = with_options(), with_options(loss=smoothed_cross_entropy(0.5))
    batch = batches_of()(0)
    a, loss = plain.train(plain.init(jax.random.key(0)), batch)
    b, other = soft.train(soft.init(jax.random.key(0)), batch)
    np.testing.assert_allclose(loss["loss"], other["loss"], rtol=1e-6)
    kernels = [np.asarray(s.params["classifier"]["kernel"]) for s in (a, b)]
    assert (kernels[0] != kernels[1]).any()


def test_the_gradient_is_clipped_before_the_decay():
    tx = make_optimizer("sgd", weight_decay=0.5, momentum=0.0, clip_norm=1.0)
    params, gradient = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([3.0, 4.0])}
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [0.6 + 1.0, 0.8], rtol=1e-6)


def test_decay_spares_what_it_is_told_to():
    tx = make_optimizer(
        "sgd",
        weight_decay=0.5,
        decay=lambda p: {name: name != "bn" for name in p},
    )
    params = {"w": jnp.ones(2), "bn": jnp.ones(2)}
    updates, state = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    np.testing.assert_allclose(updates["w"], [0.5, 0.5])
    np.testing.assert_allclose(updates["bn"], [0.0, 0.0])
    masks = {"w": jnp.array([True, False]), "bn": None}
    masked = reset_slots(tx, masks, state, params)
    np.testing.assert_allclose(optax.tree.get(masked, "trace")["w"], [0.5, 0.0])


def test_nesterov_looks_ahead():
    params, gradient = {"w": jnp.ones(1)}, {"w": jnp.ones(1)}
    tx = make_optimizer("sgd", nesterov=True)
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [1.9], rtol=1e-6)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="must be 'sgd' or 'adamw', got 'lion'"):
        make_optimizer("lion")


def test_bfloat16_computes_and_keeps_float32():
    steps = with_options(model=model_of().clone(dtype=jnp.bfloat16))
    state, report = steps.train(steps.init(jax.random.key(0)), batches_of()(0))
    state, turnover = steps.topology(state, batches_of()(1))
    assert report["loss"].dtype == jnp.float32 and jnp.isfinite(turnover.loss)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {
        jnp.dtype("float32")
    }
    assert_dead_are_zero(state)
    exact, _ = steps_of("rigl").train(
        steps_of("rigl").init(jax.random.key(0)), batches_of()(0)
    )
    assert (state.params["bn1"]["scale"] != exact.params["bn1"]["scale"]).any()


# --- Turnover -------------------------------------------------------------------------


def test_the_turnover_counts():
    steps = steps_of("set")
    state = steps.init(jax.random.key(0))
    before = jax.device_get(state.method.masks)
    state, turnover = steps.topology(state, batches_of()(0))
    after = jax.device_get(state.method.masks)
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert int(turnover.active) == sum(b.sum() for _, b in pairs)
    assert int(turnover.kept) == sum((a & b).sum() for a, b in pairs)
    assert 0 < int(turnover.kept) < int(turnover.active)
    assert int(turnover.ever_active) == -1  # not tracked
