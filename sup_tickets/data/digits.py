"""To be removed: `sup_tickets.data.datasets` and `augment` have all of this."""

import jax

from sup_tickets.data import augment, datasets
from sup_tickets.data.files import Split as Split


def load_digits(*, split_seed: int = 0) -> datasets.Dataset:
    """The digits; use ``load_dataset("digits")``."""
    return datasets.load_dataset("digits", split_seed=split_seed)


def normalise(images: jax.Array) -> jax.Array:
    """[B, 8, 8, 1] uint8 to float32; use `augment.normalise`."""
    return augment.normalise(images, scale=16, mean=(0.305,), deviation=(0.376,))


def random_shift(key: jax.Array, images: jax.Array, *, pixels: int = 1) -> jax.Array:
    """Moves each image; use `augment.random_crop`."""
    return augment.random_crop(key, images, padding=pixels)
