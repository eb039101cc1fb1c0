"""Sets that do not fit into memory, ImageNet above all: streamed from disk by Grain.

The batch of a step is a function of (seed, step) alone, on any number of worker
processes and from whatever step a run goes on. Letters: a batch has B examples on all
processes together.
"""

import functools
import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sup_tickets.checks import check_whole
from sup_tickets.data.files import data_folder, require
from sup_tickets.data.photos import centre_photo, random_photo
from sup_tickets.data.prepared import open_builder, open_split
from sup_tickets.data.resident import (
    Shardings,
    Weighted,
    stacked,
    steps_per_epoch,
)

IMAGENET = "imagenet2012"
CLASSES = 1000
EXAMPLES = {"train": 1281167, "validation": 50000}

# Of the channels, on the scale of 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Records = Sequence[Any]
"""Random access to {"image": bytes of a JPEG or PNG, "label": int}; can be pickled.

With a "file_name", bytes or str, an error about the image can name it."""

_AHEAD = 2  # batches that each process decodes before they are asked for


def open_imagenet(
    split: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Records:
    """The records of a split, "train" or "validation".

    Raises:
      DataNotPrepared: with the command that prepares the set.
      ValueError: if examples are missing.
      ModuleNotFoundError: without tensorflow-datasets or array_record.
    """
    builder = open_builder(IMAGENET, data_folder(data_dir))
    return open_split(builder, split, examples=EXAMPLES[split])


class Images(NamedTuple):
    """A training batch."""

    images: jax.Array  # [B, H, W, 3] uint8, shared out between the devices
    labels: jax.Array  # [B] int32, likewise


class Stream:
    """Training batches by step, with the face of `sup_tickets.data.resident.Source`.

    Steps that follow each other are decoded ahead; any other step starts the pipeline
    anew, which takes as long as starting the workers, whatever the step. Every epoch
    shows each example once, in an order of its own; a batch may span two epochs.
    """

    def __init__(
        self,
        records: Records,
        *,
        seed: int,
        batch_size: int,
        shardings: Shardings,
        size: int = 224,
        workers: int = 0,
    ):
        """Starts nothing yet.

        Args:
          records: of the training split.
          seed: of the order, the crops and the flips.
          batch_size: B, a multiple of the number of devices.
          shardings: where to.
          size: height and width of the images, in pixels.
          workers: processes that decode on this host; 0 is two threads of this one.

        Raises:
          ValueError: if a process would not get one contiguous part of the batch.
          ModuleNotFoundError: without grain.
        """
        grain = require("grain", "to stream a data set")
        self.steps_per_epoch = steps_per_epoch(len(records), batch_size)
        self._sharding, self._batch_size = shardings.batch, batch_size
        examples = grain.MapDataset.source(records).seed(seed).shuffle().repeat()
        # Each example's generator is seeded by its position, not by who decodes it.
        examples = examples.random_map(functools.partial(_to_train, size=size))
        share = share_of(self._sharding, batch_size)
        self._pipeline = _Pipeline(examples, batch_size, share, workers)

    def __call__(self, step: int) -> Images:
        """The batch of a step."""
        return self._on_devices(self._pipeline.at(step), self._sharding, ())

    def block(self, first: int, count: int) -> Images:
        """The batches of several steps, stacked on a new first axis."""
        parts = [self._pipeline.at(step) for step in range(first, first + count)]
        stack = jax.tree.map(lambda *arrays: np.stack(arrays), *parts)
        return self._on_devices(stack, stacked(self._sharding), (count,))

    @staticmethod
    def at(block: Images, i: jax.Array) -> Images:
        """The i-th batch of a block; inside a jitted scan."""
        return Images(*(array[i] for array in block))

    def close(self) -> None:
        """Ends the workers; asking for a batch would start them again."""
        self._pipeline.close()

    def _on_devices(self, arrays: Any, sharding: Any, lead: tuple[int, ...]) -> Images:
        shape = (*lead, self._batch_size)
        return Images(
            *(
                _from_parts(arrays[name], sharding, shape)
                for name in ("images", "labels")
            )
        )


class Evaluation:
    """Batches of every example exactly once, the last one padded with weight 0.

    It can be gone through any number of times.
    """

    def __init__(
        self,
        records: Records,
        *,
        batch_size: int,
        shardings: Shardings,
        size: int = 224,
        shorter_side: int = 256,
        workers: int = 0,
    ):
        """Starts nothing yet.

        Args:
          records: of the split.
          batch_size: B, a multiple of the number of devices.
          shardings: where to.
          size: height and width of the images, in pixels.
          shorter_side: of a photograph before its centre is cut out, in pixels.
          workers: as of `Stream`.

        Raises:
          ValueError: if a process would not get one contiguous part of the batch.
          ModuleNotFoundError: without grain.
        """
        grain = require("grain", "to stream a data set")
        self._sharding, self._batch_size = shardings.batch, batch_size
        self._batches = steps_per_epoch(len(records), batch_size)
        padded = _Padded(records, self._batches * batch_size)
        to_image = functools.partial(_to_test, size=size, shorter_side=shorter_side)
        self._examples = grain.MapDataset.source(padded).map(to_image)
        self._workers = workers

    def __len__(self) -> int:
        """The number of batches."""
        return self._batches

    def __iter__(self) -> Iterator[Weighted]:
        """The batches, in the order of the set."""
        share = share_of(self._sharding, self._batch_size)
        pipeline = _Pipeline(self._examples, self._batch_size, share, self._workers)
        try:
            for step in range(self._batches):
                arrays = pipeline.at(step)
                yield Weighted(
                    *(
                        _from_parts(arrays[name], self._sharding, (self._batch_size,))
                        for name in ("images", "labels", "weights")
                    )
                )
        finally:
            pipeline.close()


def share_of(sharding: Any, batch_size: int) -> tuple[int, int]:
    """Which part of each batch this process decodes, and in how many parts it is cut.

    Raises:
      ValueError: if the rows of this process are not one such part.
    """
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = sorted({row for (part,) in places for row in range(batch_size)[part]})
    first, size = rows[0], len(rows)
    if rows != list(range(first, first + size)) or batch_size % size or first % size:
        raise ValueError(
            f"the devices of a process must hold one part of the {batch_size} examples "
            f"of a batch, but have rows from {first} to {rows[-1]}, {size} in all"
        )
    return first // size, batch_size // size


class _Pipeline:
    """The part of each batch that this process has, by step, decoded ahead."""

    def __init__(
        self, examples: Any, batch_size: int, share: tuple[int, int], workers: int
    ):
        part, parts = share
        # Example j of part p at step t is number t B + p B / parts + j of the stream.
        self._batches = examples.batch(batch_size // parts)[part::parts]
        self._workers = check_whole("workers", workers, 0)
        self._iterator: Any = None
        self._step = -1  # of the last batch
        self._last: Any = None

    def at(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a step; the same step again costs nothing."""
        if step == self._step and self._iterator is not None:
            return self._last
        if step != self._step + 1 or self._iterator is None:
            self.close()
            self._iterator = self._started(step)
        self._last, self._step = next(self._iterator), step
        return self._last

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = self._last = None
        if self._workers:
            # Grain leaves its queues in a cycle, and their finalizers import: a later
            # collection may come where that fails, inside a lazy import of TFDS.
            gc.collect()

    def _started(self, step: int) -> Any:
        grain = require("grain", "to stream a data set")
        # A worker decodes one batch at a time, and its buffer is what it is ahead.
        threads = 0 if self._workers else _AHEAD
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = self._batches[step:].to_iter_dataset(options)
        if self._workers:
            _mark_flags_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=_AHEAD
                )
            )
        return iter(batches)


class _Padded:
    """Records followed by empty ones up to a length. Grain would skip None."""

    def __init__(self, records: Records, length: int):
        self._records, self._length = records, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Any:
        return self._records[row] if row < len(self._records) else {}


def _to_train(
    record: Any, rng: np.random.Generator, *, size: int
) -> dict[str, np.ndarray]:
    images = random_photo(record["image"], rng, size=size, name=_name(record))
    return {"images": images, "labels": np.asarray(record["label"], np.int32)}


def _to_test(record: Any, *, size: int, shorter_side: int) -> dict[str, np.ndarray]:
    if not record:
        images, label, weight = np.zeros((size, size, 3), np.uint8), 0, 0.0
    else:
        images = centre_photo(
            record["image"], size=size, shorter_side=shorter_side, name=_name(record)
        )
        label, weight = record["label"], 1.0
    return {
        "images": images,
        "labels": np.asarray(label, np.int32),
        "weights": np.asarray(weight, np.float32),
    }


def _name(record: Any) -> str:
    name = record.get("file_name", f"with label {record['label']}")
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _from_parts(local: np.ndarray, sharding: Any, lead: tuple[int, ...]) -> jax.Array:
    shape = (*lead, *local.shape[len(lead) :])
    return jax.make_array_from_process_local_data(sharding, local, shape)


def _mark_flags_parsed() -> None:
    """Grain asks for a flag as it starts workers; outside an absl app that fails."""
    flags = require("absl.flags", "to start worker processes").FLAGS
    if not flags.is_parsed():
        flags.mark_as_parsed()
