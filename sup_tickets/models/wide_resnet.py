"""Wide residual networks, whose batch norm comes before each convolution.

Wide residual networks, Zagoruyko and Komodakis 2016, arXiv 1605.07146; without dropout,
and with the initializers of the code that Sup-tickets trains.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from sup_tickets.models.layers import (
    Layers,
    NormNetwork,
    mean_pixel,
)


class WideResNet(NormNetwork):
    """Stem, stages of pre-activation blocks, batch norm, mean, classifier.

    Its depth is 6 * blocks + 4, and widths are 16, 32 and 64 times the widening factor.
    """

    classes: int = 10
    blocks: int = 4  # of every stage
    widths: Sequence[int] = (160, 320, 640)  # of each stage
    stem_width: int = 16

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes; see `Network`."""
        layers = Layers.of(self, train=train, conv_init="fan_out")
        images = images.astype(self.dtype)
        x = layers.conv(images, self.stem_width, "conv")
        x = layers.bridged(images, x, (*self.path, "conv"))
        for i, width in enumerate(self.widths, start=1):
            stride = 1 if i == 1 else 2
            x = WideStage(layers, self.blocks, width, stride, name=f"stage{i}")(x)
        x = self.activation(layers.norm(x, "bn"))
        return layers.logits(mean_pixel(x), self.classes)


class WideStage(nn.Module):
    """Blocks of one width; the first has the stride."""

    layers: Layers
    blocks: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, width]."""
        for i in range(1, self.blocks + 1):
            stride = self.stride if i == 1 else 1
            x = WideBlock(self.layers, self.width, stride, name=f"block{i}")(x)
        return x


class WideBlock(nn.Module):
    """Twice batch norm, activation and a 3 x 3 convolution; and a shortcut.

    The shortcut is the identity if the width stays, else a 1 x 1 convolution, which
    starts after the first activation.
    """

    layers: Layers
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, width]."""
        layers, act, stride = self.layers, self.layers.activation, self.stride
        before = act(layers.norm(x, "bn1"))
        if stride != 1 or x.shape[-1] != self.width:
            x = layers.conv(before, self.width, "conv_shortcut", size=1, stride=stride)
        y = layers.norm(layers.conv(before, self.width, "conv1", stride=stride), "bn2")
        between = act(layers.bridged(before, y, (*self.path, "conv1")))
        y = layers.conv(between, self.width, "conv2")
        return x + layers.bridged(between, y, (*self.path, "conv2"))
