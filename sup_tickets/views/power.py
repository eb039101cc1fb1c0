"""Powerpropagation: weights that learn the faster, the larger they are.

References:
  Schwarz et al., Powerpropagation: A Sparsity Inducing Weight Reparameterisation, 2021,
  https://arxiv.org/abs/2110.00296
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_number
from sup_tickets.trees import RuleLike, default_rule
from sup_tickets.types import Masks, Params
from sup_tickets.views.leaves import KeepDense, covering
from sup_tickets.views.view import Extra, View


def powerpropagation(
    *,
    alpha: float = 2.0,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """A stored weight p is seen as ``p * abs(p) ** (alpha - 1)``, with its own slope.

    What is seen at the beginning is what was drawn. The order of the magnitudes is that
    of the stored weights, so that pruning by magnitude prunes the same. A weight at 0
    stays there, so masks may only lose weights.

    Args:
      alpha: at least 1, where it changes nothing.
      where: the leaves, see `sparse_leaves`.
      keep_dense: expressions of the leaves that are left alone.

    Raises:
      ValueError: if alpha is below 1.
    """
    check_number("alpha", alpha, 1)
    covers = covering(where, keep_dense)

    def each(function: Any, params: Params) -> Params:
        return jax.tree.map(
            lambda p, covered: function(p) if covered else p, params, covers(params)
        )

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        del key, params, masks
        return Extra()

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del extra, key, train
        return each(lambda p: _power(p, alpha), params)

    def store(params: Params) -> Params:
        return each(lambda w: jnp.sign(w) * jnp.abs(w) ** (1 / alpha), params)

    return View(
        f"powerpropagation, alpha {alpha:g}",
        covers,
        init,
        apply,
        store=store,
        masks_may="change" if alpha == 1 else "shrink",
    )


# JAX's own derivative is NaN at 0, where the true one is 0.
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _power(p: jax.Array, alpha: float) -> jax.Array:
    return p * jnp.abs(p) ** (alpha - 1)


def _power_forward(p: jax.Array, alpha: float) -> Any:
    return _power(p, alpha), p


def _power_backward(alpha: float, p: jax.Array, gradient: jax.Array) -> Any:
    return (gradient * (alpha * jnp.abs(p) ** (alpha - 1)).astype(p.dtype),)


_power.defvjp(_power_forward, _power_backward)
