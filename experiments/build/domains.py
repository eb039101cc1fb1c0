"""Parts of data sets that tasks are made of: some classes, in a common shape."""

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from experiments.config.fields import Config
from sup_tickets.checks import check_one_of
from sup_tickets.data.datasets import DATASETS, load_dataset
from sup_tickets.data.files import Split

_NAME = re.compile(r"(.+?)(?::(\d+)-(\d+))?")


class Domain(NamedTuple):
    """Some classes of a data set. N examples of H x W pixels and C channels."""

    name: str  # "cifar100:0-49"
    source: str  # the data set
    labels: range  # of the classes there; here they count from 0
    train: Split  # images [N, H, W, C] uint8, labels [N] int32
    held: Split  # the split that is evaluated
    scale: float  # the value of a pixel that stands for 1
    mean: tuple[float, ...]  # [C]
    std: tuple[float, ...]

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.labels)


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
    match = _NAME.fullmatch(name)
    source, first, last = match.groups() if match else (name, None, None)
    if not source.startswith("folder:"):
        check_one_of("data set", source, DATASETS)
    data = config.data
    whole = load_dataset(
        source,
        data_dir=data.dir,
        validation_examples=data.validation_examples,
        split_seed=data.split_seed,
        shrink=data.shrink,
    )
    labels = range(int(first or 0), int(last or whole.classes - 1) + 1)
    if not labels or labels[-1] >= whole.classes:
        raise ValueError(
            f"{name!r}: classes must be among 0-{whole.classes - 1}, the lower first"
        )
    if len(labels) < 2:
        raise ValueError(f"{name!r} has one class, and a task needs two or more")
    train = _some(_of_classes(whole.train, labels), training_examples, data.split_seed)
    if len(train.labels) < training_examples:
        raise ValueError(
            f"training_examples={training_examples} is more than the "
            f"{len(train.labels)} of {name!r}"
        )
    held = _of_classes(getattr(whole, config.evaluate), labels)
    if not len(held.labels):
        raise ValueError(f"the {config.evaluate} split of {name!r} is empty")
    numbers = whole.scale, whole.mean, whole.std
    return Domain(name, source, labels, train, held, *numbers)


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


def _of_classes(split: Split, labels: range) -> Split:
    rows = np.isin(split.labels, labels)
    return Split(split.images[rows], split.labels[rows] - np.int32(labels[0]))


def _some(split: Split, examples: int, seed: int) -> Split:
    if not 0 < examples < len(split.labels):
        return split
    order = np.random.default_rng([seed, 1]).permutation(len(split.labels))
    rows = np.sort(order[:examples])
    return Split(split.images[rows], split.labels[rows])
