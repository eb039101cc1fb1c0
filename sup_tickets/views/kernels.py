"""KSM: a frozen backbone seen through a mask of its kernels, some of them rescaled.

References:
  Yang et al., KSM: Fast Multiple Task Adaption via Kernel-wise Soft Mask Learning,
  2021, https://arxiv.org/abs/2009.05668
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_number, check_one_of
from sup_tickets.trees import RuleLike, default_rule, leaf_keys
from sup_tickets.types import Masks, Params
from sup_tickets.views.leaves import KeepDense, applied, covering, over, through
from sup_tickets.views.view import Extra, View

Per = Literal["kernel", "channel", "element"]


def convolutions(name: str, leaf: Any) -> bool:
    """The sparse leaves of `default_rule` that are kernels of convolutions."""
    return default_rule(name, leaf) and leaf.ndim > 2


def ksm(
    *,
    soft: bool = True,
    per: Per = "kernel",
    start: float = 0.01,
    threshold: float = 0.005,
    steepness: float = 1200.0,
    temperature: float = 100.0,
    scale: float = 0.5,
    noise: bool = False,
    where: RuleLike = convolutions,
    keep_dense: KeepDense = (),
) -> View:
    """Kernels whose score is at least a threshold are seen, the others times a scale.

    Every 2-D kernel of a convolution has a score r, [1, 1, I, O], which is trained; the
    weights never are. With x = steepness * (r - threshold), a kernel is on where x is
    at least 0, with the gradient of sigmoid(x / temperature). One that is off is scaled
    by ``scale * (r - lo) / (hi - lo)``, without a gradient, where lo and hi are the
    least and the largest of ``r`` over the off kernels and 0 over the on ones of the
    leaf; by ``scale`` where these are all the same.

    Args:
      soft: whether off kernels are rescaled; if not they are 0 (kernel-wise Piggyback).
      per: what has a score of its own: a "kernel", a "channel" of the outputs, or an
        "element".
      start: every score at the beginning.
      threshold: tau of the paper.
      steepness: beta.
      temperature: T of the two-way softmax.
      scale: of the off kernel with the largest score.
      noise: whether training adds the difference of two Gumbel draws to x, as the
        softmax trick has it; the release leaves it out.
      where: the leaves, see `sparse_leaves`; all convolutions by default.
      keep_dense: expressions of the leaves that are left alone.

    Raises:
      ValueError: if an argument is out of its range.
    """
    check_one_of("per", per, get_args(Per))
    check_number("start", start)
    check_number("threshold", threshold)
    check_number("steepness", steepness, 0, above=True)
    check_number("temperature", temperature, 0, above=True)
    check_number("scale", scale, 0, 1)
    covers = covering(where, keep_dense)

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        del key, masks
        return Extra(
            over(
                covers,
                lambda p: {"score": jnp.full(_shape(p, per), start, p.dtype)},
                params,
            )
        )

    def see(weight: jax.Array, own: dict[str, jax.Array], key: Any) -> jax.Array:
        score = own["score"]
        x = steepness * (score - threshold)
        if key is not None:
            x = x + jax.random.logistic(key, x.shape, x.dtype)
        on = x >= 0
        likely = jax.nn.sigmoid(x / temperature)
        slope = steepness / temperature * likely * (1 - likely)
        mask = on.astype(weight.dtype)
        if soft:
            mask = mask + scale * _ranked(score, on)
        return through(weight, mask, score, slope)

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        draws = noise and train
        keys = leaf_keys(key, params) if draws else jax.tree.map(lambda _: None, params)
        return applied(see, params, extra.trained, keys)

    kind = "KSM" if soft else "binary masks"
    return View(
        f"{kind} per {per}", covers, init, apply, freezes=True, masks_may="shrink"
    )


def _shape(kernel: jax.Array, per: Per) -> tuple[int, ...]:
    own = {"kernel": 2, "channel": 1, "element": kernel.ndim}[per]
    return (1,) * (kernel.ndim - own) + kernel.shape[kernel.ndim - own :]


def _ranked(score: jax.Array, on: jax.Array) -> jax.Array:
    """Off scores from 0 to 1, and 0 where on, or where a score is 0; no gradient."""
    off = jnp.where(on, jnp.zeros((), score.dtype), jax.lax.stop_gradient(score))
    low = jnp.min(off)
    spread = jnp.max(off) - low
    alike = spread == 0
    ranks = (off - low) / jnp.where(alike, jnp.ones_like(spread), spread)
    return jnp.where(off == 0, off, jnp.where(alike, jnp.ones_like(ranks), ranks))
