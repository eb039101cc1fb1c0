"""Views by learned scores: edge-popup, HardNet, Piggyback, SoftNet.

A weight of a covered leaf has a score, ``extra.trained[...]["score"]``, and the mask is
made of the scores at every forward pass. The gradient of a score is that of its mask,
``gradient * weight``, times the slope of what is ranked ("straight through"), whether
or not the weight is in the mask.

References:
  Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
  https://arxiv.org/abs/1911.13299
  Mallya et al., Piggyback, 2018, https://arxiv.org/abs/1801.06519
  Kang et al., On the Soft-Subnetwork for Few-Shot Class Incremental Learning, 2023,
  https://arxiv.org/abs/2209.07529
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_density, check_number, check_whole
from sup_tickets.trees import RuleLike, default_rule, leaf_keys, uniform_draws
from sup_tickets.types import Masks, Params
from sup_tickets.views.leaves import (
    KeepDense,
    applied,
    covering,
    largest,
    none_like,
    over,
    share,
    share_of_softnet,
    through,
)
from sup_tickets.views.view import Extra, View


def edge_popup(
    *,
    density: float,
    train_weights: bool = False,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """Each leaf shows the weights whose scores are the largest in magnitude.

    Args:
      density: share c of the weights of each leaf that are seen, in (0, 1]; exactly the
        nearest whole number of them. With masks, of those that are active.
      train_weights: whether the weights are trained beside the scores. If not, they
        stay as they were drawn, and cost no gradient.
      where: the leaves, see `sparse_leaves`.
      keep_dense: expressions of the leaves that are left alone.

    Raises:
      ValueError: if the density is not in (0, 1].
    """
    check_density(density)
    covers = covering(where, keep_dense)

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        masks = none_like(params) if masks is None else masks
        counts = over(
            covers, lambda p, m: {"count": share(p, m, density)}, params, masks
        )
        return Extra(_kaiming_scores(covers, key, params, masks), counts)

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del key, train
        return applied(_by_score, params, extra.trained, _major(params, extra))

    return View(
        f"edge-popup, {density:g} of each leaf",
        covers,
        init,
        apply,
        freezes=not train_weights,
        masks_may="stay",
    )


def piggyback(
    *,
    threshold: float = 5e-3,
    start: float = 1e-2,
    train_weights: bool = False,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """A weight is seen where its score is at least a threshold; how many is free.

    Args:
      threshold: of the scores.
      start: every score at the beginning.
      train_weights: whether the weights, too, are trained.
      where, keep_dense: see `edge_popup`.

    Raises:
      ValueError: if a number is not finite.
    """
    check_number("threshold", threshold)
    check_number("start", start)
    covers = covering(where, keep_dense)

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        del key, masks
        return Extra(over(covers, lambda p: {"score": jnp.full_like(p, start)}, params))

    def see(weight: jax.Array, own: dict[str, jax.Array]) -> jax.Array:
        score = own["score"]
        return through(weight, score >= threshold, score, jnp.ones_like(score))

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del key, train
        return applied(see, params, extra.trained)

    return View(
        f"piggyback, scores of at least {threshold:g}",
        covers,
        init,
        apply,
        freezes=not train_weights,
        masks_may="shrink",
    )


def softnet(
    *,
    density: float,
    soft: bool = True,
    redraw_every: int = 0,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """SoftNet: major weights, of the largest scores, times 1, the others times U(0, 1).

    Weights and scores are trained. The mask is what is seen of a network of ones. The
    paper leaves biases and the classifier alone: name it in ``keep_dense``.

    Args:
      density: share c of the weights of each leaf that are major, in (0, 1]; all but
        ``(1 - c) (N - 1)`` of them, that to the nearest, as the paper's threshold has.
      soft: whether minor weights have factors; if not they are 0 (HardNet), with the
        same scores and as many major weights.
      redraw_every: steps for which the minor weights keep their factors: those of an
        epoch in the paper, 1 in the release; 0 keeps the first. New ones come after the
        first step of every so many, so that what is looked at at the end of them was
        trained.
      where, keep_dense: see `edge_popup`.

    Raises:
      ValueError: if the density is not in (0, 1], or the steps are below 0.
    """
    check_density(density)
    check_whole("redraw_every", redraw_every, 0)
    covers = covering(where, keep_dense)

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        score_key, draw_key = jax.random.split(key)
        masks = none_like(params) if masks is None else masks
        untrained = over(
            covers,
            lambda p, m, u: {
                "count": share_of_softnet(p, m, density),
                "factor": u.astype(p.dtype) if soft else jnp.zeros_like(p),
            },
            params,
            masks,
            uniform_draws(draw_key, params),
        )
        return Extra(_kaiming_scores(covers, score_key, params, masks), untrained)

    def see(weight: jax.Array, own: Any, major: jax.Array, kept: Any) -> jax.Array:
        mask = jnp.where(major, jnp.ones((), weight.dtype), kept["factor"])
        return through(weight, mask, own["score"], jnp.sign(own["score"]))

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del key, train
        major = _major(params, extra)
        return applied(see, params, extra.trained, major, extra.untrained)

    def after_step(params: Params, extra: Extra, key: jax.Array, step: Any) -> Extra:
        if not redraw_every or not soft:
            return extra
        due = jnp.asarray(step) % redraw_every == 1 % redraw_every
        return extra._replace(
            untrained=jax.lax.cond(
                due, partial(_redrawn, key, params), lambda kept: kept, extra.untrained
            )
        )

    return View(
        f"{'SoftNet' if soft else 'HardNet'}, {density:g} major",
        covers,
        init,
        apply,
        after_step,
        masks_may="stay",
    )


# --- Parts ----------------------------------------------------------------------------


def _kaiming_scores(covers: Any, key: jax.Array, params: Params, masks: Masks) -> Any:
    """Uniform within 1 / sqrt(fan-in), which is Kaiming's with a slope of sqrt(5).

    0 at inactive weights, where they stay, so that none is ranked before an active one.
    """

    def draw(p: jax.Array, mask: jax.Array | None, key: jax.Array) -> Any:
        bound = 1 / math.sqrt(math.prod(p.shape[:-1]))
        score = jax.random.uniform(key, p.shape, p.dtype, -bound, bound)
        if mask is not None:
            score = jnp.where(mask, score, jnp.zeros((), p.dtype))
        return {"score": score}

    return over(covers, draw, params, masks, leaf_keys(key, params))


def _major(params: Params, extra: Extra) -> Masks:
    def only(what: Any, tree: Any) -> Any:
        return jax.tree.map(lambda _, d: None if d is None else what(d), params, tree)

    ranks = only(lambda own: jnp.abs(own["score"]), extra.trained)
    return largest(params, ranks, only(lambda own: own["count"], extra.untrained))


def _by_score(weight: jax.Array, own: Any, mask: jax.Array) -> jax.Array:
    return through(weight, mask, own["score"], jnp.sign(own["score"]))


def _redrawn(key: jax.Array, params: Params, kept: Any) -> Any:
    """What SoftNet keeps, with new factors."""
    return jax.tree.map(
        lambda p, own, u: None if own is None else {**own, "factor": u.astype(p.dtype)},
        params,
        kept,
        uniform_draws(key, params),
    )
