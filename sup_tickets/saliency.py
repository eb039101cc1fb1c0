"""Saliency: how much each weight matters, as a tree of scores.

Every function here is pure and returns a tree shaped like the parameters, the larger
the more worth keeping. They differ in what they look at: parameters, gradients, the
optimizer's momentum, or nothing but a key. Dynamic methods are handed all of these in
one `Signals` and choose: a *score function* maps ``Signals`` to scores, so a new
criterion, one that looks at data for example, is a function bound by
``functools.partial``, not a class.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import uniform_draws
from sup_tickets.types import Masks, Params, Scores


class Signals(NamedTuple):
    """What a score function may look at; parts that a method does not keep are None."""

    params: Params  # weights, exactly 0 where inactive
    masks: Masks  # active weights
    gradients: Params | None = None  # dense: also where the weight is inactive
    momentum: Params | None = None  # running average of the dense gradients
    key: jax.Array | None = None  # for this use alone


ScoreFunction = Callable[[Signals], Scores]
"""``signals -> scores``; what it looks at may be said by `declare`."""


def declare(*signals: str) -> Callable[[ScoreFunction], ScoreFunction]:
    """Decorates a score function with the names of the signals that it looks at."""

    def decorate(score: Any) -> Any:
        score.signals = frozenset(signals)
        return score

    return decorate


def looks_at(
    score: ScoreFunction, *, otherwise: frozenset[str] = frozenset(Signals._fields)
) -> frozenset[str]:
    """The names of the signals that a score function, or a partial of it, looks at.

    Args:
      score: the function.
      otherwise: what is returned for a function that does not say: by default all.
    """
    function = score.func if isinstance(score, functools.partial) else score
    return getattr(function, "signals", otherwise)


def magnitude(params: Params) -> Scores:
    """``|w|``, the magnitude of the weights."""
    return jax.tree.map(jnp.abs, params)


def gradient(gradients: Params) -> Scores:
    """``|dL/dw|``: how fast the loss changes with a weight, active or not.

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134
    """
    return jax.tree.map(jnp.abs, gradients)


def momentum(average: Params) -> Scores:
    """``|m|`` of a running average of dense gradients.

    References:
      Dettmers and Zettlemoyer, Sparse Networks from Scratch: Faster Training without
      Losing Performance, 2019, https://arxiv.org/abs/1907.04840
    """
    return jax.tree.map(jnp.abs, average)


def taylor(params: Params, gradients: Params) -> Scores:
    """``|w dL/dw|``: first-order change of the loss when a weight is set to zero.

    References:
      Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient
      Inference, 2017, https://arxiv.org/abs/1611.06440

    Raises:
      ValueError: naming the first leaf or container in which the trees differ.
    """
    check_same_leaves("params", params, "gradients", gradients)
    check_same_leaves("gradients", gradients, "params", params)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, gradients)


def random_scores(key: jax.Array, params: Params) -> Scores:
    """Independent uniform draws in [0, 1), float32.

    Args:
      key: a random key, consumed; the draws of a leaf depend on its name alone.
      params: pytree of arrays, of which only the shapes are read.
    """
    return uniform_draws(key, params)


@declare("params")
def by_magnitude(signals: Signals) -> Scores:
    """Score function: the magnitude of the weights."""
    return magnitude(signals.params)


@declare("gradients")
def by_gradient(signals: Signals) -> Scores:
    """Score function: the magnitude of the dense gradient (RigL's growth)."""
    return gradient(_given(signals.gradients, "gradients"))


@declare("momentum")
def by_momentum(signals: Signals) -> Scores:
    """Score function: the magnitude of the averaged dense gradient (SNFS's growth)."""
    return momentum(_given(signals.momentum, "momentum"))


@declare("params", "gradients")
def by_taylor(signals: Signals) -> Scores:
    """Score function: ``|w dL/dw|``."""
    return taylor(signals.params, _given(signals.gradients, "gradients"))


@declare("key")
def by_random(signals: Signals) -> Scores:
    """Score function: uniform draws (SET's growth)."""
    return random_scores(_given(signals.key, "key"), signals.params)


@functools.cache
def by_magnitude_and_gradient(gradient_weight: float) -> ScoreFunction:
    """The score function ``|w| + gradient_weight |dL/dw|`` (MEST's drop).

    Args:
      gradient_weight: not negative; with 0 it is `by_magnitude`.

    Raises:
      ValueError: if it is negative.

    References:
      Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training Framework on
      the Edge, 2021, https://arxiv.org/abs/2110.14032
    """
    if not gradient_weight >= 0:
        raise ValueError(f"gradient_weight must not be negative, got {gradient_weight}")
    if not gradient_weight:
        return by_magnitude

    @declare("params", "gradients")
    def score(signals: Signals) -> Scores:
        return jax.tree.map(
            lambda w, g: jnp.abs(w) + gradient_weight * jnp.abs(g).astype(w.dtype),
            signals.params,
            _given(signals.gradients, "gradients"),
        )

    return score


def _given(part: Params | None, name: str) -> Params:
    if part is None:
        raise ValueError(f"this score function needs Signals.{name}, which is None")
    return part
