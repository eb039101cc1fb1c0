"""Random changes of uint8 images, inside the jitted step. All are pure.

Letters: a batch has B images of H x W pixels with C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_one_of, check_whole

_MODES = {"zero": "constant", "reflect": "reflect"}


class Augmentation(NamedTuple):
    """What is done to a training batch; the default is nothing."""

    padding: int = 0  # pixels at each edge before a random crop
    mode: str = "zero"  # of the padding, or "reflect"
    flip: bool = False  # mirrors left and right with probability 1/2
    cutout: int = 0  # side of the square that is cut out, in pixels
    fill: int | tuple[int, ...] = 0  # uint8 value of the square, or one a channel


def augment(key: jax.Array, images: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Crop, then flip, then cutout.

    What one part draws does not depend on whether the others are on.

    Args:
      key: a random key, consumed.
      images: [B, H, W, C] uint8.
      augmentation: which parts.

    Returns:
      [B, H, W, C] uint8.
    """
    padding, mode, flip, size, fill = augmentation
    # The crop has the key itself: so it was before there were other parts.
    images = random_crop(key, images, padding=padding, mode=mode)
    if flip:
        images = random_flip(jax.random.fold_in(key, 1), images)
    return cutout(jax.random.fold_in(key, 2), images, size=size, fill=fill)


def random_crop(
    key: jax.Array, images: jax.Array, *, padding: int, mode: str = "zero"
) -> jax.Array:
    """A crop of the old size at a random place of each padded image.

    Args:
      key: a random key, consumed.
      images: [B, H, W, C] array.
      padding: pixels at each edge, so the largest shift; 0 is none.
      mode: of the padding: "zero", or "reflect", which does not repeat the edge.

    Raises:
      ValueError: for another mode, or more pixels than there are to reflect.
    """
    check_one_of("mode", mode, _MODES)
    if check_whole("padding", padding, 0) == 0:
        return images
    batch, height, width, _ = images.shape
    if mode == "reflect" and padding >= min(height, width):
        raise ValueError(
            f"padding={padding} reflects more than images of {height} x {width} have"
        )
    edge = (padding, padding)
    padded = jnp.pad(images, ((0, 0), edge, edge, (0, 0)), mode=_MODES[mode])
    start = jax.random.randint(key, (2, batch, 1), 0, 2 * padding + 1)
    rows = start[0] + jnp.arange(height)[None]  # [B, H]
    columns = start[1] + jnp.arange(width)[None]  # [B, W]
    every = jnp.arange(batch)[:, None, None]
    return padded[every, rows[:, :, None], columns[:, None, :]]


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image mirrored left and right with probability 1/2.

    Args:
      key: a random key, consumed.
      images: [B, H, W, C] array.
    """
    flipped = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def cutout(
    key: jax.Array,
    images: jax.Array,
    *,
    size: int,
    fill: int | Sequence[int] = 0,
) -> jax.Array:
    """A square of one colour in each image, around a random pixel.

    The square is clipped at the edges, so that every pixel is the centre equally often.
    The paper cuts after normalizing, where 0 is the mean: pass the mean as ``fill``.

    Args:
      key: a random key, consumed.
      images: [B, H, W, C] array.
      size: side of the square in pixels; 0 is none.
      fill: the value in the square, or one a channel.

    References:
      DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with
      Cutout, 2017, https://arxiv.org/abs/1708.04552
    """
    if check_whole("size", size, 0) == 0:
        return images
    batch, height, width, channels = images.shape
    of_row, of_column = jax.random.split(key)
    rows = _covered(of_row, batch, height, size)  # [B, H]
    columns = _covered(of_column, batch, width, size)  # [B, W]
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    colour = jnp.broadcast_to(jnp.asarray(fill, images.dtype), (channels,))
    return jnp.where(hole, colour[None, None, None], images)


def normalize(
    images: jax.Array,
    *,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> jax.Array:
    """Images of about mean 0 and standard deviation 1.

    Args:
      images: [B, H, W, C] uint8.
      scale: the value that stands for 1.
      mean: [C], of the channels, where white is 1.
      std: [C], likewise.

    Returns:
      [B, H, W, C] float32.

    Raises:
      ValueError: if there are not as many means and deviations as channels.
    """
    if not len(mean) == len(std) == images.shape[-1]:
        raise ValueError(
            f"mean={mean} and std={std} must have one number for each of "
            f"the {images.shape[-1]} channels"
        )
    means, stds = (
        jnp.asarray(numbers, jnp.float32)[None, None, None] for numbers in (mean, std)
    )
    return (images.astype(jnp.float32) / scale - means) / stds


def _covered(key: jax.Array, batch: int, length: int, size: int) -> jax.Array:
    """[B, length] bool: the pixels of an axis within ``size`` about a random one."""
    start = jax.random.randint(key, (batch, 1), 0, length) - size // 2
    place = jnp.arange(length)[None]
    return (place >= start) & (place < start + size)
