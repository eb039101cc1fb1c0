"""VGG networks with batch norm for small images.

Very deep convolutional networks for large-scale image recognition, Simonyan and
Zisserman 2015, arXiv 1409.1556; as in the code of Sup-tickets ("VGG-like") and ToST.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from sup_tickets.models.layers import (
    Layers,
    NormNetwork,
    halve,
    mean_pixel,
)

STAGES_16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
STAGES_19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


class VGG(NormNetwork):
    """Stages of biased 3 x 3 convolutions with batch norm, then dense layers.

    After each stage a 2 x 2 maximum halves the height and width; after the last one a
    mean over the pixels follows, which is nothing for images of 32 x 32.
    """

    classes: int = 10
    stages: Sequence[Sequence[int]] = STAGES_16  # features of each convolution
    hidden: Sequence[int] = (512,)  # dense layers, with batch norm after the activation
    last_maximum: bool = True  # also after the last stage; else only the mean
    conv_init: str = "fan_out"  # or "torch"
    dense_init: str = "normal"  # or "torch"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes; see `Network`."""
        layers = Layers.of(self, train=train)
        x = images.astype(self.dtype)
        for i, features in enumerate(self.stages, start=1):
            x = VGGStage(layers, features, name=f"stage{i}")(x)
            if i < len(self.stages) or self.last_maximum:
                x = halve(x)
        x = mean_pixel(x)
        for i, width in enumerate(self.hidden, start=1):
            x = self.activation(layers.dense(x, width, f"dense{i}"))
            x = layers.norm(x, f"bn{i}")
        return layers.logits(x, self.classes)


class VGGStage(nn.Module):
    """Convolutions with batch norm and activation."""

    layers: Layers
    features: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H, W, last of the features]."""
        for i, features in enumerate(self.features, start=1):
            x = self.layers.conv_norm(x, features, self.path, i, bias=True)
            x = self.layers.activation(x)
        return x
