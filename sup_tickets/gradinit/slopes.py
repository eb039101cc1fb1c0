"""What GradInit differentiates: the norm of the gradient, the loss after a step.

Pure functions of the scales of the tensors. Shapes: T is the number of tensors, the
leaves of the parameters in tree order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.masks import apply_masks
from sup_tickets.types import Masks, Params

Loss = Callable[[Params, Any], jax.Array]
"""``(params, batch) -> scalar``, without side effects."""


ALGORITHMS = ("sgd", "adam")
"""Whose first step is looked ahead at, see `rescaled_init`."""


class Measured(NamedTuple):
    """The gradient at the scaled parameters."""

    loss: jax.Array  # scalar
    norm: jax.Array  # float32 scalar: L2 over all tensors; L1 for "adam"
    gradients: Params


def measure_gradient(
    loss: Loss,
    params: Params,
    masks: Masks | None,
    scales: jax.Array,
    batch: Any,
    *,
    algorithm: str = "sgd",
) -> Measured:
    """Loss, gradient and its norm at ``scale * params``; pure.

    Args:
      loss: ``(params, batch) -> scalar``.
      params: parameters before scaling, exactly 0 where inactive.
      masks: masks of the gradient; ``None`` leaves it dense.
      scales: [T].
      batch: what the gradient is taken on.
      algorithm: "sgd" or "adam", which decides the norm.
    """
    value, gradients = jax.value_and_grad(loss)(scaled(params, scales), batch)
    if masks is not None:
        gradients = apply_masks(masks, gradients)
    leaves = [_wide(leaf) for leaf in jax.tree.leaves(gradients)]
    if algorithm == "adam":
        norm = sum(jnp.sum(jnp.abs(leaf)) for leaf in leaves)
    else:
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves))
    return Measured(value, jnp.asarray(norm), gradients)


def norm_slopes(
    loss: Loss,
    params: Params,
    scales: jax.Array,
    measured: Measured,
    batch: Any,
    *,
    algorithm: str = "sgd",
) -> jax.Array:
    """``d||g|| / dscale``, of second order: ``<H v, params>`` for each tensor; pure.

    ``v`` is the derivative of the norm, ``g / ||g||`` or ``sign(g)``.

    Args:
      loss: ``(params, batch) -> scalar``.
      params: parameters before scaling, exactly 0 where inactive.
      scales: [T].
      measured: of `measure_gradient`, for the same arguments.
      batch: likewise.
      algorithm: likewise.

    Returns:
      [T] slopes.
    """
    direction = _direction(measured, algorithm, normalize=True)
    gradient_at = jax.grad(lambda theta: loss(theta, batch))
    # H is symmetric: forward over reverse needs no tape of the gradient.
    bent = jax.jvp(gradient_at, (scaled(params, scales),), (direction,))[1]
    return _dots(bent, params)


def lookahead_slopes(
    loss: Loss,
    params: Params,
    scales: jax.Array,
    measured: Measured,
    batch: Any,
    *,
    step_size: float,
    algorithm: str = "sgd",
    normalize: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """The loss after a step of the optimizer, over the step size, and its slopes; pure.

    As in GradInit the step is a constant: it is not differentiated.

    Args:
      loss: ``(params, batch) -> scalar``.
      params: parameters before scaling, exactly 0 where inactive.
      scales: [T].
      measured: of `measure_gradient`, at the same scales.
      batch: what the loss after the step is taken on.
      step_size: ``η``, positive.
      algorithm: "sgd" or "adam".
      normalize: whether "sgd" steps have length ``η``.

    Returns:
      The objective, scalar, and its [T] slopes.
    """
    direction = _direction(measured, algorithm, normalize)
    ahead = jax.tree.map(
        lambda leaf, step: leaf - step_size * step, scaled(params, scales), direction
    )
    value, gradients = jax.value_and_grad(loss)(ahead, batch)
    return value / step_size, _dots(gradients, params) / step_size


def _direction(measured: Measured, algorithm: str, normalize: bool) -> Params:
    if algorithm == "adam":
        return jax.tree.map(jnp.sign, measured.gradients)
    if not normalize:
        return measured.gradients
    # Without any gradient there is no step.
    norm = jnp.where(measured.norm > 0, measured.norm, 1)
    return jax.tree.map(lambda g: (_wide(g) / norm).astype(g.dtype), measured.gradients)


def scaled(params: Params, scales: jax.Array) -> Params:
    """Every tensor times its scale, in its own dtype."""
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(
        [leaf * scales[i].astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    )


def _dots(a: Params, b: Params) -> jax.Array:
    """The inner product of each tensor, [T]."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.stack([jnp.sum(_wide(x) * _wide(y)) for x, y in pairs])


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.float32)
