"""Handwritten digits of 8 x 8 pixels: 1797 images that ship inside scikit-learn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CLASSES = 10
TEST_PER_CLASS = 36
VALIDATION_PER_CLASS = 18

# Of all pixels, on the scale of 0 to 1.
_MEAN, _DEVIATION = 0.305, 0.376


class Split(NamedTuple):
    """Examples of one purpose. N is their number."""

    images: np.ndarray  # [N, 8, 8, 1] uint8, from 0 to 16
    labels: np.ndarray  # [N] int32


class Digits(NamedTuple):
    """The three splits."""

    train: Split  # 1257
    validation: Split  # 180, 18 a class: for every choice that is made by looking
    test: Split  # 360, 36 a class: for the final numbers alone


def load_digits(*, split_seed: int = 0) -> Digits:
    """The digits, split once and for all by a seed.

    Args:
      split_seed: of the permutation that the splits are cut from. It is not the seed of
        a run: runs that are compared must share the split.

    Raises:
      ModuleNotFoundError: without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits are part of scikit-learn; "
            "install it with: pip install sup-tickets[train]"
        ) from error
    raw = datasets.load_digits()
    images = raw.images.astype(np.uint8)[..., None]  # pyright: ignore
    labels = raw.target.astype(np.int32)  # pyright: ignore
    return Digits(*(Split(images[i], labels[i]) for i in _indices(labels, split_seed)))


def _indices(labels: np.ndarray, split_seed: int) -> list[np.ndarray]:
    """Indices of train, validation and test, the last two balanced, each in order."""
    order = np.random.default_rng(split_seed).permutation(labels.size)
    train, validation, test = [], [], []
    cut = TEST_PER_CLASS + VALIDATION_PER_CLASS
    for digit in range(CLASSES):
        of_class = order[labels[order] == digit]
        test.append(of_class[:TEST_PER_CLASS])
        validation.append(of_class[TEST_PER_CLASS:cut])
        train.append(of_class[cut:])
    return [np.sort(np.concatenate(parts)) for parts in (train, validation, test)]


def normalise(images: jax.Array) -> jax.Array:
    """[B, 8, 8, 1] uint8 from 0 to 16, to float32 of mean 0 and deviation 1, about."""
    return (images.astype(jnp.float32) / 16 - _MEAN) / _DEVIATION


def random_shift(key: jax.Array, images: jax.Array, *, pixels: int = 1) -> jax.Array:
    """Each image moved by up to ``pixels`` up or down and left or right, filled with 0.

    Args:
      key: a random key, consumed.
      images: [B, H, W, C] array.
      pixels: largest shift; 0 is none.
    """
    if pixels == 0:
        return images
    batch, height, width, _ = images.shape
    edge = (pixels, pixels)
    padded = jnp.pad(images, ((0, 0), edge, edge, (0, 0)))
    start = jax.random.randint(key, (2, batch, 1), 0, 2 * pixels + 1)
    rows = start[0] + jnp.arange(height)[None]  # [B, H]
    columns = start[1] + jnp.arange(width)[None]  # [B, W]
    every = jnp.arange(batch)[:, None, None]
    return padded[every, rows[:, :, None], columns[:, None, :]]
