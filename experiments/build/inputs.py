"""From the data section of a configuration to batches, on the devices."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.build.checks import check_examples
from experiments.build.parts import section
from experiments.config.fields import Config
from sup_tickets.data import imagenet, resident
from sup_tickets.data.augment import Augmentation, augment, normalize
from sup_tickets.data.datasets import Dataset, load_dataset
from sup_tickets.data.resident import Shardings, Weighted

_PHOTO = (224, 224, 3)


class Inputs(NamedTuple):
    """What a run reads."""

    classes: int
    example: jax.Array  # [1, H, W, C] float32 zeros, for the shapes of the parameters
    epoch_steps: int
    batches: Any  # see `sup_tickets.training.loop.Source`
    block_at: Callable[[Any, jax.Array], Any]
    prepare: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    normalize: Callable[[jax.Array], jax.Array]
    splits: dict[str, Callable[[], Iterable[Weighted]]]  # "validation", "test"
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
    data = config.data
    size = data.batch_size
    _check_sizes(config, dataset)
    batches = resident.training_batches(
        dataset.train, key=key, batch_size=size, shardings=shardings
    )
    changes = Augmentation(
        padding=data.crop_padding,
        mode=data.crop_mode,
        flip=data.flip,
        cutout=data.cutout,
        # The mean, as in the paper: 0 once it is normalized.
        fill=tuple(round(mean * dataset.scale) for mean in dataset.mean),
    )
    to_inputs = functools.partial(
        normalize,
        scale=dataset.scale,
        mean=dataset.mean,
        std=dataset.std,
    )

    def prepare(batch: resident.Rows, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = resident.take(batch)
        return to_inputs(augment(key, images, changes)), labels

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
        prepare=prepare,
        normalize=to_inputs,
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
    height, width = dataset.train.images.shape[1:3]
    smallest = min(height, width)
    for name in ("crop_padding", "cutout"):
        if config.data[name] >= smallest:
            raise ValueError(
                f"{name} must be below the {smallest} pixels of an image, got "
                f"{config.data[name]}"
            )
    _check_split(config, len(dataset.validation.labels))
    examples = len(dataset.train.labels)
    check_examples(examples, dataset.classes, config.data.batch_size)


def _check_split(config: Config, examples: int) -> None:
    if not examples and config.evaluate == "validation":
        raise ValueError(
            "evaluate='validation' needs a validation split; validation_examples is 0"
        )
