"""Crops of photographs of any size, from the bytes of their files; on the host.

What each kind of file becomes, and which are refused, `sup_tickets.data.pixels` says. A
set that is streamed is decoded as it is asked for, so that a photograph that cannot be
read ends the run where it comes up, with its name.
"""

import math
from typing import Any

import numpy as np

from sup_tickets.data.files import require
from sup_tickets.data.pixels import open_image

_TRIES = 10


def random_photo(
    data: bytes,
    rng: np.random.Generator,
    *,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    name: str = "given as bytes",
) -> np.ndarray:
    """A random part of a photograph, half of the time mirrored: for training.

    Args:
      data: of a JPEG or PNG file.
      rng: drawn from.
      size: height and width of the result, in pixels.
      area: least and largest share of the photograph.
      ratio: least and largest width to height of the part.
      name: of the file, for an error.

    Returns:
      [size, size, 3] uint8.

    Raises:
      ValueError: naming the file, if it cannot be read.

    References:
      Szegedy et al., Going Deeper with Convolutions, 2014,
      https://arxiv.org/abs/1409.4842; in the form that torchvision gave it.
    """
    photo = open_image(data, name=name)
    box = random_box(rng, photo.height, photo.width, area=area, ratio=ratio)
    pixels = _resized(photo.crop(box), size, size)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def centre_photo(
    data: bytes, *, size: int, shorter_side: int, name: str = "given as bytes"
) -> np.ndarray:
    """The centre of a photograph, for evaluation.

    Args:
      data: of a JPEG or PNG file.
      size: height and width of the result, in pixels.
      shorter_side: to which the photograph is resized before, at least ``size``.
      name: of the file, for an error.

    Returns:
      [size, size, 3] uint8.

    Raises:
      ValueError: naming the file, if it cannot be read.
    """
    photo = open_image(data, name=name)
    short = min(photo.size)
    width, height = (shorter_side * side // short for side in photo.size)
    pixels = _resized(photo, width, height)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of ``height`` x ``width`` pixels.

    The share of the area is uniform, the logarithm of width to height likewise; if ten
    draws do not fit, it is the largest part in the centre with a ratio in the range.
    """
    for _ in range(_TRIES):
        pixels = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w, endpoint=True))
            top = int(rng.integers(height - h, endpoint=True))
            return left, top, left + w, top + h
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resized(photo: Any, width: int, height: int) -> np.ndarray:
    bilinear = require("PIL.Image", "to decode images").Resampling.BILINEAR
    return np.asarray(photo.resize((width, height), bilinear))
