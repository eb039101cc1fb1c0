"""Where a program is surely 0: by hand, and never where it is not."""

import jax
import jax.numpy as jnp
import pytest

from sup_tickets.zeros import EVERYWHERE, stays_zero

X = jnp.ones((2, 2))


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda a, b, c: 0.9 * a - jnp.sqrt(a), 1),
        (lambda a, b, c: a * c, 1),
        (lambda a, b, c: a**2, 1),
        (lambda a, b, c: jax.jit(jnp.tanh)(a), 1),
        (lambda a, b, c: jnp.where(c > 0, a, 0.0), 1),
        (lambda a, b, c: jnp.zeros_like(c), EVERYWHERE),
        (lambda a, b, c: a + b, None),  # 0 in different places
        (lambda a, b, c: a + c, None),
        (lambda a, b, c: a + 1e-8, None),
        (lambda a, b, c: a - a.mean(), None),
        (lambda a, b, c: a.T, None),
        (lambda a, b, c: c / (a + 1), None),
        (lambda a, b, c: a @ c, None),
        (lambda a, b, c: jnp.where(a > 0, a, c), None),
    ],
)
def test_where_it_stays_zero(function, wanted):
    assert stays_zero(function, (X, X, X), [1, 2, None]) == [wanted]
