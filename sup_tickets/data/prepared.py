"""Sets that TensorFlow Datasets prepared as array_record; nothing is downloaded here.

TensorFlow is not imported: it is needed to prepare a set, see
``experiments/prepare_data.py``, and never to read one.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sup_tickets.data.files import (
    DataNotPrepared,
    OtherFormat,
    Split,
    TrainTest,
    how_to_prepare,
    read_cache,
    require,
    write_cache,
)
from sup_tickets.data.pixels import reading

_BATCH = 1000  # records read in one call: three times as fast as one by one


def read_prepared(
    name: str,
    folder: Path,
    *,
    shape: tuple[int, ...],
    examples: Mapping[str, int],
) -> TrainTest:
    """All images of a set, in memory.

    They come from ``folder/name/VERSION-sup_tickets.npz`` if it is there, which takes
    a fraction of a second; else the records are decoded, and that file is written.

    Args:
      name: of the set in TensorFlow Datasets.
      folder: of all sets.
      shape: [H, W, C] of an image.
      examples: how many "train" and "test" must have.

    Raises:
      DataNotPrepared: if it is not there, or (OtherFormat) without random access.
      ValueError: if examples are missing, or one cannot be read.
      ModuleNotFoundError: without tensorflow-datasets, array_record or Pillow.
    """
    for path in sorted((folder / name).glob("*-sup_tickets.npz"), reverse=True):
        data = read_cache(path)
        if data is not None and _sizes(data) == _wanted(shape, examples):
            return data
    builder = open_builder(name, folder)
    splits = [_decoded(builder, split, shape, examples) for split in ("train", "test")]
    data = TrainTest(*splits)
    version = Path(builder.data_path).name
    write_cache(folder / name / f"{version}-sup_tickets.npz", data)
    return data


def open_builder(name: str, folder: Path) -> Any:
    """The TFDS builder of a prepared set.

    Raises:
      DataNotPrepared: if it is not there, or (OtherFormat) without random access.
      ModuleNotFoundError: without tensorflow-datasets or array_record.
    """
    absent = f"{name} is not prepared in {folder}; run: {how_to_prepare(name, folder)}"
    if not (folder / name).is_dir():
        raise DataNotPrepared(absent)
    tfds = require("tensorflow_datasets", f"to read {name}")
    require("array_record", f"to read {name}")
    builder = tfds.builder(name, data_dir=folder)
    if not Path(builder.data_path).exists():
        raise DataNotPrepared(absent)
    form = builder.info.file_format.value
    if form != "array_record":
        raise OtherFormat(
            f"{name} in {folder} is prepared as {form}, and only array_record can be "
            f"read; prepare it in another folder: {how_to_prepare(name, 'OTHER')}"
        )
    return builder


def open_split(builder: Any, split: str, *, examples: int) -> Any:
    """A random-access sequence of records, with images as they are in the files.

    Args:
      builder: of `open_builder`.
      split: as TFDS calls it.
      examples: how many there must be.

    Returns:
      Sequence of {"image": PNG or JPEG bytes, "label": int, ...}. It can be pickled.

    Raises:
      ValueError: if examples are missing.
    """
    tfds = require("tensorflow_datasets", f"to read {builder.name}")
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=decoders)
    if len(source) != examples:
        raise ValueError(_incomplete(builder, split, f"{len(source)} of {examples}"))
    return source


def original_positions(name: str, folder: Path, *, examples: int) -> np.ndarray:
    """Where each training example was before TFDS shuffled the set: [N] int64.

    Args:
      name: of a set whose records have an "id" that ends in that number, as the CIFARs.
      folder: of all sets.
      examples: N.

    Raises:
      DataNotPrepared: as `read_prepared`.
      ValueError: if the records do not say.
    """
    source = open_split(open_builder(name, folder), "train", examples=examples)
    found = np.empty(examples, np.int64)
    for start in range(0, examples, _BATCH):
        rows = list(range(start, min(start + _BATCH, examples)))
        for row, record in zip(rows, source.__getitems__(rows), strict=True):
            text = record.get("id", b"")
            text = text.decode() if isinstance(text, bytes) else str(text)
            digits = text.rpartition("_")[2]
            found[row] = int(digits) if digits.isdecimal() else -1
    if not np.array_equal(np.sort(found), np.arange(examples)):
        raise ValueError(f"{name} in {folder} does not say where an example was first")
    return found


def decode_image(data: bytes, shape: tuple[int, ...], *, name: str) -> np.ndarray:
    """The pixels of a PNG or JPEG, with the channels that it has.

    Args:
      data: the bytes of the file.
      shape: [H, W, C] that it must have.
      name: what to call it in an error.

    Returns:
      [H, W, C] uint8.

    Raises:
      ValueError: naming the image, if it cannot be read, or is of another shape or of
        more than 8 bits.
    """
    image = require("PIL.Image", "to decode images")
    with reading(name):
        with image.open(io.BytesIO(data)) as opened:
            pixels = np.asarray(opened)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        if (pixels.shape, pixels.dtype) != (shape, np.uint8):
            raise ValueError(
                f"it is {pixels.dtype} of shape {pixels.shape}, not uint8 of {shape}"
            )
    return pixels


def _decoded(
    builder: Any, split: str, shape: tuple[int, ...], examples: Mapping[str, int]
) -> Split:
    size = examples[split]
    source = open_split(builder, split, examples=size)
    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
    for start in range(0, size, _BATCH):
        rows = list(range(start, min(start + _BATCH, size)))
        try:
            records = source.__getitems__(rows)
        except (IndexError, RuntimeError) as error:  # files that end before that
            raise ValueError(_incomplete(builder, split, f"under {size}")) from error
        for row, record in zip(rows, records, strict=True):
            name = f"{row} of the {split} split of {builder.data_path}"
            images[row] = decode_image(record["image"], shape, name=name)
            labels[row] = record["label"]
    return Split(images, labels)


def _incomplete(builder: Any, split: str, found: str) -> str:
    folder = Path(builder.data_path)
    command = how_to_prepare(builder.name, folder.parents[1])
    return (
        f"the {split} split of {builder.name} has {found} examples; "
        f"delete {folder} and run: {command}"
    )


def _sizes(data: TrainTest) -> list[tuple[int, ...]]:
    return [array.shape for split in data for array in split]


def _wanted(
    shape: tuple[int, ...], examples: Mapping[str, int]
) -> list[tuple[int, ...]]:
    sizes = [examples["train"], examples["test"]]
    return [size for n in sizes for size in ((n, *shape), (n,))]
