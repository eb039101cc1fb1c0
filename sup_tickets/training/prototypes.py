"""Classes known by the mean of their features: few-shot class-incremental learning.

Shapes: B examples, D features, C classes.

References:
  Kang et al., On the Soft-Subnetwork for Few-Shot Class Incremental Learning, 2023,
  https://arxiv.org/abs/2209.07529
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.training.losses import cross_entropy
from sup_tickets.trees import map_named
from sup_tickets.types import Masks, Params
from sup_tickets.views.leaves import masked
from sup_tickets.views.view import Extra, View

METRICS = ("cosine", "euclidean")
"""How near a feature is to a mean: as in the release, and as in the paper's text."""


# --- Prototypes -----------------------------------------------------------------------


def normalized(features: jax.Array) -> jax.Array:
    """Of length 1 each: [..., D]; 0 stays 0, with a gradient of 0."""
    square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square == 0, jnp.ones_like(square), square))
    return features / length


def class_means(features: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The mean of the normalized features of each class: [C, D].

    Args:
      features: [B, D].
      labels: [B] below ``classes``, C; all others count nowhere.
      classes: each with an example.
    """
    of_class = jax.nn.one_hot(labels, classes, dtype=features.dtype)  # [B, C]
    total = jnp.einsum("bc,bd->cd", of_class, normalized(features), precision="highest")
    return total / of_class.sum(0)[:, None]


def nearness(
    features: jax.Array, prototypes: jax.Array, seen: Any, metric: str = "cosine"
) -> jax.Array:
    """Larger where a prototype is nearer: [B, C].

    Args:
      features: [B, D]; they are normalized here.
      prototypes: [C, D], of `class_means`.
      seen: how many classes there are so far; others are infinitely far.
      metric: of `METRICS`: the cosine, or less the squared distance.
    """
    ours = normalized(features)
    if metric == "cosine":
        prototypes = normalized(prototypes)
    near = jnp.matmul(ours, prototypes.T, precision="highest")
    if metric == "euclidean":
        squares = jnp.sum(jnp.square(prototypes), axis=-1)
        near = 2 * near - squares[None] - 1  # ours have length 1
    known = jnp.arange(prototypes.shape[0]) < seen
    return jnp.where(known[None], near, -jnp.inf)


def with_session(
    prototypes: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    first: Any,
    ways: int,
) -> jax.Array:
    """The prototypes with those of new classes, the means of their features: [C, D].

    Args:
      prototypes: [C, D]; those of other classes stay.
      features: [B, D] of the session.
      labels: [B], from ``first`` on.
      first: of the new classes.
      ways: how many there are.
    """
    new = class_means(features, labels - first, ways).astype(prototypes.dtype)
    return jax.lax.dynamic_update_slice(prototypes, new, (first, jnp.zeros_like(first)))


def session_loss(
    features: jax.Array,
    labels: jax.Array,
    prototypes: jax.Array,
    first: Any,
    ways: int,
) -> jax.Array:
    """Cross-entropy over the softmax of less the cosine distances: [] float32, nats.

    Args:
      features, labels, prototypes, first, ways: see `with_session`; old prototypes are
        constants, and the new ones the means of this very batch.
    """
    old = jax.lax.stop_gradient(prototypes)
    both = with_session(old, features, labels, first, ways)
    return cross_entropy(nearness(features, both, first + ways), labels).mean()


# --- Sessions that train a part -------------------------------------------------------

RULES = ("frozen", "minor-block", "minor", "all")
"""What a session trains: nothing; minor weights of one block; of all; all weights."""


def soft_masks(
    view: View | None, params: Params, extra: Extra, covers: Callable[[Params], Any]
) -> Masks:
    """What a view makes of ones, ``None`` at leaves that it leaves alone.

    1 at major weights; at minor ones 0, or the factor that SoftNet drew.

    Args:
      view: or none, where all is major.
      params: that are stored.
      extra: of the view.
      covers: of the leaves with masks, as of a view.
    """
    ones = jax.tree.map(jnp.ones_like, params)
    seen = ones if view is None else view.apply(ones, extra)
    return jax.tree.map(
        lambda one, covered: one if covered else None, seen, covers(params)
    )


def seen_with(params: Params, masks: Masks) -> Params:
    """The weights of the forward pass."""
    return jax.tree.map(lambda p, m: p if m is None else masked(p, m), params, masks)


def moving(rule: str, masks: Masks, block: Callable[[str], Any]) -> Masks:
    """Which weights a session trains; ``None`` at leaves without a mask.

    The gradient of a weight is that of what is seen times its mask, by the chain rule:
    at minor weights that is the paper's rule. (The release multiplies by the major
    positions besides, and so trains none.)

    Args:
      rule: of `RULES`.
      masks: of `soft_masks`.
      block: whether a leaf, by its name, is of the block that "minor-block" trains.
    """

    def one(name: str, mask: jax.Array) -> jax.Array:
        outside = rule == "minor-block" and not block(name)
        if rule == "frozen" or outside:
            return jnp.zeros(mask.shape, bool)
        return mask >= 0 if rule == "all" else (mask < 1) & (mask > 0)

    return map_named(one, masks)


def session_step(
    features: Callable[[Params, Any], jax.Array], ways: int
) -> Callable[..., tuple[Params, jax.Array]]:
    """A compiled step of plain gradient descent on `session_loss`.

    Args:
      features: ``(params, inputs) -> [B, D]``, in evaluation mode.
      ways: new classes of a session.

    Returns:
      ``(params, masks, moves, prototypes, inputs, labels, first, rate) -> (params,
      loss)``, with ``moves`` of `moving`.
    """

    def step(
        params: Params,
        masks: Masks,
        moves: Any,
        prototypes: jax.Array,
        inputs: Any,
        labels: jax.Array,
        first: Any,
        rate: Any,
    ) -> tuple[Params, jax.Array]:
        def loss(params: Params) -> jax.Array:
            found = features(seen_with(params, masks), inputs)
            return session_loss(found, labels, prototypes, first, ways)

        value, gradient = jax.value_and_grad(loss)(params)
        moved = jax.tree.map(
            lambda p, g, m: p if m is None else jnp.where(m, p - rate * g, p),
            params,
            gradient,
            moves,
        )
        return moved, value

    return jax.jit(step)
