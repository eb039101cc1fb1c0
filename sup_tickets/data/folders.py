"""Sets that are folders of image files, one folder a class, as Tiny ImageNet is.

What is in such a folder besides is decided here, once:

- Hidden and side files and folders (names that begin with "." or "__", and those of
  `_SIDE`: thumbnails, bins and indices of file systems and servers) are not there.
- Every other folder in ``train`` is a class, and must have an image: an empty one would
  only shift the labels of the others. ``val`` may lack classes, but has no others.
- Files are images by their ending, one of `ENDINGS` in any case; others, such as lists
  of boxes, are passed over. An image beside the folders of the classes is refused.
- Links to files and folders are followed; a folder that is reached twice within a class
  is read once, so that links in a circle end.
- Pixels are those of `sup_tickets.data.pixels`. A file that cannot be read ends it all
  with its name, before any training.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from sup_tickets.data.files import (
    Split,
    TrainTest,
    read_cache,
    write_cache,
)
from sup_tickets.data.pixels import open_image

ENDINGS = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Of the files that are images, in upper or lower case."""

_SIDE = {
    *("$recycle.bin", "@eadir", "desktop.ini", "lost+found"),
    *("system volume information", "thumbs.db"),
}
_ANNOTATIONS = "val_annotations.txt"
_PIXELS = "2"  # of what files become; another one makes caches outdated
_Examples = list[tuple[Path, int]]  # files and their labels


def read_folder(folder: Path) -> tuple[TrainTest, tuple[str, ...]]:
    """The images below ``train`` and ``val``, in memory, and the names of the classes.

    The files are ``train/CLASS/**/*.JPEG`` (or another of `ENDINGS`), classes and files
    in the order of their names; ``val`` is the same, or ``val/images`` with
    ``val/val_annotations.txt``, whose lines are the name of a file, a tab, its class
    and whatever else, one for each image. *Test is val*: the real test set of Tiny
    ImageNet has no labels.

    Decoding is done once; its result is kept in ``sup_tickets.npz`` in the folder, and
    made anew when the name, the size or the time of any file changes.

    Args:
      folder: of the set.

    Raises:
      FileNotFoundError: if there is no ``train`` or ``val``, or it is empty.
      ValueError: naming the file or folder, if an image cannot be read or has another
        size, if a class is empty or unknown to train, or if a line of the annotations
        is malformed.
      ModuleNotFoundError: without Pillow.
    """
    classes = _classes(folder / "train")
    train = _by_class(folder / "train", classes)
    for label in sorted(set(range(len(classes))) - {label for _, label in train}):
        raise ValueError(
            f"{folder / 'train' / classes[label]} has no images; remove the folder, or "
            f"fill it with files that end in {', '.join(ENDINGS)}"
        )
    if (folder / "val" / _ANNOTATIONS).is_file():
        test = _annotated(folder / "val", classes)
    else:
        test = _by_class(folder / "val", classes)
    source = _digest(folder, train + test)
    cache = folder / "sup_tickets.npz"
    data = read_cache(cache, source=source)
    if data is None:
        size = open_image(train[0][0]).size
        data = TrainTest(_decoded(train, size), _decoded(test, size))
        write_cache(cache, data, source=source)
    return data, classes


# --- What is there --------------------------------------------------------------------


def _is_side(name: str) -> bool:
    return name.startswith((".", "__")) or name.lower() in _SIDE


def _is_image(name: str) -> bool:
    return not _is_side(name) and name.lower().endswith(ENDINGS)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return tuple(name for name in names if not _is_side(name))


def _by_class(folder: Path, classes: tuple[str, ...]) -> _Examples:
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise ValueError(f"{folder} has classes that train lacks: {unknown[:3]}")
    for path in sorted(folder.iterdir()):
        if _is_image(path.name) and not path.is_dir():
            raise ValueError(f"{path} lies in no folder of a class, so it has no label")
    found = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in _images(folder / name)
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no images; they must be CLASS/NAME.JPEG, or end in another "
            f"of {', '.join(ENDINGS)}"
        )
    return found


def _images(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their paths."""

    def fail(error: OSError) -> None:
        raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}")

    found, seen = [], set()
    for place, inner, files in os.walk(folder, onerror=fail, followlinks=True):
        inner[:] = sorted(name for name in inner if not _is_side(name))
        if os.path.realpath(place) in seen:
            inner.clear()
            continue
        seen.add(os.path.realpath(place))
        found += [Path(place) / name for name in files if _is_image(name)]
    return sorted(found)


def _annotated(folder: Path, classes: tuple[str, ...]) -> _Examples:
    label_of = {name: label for label, name in enumerate(classes)}
    images = {
        path.relative_to(folder / "images").as_posix(): path
        for path in _images(folder / "images")
    }
    labels: dict[str, int] = {}
    for where, line in _lines(folder / _ANNOTATIONS):
        file, tab, rest = line.partition("\t")
        name = rest.split("\t")[0]
        if not (tab and file and name):
            raise ValueError(f"{where} must be FILE, a tab and CLASS, got {line!r}")
        if name not in label_of:
            raise ValueError(f"{where} has a class that train lacks: {name!r}")
        if file not in images:
            raise ValueError(f"{where}: there is no image {folder / 'images' / file}")
        if file in labels:
            raise ValueError(f"{where} has {file!r} a second time")
        labels[file] = label_of[name]
    for file in sorted(set(images) - set(labels)):
        raise ValueError(f"{images[file]} has no line in {folder / _ANNOTATIONS}")
    if not labels:
        raise FileNotFoundError(f"{folder} has no images")
    return sorted((images[file], label) for file, label in labels.items())


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines that are not blank, and where each is."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors mark it so
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return [
        (f"line {i} of {path}", line)
        for i, line in enumerate(lines, start=1)
        if line.strip()
    ]


# --- Reading it -----------------------------------------------------------------------


def _digest(folder: Path, examples: _Examples) -> str:
    """Changes with any name, label, size or time of a file."""
    digest = hashlib.sha256(_PIXELS.encode())
    for path, label in examples:
        try:
            found = path.stat()
        except OSError as error:  # a link to nothing
            raise ValueError(
                f"cannot read the image {path}: {error.strerror}"
            ) from error
        name = os.fsencode(path.relative_to(folder))  # need not be UTF-8
        # Uncompressed images of one shape have one size, whatever they show.
        changed = f"{found.st_size}\t{found.st_mtime_ns}"
        digest.update(name + f"\t{label}\t{changed}\n".encode())
    return digest.hexdigest()


def _decoded(examples: _Examples, size: tuple[int, int]) -> Split:
    width, height = size
    images = np.empty((len(examples), height, width, 3), np.uint8)
    for row, (path, _) in enumerate(examples):
        image = open_image(path)
        if image.size != size:
            raise ValueError(
                f"all images must have one size, but {path} has {image.size} and the "
                f"first of train has {size}"
            )
        images[row] = np.asarray(image)
    return Split(images, np.array([label for _, label in examples], np.int32))
