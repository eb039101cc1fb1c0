"""LeNet-300-100 and LeNet-5, for digits of 28 x 28.

Gradient-based learning applied to document recognition, LeCun et al. 1998. LeNet-5 is
Caffe's, as in most papers on pruning: wider than the original.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from sup_tickets.models.layers import Layers, Network, halve


class LeNet300(Network):
    """Two hidden dense layers over the flattened pixels, then a classifier."""

    classes: int = 10
    hidden: Sequence[int] = (300, 100)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes.

        Args:
          images: [B, ...] float array.
          train: unused.

        Returns:
          [B, classes] float32 array.
        """
        layers = Layers.of(self, train=train)
        x = images.astype(self.dtype).reshape(images.shape[0], -1)
        for i, width in enumerate(self.hidden, start=1):
            y = layers.dense(x, width, f"dense{i}")
            x = self.activation(layers.bridged(x, y, (*self.path, f"dense{i}")))
        return layers.logits(x, self.classes)


class LeNet5(Network):
    """Two 5 x 5 convolutions without padding, a hidden dense layer, a classifier.

    After each convolution a 2 x 2 maximum halves the height and width.
    """

    classes: int = 10
    features: Sequence[int] = (20, 50)  # of each convolution
    hidden: Sequence[int] = (500,)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes; see `Network`."""
        layers = Layers.of(self, train=train)
        x = images.astype(self.dtype)
        for i, features in enumerate(self.features, start=1):
            y = layers.conv(x, features, f"conv{i}", size=5, padding=0, bias=True)
            y = layers.bridged(x, y, (*self.path, f"conv{i}"))
            x = halve(self.activation(y))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, start=1):
            y = layers.dense(x, width, f"dense{i}")
            x = self.activation(layers.bridged(x, y, (*self.path, f"dense{i}")))
        return layers.logits(x, self.classes)
