"""A small convolutional network with batch norm, for images of 8 x 8 or more."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class ConvNet(nn.Module):
    """Pairs of 3 x 3 convolutions, each with batch norm and ReLU, then a classifier.

    Shapes: B images of H x W pixels, C channels. After each pair a 2 x 2 maximum halves
    the height and width.
    """

    classes: int = 10
    features: Sequence[int] = (32, 32, 64, 64)  # of each convolution, an even number
    bn_momentum: float = 0.9  # share of the old running statistics at each step
    bn_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Class scores before the softmax.

        Args:
          images: [B, H, W, C] float array.
          train: whether batch norm uses, and updates by, the statistics of the batch.

        Returns:
          [B, classes] float array.
        """
        x = images
        for i, features in enumerate(self.features, start=1):
            # Batch norm has the bias.
            x = nn.Conv(features, (3, 3), use_bias=False, name=f"conv{i}")(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=self.bn_momentum,
                epsilon=self.bn_epsilon,
                name=f"bn{i}",
            )(x)
            x = nn.relu(x)
            if i % 2 == 0:
                x = _halve(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.classes, name="classifier")(x)


def _halve(x: jax.Array) -> jax.Array:
    """The maximum of every 2 x 2 pixels; on a CPU faster than `nn.max_pool`."""
    batch, height, width, features = x.shape
    pairs = x.reshape(batch, height // 2, 2, width // 2, 2, features)
    return pairs.max((2, 4))
