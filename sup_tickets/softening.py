"""Ghost soft neurons: smooth activations that sharpen into the network's own.

A sparse network trains better at first if its activations are smooth. Swish and Mish
share a law, ``f_b(x) = f_1(b x) / b`` for a sharpness ``b``: their distance from ReLU
is that of ``b = 1`` divided by ``b``. So they can be made to vanish, as a ghost should,
and so can a ghost skip that is multiplied by a factor.

The paper says that ghosts belong to the early stage of training. How they leave, the
two schedules here, is this library's choice, not known to be the paper's; its released
code keeps Swish or Mish, unchanged, to the end.

References:
  Jaiswal et al., Training Your Sparse Neural Network Better with Any Mask, 2022,
  https://arxiv.org/abs/2206.12755
"""

from collections.abc import Callable
from math import isfinite
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_one_of, check_whole
from sup_tickets.ramps import integer, ratio
from sup_tickets.types import Number, Schedule

Activation = Callable[[jax.Array], jax.Array]
"""``x -> activation``, elementwise."""


# --- Activations ----------------------------------------------------------------------


def swish(x: jax.Array, sharpness: Number = 1.0) -> jax.Array:
    """``x sigmoid(b x)``: ReLU for a large sharpness ``b``, ``x / 2`` for 0.

    Its largest distance from ReLU is 0.27846 / b. Half precision is computed in
    float32, so that a sharpness of a million does not overflow.

    Args:
      x: array of floating point numbers, of any shape.
      sharpness: ``b``, a number or a (possibly traced) scalar, not negative.

    Returns:
      Array of the shape and dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(float(swish(jnp.float32(1), b)), 5) for b in (0, 1, 10)]
      [0.5, 0.73106, 0.99995]

    References:
      Ramachandran et al., Searching for Activation Functions, 2017,
      https://arxiv.org/abs/1710.05941
    """
    return _gated(jax.nn.sigmoid, x, sharpness)


def mish(x: jax.Array, sharpness: Number = 1.0) -> jax.Array:
    """``x tanh(softplus(b x))``: ReLU for a large sharpness ``b``, ``0.6 x`` for 0.

    Its largest distance from ReLU is 0.30884 / b, see `swish`.

    Args:
      x: array of floating point numbers, of any shape.
      sharpness: ``b``, a number or a (possibly traced) scalar, not negative.

    Returns:
      Array of the shape and dtype of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(float(mish(jnp.float32(1), b)), 5) for b in (0, 1, 10)]
      [0.6, 0.8651, 1.0]

    References:
      Misra, Mish: A Self Regularized Non-Monotonic Activation Function, 2019,
      https://arxiv.org/abs/1908.08681
    """
    return _gated(lambda z: jnp.tanh(jax.nn.softplus(z)), x, sharpness)


def softened(activation: Activation, kind: str, sharpness: Number) -> Activation:
    """The activation with a ghost soft neuron.

    In the place of ReLU it is ``f_b`` itself. Any other activation ``a`` keeps its
    form, ``a(x) + f_b(x) - relu(x)``: what is added vanishes as the sharpness grows.

    Args:
      activation: the network's own; ReLU is known as ``jax.nn.relu``, the object.
      kind: "swish" or "mish".
      sharpness: ``b``, a number or a (possibly traced) scalar, not negative.

    Raises:
      ValueError: if ``kind`` is neither.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> soft = softened(jax.nn.relu, "swish", 1.0)
      >>> round(float(soft(jnp.float32(1))), 5)
      0.73106
    """
    check_one_of("kind", kind, _KINDS)
    soft = _KINDS[kind]
    if activation is jax.nn.relu:
        return lambda x: soft(x, sharpness)
    return lambda x: activation(x) + (soft(x, sharpness) - jax.nn.relu(x))


_KINDS = {"swish": swish, "mish": mish}


def _gated(gate: Activation, x: jax.Array, sharpness: Number) -> jax.Array:
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    # Far out the gate is 0 or 1 and flat. Without the bound, b x may be infinite,
    # and its derivative NaN.
    # No `jnp.clip`: its derivative asks which side equals the result, and XLA may have
    # computed the two apart.
    argument = jnp.asarray(sharpness, wide.dtype) * wide
    bound = jnp.sign(argument) * _FLAT
    argument = jnp.where(jnp.abs(argument) > _FLAT, bound, argument)
    return (wide * gate(argument)).astype(x.dtype)


_FLAT = 1e4


# --- Schedules ------------------------------------------------------------------------


def sharpening(
    steps: int,
    *,
    start: float = 1.0,
    end: float = 100.0,
    shape: str = "exponential",
) -> Schedule:
    """The sharpness of a soft neuron at a step: from ``start`` to ``end``, and stays.

    "exponential" is ``start (end / start)^(step / steps)``, "linear" is
    ``start + (end - start) step / steps``. Either is this library's choice, not known
    to be the paper's. At ``steps`` the network should go on with its own activation:
    the distance from ReLU is small by then, but not 0.

    Args:
      steps: step from which it is ``end``, at least 1.
      start: sharpness at step 0, positive.
      end: at least ``start``.
      shape: "exponential" or "linear".

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> sharpness = sharpening(100)
      >>> [round(float(sharpness(step)), 5) for step in (0, 50, 100, 200)]
      [1.0, 10.0, 100.0, 100.0]
    """
    check_whole("steps", steps, 1)
    _check_positive("start", start)
    _check_positive("end", end)
    if end < start:
        raise ValueError(f"end={end} must be at least start={start}")
    check_one_of("shape", shape, ("exponential", "linear"))

    def sharpness(step: Number) -> jax.Array:
        part = _part(step, steps)
        if shape == "linear":
            return (1 - part) * start + part * end
        return jnp.where(part == 1, end, start * (end / start) ** part)

    return sharpness


def fading(steps: int, *, shape: str = "linear") -> Schedule:
    """The factor of a ghost skip at a step: from 1 to exactly 0, and stays.

    "linear" is ``1 - step / steps``, "cosine" is ``(1 + cos(π step / steps)) / 2``.
    Either is this library's choice, not known to be the paper's.

    Args:
      steps: step from which it is 0, at least 1.
      shape: "linear" or "cosine".

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> factor = fading(100, shape="cosine")
      >>> [round(float(factor(step)), 5) for step in (0, 25, 50, 100, 200)]
      [1.0, 0.85355, 0.5, 0.0, 0.0]
    """
    check_whole("steps", steps, 1)
    check_one_of("shape", shape, ("linear", "cosine"))

    def factor(step: Number) -> jax.Array:
        part = _part(step, steps)
        if shape == "linear":
            return 1 - part
        return jnp.where(part == 1, 0.0, (1 + jnp.cos(jnp.pi * part)) / 2)

    return factor


def _part(step: Number, steps: int) -> jax.Array:
    """``step / steps`` clipped to [0, 1], float32, exactly 1 from ``steps`` on."""
    return ratio(jnp.clip(integer(step), 0, steps), steps)


def _check_positive(name: str, value: Any) -> None:
    if not (isinstance(value, Real) and isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
