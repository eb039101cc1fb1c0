"""Losses of logits, one value a prediction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_one_of

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""``(logits [..., classes], labels [...]) -> [...] float32``, nats."""


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log-likelihood in nats, [...] float32.

    Args:
      logits: [..., classes] before the softmax.
      labels: [...] integers.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def smoothed_cross_entropy(share: float, *, over: str = "all") -> Loss:
    """Cross-entropy against softened labels.

    Args:
      share: of the target that is taken from the label, in [0, 1).
      over: who gets it in equal parts: "all" classes, the label among them (Szegedy et
        al., 2016, and the ImageNet recipes), or only the "others" (the ToST release),
        which is "all" with ``share * classes / (classes - 1)``.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> loss = smoothed_cross_entropy(0.1, over="others")
      >>> logits, label = jnp.log(jnp.array([[0.5, 0.3, 0.2]])), jnp.array([0])
      >>> round(float(loss(logits, label)[0]), 4)
      0.7645
    """
    if not 0 <= share < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {share}")
    check_one_of("over", over, ("all", "others"))
    if share == 0:
        return cross_entropy

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        classes = logits.shape[-1]
        taken = share if over == "all" else share * classes / (classes - 1)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        of_label = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
        return (1 - taken) * of_label - taken * log_p.mean(axis=-1)

    return loss
