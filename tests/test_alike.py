"""Functions that are one program but for constants, as one that is told which."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sup_tickets.training.alike import Unlike, alike, family_of, is_same
from sup_tickets.training.gradients import side_by_side

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def plain(rate, x, step):
    return {"x": x - rate * jnp.tanh(x), "step": step + 1}


def nested(rate, x, step):
    return jax.jit(lambda y: jnp.where(y > rate, y, rate))(x)


def looped(count, x, step):
    def body(at):
        return at[0] + count, at[1] * count

    return lax.while_loop(lambda at: at[0] < 3 * count, body, (jnp.int32(0), x[0, 0]))


def scanned(rate, x, step):
    def one(total, row):
        return total + rate * row, total.sum() * rate

    return lax.scan(one, jnp.zeros(3), x)


def branching(rate, x, step):
    ways = (lambda: x * rate, lambda: x + rate, lambda: x)
    return lax.switch(step, ways)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def bent(rate, x):
    return x * rate


bent.defvjp(lambda rate, x: (bent(rate, x), x), lambda rate, x, ct: (ct * x + rate,))


def derived(rate, x, step):
    return jax.grad(lambda x: bent(rate, jnp.sin(x)).sum())(x), bent(rate, x)


def table(rate, x, step):
    return x * np.asarray([[rate, 1, 2]], np.float32)


def written(rate, x, step):
    return side_by_side(lambda x: jnp.sin(x) * rate)(x)


@pytest.mark.parametrize(
    "function",
    [plain, nested, looped, scanned, branching, derived, table, written],
    ids=lambda f: f.__name__,
)
def test_each_gives_what_it_gives_alone(function):
    """By its number, traced, and under vmap."""
    rates = (2, 5, 5) if function is looped else (0.1, 0.25, 0.5)
    each = alike([functools.partial(function, rate) for rate in rates])
    family, step = family_of(each[0]), np.int32(1)
    stacked = np.stack([X + i for i in range(3)])
    mapped = jax.jit(jax.vmap(family, in_axes=(0, 0, None)))
    together = mapped(stacked, np.arange(3), step)
    for i, rate in enumerate(rates):
        wanted = function(rate, X + i, step)
        row = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        jax.tree.map(np.testing.assert_allclose, row, wanted)
        one = jax.jit(family)(X + i, np.int32(i), step)
        jax.tree.map(np.testing.assert_allclose, one, wanted)
        jax.tree.map(np.testing.assert_allclose, each[i](X + i, step), wanted)
    text = str(jax.make_jaxpr(family)(X, np.int32(0), step))
    assert text.count("dynamic_slice") >= 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1, lambda x: x * 1),  # another operation
        (lambda x: x + x, lambda x: x + x + x),  # more of them
        (lambda x: x * 2, lambda x: x * jnp.sin(x[0, 0])),  # no constant
        (lambda x: x**2, lambda x: x**3),  # a constant of the operation itself
        (lambda x: x[:1], lambda x: x[:2]),  # another shape
        (lambda x: x[:1] - x[1:], lambda x: x[1:] - x[:1]),  # another place
        (lambda x: {"a": x}, lambda x: {"b": x}),
        (lambda x: x * np.ones((2, 3), "f"), lambda x: x * np.ones((1, 3), "f")),
        (
            lambda x: jax.vmap(lambda y: lax.pmax(y * 2, "i"), axis_name="i")(x),
            lambda x: jax.vmap(lambda y: lax.pmin(y * 2, "i"), axis_name="i")(x),
        ),
    ],
)
def test_more_than_a_constant_is_refused(one, other):
    with pytest.raises(Unlike):
        jax.eval_shape(family_of(alike([one, other])[0]), X, np.int32(0))


def test_the_same_program_is_left_as_it_is():
    def one(x):
        return lax.scan(lambda c, row: (c + row * 0.5, None), jnp.zeros(3), x)[0]

    family = family_of(alike([one, lambda x: one(x)])[0])
    text = str(jax.make_jaxpr(lambda x: family(x, np.int32(1)))(X))
    assert text == str(jax.make_jaxpr(one)(X))
    programs = [jax.make_jaxpr(f)(X) for f in (one, lambda x: one(x))]
    assert is_same(*programs)
