"""Nothing depends on a value being rounded alike wherever XLA computes it."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import SMALL, VARIANTS, small

from sup_tickets.counting import computed_once
from sup_tickets.models.layers import BatchNorm, halve
from sup_tickets.softening import swish

PROGRAMS = Path(__file__).with_name("fused_programs.py")


def found_in_programs(*args):
    """What `fused_programs` finds, compiled as by default."""
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(PROGRAMS.parents[1]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, PROGRAMS, *args],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_programs_compiled_as_by_default():
    found = found_in_programs()
    assert found.pop("wrong counts") == found.pop("missed corners") == 0
    assert found.pop("made once")
    assert set(found) == {"conv", "vgg16"}
    for name, error in found.items():
        assert error < 1e-3, name


@pytest.mark.slow
def test_gradients_of_full_models_compiled_as_by_default():
    for name, error in found_in_programs("full").items():
        assert error < 0.02, name


def gradients(model, images):
    """Compiled and op by op."""
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    rest = {name: part for name, part in variables.items() if name != "params"}

    @jax.grad
    def gradient(params):
        scores, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(scores)[:, 0].mean()

    compiled = jax.jit(gradient)(variables["params"])
    with jax.disable_jit():
        return compiled, gradient(variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("batch", [3, 7])
def test_gradients_compiled_and_op_by_op(name, batch):
    images = jax.random.normal(jax.random.key(7), (batch, *SMALL[name][1][1:]))
    for a, b in zip(*map(jax.tree.leaves, gradients(small(name), images)), strict=True):
        # A lost derivative is off by tens of percents, a flipped ReLU by less.
        assert jnp.linalg.norm(a - b) <= 0.01 * jnp.linalg.norm(b) + 1e-6


def test_the_derivative_of_a_maximum_goes_to_one_place():
    x = jnp.asarray([[1.0, 2, 5, 5, 9], [3, 0, 5, 5, 9], [9, 9, 9, 9, 9]])
    slope = jax.grad(lambda x: (halve(x)[..., 0] * jnp.asarray([[[10.0, 20]]])).sum())
    found = slope(x[None, ..., None])[0, ..., 0]
    # Of equal ones the first, as in PyTorch; nothing to the odd row and column.
    expected = [[0, 0, 20, 0, 0], [10, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(found, expected)


def no_comparison_for_equality(function, *args):
    text = jax.jit(function).lower(*args).as_text()
    assert "while" in text or "dot" in text or "multiply" in text
    return "EQ" not in text


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 4, 2)])
def test_batch_norm_and_ghosts_compare_nothing_for_equality(shape):
    norm, x = BatchNorm(train=True), jnp.ones(shape)
    variables = norm.init(jax.random.key(0), x)

    def loss(x):
        return jnp.sin(norm.apply(variables, x, mutable=["batch_stats"])[0]).sum()

    assert no_comparison_for_equality(jax.grad(loss), x)
    assert not no_comparison_for_equality(lambda x: x == x.sum() * x, x)
    # Mish is gated by `jax.nn.softplus`, which asks what equals infinity: no rounding.
    slope = jax.grad(lambda x, b: swish(x, b).sum(), argnums=(0, 1))
    assert no_comparison_for_equality(slope, x, jnp.float32(2))


def test_what_is_computed_once_is_what_it_was():
    values = {"a": jnp.asarray([1, -2]), "b": jnp.float32(0.25)}
    for flag, factor in ((False, 1), (True, 0)):
        found = jax.jit(lambda v, f: computed_once(v, never=f))(values, flag)
        np.testing.assert_array_equal(found["a"], factor * values["a"])
        assert found["b"] == factor * values["b"]
    rows = jax.vmap(lambda v: computed_once(v, never=v < 0))(jnp.arange(3.0))
    np.testing.assert_array_equal(rows, [0, 1, 2])
