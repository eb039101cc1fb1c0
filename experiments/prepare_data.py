"""Prepares data sets for training; the one program here that may download.

    python -m experiments.prepare_data cifar10 cifar100 --data_dir=DIR

TensorFlow Datasets writes them as array_record, which is then read without TensorFlow.
(Its parquet loses examples, and tfrecord cannot be read at random places.) On a machine
without internet --from_files=FILES takes the original files, unpacked, from the folder
FILES or from FILES/NAME:

    cifar10        cifar-10-batches-bin/data_batch_1.bin, ...
    cifar100       cifar-100-binary/train.bin, ...
    mnist          train-images-idx3-ubyte, ..., and the same for fashion_mnist
    imagenet2012   ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar: always from files
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import start
from experiments.config.flags import Parser, folder_path
from sup_tickets.checks import check_one_of
from sup_tickets.data.files import DataNotPrepared, OtherFormat, data_folder
from sup_tickets.data.image_sets import DATASETS, Dataset, load_dataset
from sup_tickets.data.imagenet import EXAMPLES, IMAGENET, open_imagenet
from sup_tickets.data.prepared import open_builder

_PREPARED = [name for name, known in DATASETS.items() if known.kind == "prepared"]
NAMES = [*_PREPARED, IMAGENET]
_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
_CIFAR_FILES = {
    "cifar10": "cifar-10-batches-bin/test_batch.bin",
    "cifar100": "cifar-100-binary/test.bin",
}


def prepare(
    name: str,
    *,
    data_dir: str | Path | None = None,
    from_files: str | Path | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Prepares one set, checks it, and decodes it once so that runs start at once.

    Args:
      name: one of `NAMES`.
      data_dir: as in `load_dataset`.
      from_files: the folder of the original files; by default they are downloaded.
      tell: gets a line about what was done.

    Raises:
      ValueError: for another name, or if examples are missing or wrong at the end.
      FileNotFoundError: for original files that are not there.
      ModuleNotFoundError: if TensorFlow is needed and missing.
    """
    check_one_of("the name of the data set", name, NAMES)
    folder = data_folder(data_dir)
    if _is_prepared(name, folder):
        tell(f"{name} is prepared already in {folder / name}")
    else:
        _write_records(name, folder, Path(from_files) if from_files else None)
        tell(f"{name} is prepared in {folder / name}")
    if name == IMAGENET:
        for split in EXAMPLES:
            open_imagenet(split, data_dir=folder)
        return
    data = load_dataset(name, data_dir=folder, validation_examples=0)
    _check_pixels(data, folder)
    tell(f"{name} has {len(data.train.labels)} + {len(data.test.labels)} examples")


def _is_prepared(name: str, folder: Path) -> bool:
    try:
        open_builder(name, folder)
    except OtherFormat:
        raise  # not ours to delete
    except DataNotPrepared:
        return False
    return True


def _check_pixels(data: Dataset, folder: Path) -> None:
    """Raises for the files of another set: those of MNIST and Fashion-MNIST look alike.

    Raises:
      ValueError: if the mean is not the known one.
    """
    images = data.train.images
    mean = images.mean(axis=(0, 1, 2)) / data.scale
    if np.abs(mean - data.mean).max() > 0.01:
        raise ValueError(
            f"the images of {data.name} have the mean {mean.round(4).tolist()}, not "
            f"{data.mean}: they were made from other files; delete {folder / data.name}"
        )


def _write_records(name: str, folder: Path, files: Path | None) -> None:
    if files is not None:
        files = _with_files(name, files)
    elif name == IMAGENET:
        files = _with_files(name, folder / "downloads" / "manual")
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            f"TensorFlow is needed to prepare {name}, though not to read it; "
            'install it with: pip install "sup-tickets[train,tf]"'
        )
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(name, data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    if name == IMAGENET:
        config.manual_dir = files
    elif files is not None:
        builder._make_download_manager = lambda **_: _Unpacked(files)
    builder.download_and_prepare(download_config=config)


def _with_files(name: str, files: Path) -> Path:
    """The folder that has the original files: ``files/name``, or ``files``."""
    needed = _needed(name)
    for folder in (files / name, files):
        if all((folder / file).is_file() for file in needed):
            return folder
    missing = next(file for file in needed if not (files / file).is_file())
    how = (
        f"get {' and '.join(_TARS)} from https://image-net.org (free, after signing in)"
        " and put them there, or say --from_files=FOLDER"
        if name == IMAGENET
        else "unpack the original files of the set there"
    )
    raise FileNotFoundError(f"there is no {missing} in {files}; {how}")


def _needed(name: str) -> list[str]:
    """Original files, relative to their folder; of a CIFAR the last one alone."""
    if name == IMAGENET:
        return list(_TARS)
    if name in _CIFAR_FILES:
        return [_CIFAR_FILES[name]]
    return [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]


class _Unpacked:
    """A TFDS download manager for which all is downloaded and unpacked already."""

    downloaded_size = 0  # TFDS writes it into the description of the set

    def __init__(self, folder: Path):
        self._folder = folder

    def download_and_extract(self, urls: Any) -> Any:
        """The path of each file, or the folder for an archive of several."""
        if isinstance(urls, dict):
            return {key: self.download_and_extract(url) for key, url in urls.items()}
        if ".tar" in urls:
            return str(self._folder)
        return str(self._folder / urls.rsplit("/", 1)[-1].removesuffix(".gz"))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.prepare_data", __doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--data_dir",
        type=folder_path,
        metavar="DIR",
        help="by default $TFDS_DATA_DIR",
    )
    parser.add_argument(
        "--from_files", type=folder_path, metavar="FILES", help="nothing is downloaded"
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    for name in options.names:
        check_one_of("the name of the data set", name, NAMES)
    for name in options.names:
        prepare(name, data_dir=options.data_dir, from_files=options.from_files)


if __name__ == "__main__":
    main()
