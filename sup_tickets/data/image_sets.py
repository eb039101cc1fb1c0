"""Data sets that fit into memory, by name: uint8 arrays, split once and for all.

Train, validation and test are fixed by ``split_seed``, which is not the seed of a run:
runs that are compared must share the split. Choices are made by looking at validation;
test is for the final numbers.
"""

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sup_tickets.checks import check_one_of, check_whole
from sup_tickets.data.files import (
    Split,
    TrainTest,
    data_folder,
    require,
)
from sup_tickets.data.folders import read_folder
from sup_tickets.data.incremental import Classes, check_disjoint, read_classes
from sup_tickets.data.prepared import read_prepared


class Dataset(NamedTuple):
    """The three splits, and how to normalize them. C is the number of channels."""

    name: str
    classes: int
    train: Split
    validation: Split  # may be empty
    test: Split
    scale: float  # the value of a pixel that stands for 1
    mean: tuple[float, ...]  # [C], of the training pixels, on the scale of 0 to 1
    std: tuple[float, ...]  # [C], likewise


class Known(NamedTuple):
    """What is known of a set before it is read."""

    kind: Literal["embedded", "prepared", "folder"]
    classes: int
    shape: tuple[int, int, int]  # [H, W, C] of an image
    train: int  # examples, of them validation_examples go to validation
    test: int  # examples
    validation_examples: int  # by default
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0


_GREY, _COLOUR, _TINY = (28, 28, 1), (32, 32, 3), (64, 64, 3)

# Means and standard deviations are of the whole training set.
DATASETS: dict[str, Known] = {
    "digits": Known(  # inside scikit-learn
        *("embedded", 10, (8, 8, 1), 1437, 360, 180),
        mean=(0.305,),
        std=(0.376,),
        scale=16.0,
    ),
    "mnist": Known(
        *("prepared", 10, _GREY, 60000, 10000, 5000),
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion_mnist": Known(
        *("prepared", 10, _GREY, 60000, 10000, 5000),
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "cifar10": Known(
        *("prepared", 10, _COLOUR, 50000, 10000, 5000),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Known(
        *("prepared", 100, _COLOUR, 50000, 10000, 5000),
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "tiny_imagenet": Known(
        *("folder", 200, _TINY, 100000, 10000, 5000),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
    ),
}

_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_FOLDER = "tiny-imagenet-200"  # what its archive unpacks to
_FOLDER = "folder:"
_DIGITS_TEST_PER_CLASS = 36


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation_examples: int | None = None,
    split_seed: int = 0,
    training_examples: int = 0,
    shrink: int = 1,
) -> Dataset:
    """A data set, from disk; nothing is ever downloaded.

    Args:
      name: of `DATASETS`, or "folder:NAME" for image files in ``data_dir/NAME/train``
        and ``val``, as `sup_tickets.data.folders` reads them. With ":0-4" or ":0+3+7-9"
        behind it of these classes alone, which count from 0 in that order.
      data_dir: the folder of all sets; by default $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      validation_examples: how many of the training set become the validation split, at
        random but always the same. 0 leaves it empty, for final numbers of networks
        that saw all. By default 5000; of the digits 180, 18 a class; of "folder:NAME"
        a twentieth.
      split_seed: of what is cut off.
      training_examples: keep as many of what is left to train on, at random but always
        the same; 0 keeps all.
      shrink: pixels on a side of the squares that are averaged into one, and rounded.

    Raises:
      DataNotPrepared: with the command that prepares the set.
      FileNotFoundError: for a folder that is not there.
      ValueError: for another name, or if examples are missing.
      ModuleNotFoundError: for a package that reading it needs.
    """
    check_whole("training_examples", training_examples, 0)
    check_whole("shrink", shrink, 1)
    source, classes = parted(name)
    whole = _whole(source, data_dir, validation_examples, split_seed)
    if classes is not None:
        check_disjoint({repr(name): classes}, whole.classes)
        whole = of_classes(whole, classes)
    return _smaller(whole, training_examples, shrink, split_seed)


def parted(name: str) -> tuple[str, Classes | None]:
    """The data set of a name and its classes; ``None`` if these are all.

    Raises:
      ValueError: if what is behind the colon are no classes.

    Example:
      >>> parted("cifar100:0-2")
      ('cifar100', (0, 1, 2))
    """
    match = re.fullmatch(r"(.+?):([\d+\-\s]+)", name)
    if match is None or f"{match[1]}:" == _FOLDER:
        return name, None
    return match[1], read_classes(match[2])


def of_classes(data: Dataset, classes: Classes) -> Dataset:
    """The examples of some classes, which are numbered in their order.

    Args:
      data: whose validation split may lack them.
      classes: labels.

    Raises:
      ValueError: if there is one only, or none of its examples is there to train on.
    """
    if len(classes) < 2:
        raise ValueError(f"classes must be two or more, got {classes}")
    number = np.full(data.classes, -1, np.int32)
    number[list(classes)] = np.arange(len(classes))

    def some(split: Split) -> Split:
        labels = number[split.labels]
        return Split(split.images[labels >= 0], labels[labels >= 0])

    train, validation, test = map(some, (data.train, data.validation, data.test))
    for i, label in enumerate(classes):
        if i not in train.labels:
            raise ValueError(f"class {label} has no example to train on")
    return data._replace(
        classes=len(classes), train=train, validation=validation, test=test
    )


def _whole(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    validation_examples: int | None,
    split_seed: int,
) -> Dataset:
    if name.startswith(_FOLDER):
        return _any_folder(name, data_folder(data_dir), validation_examples, split_seed)
    check_one_of("name", name, DATASETS)
    known = DATASETS[name]
    cut = known.validation_examples
    if validation_examples is not None:
        cut = check_whole("validation_examples", validation_examples, 0)
    if known.kind == "embedded":
        splits = _digits(cut, split_seed)
    else:
        read = _read_tiny if known.kind == "folder" else _read_prepared
        data = read(name, known, data_folder(data_dir))
        splits = *_cut(data.train, cut, split_seed), data.test
    return Dataset(name, known.classes, *splits, known.scale, known.mean, known.std)


def _read_prepared(name: str, known: Known, folder: Path) -> TrainTest:
    examples = {"train": known.train, "test": known.test}
    return read_prepared(name, folder, shape=known.shape, examples=examples)


def _read_tiny(name: str, known: Known, folder: Path) -> TrainTest:
    place = folder / _TINY_FOLDER
    if not place.is_dir():
        raise FileNotFoundError(
            f"{name} is not in {folder}; unpack {_TINY_URL} there, so that there is "
            f"{place}"
        )
    data, classes = read_folder(place)
    found = (*data.train.images.shape, len(data.test.labels), len(classes))
    wanted = (known.train, *known.shape, known.test, known.classes)
    if found != wanted:
        raise ValueError(
            f"{place} has training images {found[:4]}, {found[4]} test images and "
            f"{found[5]} classes; {name} has {wanted[:4]}, {wanted[4]} and {wanted[5]}"
        )
    return data


def _any_folder(name: str, folder: Path, cut: int | None, split_seed: int) -> Dataset:
    data, classes = read_folder(folder / name.removeprefix(_FOLDER))
    cut = len(data.train.labels) // 20 if cut is None else cut
    splits = *_cut(data.train, cut, split_seed), data.test
    return Dataset(name, len(classes), *splits, 255.0, *_moments(data.train.images))


def _cut(train: Split, examples: int, split_seed: int) -> tuple[Split, Split]:
    """Training and validation split, each in the order of the set."""
    total = len(train.labels)
    if check_whole("validation_examples", examples, 0) >= total:
        raise ValueError(
            f"validation_examples={examples} leaves nothing of the {total} to train on"
        )
    order = np.random.default_rng(split_seed).permutation(total)
    parts = np.sort(order[examples:]), np.sort(order[:examples])
    kept, held = (Split(train.images[i], train.labels[i]) for i in parts)
    return kept, held


def _smaller(data: Dataset, examples: int, shrink: int, split_seed: int) -> Dataset:
    """With fewer training images, and all images smaller."""
    total, height, width, _ = data.train.images.shape
    if examples > total:
        raise ValueError(
            f"training_examples={examples} is more than the {total} to train on"
        )
    if height % shrink or width % shrink:
        raise ValueError(
            f"shrink must divide the {height} x {width} pixels of an image, got "
            f"{shrink}"
        )
    train = data.train
    if examples:
        order = np.random.default_rng([split_seed, 1]).permutation(total)
        rows = np.sort(order[:examples])
        train = Split(train.images[rows], train.labels[rows])
    if shrink == 1:
        return data._replace(train=train)
    splits = (train, data.validation, data.test)
    train, validation, test = (
        Split(_shrunk(split.images, shrink), split.labels) for split in splits
    )
    return data._replace(train=train, validation=validation, test=test)


def _shrunk(images: np.ndarray, by: int) -> np.ndarray:
    """Means of squares of pixels, halves rounded up; uint8."""
    count, height, width, channels = images.shape
    squares = images.reshape(count, height // by, by, width // by, by, channels)
    total = squares.sum((2, 4), dtype=np.uint32)
    return ((total + by * by // 2) // (by * by)).astype(np.uint8)


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; 255 is 1; exact, from counts."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = np.average(values, weights=counts)
        means.append(float(mean))
        variance = np.average((values - mean) ** 2, weights=counts)
        stds.append(max(float(variance) ** 0.5, 1 / 255))  # never 0
    return tuple(means), tuple(stds)


# --- The digits -----------------------------------------------------------------------


def _digits(validation_examples: int, split_seed: int) -> tuple[Split, Split, Split]:
    """1797 images of 8 x 8 with values to 16; validation and test are balanced."""
    classes = DATASETS["digits"].classes
    per_class, rest = divmod(validation_examples, classes)
    if rest or per_class > 100:
        raise ValueError(
            "validation_examples of the digits must be a multiple of 10, up to 1000, "
            f"got {validation_examples}"
        )
    raw = require("sklearn.datasets", "for the digits").load_digits()
    images, labels = raw.images.astype(np.uint8)[..., None], raw.target.astype(np.int32)
    order = np.random.default_rng(split_seed).permutation(labels.size)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])  # train, validation, test
    for digit in range(classes):
        of_class = order[labels[order] == digit]
        cuts = [_DIGITS_TEST_PER_CLASS, _DIGITS_TEST_PER_CLASS + per_class]
        for part, rows in zip(parts[::-1], np.split(of_class, cuts), strict=True):
            part.append(rows)
    rows = [np.sort(np.concatenate(part)) for part in parts]
    train, validation, test = (Split(images[i], labels[i]) for i in rows)
    return train, validation, test
