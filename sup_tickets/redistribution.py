"""How the growth of SNFS is shared out between layers."""

from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.masks import (
    apply_masks,
    layer_counts,
)
from sup_tickets.types import Masks, Number, Params


def momentum_shares(masks: Masks, average: Params) -> Any:
    """Mean magnitude of the averaged gradient over each layer's active weights."""

    def share(mask: jax.Array, average: jax.Array, n: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.abs(apply_masks(mask, average)).astype(jnp.float32))
        return total / jnp.maximum(n, 1).astype(jnp.float32)

    return jax.tree.map(share, masks, average, layer_counts(masks))


def spared_fractions(masks: Masks, shares: Any, fraction: Number) -> Any:
    """A fraction for each layer: at most its sparsity if it is dense and growing."""
    each = jax.tree.leaves(shares)
    mean = sum(each) / len(each)

    def spared(mask: jax.Array, share: jax.Array, n: jax.Array) -> jax.Array:
        zeros = mask.size - n
        # Less than a fifth of zeros, in integers.
        spare = (zeros < -(-mask.size // 5)) & (share > mean)
        rate = jnp.asarray(fraction, jnp.float32)
        sparsity = zeros.astype(jnp.float32) / mask.size
        return jnp.where(spare, jnp.minimum(sparsity, rate), rate)

    return jax.tree.map(spared, masks, shares, layer_counts(masks))
