"""Parts of data sets that tasks are made of: some classes, in a common shape."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from experiments.config.fields import Config
from sup_tickets.data.files import Split
from sup_tickets.data.image_sets import Dataset, load_dataset, parted
from sup_tickets.data.incremental import Classes


def load(data: Config, name: str, *, training_examples: int = 0) -> Dataset:
    """A data set, split and shrunk as the section of a configuration says."""
    return load_dataset(
        name,
        data_dir=data.dir,
        validation_examples=data.validation_examples,
        split_seed=data.split_seed,
        training_examples=training_examples,
        shrink=data.shrink,
    )


def held_of(data: Dataset, evaluate: str, name: str) -> Split:
    """The split that is evaluated; raises a ValueError if it is empty."""
    held = getattr(data, evaluate)
    if not len(held.labels):
        raise ValueError(f"the {evaluate} split of {name!r} is empty")
    return held


class Domain(NamedTuple):
    """Some classes of a data set. N examples of H x W pixels and C channels."""

    name: str  # "cifar100:0-49"
    source: str  # the data set
    labels: Classes  # there; here they count from 0
    classes: int  # how many
    train: Split  # images [N, H, W, C] uint8, labels [N] int32
    held: Split  # the split that is evaluated
    scale: float  # the value of a pixel that stands for 1
    mean: tuple[float, ...]  # [C]
    std: tuple[float, ...]


def load_domain(config: Config, name: str, *, training_examples: int = 0) -> Domain:
    """The classes of a name like "cifar100:0-49", both ends included; or all.

    Args:
      config: its section ``data`` and ``evaluate``.
      name: of a data set that is images, and of its classes.
      training_examples: to keep of those classes, at random but always the same; 0 is
        all.

    Raises:
      ValueError: for an unknown set, classes that it does not have, or fewer examples.
      FileNotFoundError: saying how to prepare the set.
    """
    source, labels = parted(name)
    found = load(config.data, name, training_examples=training_examples)
    held = held_of(found, config.evaluate, name)
    labels = tuple(range(found.classes)) if labels is None else labels
    splits = found.train, held
    numbers = found.scale, found.mean, found.std
    return Domain(name, source, labels, found.classes, *splits, *numbers)


def conforming(domain: Domain, shape: Collection[int]) -> Domain:
    """The same with images of another shape: grey repeated, edges filled with black.

    Raises:
      ValueError: if images are larger, or have another number of colours.
    """
    height, width, channels = shape
    own = domain.train.images.shape[1:]
    if own[0] > height or own[1] > width or own[2] not in (1, channels):
        raise ValueError(
            f"{domain.name!r} has images of {own}, and cannot be made {tuple(shape)}; "
            "only smaller ones, and grey ones, can"
        )
    times = channels // own[2]
    edges = [(0, 0)]
    for there, wanted in zip(own[:2], (height, width), strict=True):
        edges.append(((wanted - there) // 2, -((there - wanted) // 2)))

    def changed(split: Split) -> Split:
        images = np.pad(split.images, [*edges, (0, 0)])
        return split._replace(images=np.repeat(images, times, axis=-1))

    return domain._replace(
        train=changed(domain.train),
        held=changed(domain.held),
        mean=domain.mean * times,
        std=domain.std * times,
    )
