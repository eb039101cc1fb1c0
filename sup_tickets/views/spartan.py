"""Spartan: a soft top-k whose sharpness rises, with a hard one in the forward pass.

References:
  Tai et al., Spartan: Differentiable Sparsity via Regularized Transportation, 2022,
  https://arxiv.org/abs/2205.14107
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_density, check_number, check_whole
from sup_tickets.counting import portion
from sup_tickets.schedules import linear_fraction
from sup_tickets.trees import RuleLike, default_rule
from sup_tickets.types import Masks, Number, Params
from sup_tickets.views.leaves import (
    KeepDense,
    applied,
    covering,
    largest,
    masked,
    none_like,
    over,
    share,
)
from sup_tickets.views.view import Extra, View

_MOST_STEPS = 60  # of Newton's method; 10 are usual


def spartan(
    *,
    density: float,
    total_steps: int,
    beta_start: float = 1.0,
    beta_end: float = 20.0,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """In each leaf the k largest weights are seen, times a soft mask m that sums to k.

    ``m = sigmoid(beta * abs(w) + mu)``, with the mu for which it sums to k over the
    weights that are not 0. The gradient is that of ``w * m`` at every weight, mu's part
    included, as if all were seen. k falls from all weights to ``density`` of them over
    the first fifth of the steps; beta rises until four fifths, from where on the mask,
    0 where nothing is seen, is a constant.

    Args:
      density: share of the weights of each leaf in the end, see `edge_popup`.
      total_steps: of the training.
      beta_start, beta_end: positive.
      where: the leaves, see `sparse_leaves`.
      keep_dense: expressions of the leaves that are left alone.

    Raises:
      ValueError: if an argument is out of its range.
    """
    check_density(density)
    check_whole("total_steps", total_steps, 5)
    check_number("beta_start", beta_start, 0, above=True)
    check_number("beta_end", beta_end, 0, above=True)
    covers = covering(where, keep_dense)
    sparse_step, last_step = total_steps // 5, 4 * total_steps // 5

    def at(step: Number, own: Any) -> Any:
        """What is kept of a leaf, with the count and the sharpness of a step."""
        left = linear_fraction(1.0, end_step=sparse_step)(step)
        count = own["last"] + portion(own["first"] - own["last"], left, "nearest")
        dull = linear_fraction(1.0, end_step=last_step)(step)
        beta = beta_end + (beta_start - beta_end) * dull
        frozen = jnp.asarray(step) >= last_step
        beta = jnp.asarray(beta, jnp.float32)
        return {**own, "count": count, "beta": beta, "frozen": frozen}

    def hard(params: Params, kept: Any) -> Any:
        ranks = over(covers, jnp.abs, params)
        counts = over(covers, lambda _, own: own["count"], params, kept)
        chosen = largest(params, ranks, counts)
        return over(covers, lambda p, mask: mask.astype(p.dtype), params, chosen)

    def soft(params: Params, kept: Any) -> Any:
        return over(covers, _soft_where, params, hard(params, kept), kept)

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        del key
        masks = none_like(params) if masks is None else masks

        def begun(p: jax.Array, mask: Any) -> Any:
            return at(0, {"first": share(p, mask, 1), "last": share(p, mask, density)})

        kept = over(covers, begun, params, masks)
        return Extra(None, _with_masks(params, kept, hard(params, kept)))

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del key, train
        return applied(_see, params, extra.untrained)

    def after_step(params: Params, extra: Extra, key: Any, step: Any) -> Extra:
        del key
        kept = over(covers, lambda _, own: at(step, own), params, extra.untrained)
        past = (jnp.asarray(step) >= last_step).astype(jnp.int32)
        past += (jnp.asarray(step) > last_step).astype(jnp.int32)
        old = over(covers, lambda _, own: own["mask"], params, kept)
        masks = jax.lax.switch(
            past, (partial(hard, params), partial(soft, params), lambda _: old), kept
        )
        return Extra(None, _with_masks(params, kept, masks))

    return View(
        f"Spartan, {density:g} of each leaf",
        covers,
        init,
        apply,
        after_step,
        masks_may="stay",
    )


def soft_top_k(values: jax.Array, k: Number, beta: Number) -> jax.Array:
    """``sigmoid(beta * values + mu)`` that sums to k over the values above 0.

    By Newton's method, kept between bounds. All are 1 where no more than k are above 0,
    and those at 0 always are.

    Args:
      values: at least 0, of any shape.
      k: at least 1; may be traced.
      beta: positive; may be traced.

    Example:
      >>> m = soft_top_k(jnp.array([0.1, 0.2, 0.5, 1.0]), 2, 1.0)
      >>> [round(float(x), 4) for x in m]
      [0.4139, 0.4384, 0.5131, 0.6347]
    """
    x = jnp.asarray(beta, jnp.float32) * values.astype(jnp.float32)
    live = values > 0
    number, k = jnp.sum(live, dtype=jnp.float32), jnp.asarray(k, jnp.float32)
    some = k < number
    # If all x were the same the answer would be this.
    even = jnp.log(jnp.maximum(k, 1) / jnp.maximum(number - k, 1))
    low = even - jnp.max(x)
    high = even - jnp.min(jnp.where(live, x, jnp.inf), initial=jnp.inf)
    high = jnp.where(some, high, low)

    def soft(mu: jax.Array) -> jax.Array:
        return jnp.where(live, jax.nn.sigmoid(x + mu), jnp.float32(0))

    def off(state: Any) -> jax.Array:
        step, _, _, _, over = state
        return some & (step < _MOST_STEPS) & (jnp.abs(over) > 1e-6 * k)

    def newton(state: Any) -> Any:
        step, mu, low, high, over = state
        m = soft(mu)
        low, high = jnp.where(over < 0, mu, low), jnp.where(over < 0, high, mu)
        slope = jnp.maximum(jnp.sum(m * (1 - m)), 1e-30)
        new = mu - over / slope
        new = jnp.where((new > low) & (new < high), new, (low + high) / 2)
        return step + 1, new, low, high, jnp.sum(soft(new)) - k

    first = (low + high) / 2
    state = (jnp.int32(0), first, low, high, jnp.sum(soft(first)) - k)
    mu = jax.lax.while_loop(off, newton, state)[1]
    return jnp.where(some & live, soft(mu), jnp.float32(1)).astype(values.dtype)


# --- Parts ----------------------------------------------------------------------------


def _with_masks(params: Params, kept: Any, masks: Any) -> Any:
    return jax.tree.map(
        lambda _, own, mask: None if own is None else {**own, "mask": mask},
        params,
        kept,
        masks,
    )


def _soft_where(weight: jax.Array, hard: jax.Array, own: Any) -> jax.Array:
    return hard * soft_top_k(jnp.abs(weight), own["count"], own["beta"])


def _see(weight: jax.Array, own: Any) -> jax.Array:
    constant = (own[name] for name in ("mask", "count", "beta", "frozen"))
    return _soft_top_k(weight, *constant)


@jax.custom_vjp
def _soft_top_k(
    weight: jax.Array,
    mask: jax.Array,
    count: jax.Array,
    beta: jax.Array,
    frozen: jax.Array,
) -> jax.Array:
    """``w * m`` where the mask is not 0, with the gradient of ``w * m`` everywhere.

    Where ``frozen``, the mask is m itself, a constant.
    """
    return _soft_top_k_forward(weight, mask, count, beta, frozen)[0]


def _soft_top_k_forward(
    weight: Any, mask: Any, count: Any, beta: Any, frozen: Any
) -> Any:
    soft = jax.lax.cond(
        frozen, lambda: mask, lambda: soft_top_k(jnp.abs(weight), count, beta)
    )
    return masked(weight * soft, mask != 0), (weight, soft, beta, frozen)


def _soft_top_k_backward(kept: Any, gradient: jax.Array) -> Any:
    weight, soft, beta, frozen = kept
    # Through mu, too: what one entry of m gains the others lose, in these proportions.
    slope = jnp.where(frozen, 0, soft * (1 - soft)).astype(jnp.float32)
    of_mask = (gradient * weight).astype(jnp.float32)
    whole = jnp.maximum(jnp.sum(slope), 1e-30)
    of_mask = of_mask - jnp.sum(of_mask * slope) / whole
    through = (beta * slope * of_mask).astype(weight.dtype) * jnp.sign(weight)
    return gradient * soft + through, None, None, None, None


_soft_top_k.defvjp(_soft_top_k_forward, _soft_top_k_backward)
