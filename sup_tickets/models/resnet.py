"""Residual networks with batch norm after each convolution, for CIFAR and ImageNet.

Deep residual learning for image recognition, He et al. 2016, arXiv 1512.03385.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from sup_tickets.models.layers import (
    Layers,
    NormNetwork,
    mean_pixel,
)


class ResNet(NormNetwork):
    """Stem, stages of residual blocks, mean over the pixels, classifier.

    A shortcut is the identity where shapes allow it, else a 1 x 1 convolution with
    batch norm. Every stage but the first halves the height and width, by the stride of
    the first 3 x 3 convolution.
    """

    classes: int = 10
    blocks: Sequence[int] = (2, 2, 2, 2)  # of each stage
    widths: Sequence[int] = (64, 128, 256, 512)  # of each stage; the first of the stem
    bottleneck: bool = False  # 1 x 1, 3 x 3 and 1 x 1 to 4 times the width
    small_images: bool = True  # stem 3 x 3; else 7 x 7, stride 2 and a maximum
    classifier_bias: bool = True
    conv_init: str = "torch"  # or "fan_out"
    dense_init: str = "torch"  # or "normal"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes.

        Args:
          images: [B, H, W, C] float array.
          train: whether batch norm uses, and updates by, the statistics of the batch.

        Returns:
          [B, classes] float32 array.

        Raises:
          ValueError: if there are not as many widths as stages, or for an unknown
            initializer.
        """
        if len(self.blocks) != len(self.widths):
            raise ValueError(
                "blocks and widths must have one number for each stage,"
                f" got {self.blocks!r} and {self.widths!r}"
            )
        layers = Layers.of(self, train=train)
        x = images.astype(self.dtype)
        stem = {} if self.small_images else {"size": 7, "stride": 2}
        x = layers.conv_norm(x, self.widths[0], self.path, **stem)
        x = self.activation(x)
        if not self.small_images:
            x = _largest_3x3(x)
        stages = zip(self.blocks, self.widths, strict=True)
        for i, (blocks, width) in enumerate(stages, start=1):
            x = Stage(
                layers,
                blocks=blocks,
                width=width,
                stride=1 if i == 1 else 2,
                bottleneck=self.bottleneck,
                name=f"stage{i}",
            )(x)
        return layers.logits(mean_pixel(x), self.classes, bias=self.classifier_bias)


class Stage(nn.Module):
    """Blocks of one width; the first has the stride."""

    layers: Layers
    blocks: int
    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, width or 4 * width]."""
        Block = BottleneckBlock if self.bottleneck else BasicBlock
        for i in range(1, self.blocks + 1):
            stride = self.stride if i == 1 else 1
            x = Block(self.layers, self.width, stride, name=f"block{i}")(x)
        return x


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    layers: Layers
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, width]."""
        conv_norm, act = self.layers.conv_norm, self.layers.activation
        y = act(conv_norm(x, self.width, self.path, 1, stride=self.stride))
        y = conv_norm(y, self.width, self.path, 2)
        return act(y + _shortcut(self.layers, x, y, self.stride))


class BottleneckBlock(nn.Module):
    """Convolutions 1 x 1, 3 x 3, which has the stride, and 1 x 1, and a shortcut."""

    layers: Layers
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, 4 * width]."""
        conv_norm, act = self.layers.conv_norm, self.layers.activation
        y = act(conv_norm(x, self.width, self.path, 1, size=1))
        y = act(conv_norm(y, self.width, self.path, 2, stride=self.stride))
        y = conv_norm(y, 4 * self.width, self.path, 3, size=1)
        return act(y + _shortcut(self.layers, x, y, self.stride))


def _shortcut(layers: Layers, x: jax.Array, y: jax.Array, stride: int) -> jax.Array:
    """``x`` in the shape of ``y``; layers "conv_shortcut" and "bn_shortcut"."""
    if stride == 1 and x.shape[-1] == y.shape[-1]:
        return x
    return layers.conv_norm(x, y.shape[-1], (), "_shortcut", size=1, stride=stride)


def _largest_3x3(x: jax.Array) -> jax.Array:
    """The maximum of 3 x 3 pixels around every second one."""
    pads: Any = ((1, 1), (1, 1))  # Flax's annotation says str
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=pads)
