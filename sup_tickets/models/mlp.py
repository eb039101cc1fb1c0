"""A multi-layer perceptron, with batch norm or without."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Dense layers with ReLU over the flattened pixels, then a classifier."""

    classes: int = 10
    features: Sequence[int] = (256, 128)  # of each hidden layer
    batch_norm: bool = False  # before each ReLU
    bn_momentum: float = 0.9  # share of the old running statistics at each step
    bn_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Class scores before the softmax.

        Args:
          images: [B, ...] float array.
          train: whether batch norm uses, and updates by, the statistics of the batch.

        Returns:
          [B, classes] float array.
        """
        x = images.reshape(images.shape[0], -1)
        for i, features in enumerate(self.features, start=1):
            x = nn.Dense(features, use_bias=not self.batch_norm, name=f"dense{i}")(x)
            if self.batch_norm:
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=self.bn_momentum,
                    epsilon=self.bn_epsilon,
                    name=f"bn{i}",
                )(x)
            x = nn.relu(x)
        return nn.Dense(self.classes, name="classifier")(x)
