"""MobileNet V1 and V2, for ImageNet or for small images.

MobileNets, Howard et al. 2017, arXiv 1704.04861. MobileNetV2: inverted residuals and
linear bottlenecks, Sandler et al. 2018, arXiv 1801.04381.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import flax.linen as nn
import jax

from sup_tickets.models.layers import (
    Activation,
    Layers,
    NormNetwork,
    mean_pixel,
)

BLOCKS_V1 = (  # features, stride
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
STAGES_V2 = (  # expansion, features, blocks, stride of the first block
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class MobileNetV1(NormNetwork):
    """Stem, blocks of a depthwise and a 1 x 1 convolution, mean, classifier.

    With small images the stem keeps the height and width.
    """

    classes: int = 10
    width: float = 1.0  # multiplies all features, rounded to multiples of 8
    small_images: bool = False
    blocks: Sequence[tuple[int, int]] = BLOCKS_V1

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes; see `Network`."""
        layers = Layers.of(self, train=train, conv_init="fan_out", dense_init="normal")
        x = images.astype(self.dtype)
        stride = 1 if self.small_images else 2
        x = layers.conv_norm(x, _round(32, self.width), self.path, stride=stride)
        x = self.activation(x)
        for i, (features, stride) in enumerate(self.blocks, start=1):
            features = _round(features, self.width)
            x = Separable(layers, features, stride, name=f"block{i}")(x)
        return layers.logits(mean_pixel(x), self.classes)


class Separable(nn.Module):
    """A depthwise convolution "conv1", which has the stride, and a 1 x 1 "conv2"."""

    layers: Layers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        conv_norm, act = self.layers.conv_norm, self.layers.activation
        depth = {"stride": self.stride, "groups": x.shape[-1]}
        x = act(conv_norm(x, x.shape[-1], self.path, 1, **depth))
        return act(conv_norm(x, self.features, self.path, 2, size=1))


class MobileNetV2(NormNetwork):
    """Stem, inverted residuals, a 1 x 1 convolution, mean, classifier.

    With small images the stem and the second stage keep the height and width. There is
    no dropout before the classifier.
    """

    classes: int = 10
    width: float = 1.0  # multiplies all features, rounded to multiples of 8
    small_images: bool = False
    stages: Sequence[tuple[int, int, int, int]] = STAGES_V2
    last_features: int = 1280  # before the classifier; a width under 1 leaves it
    activation: Activation = nn.relu6

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes; see `Network`."""
        layers = Layers.of(self, train=train, conv_init="fan_out", dense_init="normal")
        x = images.astype(self.dtype)
        stride = 1 if self.small_images else 2
        x = layers.conv_norm(x, _round(32, self.width), self.path, stride=stride)
        x = self.activation(x)
        for i, (expansion, features, blocks, stride) in enumerate(self.stages, 1):
            features = _round(features, self.width)
            if self.small_images and i == 2:
                stride = 1
            x = InvertedStage(
                layers, expansion, features, blocks, stride, name=f"stage{i}"
            )(x)
        features = _round(self.last_features, max(1.0, self.width))
        x = layers.conv_norm(x, features, self.path, "_last", size=1)
        return layers.logits(mean_pixel(self.activation(x)), self.classes)


class InvertedStage(nn.Module):
    """Inverted residuals of one width; the first has the stride."""

    layers: Layers
    expansion: int
    features: int
    blocks: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        for i in range(1, self.blocks + 1):
            stride = self.stride if i == 1 else 1
            x = InvertedResidual(
                self.layers, self.expansion, self.features, stride, name=f"block{i}"
            )(x)
        return x


class InvertedResidual(nn.Module):
    """Widened by "conv1" if expansion is not 1, depthwise "conv2", 1 x 1 "conv3"."""

    layers: Layers
    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]."""
        conv_norm, act = self.layers.conv_norm, self.layers.activation
        y, wide = x, self.expansion * x.shape[-1]
        if self.expansion != 1:
            y = act(conv_norm(y, wide, self.path, 1, size=1))
        depth = {"stride": self.stride, "groups": wide}
        y = act(conv_norm(y, wide, self.path, 2, **depth))
        y = conv_norm(y, self.features, self.path, 3, size=1)
        return x + y if x.shape == y.shape else y


def _round(channels: int, width: float) -> int:
    """The multiple of 8 next to ``channels * width``, at least 8 and 90% of it."""
    features = channels * Fraction(str(width))  # the decimal that was written
    near = max(8, floor(features + 4) // 8 * 8)
    return near + 8 if 10 * near < 9 * features else near
