"""Averages of weights that restart where a weight is regrown: SNT-ASGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sup_tickets
from sup_tickets.iterate_averaging import (
    after_validation,
    averaged_params,
    is_averaging,
    iterate_averaging,
    restart_averages,
    stalled,
    start_averaging,
    unwatched,
)
from tests.helpers import quick


def averages(values, masks=None, **options):
    """The average after each step of a weight with these values after the steps."""
    tx = optax.chain(optax.identity(), iterate_averaging(**options))
    params = {"w": jnp.float32([0.5])}
    state, found = start_averaging(tx.init(params)), []
    for i, value in enumerate(values):
        given = None if masks is None else {"w": jnp.array([masks[i]])}
        _, state = tx.update(params, state, params, masks=given)
        params = {"w": jnp.float32([value])}
        found.append(float(averaged_params(params, state)["w"][0]))
    return found


def test_the_golden_case():
    """p = 1 to 5; then 6, inactive; then 7, which starts again."""
    assert averages([1, 2, 3, 4, 5]) == [1, 2, 2.5, 3, 3.5]
    masks = [True] * 5 + [False, True, True, True]
    found = averages([1, 2, 3, 4, 5, 0, 7, 8, 10], masks)
    assert found == [1, 2, 2.5, 3, 3.5, 0, 7, 8, 9]


def reference(values, masks):
    """As in the release: count, average, one weight."""
    count, average, found = 0, 0.0, []
    for value, active in zip(values, masks, strict=True):
        count = count + 1 if active else 0
        mu = 1.0 if count <= 2 else 1 / (count - 1)
        average = value if mu == 1 else average + mu * (value - average)
        average = average if active else 0.0
        found.append(average)
    return found


@quick
@given(st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=1))
def test_averages_are_those_of_the_release(steps):
    masks = [active for _, active in steps]
    values = [float(value) * active for value, active in steps]
    np.testing.assert_allclose(
        averages(values, masks), reference(values, masks), rtol=1e-5, atol=1e-5
    )


def test_plain_averages_share_one_count():
    """What was inactive counts as 0 for the steps before."""
    masks = [False] * 4 + [True, True]
    assert averages([0, 0, 0, 0, 10, 10], masks, restart=False) == [
        *(0, 0, 0, 0),
        *(10 / 4, 10 / 4 + 7.5 / 5),
    ]
    assert averages([1, 2, 3, 4, 5], restart=False) == [1, 2, 2.5, 3, 3.5]


def test_nothing_is_averaged_before_it_starts():
    tx = iterate_averaging(patience=1)
    params = {"w": jnp.float32([3.0])}
    state = tx.init(params)
    for loss in (2.0, 1.0, 1.5):  # 1.5 is below 2, the least but for the last
        _, state = tx.update(params, state, params)
        state = after_validation(state, loss)
        assert not state.started
        assert averaged_params(params, state)["w"][0] == 3
    state = after_validation(state, 1.1)
    assert state.started and not state.average["w"].any()
    assert averaged_params(params, state)["w"][0] == 3  # no step yet
    for value in (4.0, 6.0, 8.0):
        _, state = tx.update(params, state, params)
        params = {"w": jnp.float32([value])}
    assert averaged_params(params, state)["w"][0] == 7
    again = restart_averages(state)
    assert again.started and averaged_params(params, again)["w"][0] == 8


@quick
@given(st.lists(st.integers(0, 9), max_size=14), st.integers(1, 4))
def test_the_trigger_is_a_function_of_past_losses(losses, patience):
    watched, past = unwatched(patience), []
    for loss in losses:
        watched, stalls = stalled(watched, loss)
        older = past[:-patience]
        assert bool(stalls) == (len(past) > patience and loss > min(older))
        past.append(loss)


def test_a_loss_that_is_nan_is_no_loss():
    """It neither starts averages nor keeps them from ever starting."""
    watched, found = unwatched(2), []
    for loss in (5.0, 4.0, float("nan"), 6.0, 7.0, 3.0, 8.0):
        watched, stalls = stalled(watched, loss)
        found.append(bool(stalls))
    assert found == [False] * 3 + [True, True, False, True]
    assert float(watched.best) == 4


@pytest.mark.parametrize("restart", [True, False])
def test_a_state_that_was_on_the_host_goes_on(restart):
    tx, params = (
        iterate_averaging(restart=restart),
        {"w": jnp.ones(2), "b": jnp.ones(1)},
    )
    state = start_averaging(tx.init(params))
    for value in (1.0, 2.0, 3.0):
        _, state = tx.update(params, jax.device_get(state), params)
        params = jax.tree.map(lambda p, value=value: 0 * p + value, params)
    found = averaged_params(params, jax.device_get(state))
    assert jax.tree.map(lambda p: p.tolist(), found) == {"w": [2.5] * 2, "b": [2.5]}


def test_within_sparse_training_slots_say_what_is_regrown():
    """In anybody's loop: each average is that of the weight since it was grown."""
    method = sup_tickets.sparse_evolutionary(
        sparsity=0.5, update_every=2, end_step=40, drop_fraction=0.5
    )
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 6))}
    tx = sup_tickets.sparse_training(
        optax.chain(optax.sgd(0.1), iterate_averaging()), method
    )
    state = start_averaging(tx.init(params))
    params = sup_tickets.keep_sparse(params, state)

    @jax.jit
    def step(params, state, key):
        gradients = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    count, average = np.zeros((4, 6)), np.zeros((4, 6))
    before = np.asarray(sup_tickets.masks_of(state)["kernel"])
    changed = 0
    for i in range(12):
        params, state = step(params, state, jax.random.key(i))
        mask = np.asarray(sup_tickets.masks_of(state)["kernel"])
        p = np.asarray(params["kernel"], np.float64)
        changed += (mask & ~before).sum()
        count = np.where(mask, np.where(before, count, 0) + 1, 0)
        mu = 1 / np.maximum(count - 1, 1)
        average = np.where(count <= 2, p, average + mu * (p - average)) * mask
        found = averaged_params(params, state)["kernel"]
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-6)
        assert not np.asarray(found)[~mask].any()
        before = mask
    assert changed > 5 and is_averaging(state)


def test_half_precision_is_averaged_in_single():
    tx = iterate_averaging()
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = start_averaging(tx.init(params))
    assert state.average["w"].dtype == jnp.float32
    _, state = tx.update(params, state, params)
    assert averaged_params(params, state)["w"].dtype == jnp.bfloat16


def test_without_averages_everything_stays_as_it_is():
    params = {"w": jnp.ones(2)}
    state = optax.sgd(0.1, momentum=0.9).init(params)
    assert averaged_params(params, state) is params and not is_averaging(state)
    assert jax.tree.leaves(after_validation(state, 1.0)) == jax.tree.leaves(state)


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match=r"patience must be a whole number .* got 0"):
        iterate_averaging(patience=0)
    tx, params = iterate_averaging(), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="needs update"):
        tx.update(params, tx.init(params))
    for masks in ({"w": jnp.ones(3, bool)}, {"v": jnp.ones(2, bool)}):
        with pytest.raises(ValueError, match=r"masks has .*leaf '[vw]'"):
            tx.update(params, tx.init(params), params, masks=masks)
    twice = optax.chain(tx, tx).init(params)
    with pytest.raises(ValueError, match="holds 2 averages"):
        averaged_params(params, twice)
    with pytest.raises(ValueError, match="averages in opt_state"):
        averaged_params({"v": jnp.ones(2)}, tx.init(params))
