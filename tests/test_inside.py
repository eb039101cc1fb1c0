"""Outputs changed inside a program: what follows, what does not, and the same bits."""

from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_optimizers as table

import sup_tickets as st
from sup_tickets import slots
from sup_tickets.inside import confined, run_changed

X = jnp.arange(4.0).reshape(2, 2)


def program_of(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


# --- Programs -------------------------------------------------------------------------


def step(slot, count):
    slot, count = slot + 1.0, count + 1.0
    return -2 * slot, slot, count, slot.sum() + count


@pytest.mark.parametrize(
    ("exact", "after"),
    [
        ([False] * 4, [-20.0, 10.0, 1.0, 41.0]),
        # What must be exact is computed from the slot, so this is changed at the end.
        ([False, False, False, True], [-2.0, 10.0, 1.0, 5.0]),
        ([False, False, True, False], [-20.0, 10.0, 1.0, 41.0]),
    ],
)
def test_what_follows_is_computed_from_the_changed(exact, after):
    """By hand: a slot of ones becomes tens."""
    arguments = jnp.zeros((2, 2)), jnp.zeros(())
    changes = [None, lambda slot: 10 * slot, None, None]
    found = run_changed(program_of(step, *arguments), arguments, changes, exact)
    assert [float(np.max(x)) for x in found] == after


def test_inputs_constants_and_twins_are_changed_too():
    def function(x):
        y = x + 1
        return x, y, y, 3.0

    changes = [lambda x: -x, lambda y: y * 10, lambda y: y * 100, lambda c: c + 1]
    program = program_of(function, X)
    found = run_changed(program, [X], changes, [False] * 4)
    # The twin is computed from what the first has become.
    for a, b in zip(found, [-X, 10 * (X + 1), 1000 * (X + 1), 4.0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("function", "reached"),
    [
        (lambda a, s: a + 1, "nothing"),
        (lambda a, s: jnp.sqrt(s) * a + 1e-8, "there"),
        (lambda a, s: jax.jit(lambda x: jnp.tanh(x) - a)(s), "there"),
        (lambda a, s: jnp.where(a > s, s, 0.0), "there"),
        (lambda a, s: s - s.mean(), "anywhere"),
        (lambda a, s: s.T, "anywhere"),
        (lambda a, s: a @ s, "anywhere"),
        (lambda a, s: jax.jit(lambda x: jnp.cumsum(x, 0))(s), "anywhere"),
        (lambda a, s: a / jnp.linalg.norm(s), "anywhere"),
    ],
)
def test_where_a_change_is_confined(function, reached):
    def whole(a, s):
        s = a * s
        return function(a, s), s

    program = program_of(whole, X, X)
    assert confined(program, [None, 1], [1, 1]) == (reached != "anywhere")
    # At the places of another mask it may not arrive.
    assert confined(program, [None, 1], [2, 1]) == (reached == "nothing")


def test_two_masks_may_not_meet():
    def function(a):
        b, c = a + 1, a + 2
        return b, c, b * c

    assert not confined(program_of(function, X), [1, 2, None], [1, 2, 1])


# --- Optimizers -----------------------------------------------------------------------


FEW = {
    "sgd", "adam", "adamw", "lion", "rmsprop", "adagrad", "yogi", "amsgrad", "lamb",
    "adafactor, factored", "inject_hyperparams", "apply_if_finite", "clip, decay",
    "sign_sgd",
}  # fmt: skip
EVERY = [
    pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
    for name in table.WORKS
]


def at_the_end(program, arguments, changes, exact):
    """As it would be without this module."""
    found = jax.core.eval_jaxpr(program.jaxpr, program.consts, *arguments)
    return [x if do is None else do(x) for do, x in zip(changes, found, strict=True)]


@pytest.mark.parametrize("name", EVERY)
@jax.numpy_dtype_promotion("standard")
@jax.numpy_rank_promotion("allow")
def test_the_bits_are_those_of_a_change_at_the_end(name, monkeypatch):
    """Steps 2 and 5 are left out; masks change before steps 2, 4 and 5."""
    tx = optax.with_extra_args_support(table.WORKS[name][0])

    def advance(params, state, masks, noise, replaced):
        objective = lambda p, *_: table.loss(p, noise)  # noqa: E731
        value, gradients = jax.value_and_grad(objective)(params)
        known = {"value": value, "grad": gradients, "value_fn": objective,
                 "obj_fn": objective, "grad_fn": jax.grad(objective)}  # fmt: skip
        extra = {key: known[key] for key in table.EXTRA.get(name, ())}
        params = st.apply_masks(masks, params)
        updates, state = slots.step_with_slots(
            tx,
            masks,
            st.apply_masks(masks, gradients),
            st.reset_slots(tx, masks, state, params),
            params,
            replaced=replaced,
            **extra,
        )
        updates = st.apply_masks(masks, updates)
        return optax.apply_updates(params, updates), state

    def run():
        call = jax.jit(advance)
        params, masks = table.draw(jax.random.key(0)), table.masks_at(0)
        state = tx.init(st.apply_masks(masks, params))
        for i in range(8):
            masks = table.masks_at(i) if i in (2, 4, 5) else masks
            noise = table.draw(jax.random.key(100 + i), 0.01)
            params, state = call(params, state, masks, noise, jnp.array(i in (2, 5)))
        if "linesearch" not in name:
            assert call._cache_size() == 1, "recompiled"
        return params, state

    inside = run()
    monkeypatch.setattr(slots, "run_changed", at_the_end)
    helpers.assert_same(inside, run())


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad", "amsgrad", "yogi"])
@pytest.mark.parametrize("may_be_replaced", [False, True])
@jax.numpy_dtype_promotion("standard")
def test_no_slot_is_copied(name, may_be_replaced):
    """On a CPU the donated step once needed as much again as its slots have."""
    tx = table.WORKS[name][0]
    params = {"kernel": jnp.ones((64, 48)), "bias": jnp.ones(48)}
    masks = {"kernel": jnp.ones((64, 48), bool), "bias": None}

    def advance(params, state, gradients, masks, replaced):
        updates, state = slots.step_with_slots(
            tx, masks, st.apply_masks(masks, gradients), state, params,
            replaced=replaced,
        )  # fmt: skip
        return optax.apply_updates(params, st.apply_masks(masks, updates)), state

    flag = jnp.zeros((), bool) if may_be_replaced else None
    given = params, tx.init(params), params, masks, flag
    compiled = jax.jit(advance, donate_argnums=(0, 1)).lower(*given).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < params["kernel"].nbytes // 4
