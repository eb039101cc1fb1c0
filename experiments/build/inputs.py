"""From the data section of a configuration to batches, on the devices."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.build.data_checks import check_examples, check_pixels
from experiments.build.parts import section
from experiments.config.fields import Config
from sup_tickets.data import imagenet, resident
from sup_tickets.data.augment import Augmentation, augment, normalize
from sup_tickets.data.image_sets import Dataset, load_dataset
from sup_tickets.data.resident import Shardings, Weighted
from sup_tickets.data.sequences import (
    WeightedSequences,
    cut,
    evaluation_sequences,
    text_batches,
)
from sup_tickets.data.text import is_text, load_text

Prepare = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]

_PHOTO = (224, 224, 3)


class Inputs(NamedTuple):
    """What a run reads."""

    classes: int  # of a text the size of its vocabulary
    example: jax.Array  # zeros, for the shapes: [1, H, W, C] float32 or [1, T] int32
    epoch_steps: int
    batches: Any  # see `sup_tickets.training.loop.Source`
    block_at: Callable[[Any, jax.Array], Any]
    prepare: Callable[[Any, jax.Array], Any]
    normalize: Callable[[jax.Array], jax.Array]
    splits: dict[str, Callable[[], Iterable[Any]]]  # "validation", "test"
    close: Callable[[], None]


def make_inputs(config: Config, *, key: jax.Array, shardings: Shardings) -> Inputs:
    """The data set of the configuration.

    Args:
      config: of the run.
      key: of the order of the examples.
      shardings: of batches.

    Raises:
      ValueError: naming the section at fault.
      FileNotFoundError: saying how to prepare the set.
    """
    with section("data"):
        if is_text(config.data.name):
            return _text(config, shardings=shardings)
        if config.data.name == imagenet.IMAGENET:
            return _streamed(config, key=key, shardings=shardings)
        dataset = _load(
            config.data.name,
            config.data.dir,
            config.data.validation_examples,
            config.data.split_seed,
            config.data.training_examples,
            config.data.shrink,
        )
        return resident_inputs(config, dataset, key=key, shardings=shardings)


# Several runs of a process, of a sweep or of a comparison, read a set once.
_load = functools.lru_cache(maxsize=1)(
    lambda name, folder, validation, seed, training, shrink: load_dataset(
        name,
        data_dir=folder,
        validation_examples=validation,
        split_seed=seed,
        training_examples=training,
        shrink=shrink,
    )
)


def resident_inputs(
    config: Config, dataset: Dataset, *, key: jax.Array, shardings: Shardings
) -> Inputs:
    """A set that lives on the devices as uint8, and is augmented within the step."""
    size = config.data.batch_size
    _check_sizes(config, dataset)
    batches = resident.training_batches(
        dataset.train, key=key, batch_size=size, shardings=shardings
    )
    prepare, to_inputs = preparing(config.data, dataset)

    def split(name: str) -> Callable[[], list[Weighted]]:
        part = getattr(dataset, name)
        return functools.cache(
            lambda: resident.evaluation_batches(
                *part, batch_size=size, shardings=shardings
            )
        )

    return Inputs(
        classes=dataset.classes,
        example=jnp.zeros((1, *dataset.train.images.shape[1:])),
        epoch_steps=resident.steps_per_epoch(len(dataset.train.labels), size),
        batches=batches,
        block_at=batches.at,
        prepare=lambda batch, key: prepare(resident.take(batch), key),
        normalize=to_inputs,
        splits={name: split(name) for name in ("validation", "test")},
        close=lambda: None,
    )


def preparing(data: Config, dataset: Dataset) -> tuple[Prepare, Callable[..., Any]]:
    """How images become inputs, augmented for training and as they are.

    Args:
      data: the section of the configuration.
      dataset: of the images, whose numbers normalize them.

    Returns:
      ``((images, labels), key) -> (inputs, labels)`` and ``images -> inputs``.
    """
    changes = Augmentation(
        padding=data.crop_padding,
        mode=data.crop_mode,
        flip=data.flip,
        cutout=data.cutout,
        # The mean, as in the paper: 0 once it is normalized.
        fill=tuple(round(mean * dataset.scale) for mean in dataset.mean),
    )
    to_inputs = functools.partial(
        normalize, scale=dataset.scale, mean=dataset.mean, std=dataset.std
    )

    def prepare(batch: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = batch
        return to_inputs(augment(key, images, changes)), labels

    return prepare, to_inputs


def _text(config: Config, *, shardings: Shardings) -> Inputs:
    """A text that lives on the devices as numbers."""
    data = config.data
    text = load_text(
        data.name,
        unit=data.unit,
        vocabulary=data.vocabulary,
        validation_examples=data.validation_examples,
        training_examples=data.training_examples,
    )
    shape: Any = {"batch_size": data.batch_size, "length": data.sequence}
    shape["shardings"] = shardings
    _check_split(config, len(text.validation))
    if len(text.vocabulary) < 3:
        raise ValueError(
            f"{data.name!r} has no two different tokens in unit={data.unit!r} to train "
            f"on, with vocabulary={data.vocabulary}"
        )
    batches, epoch_steps = text_batches(text.train, **shape)

    def split(name: str) -> Callable[[], list[WeightedSequences]]:
        part = getattr(text, name)
        return functools.cache(lambda: evaluation_sequences(part, **shape))

    return Inputs(
        classes=len(text.vocabulary),
        example=jnp.zeros((1, data.sequence), jnp.int32),
        epoch_steps=epoch_steps,
        batches=batches,
        block_at=batches.at,
        prepare=lambda window, _: cut(window, data.sequence),
        normalize=lambda tokens: tokens,
        splits={name: split(name) for name in ("validation", "test")},
        close=lambda: None,
    )


def _streamed(config: Config, *, key: jax.Array, shardings: Shardings) -> Inputs:
    """ImageNet, decoded and cropped by other processes while the step computes."""
    data = config.data
    _check_streamed(data)
    _check_split(config, data.validation_examples)
    train = imagenet.open_imagenet("train", data_dir=data.dir)
    test = imagenet.open_imagenet("validation", data_dir=data.dir)
    cut = data.validation_examples
    if cut >= len(train):
        raise ValueError(
            f"validation_examples={cut} leaves none of {len(train)} to train on"
        )
    check_examples(len(train) - cut, imagenet.CLASSES, data.batch_size)
    order = np.random.default_rng(data.split_seed).permutation(len(train))
    parts = {"validation": Chosen(train, np.sort(order[:cut])), "test": test}
    options = {
        "batch_size": data.batch_size,
        "shardings": shardings,
        "workers": data.workers,
    }
    batches = imagenet.Stream(
        Chosen(train, np.sort(order[cut:])),
        seed=int(jax.random.bits(key, dtype="uint32")) // 2,
        **options,
    )
    to_inputs = functools.partial(
        normalize, scale=255.0, mean=imagenet.MEAN, std=imagenet.STD
    )
    return Inputs(
        classes=imagenet.CLASSES,
        example=jnp.zeros((1, *_PHOTO)),
        epoch_steps=batches.steps_per_epoch,
        batches=batches,
        block_at=batches.at,
        prepare=lambda batch, _: (to_inputs(batch.images), batch.labels),
        normalize=to_inputs,
        splits={
            name: functools.partial(imagenet.Evaluation, part, **options)
            for name, part in parts.items()
        },
        close=batches.close,
    )


class Chosen(Sequence[Any]):
    """Some rows of records that are read at random."""

    def __init__(self, records: Any, rows: np.ndarray):
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        return self._records[int(self._rows[i])]


def _check_streamed(data: Config) -> None:
    """Photos are cropped and flipped where they are decoded."""
    if data.crop_padding or data.cutout or not data.flip:
        raise ValueError(
            f"{data.name!r} has random resized crops and flips; it takes "
            "crop_padding=0, cutout=0 and flip=true, got "
            f"{data.crop_padding}, {data.cutout} and {data.flip}"
        )
    if data.training_examples or data.shrink != 1:
        raise ValueError(
            f"{data.name!r} is streamed whole; it takes training_examples=0 and "
            f"shrink=1, got {data.training_examples} and {data.shrink}"
        )


def _check_sizes(config: Config, dataset: Dataset) -> None:
    check_pixels(config.data, dataset.train.images.shape[1:])
    _check_split(config, len(dataset.validation.labels))
    examples = len(dataset.train.labels)
    check_examples(examples, dataset.classes, config.data.batch_size)


def _check_split(config: Config, examples: int) -> None:
    if not examples and config.evaluate == "validation":
        raise ValueError(
            "evaluate='validation' needs a validation split; validation_examples is 0"
        )
