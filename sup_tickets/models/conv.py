"""A small convolutional network with batch norm, for images of 8 x 8 or more."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from sup_tickets.models.layers import Layers, NormNetwork, halve


class ConvNet(NormNetwork):
    """Pairs of 3 x 3 convolutions, each with batch norm and ReLU, then a classifier.

    Shapes: B images of H x W pixels, C channels. After each pair a 2 x 2 maximum halves
    the height and width.
    """

    classes: int = 10
    features: Sequence[int] = (32, 32, 64, 64)  # of each convolution, an even number

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes; see `Network`."""
        layers = Layers.of(self, train=train, conv_init="lecun", dense_init="lecun")
        x = images.astype(self.dtype)
        for i, features in enumerate(self.features, start=1):
            x = self.activation(layers.conv_norm(x, features, self.path, i))
            if i % 2 == 0:
                x = halve(x)
        return layers.logits(x.reshape(x.shape[0], -1), self.classes)
