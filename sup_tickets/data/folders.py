"""Sets that are folders of image files, one folder a class, as Tiny ImageNet is."""

import hashlib
from pathlib import Path

import numpy as np

from sup_tickets.data.files import (
    Split,
    TrainTest,
    read_cache,
    require,
    write_cache,
)

_ENDINGS = {".jpeg", ".jpg", ".png"}
_Examples = list[tuple[Path, int]]  # files and their labels


def read_folder(folder: Path) -> tuple[TrainTest, tuple[str, ...]]:
    """The images below ``train`` and ``val``, in memory, and the names of the classes.

    The files are ``train/CLASS/**/*.JPEG`` (or .jpg, .png), classes and files in the
    order of their names; ``val`` is the same, or ``val/images`` with
    ``val/val_annotations.txt``. All are made RGB. *Test is val*: the real test set of
    Tiny ImageNet has no labels.

    Decoding is done once; its result is kept in ``sup_tickets.npz`` in the folder, and
    made anew when the name or the size of any file changes.

    Args:
      folder: of the set.

    Raises:
      FileNotFoundError: if there is no ``train`` or ``val``, or it is empty.
      ValueError: if the images differ in size, or val has classes that train lacks.
      ModuleNotFoundError: without Pillow.
    """
    classes = _classes(folder / "train")
    train = _by_class(folder / "train", classes)
    if (folder / "val" / "val_annotations.txt").is_file():
        test = _annotated(folder / "val", classes)
    else:
        test = _by_class(folder / "val", classes)
    source = _digest(folder, train + test)
    cache = folder / "sup_tickets.npz"
    data = read_cache(cache, source=source)
    if data is None:
        size = _size(train[0][0])
        data = TrainTest(_decoded(train, size), _decoded(test, size))
        write_cache(cache, data, source=source)
    return data, classes


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def _by_class(folder: Path, classes: tuple[str, ...]) -> _Examples:
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise ValueError(f"{folder} has classes that train lacks: {unknown[:3]}")
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _ENDINGS
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no images; they must be CLASS/NAME.JPEG, .jpg or .png"
        )
    return found


def _annotated(folder: Path, classes: tuple[str, ...]) -> _Examples:
    label_of = {name: label for label, name in enumerate(classes)}
    found = []
    for line in (folder / "val_annotations.txt").read_text().splitlines():
        file, name = line.split("\t")[:2]
        if name not in label_of:
            raise ValueError(f"{folder} has a class that train lacks: {name!r}")
        found.append((folder / "images" / file, label_of[name]))
    return sorted(found)


def _digest(folder: Path, examples: _Examples) -> str:
    """Changes with any name, label or size of a file."""
    digest = hashlib.sha256()
    for path, label in examples:
        line = f"{path.relative_to(folder)}\t{label}\t{path.stat().st_size}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _size(path: Path) -> tuple[int, int]:
    image = require("PIL.Image", "to decode images")
    with image.open(path) as opened:
        return opened.size


def _decoded(examples: _Examples, size: tuple[int, int]) -> Split:
    image = require("PIL.Image", "to decode images")
    width, height = size
    images = np.empty((len(examples), height, width, 3), np.uint8)
    for row, (path, _) in enumerate(examples):
        with image.open(path) as opened:
            if opened.size != size:
                raise ValueError(
                    f"all images must have one size, but {path} has {opened.size} and "
                    f"the first of train has {size}"
                )
            images[row] = np.asarray(opened.convert("RGB"))
    return Split(images, np.array([label for _, label in examples], np.int32))
