"""What the readers of data sets on disk share: folders, errors, a cache."""

import contextlib
import importlib
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sup_tickets.files import atomic_write


class Split(NamedTuple):
    """Examples of one purpose. N is their number."""

    images: np.ndarray  # [N, H, W, C] uint8
    labels: np.ndarray  # [N] int32


class TrainTest(NamedTuple):
    """A set as it is published."""

    train: Split
    test: Split


class DataNotPrepared(FileNotFoundError):
    """A data set is not where it was looked for; the message says how to get it."""


class OtherFormat(DataNotPrepared):
    """It is there, but in a format without random access."""


def how_to_prepare(name: str, folder: Path | str) -> str:
    """The command that prepares a set."""
    return f"python -m experiments.prepare_data {name} --data_dir={folder}"


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of all sets: the argument, or $TFDS_DATA_DIR, or TFDS's default."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def require(module: str, purpose: str) -> Any:
    """Imports an optional package.

    Args:
      module: dotted name.
      purpose: "to read cifar10", for the message.

    Raises:
      ModuleNotFoundError: saying how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is needed {purpose}; "
            "install it with: pip install sup-tickets[train]",
            name=error.name,
        ) from error


# --- Cache ----------------------------------------------------------------------------

# Decoding takes seconds to a minute at every start; reading the arrays does not. So the
# arrays are kept beside the set, in a file that anyone may delete.


def read_cache(path: Path, *, source: str = "") -> TrainTest | None:
    """The arrays of a cache; None if there is none, or a broken or outdated one.

    Args:
      path: of the file.
      source: what the arrays were made of; another one is outdated.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            if str(arrays["source"]) != source:
                return None
            train = Split(arrays["train_images"], arrays["train_labels"])
            return TrainTest(train, Split(arrays["test_images"], arrays["test_labels"]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def write_cache(path: Path, data: TrainTest, *, source: str = "") -> None:
    """Writes all or nothing; a folder that cannot be written to is left as it is.

    Args:
      path: of the file.
      data: the arrays.
      source: what they were made of.
    """

    def write(to: Path) -> None:
        with open(to, "wb") as file:  # np.savez adds a suffix to names
            np.savez(
                file,
                source=np.array(source),
                train_images=data.train.images,
                train_labels=data.train.labels,
                test_images=data.test.images,
                test_labels=data.test.labels,
            )

    if not path.parent.is_dir():
        return
    # Other runs see the old file or the new one.
    with contextlib.suppress(OSError):
        atomic_write(path, write)
