"""Vision transformers.

An image is worth 16 x 16 words, Dosovitskiy et al. 2021, arXiv 2010.11929; the small
one is DeiT's, Touvron et al. 2021, arXiv 2012.12877. No dropout, no dropped paths.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sup_tickets.models.layers import (
    Activation,
    Layers,
    Network,
    gelu,
    uniform_fan_in,
    wide,
)

# timm's and DeiT's normal is truncated at 2, not at 2 standard deviations: never.
normal = nn.initializers.normal(0.02)
EPSILON = 1e-6  # of the layer norms


class ViT(Network):
    """Patches, class token, learned positions, pre-norm blocks, classifier.

    Shapes: T tokens, one a patch and the class token; D the width.
    """

    classes: int = 10
    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    depth: int = 12  # number of blocks
    heads: int = 6
    hidden: int = 1536  # between the two dense layers of a block
    activation: Activation = gelu

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes.

        Args:
          images: [B, image_size, image_size, C] float array.
          train: whether the network is being trained.

        Returns:
          [B, classes] float32 array.

        Raises:
          ValueError: for images of another size, or a size or width that does not
            divide by the patch size or the number of heads.
        """
        # Batch norm is of ghosts alone.
        layers = Layers.of(self, train=train)
        self._check(images)
        size, width = (self.patch_size, self.patch_size), self.width
        x = nn.Conv(
            width,
            size,
            strides=size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=uniform_fan_in,
            name="patches",
        )(images.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, width)
        token = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, width))
        token = jnp.broadcast_to(token, (x.shape[0], 1, width)).astype(self.dtype)
        x = jnp.concatenate([token, x], axis=1)
        positions = self.param("positions", normal, (1, x.shape[1], width))
        x = x + positions.astype(self.dtype)
        for i in range(1, self.depth + 1):
            x = Block(layers, self.heads, self.hidden, name=f"block{i}")(x)
        x = layer_norm(x[:, 0], "norm", self.dtype)
        return _dense(x, self.classes, "classifier", self.dtype).astype(
            wide(self.dtype)
        )

    def _check(self, images: jax.Array) -> None:
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be {self.image_size} x {self.image_size} (image_size),"
                f" got {images.shape[1]} x {images.shape[2]}"
            )
        for name, whole, part in (
            ("image_size", self.image_size, self.patch_size),
            ("width", self.width, self.heads),
        ):
            if whole % part:
                raise ValueError(f"{name} must be a multiple of {part}, got {whole}")


class Block(nn.Module):
    """Self-attention and two dense layers, each after a layer norm and added."""

    layers: Layers
    heads: int
    hidden: int
    causal: bool = False  # whether a token sees those before it alone
    dropout: float = 0.0  # of what is added

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        width, dtype = x.shape[-1], self.layers.dtype
        qkv = _dense(layer_norm(x, "norm1", dtype), 3 * width, "qkv", dtype)
        seen = _attend(qkv, self.heads, causal=self.causal)
        x = x + self._dropped(_dense(seen, width, "out", dtype))
        before = layer_norm(x, "norm2", dtype)
        y = _dense(before, self.hidden, "dense1", dtype)
        y = self.layers.bridged(before, y, (*self.path, "dense1"))
        between = self.layers.activation(y)
        y = _dense(between, width, "dense2", dtype)
        y = self.layers.bridged(between, y, (*self.path, "dense2"))
        return x + self._dropped(y)

    def _dropped(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.dropout, deterministic=not self.layers.train)(x)


def _attend(qkv: jax.Array, heads: int, *, causal: bool) -> jax.Array:
    """Softmax attention, the softmax in float32: [B, T, 3 * D] to [B, T, D]."""
    batch, tokens, _ = qkv.shape
    # [B, T, heads, D / heads] each.
    q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, heads, -1), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
    if causal:
        before = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
        scores = jnp.where(before, scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(qkv.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, -1)


def _dense(x: jax.Array, features: int, name: str, dtype: Any) -> jax.Array:
    return nn.Dense(features, dtype=dtype, kernel_init=normal, name=name)(x)


def layer_norm(x: jax.Array, name: str, dtype: Any) -> jax.Array:
    """Layer norm, in float32 or wider until its result."""
    # In float32, as the batch norm of the other models. Flax's fast variance is cut off
    # at 0 by a maximum, whose derivative XLA may lose, see `BatchNorm` in layers.
    norm = nn.LayerNorm(EPSILON, use_fast_variance=False, name=name)
    return norm(x.astype(wide(dtype))).astype(dtype)
