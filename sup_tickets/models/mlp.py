"""A multi-layer perceptron, with batch norm or without."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from sup_tickets.models.layers import Layers, NormNetwork


class MLP(NormNetwork):
    """Dense layers with ReLU over the flattened pixels, then a classifier."""

    classes: int = 10
    features: Sequence[int] = (256, 128)  # of each hidden layer
    batch_norm: bool = False  # before each ReLU

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the classes.

        Args:
          images: [B, ...] float array.
          train: whether batch norm uses, and updates by, the statistics of the batch.

        Returns:
          [B, classes] float32 array.
        """
        layers = Layers.of(self, train=train, dense_init="lecun")
        x = images.astype(self.dtype).reshape(images.shape[0], -1)
        for i, features in enumerate(self.features, start=1):
            y = layers.dense(x, features, f"dense{i}", bias=not self.batch_norm)
            if self.batch_norm:
                y = layers.norm(y, f"bn{i}")
            x = self.activation(layers.bridged(x, y, (*self.path, f"dense{i}")))
        return layers.logits(x, self.classes)
