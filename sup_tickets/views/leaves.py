"""What views share: the leaves they cover, counts, selections, straight-through masks.

Shapes: N weights of a leaf, in whatever shape.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.counting import exact, exact_portion, portion
from sup_tickets.pruning import without
from sup_tickets.selection import Selecting, map_selecting, top_k
from sup_tickets.trees import RuleLike, sparse_leaves
from sup_tickets.types import Masks, Params

KeepDense = Sequence[str] | str
"""Expressions of the leaves that a view leaves alone."""


def covering(where: RuleLike, keep_dense: KeepDense) -> Callable[[Params], Any]:
    """`View.covers` of the sparse leaves that no expression leaves out.

    Args:
      where: see `sparse_leaves`.
      keep_dense: expressions.
    """

    def covers(params: Params) -> Any:
        chosen = sparse_leaves(params, where=where)
        marks = jax.tree.map(lambda is_sparse: True if is_sparse else None, chosen)
        marks = without(marks, keep_dense)
        return jax.tree.map(lambda _, mark: mark is not None, params, marks)

    return covers


def over(
    covers: Callable[[Params], Any],
    function: Callable[..., Any],
    params: Params,
    *rest: Any,
) -> Any:
    """``function(leaf, *leaves)`` at the covered leaves, ``None`` at the others."""
    return jax.tree.map(
        lambda leaf, covered, *leaves: function(leaf, *leaves) if covered else None,
        params,
        covers(params),
        *rest,
    )


def none_like(params: Params) -> Any:
    """``None`` at every leaf."""
    return jax.tree.map(lambda _: None, params)


def applied(function: Callable[..., Any], params: Params, *rest: Any) -> Params:
    """``function(leaf, *leaves)`` where the first of the trees has something.

    Args:
      function: from a weight and what the trees have there to what is seen of it.
      params: pytree of arrays.
      *rest: pytrees nested like it, with ``None`` at leaves that stay as they are.
    """
    return jax.tree.map(
        lambda leaf, first, *others: (
            leaf if first is None else function(leaf, first, *others)
        ),
        params,
        *rest,
    )


# --- Counts and selections ------------------------------------------------------------


def share(leaf: Any, mask: jax.Array | None, density: float) -> jax.Array:
    """How many weights a share of a leaf is, int32: the nearest, and at least 1.

    Args:
      leaf: [N], of which the size is read.
      mask: [N] bool; with it the share is that of the active weights.
      density: in (0, 1].
    """
    if mask is None:
        return jnp.int32(max(exact_portion(leaf.size, density), 1))
    return jnp.maximum(portion(_active(mask), density, "nearest"), 1)


def share_of_softnet(leaf: Any, mask: jax.Array | None, density: float) -> jax.Array:
    """`share` as SoftNet counts: N less (1 - c) (N - 1), that to the nearest (even)."""
    if mask is None:
        return jnp.int32(leaf.size - round((1 - exact(density)) * (leaf.size - 1)))
    rest: Fraction = 1 - exact(density)
    active = _active(mask)
    return active - portion(jnp.maximum(active - 1, 0), float(rest), "nearest")


def largest(params: Params, scores: Any, counts: Any, splits: Any = None) -> Masks:
    """The largest scores of each leaf; no gradient goes through.

    Args:
      params: pytree of arrays.
      scores: floating point arrays of the same shapes; ``None`` where nothing is
        selected.
      counts: integers, of the groups where a leaf has some.
      splits: `groups.Split` of each leaf, by default none.
    """

    def choose(name: str, _: Any, score: Any, count: Any, split: Any) -> Selecting:
        if score is None:
            return None
        score = jax.lax.stop_gradient(score)
        return (yield top_k(name, score, count, None, split))

    splits = none_like(params) if splits is None else splits
    return map_selecting(choose, params, scores, counts, splits)


def _active(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, dtype=jnp.int32)


# --- Masks with a gradient ------------------------------------------------------------


def masked(weight: jax.Array, mask: jax.Array) -> jax.Array:
    """``weight * mask``, and exactly 0 where the mask is, whatever the weight.

    Args:
      weight: array.
      mask: of its shape, or broadcast to it at the same rank; bool, or of its dtype.
    """
    zero = jnp.zeros((), weight.dtype)
    if mask.dtype == bool:
        return jnp.where(mask, weight, zero)
    return jnp.where(mask == 0, zero, weight * mask)


@jax.custom_vjp
def through(
    weight: jax.Array, mask: jax.Array, score: jax.Array, slope: jax.Array
) -> jax.Array:
    """`masked`, with a gradient for the score that the mask is made of.

    The gradient of the weight is masked. That of the mask is the gradient times the
    weight, summed over what one place of the mask is for; that of the score is this
    times ``slope``, the derivative that the mask is taken to have ("straight through").

    Args:
      weight: array.
      mask: see `masked`; a constant.
      score: of the mask's shape.
      slope: of the mask's shape; a constant.
    """
    del score, slope
    return masked(weight, mask)


def _through_forward(weight: Any, mask: Any, score: Any, slope: Any) -> Any:
    return masked(weight, mask), (weight, mask, score, slope)


def _through_backward(kept: Any, gradient: jax.Array) -> Any:
    weight, mask, score, slope = kept
    of_mask = gradient * weight
    axes = tuple(i for i, n in enumerate(mask.shape) if n != weight.shape[i])
    if axes:
        of_mask = jnp.sum(of_mask, axis=axes, keepdims=True)
    return masked(gradient, mask), None, (of_mask * slope).astype(score.dtype), None


through.defvjp(_through_forward, _through_backward)
