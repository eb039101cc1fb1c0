"""Views by magnitude: SR-STE (N of M anew at every step) and Top-KAST.

The stored weights are dense; the forward pass sees the largest of them, and weights
that it does not see are trained as well, by a rule of their own.

References:
  Zhou et al., Learning N:M Fine-Grained Structured Sparse Neural Networks From Scratch,
  2021, https://arxiv.org/abs/2102.04010
  Jayakumar et al., Top-KAST: Top-K Always Sparse Training, 2021,
  https://arxiv.org/abs/2106.03517
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_number
from sup_tickets.groups import splits_of
from sup_tickets.structures import n_of_m
from sup_tickets.trees import RuleLike, default_rule
from sup_tickets.types import Masks, Params
from sup_tickets.views.leaves import (
    KeepDense,
    applied,
    covering,
    largest,
    masked,
    over,
)
from sup_tickets.views.view import Extra, View


def sr_ste(
    n: int = 2,
    m: int = 4,
    *,
    decay: float = 2e-4,
    axis: int = -2,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """SR-STE: of every m consecutive weights the n largest are seen.

    All weights get the gradient of what is seen ("straight through"), and those that
    are not seen ``decay * weight`` besides, which pulls them to 0 and keeps the choice
    from swinging. At ``decay=0`` it is plain STE.

    Args:
      n: at least 1.
      m: more than n.
      decay: lambda_W of the paper, at least 0; as if of the loss, so the learning rate
        applies to it.
      axis: along which m are consecutive, see `n_of_m`.
      where: the leaves, see `sparse_leaves`.
      keep_dense: expressions of the leaves that are left alone, such as those that m
        does not divide.

    Raises:
      ValueError: if n is not in [1, m), or the decay is below 0; by ``covers`` for a
        leaf whose axis m does not divide.
    """
    structure = n_of_m(n, m, axis=axis)
    check_number("decay", decay, 0)
    chosen = covering(where, keep_dense)

    def splits(params: Params) -> Any:
        like = over(chosen, lambda p: p, params)
        try:
            return splits_of(structure.groups, params, like, f"{n}:{m}")
        except ValueError as error:
            raise ValueError(f"{error}; keep_dense= or where= leave it out") from None

    def covers(params: Params) -> Any:
        splits(params)  # raises where a leaf cannot take it
        return chosen(params)

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        del key, masks
        covers(params)
        return Extra()

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del extra, key, train
        ranks = over(chosen, jnp.abs, params)
        counts = over(chosen, lambda _: n, params)
        masks = largest(params, ranks, counts, splits(params))
        return applied(lambda w, mask: _sr_ste(w, mask, decay), params, masks)

    return View(
        f"SR-STE {n}:{m}, decay {decay:g}",
        covers,
        init,
        apply,
        groups=structure.groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sr_ste(weight: jax.Array, mask: jax.Array, decay: float) -> jax.Array:
    """The masked weight; the gradient is ``g + decay * (1 - mask) * weight``."""
    del decay
    return masked(weight, mask)


def _sr_ste_forward(weight: jax.Array, mask: jax.Array, decay: float) -> Any:
    del decay
    return masked(weight, mask), (weight, mask)


def _sr_ste_backward(decay: float, kept: Any, gradient: jax.Array) -> Any:
    weight, mask = kept
    return gradient + jnp.asarray(decay, weight.dtype) * masked(weight, ~mask), None


_sr_ste.defvjp(_sr_ste_forward, _sr_ste_backward)
