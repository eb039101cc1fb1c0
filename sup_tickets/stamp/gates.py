"""Gates of channels as random variables: how they are drawn, and what they cost.

A gate is a value, `Gate`: pure functions of the *raw* numbers that a generator gives
for each channel. Two are here.

Shapes: C channels, P raw numbers of each. All is float32.

References:
  Maddison et al., The Concrete Distribution, 2017, https://arxiv.org/abs/1611.00712
  Lee et al., Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli
  Dropout, 2018, https://arxiv.org/abs/1805.10896; its code (bbdrop) has the numbers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma


class Gate(NamedTuple):
    """One kind of gate; ``raw`` is [C, P]."""

    start: tuple[float, ...]
    """[P] raw numbers of a gate as the generator begins with them."""

    sample: Callable[[jax.Array, jax.Array, float], jax.Array]
    """``(key, raw, temperature) -> [C]`` draws in [0, 1], differentiable in ``raw``."""

    mean: Callable[[jax.Array], jax.Array]
    """``raw -> [C]``: the probability that a gate is open."""

    kl: Callable[[jax.Array, float], jax.Array]
    """``(raw, prior) -> [C]`` nats, of the gate from its prior."""


def relaxed_bernoulli(logit: jax.Array, u: jax.Array, temperature: float) -> jax.Array:
    """``sigmoid((logit + log(u / (1 - u))) / temperature)``.

    Args:
      logit: of the probability.
      u: uniform draws in (0, 1), of the same shape.
      temperature: positive; near 0 nearly all draws are 0 or 1.
    """
    return jax.nn.sigmoid((logit + _logit(u)) / temperature)


def bernoulli_kl(p: jax.Array, prior: Any) -> jax.Array:
    """KL(Bernoulli(p) || Bernoulli(prior)), nats; both in (0, 1)."""
    return p * jnp.log(p / prior) + (1 - p) * jnp.log((1 - p) / (1 - prior))


def straight_through(soft: jax.Array) -> jax.Array:
    """1 where ``soft`` is at least 1/2, else 0; its gradient is that of ``soft``."""
    hard = (soft >= 0.5).astype(soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)


def kumaraswamy_sample(a: jax.Array, b: jax.Array, u: jax.Array) -> jax.Array:
    """``(1 - u^(1/b))^(1/a)``, a draw from Kumaraswamy(a, b), by inversion."""
    return _clipped((1 - u ** (1 / b)) ** (1 / a))


def kumaraswamy_mean(a: jax.Array, b: jax.Array) -> jax.Array:
    """``b B(1 + 1/a, b)``."""
    return b * jnp.exp(betaln(1 + 1 / a, b))


def kumaraswamy_kl(a: jax.Array, b: jax.Array, alpha: float) -> jax.Array:
    """KL(Kumaraswamy(a, b) || Beta(alpha, 1)), nats."""
    part = (1 - alpha / a) * (-_EULER - digamma(b) - 1 / b)
    return part + jnp.log(a * b) - math.log(alpha) - (b - 1) / b


_EULER = 0.57721566490153286
_TINY = 1e-6


def _clipped(p: jax.Array) -> jax.Array:
    return jnp.clip(p, _TINY, 1 - _TINY)


def _logit(p: jax.Array) -> jax.Array:
    return jnp.log(p) - jnp.log1p(-p)


def _uniform(key: jax.Array, raw: jax.Array) -> jax.Array:
    return jax.random.uniform(key, raw.shape[:1], jnp.float32, _TINY, 1 - _TINY)


# --- The two kinds --------------------------------------------------------------------


def _concrete_sample(key: jax.Array, raw: jax.Array, temperature: float) -> jax.Array:
    return relaxed_bernoulli(raw[:, 0], _uniform(key, raw), temperature)


def _concrete_mean(raw: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(raw[:, 0])


def _concrete_kl(raw: jax.Array, prior: float) -> jax.Array:
    return bernoulli_kl(_clipped(_concrete_mean(raw)), prior)


def _shapes(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = jax.nn.softplus(raw[:, 0]), jax.nn.softplus(raw[:, 1])
    return a + _TINY, b + _TINY


def _kumaraswamy_sample(
    key: jax.Array, raw: jax.Array, temperature: float
) -> jax.Array:
    of_probability, of_gate = jax.random.split(key)
    p = kumaraswamy_sample(*_shapes(raw), _uniform(of_probability, raw))
    return relaxed_bernoulli(_logit(p), _uniform(of_gate, raw), temperature)


CONCRETE = Gate((2.0,), _concrete_sample, _concrete_mean, _concrete_kl)
"""One logit a channel; the prior is the probability that a gate is open."""

KUMARASWAMY = Gate(
    (2.0, 0.5413),  # softplus(.5413) = 1: bbdrop's b; its a, of -1, begins nearly shut
    _kumaraswamy_sample,
    lambda raw: kumaraswamy_mean(*_shapes(raw)),
    lambda raw, prior: kumaraswamy_kl(*_shapes(raw), prior),
)
"""Beta-Bernoulli gates: the probability is itself drawn; the prior is Beta's alpha."""

GATES = {"concrete": CONCRETE, "kumaraswamy": KUMARASWAMY}
"""The kinds by name."""
