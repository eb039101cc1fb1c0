"""Random changes of images, against plain loops in NumPy."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets.data.augment import (
    Augmentation,
    augment,
    cutout,
    normalize,
    random_crop,
    random_flip,
)

B, H, W, C = 64, 9, 7, 3


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(1, 256, (B, H, W, C), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("padding", [1, 4])
def test_a_crop_is_a_window_of_the_padded_image(key, images, mode, padding):
    found = random_crop(key, images, padding=padding, mode=mode)
    assert (found.shape, found.dtype) == (images.shape, jnp.uint8)
    start = np.asarray(jax.random.randint(key, (2, B, 1), 0, 2 * padding + 1))[..., 0]
    edge = (padding, padding)
    for i, image in enumerate(np.asarray(images)):
        options = {"mode": "reflect"} if mode == "reflect" else {}
        padded = np.pad(image, (edge, edge, (0, 0)), **options)
        top, left = start[:, i]
        np.testing.assert_array_equal(
            found[i], padded[top : top + H, left : left + W], strict=True
        )
    # All shifts come, both ways.
    assert set(start[0]) == set(start[1]) == set(range(2 * padding + 1))


def test_the_crops_of_committed_runs_are_unchanged(images):
    found = random_crop(jax.random.key(3), images, padding=1)
    digest = hashlib.sha256(np.asarray(found).tobytes()).hexdigest()
    assert (
        digest[:16] == "d6abbb1a5c3c4620"
    )  # of the digits.random_shift that was here before


def test_crops_that_are_refused(key, images):
    assert random_crop(key, images, padding=0) is images
    with pytest.raises(ValueError, match="mode must be one of 'zero', 'reflect'"):
        random_crop(key, images, padding=1, mode="mirror")
    with pytest.raises(ValueError, match=r"padding=7 reflects more than .* 9 x 7"):
        random_crop(key, images, padding=7, mode="reflect")
    with pytest.raises(ValueError, match="padding must be a whole number"):
        random_crop(key, images, padding=-1)


def test_a_flip_mirrors_left_and_right(key, images):
    found = np.asarray(random_flip(key, images))
    plain = (found == np.asarray(images)).all((1, 2, 3))
    mirrored = (found == np.asarray(images)[:, :, ::-1]).all((1, 2, 3))
    assert (plain ^ mirrored).all()
    again = random_flip(key, random_flip(key, images))
    np.testing.assert_array_equal(again, images)


def test_flips_are_fair_and_independent(key):
    image = jnp.asarray([[[[0], [1]]]], jnp.uint8)
    found = random_flip(key, jnp.repeat(image, 100_000, axis=0))
    flipped = np.asarray(found[:, 0, 0, 0]).astype(int)
    assert abs(flipped.mean() - 0.5) < 0.005  # 3 standard deviations
    assert abs(np.mean(flipped[1:] == flipped[:-1]) - 0.5) < 0.005


@pytest.mark.parametrize("size", [1, 4, 5, 30])
@pytest.mark.parametrize("fill", [0, (1, 2, 3)])
def test_a_cutout_is_a_clipped_square(key, images, size, fill):
    found = np.asarray(cutout(key, images, size=size, fill=fill))
    of_row, of_column = jax.random.split(key)
    y = np.asarray(jax.random.randint(of_row, (B, 1), 0, H))[:, 0]
    x = np.asarray(jax.random.randint(of_column, (B, 1), 0, W))[:, 0]
    for i, image in enumerate(np.asarray(images).copy()):
        top, left = y[i] - size // 2, x[i] - size // 2
        rows = slice(max(top, 0), max(top + size, 0))
        columns = slice(max(left, 0), max(left + size, 0))
        image[rows, columns] = fill
        np.testing.assert_array_equal(found[i], image)
    assert set(y) == set(range(H))  # every pixel is the centre sometimes
    assert set(x) == set(range(W))


def test_no_cutout(key, images):
    assert cutout(key, images, size=0) is images
    with pytest.raises(ValueError, match="size must be a whole number"):
        cutout(key, images, size=-1)


def test_normalize_is_the_formula(images):
    mean, std = (0.49, 0.48, 0.44), (0.24, 0.25, 0.26)
    found = normalize(images, scale=255, mean=mean, std=std)
    expected = (np.asarray(images, np.float64) / 255 - mean) / std
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="for each of the 3 channels"):
        normalize(images, scale=255, mean=(0.5,), std=(0.5,))


def test_normalize_has_the_bits_of_committed_runs():
    images = jnp.arange(17, dtype=jnp.uint8).reshape(1, 1, 17, 1)
    formula = lambda x: (x.astype(jnp.float32) / 16 - 0.305) / 0.376  # noqa: E731
    ours = lambda x: normalize(x, scale=16, mean=(0.305,), std=(0.376,))  # noqa: E731
    np.testing.assert_array_equal(ours(images), formula(images))
    np.testing.assert_array_equal(jax.jit(ours)(images), jax.jit(formula)(images))


def test_augment_is_its_parts(key, images):
    everything = Augmentation(padding=2, mode="reflect", flip=True, cutout=3, fill=9)
    expected = random_crop(key, images, padding=2, mode="reflect")
    expected = random_flip(jax.random.fold_in(key, 1), expected)
    expected = cutout(jax.random.fold_in(key, 2), expected, size=3, fill=9)
    found = jax.jit(lambda k, x: augment(k, x, everything))(key, images)
    np.testing.assert_array_equal(found, expected)
    assert augment(key, images, Augmentation()) is images


def test_a_part_draws_the_same_without_the_others(key, images):
    crop = augment(key, images, Augmentation(padding=2))
    np.testing.assert_array_equal(crop, random_crop(key, images, padding=2))
    flip = augment(key, images, Augmentation(flip=True))
    both = augment(key, images, Augmentation(padding=2, flip=True))
    flipped = (np.asarray(flip) != np.asarray(images)).any((1, 2, 3))
    assert 0 < flipped.sum() < B
    np.testing.assert_array_equal(both[~flipped], crop[~flipped])
    np.testing.assert_array_equal(both[flipped], crop[flipped][:, :, ::-1])
    hole = augment(key, images, Augmentation(cutout=3)) == 0
    with_flip = augment(key, images, Augmentation(flip=True, cutout=3)) == 0
    np.testing.assert_array_equal(hole, with_flip)  # no image has a 0 of its own


def test_parts_do_not_draw_alike(key, images):
    # Shifts to the left and flips are uncorrelated over many images.
    many = jnp.broadcast_to(images[:1], (20_000, H, W, C))
    crop = augment(key, many, Augmentation(padding=1))
    flip = augment(key, many, Augmentation(flip=True))
    moved = np.asarray((crop[:, 4, 0] == 0).all(-1), float)
    flipped = np.asarray((flip != many).any((1, 2, 3)), float)
    assert abs(np.corrcoef(moved, flipped)[0, 1]) < 0.025
