"""From the configuration of a SoftNet experiment to its base classes and sessions.

All that can be wrong is found here, before anything is trained.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.build.data_checks import (
    check_different,
    check_examples,
    check_pixels,
    checked_network,
)
from experiments.build.parts import base_rate, drops, section
from experiments.config.fields import SOFTNET_FIELDS, Config, check_config
from sup_tickets.checks import check_density, check_one_of, is_number
from sup_tickets.data.files import Split, data_folder
from sup_tickets.data.image_sets import DATASETS, Dataset, load_dataset, parted
from sup_tickets.data.incremental import (
    Classes,
    drawn_rows,
    in_turn,
    read_rows,
    topic_rows,
)
from sup_tickets.data.prepared import original_positions
from sup_tickets.training import optimizers
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.prototypes import RULES
from sup_tickets.trees import matching_names, named_leaves
from sup_tickets.types import Schedule
from sup_tickets.views.scores import softnet

HEAD = "classifier"
KINDS = ("dense", "hard", "soft")
"""Base networks: all weights alike; minor ones 0 (HardNet); or factors (SoftNet)."""

_CIFAR = "cifar100"


class Setup(NamedTuple):
    """What an experiment needs besides its configuration."""

    data: Dataset  # its training split whole, in the order in which rows count
    base: Split  # examples of the base session
    held: Split  # what is evaluated
    sessions: tuple[Classes, ...]  # after the base
    draws: tuple[tuple[np.ndarray, ...], ...]  # of each, rows [ways, shots] a session
    model: nn.Module  # with a head for the base classes
    example: jax.Array


def build_softnet(config: Config) -> Setup:
    """Reads the data, and checks everything.

    Raises:
      ValueError: one line, naming the section at fault.
      FileNotFoundError: saying how to prepare a data set, or that of the rows.
    """
    check_config(config, SOFTNET_FIELDS)
    with section("softnet"):
        _check_words(config)
    with section("data"):
        data = _whole(config)
    with section("softnet"):
        ours = config.softnet
        sessions = in_turn(ours.base_classes, ours.ways, data.classes)
        draws = _draws(config, data, sessions)
    with section("data"):
        check_pixels(config.data, data.train.images.shape[1:])
        train, held = _splits(config, data, draws)
    check_examples(len(train.labels), ours.base_classes, config.data.batch_size)
    make_optimizer(config)
    make_rate(config, epoch_steps=1)
    example = jnp.zeros((1, *data.train.images.shape[1:]))
    model = checked_network(config, classes=ours.base_classes, example=example)
    like = jax.eval_shape(linen_network(model, example).init, jax.random.key(0))[0]
    with section("model"):
        if HEAD not in like:
            raise ValueError(f"model {config.model.name!r} has no layer {HEAD!r}")
    with section("softnet"):
        masked = named_leaves(soft_leaves(like))
        matching_names(
            ours.block, [name for name, is_soft in masked if is_soft], "block"
        )
    return Setup(data, train, held, sessions, draws, model, example)


def base_kind(name: str) -> tuple[str, float]:
    """The kind of a base network, and its share c of major weights.

    Raises:
      ValueError: for another kind, or a c outside (0, 1].

    Example:
      >>> base_kind("soft-0.5"), base_kind("dense")
      (('soft', 0.5), ('dense', 1.0))
    """
    kind, dash, text = name.partition("-")
    check_one_of("bases", kind, KINDS)
    if kind == "dense" and not dash:
        return kind, 1.0
    try:
        density = float(text)
    except ValueError:
        density = None
    if kind == "dense" or not is_number(density):
        raise ValueError(
            f"bases must look like dense, hard-0.5 or soft-0.8, got {name!r}"
        )
    check_density(density, f"c of {name!r}")
    return kind, float(text)


def make_view(name: str, *, redraw_every: int) -> Any:
    """The `View` of a base network, or ``None``; the head is left alone.

    Args:
      name: see `base_kind`.
      redraw_every: steps between draws of SoftNet's factors.
    """
    kind, density = base_kind(name)
    if kind == "dense":
        return None
    return softnet(
        density=density,
        soft=kind == "soft",
        redraw_every=redraw_every,
        keep_dense=f"^{HEAD}/",
    )


def soft_leaves(params: Any) -> Any:
    """Which leaves have masks: True or False at each."""
    return softnet(density=1, keep_dense=f"^{HEAD}/").covers(params)


def make_rate(config: Config, *, epoch_steps: int) -> Schedule:
    """The learning rate of the base session.

    Raises:
      ValueError: for epochs of drops that are none of the session's.
    """
    total = config.train.epochs * epoch_steps
    milestones = drops(config, total, epoch_steps)
    with section("train"):
        return base_rate(config.train, total, milestones)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """That of the base session: SGD, whose weight decay is of all that is trained."""
    train = config.train
    with section("train"):
        return optimizers.make_optimizer(
            "sgd",
            weight_decay=train.weight_decay,
            momentum=train.momentum,
            nesterov=train.nesterov,
        )


# --- Data -----------------------------------------------------------------------------


def _check_words(config: Config) -> None:
    ours = config.softnet
    check_different("bases", tuple(map(base_kind, ours.bases)))
    check_different("rules", tuple(ours.rules), RULES)
    if ours.soft_epoch >= config.train.epochs:
        raise ValueError(
            f"soft_epoch={ours.soft_epoch} must be below the {config.train.epochs} "
            "epochs of the base session"
        )
    if (ours.rows is not None) != (ours.split == "file"):
        raise ValueError(
            f"rows is the file of split='file'; got rows={ours.rows!r} with "
            f"split={ours.split!r}"
        )
    sizes = ours.base_classes, ours.ways, ours.shots
    if ours.split == "topic" and sizes != (60, 5, 5):
        raise ValueError(
            f"split='topic' has base_classes=60, ways=5 and shots=5, got {sizes}"
        )
    if ours.split == "topic" and config.data.name != _CIFAR:
        raise ValueError(f"split='topic' is of {_CIFAR}, not of {config.data.name!r}")
    if ours.split != "drawn" and ours.draws > 1:
        raise ValueError(f"draws={ours.draws} is of split='drawn' alone")


def _whole(config: Config) -> Dataset:
    data = config.data
    if parted(data.name)[1] is not None:
        raise ValueError(f"name={data.name!r}: sessions take all classes of a set")
    whole = load_dataset(
        data.name, data_dir=data.dir, validation_examples=0, shrink=data.shrink
    )
    if data.name != _CIFAR or config.softnet.split == "drawn":
        return whole
    # The rows of its splits are those of the files as they were published.
    order = np.argsort(
        original_positions(
            _CIFAR, data_folder(data.dir), examples=DATASETS[_CIFAR].train
        )
    )
    train = whole.train
    return whole._replace(train=Split(train.images[order], train.labels[order]))


def _draws(
    config: Config, data: Dataset, sessions: tuple[Classes, ...]
) -> tuple[tuple[np.ndarray, ...], ...]:
    ours, labels = config.softnet, data.train.labels
    if ours.split == "file":
        found = read_rows(Path(ours.rows), labels, sessions)
        for number, rows in enumerate(found, start=2):
            if rows.shape[1] < ours.shots:
                raise ValueError(
                    f"session {number} of {ours.rows} has {rows.shape[1]} examples of "
                    f"a class, fewer than shots={ours.shots}"
                )
        return (tuple(rows[:, : ours.shots] for rows in found),)
    if ours.split == "topic":
        found = topic_rows().reshape(-1, ours.ways, ours.shots)
        wanted = np.array(sessions)
        if (labels[found] != wanted[:, :, None]).any():
            raise ValueError("the training images are not in their original order")
        return (tuple(found),)
    drawn = partial(drawn_rows, labels, shots=ours.shots, seed=ours.draw_seed)
    return tuple(
        tuple(drawn(classes, draw=draw) for classes in sessions)
        for draw in range(ours.draws)
    )


def _splits(config: Config, data: Dataset, draws: Any) -> tuple[Split, Split]:
    """Examples of the base session, and those that are evaluated.

    For validation some of every class are held out, none of them shown in a session.
    """
    images, labels = data.train
    held = np.zeros(len(labels), bool)
    each, rest = divmod(config.data.validation_examples, data.classes)
    if rest:
        raise ValueError(
            f"validation_examples={config.data.validation_examples} is not as many of "
            f"each of the {data.classes} classes"
        )
    shown = np.concatenate([rows.ravel() for draw in draws for rows in draw])
    free = np.ones(len(labels), bool)
    free[shown] = False
    for label in range(data.classes):
        rows = np.flatnonzero((labels == label) & free)
        if each >= len(rows):
            raise ValueError(
                f"validation_examples={each} of class {label} leave none of its "
                f"{len(rows)} to train on"
            )
        order = np.random.default_rng([config.data.split_seed, label])
        held[order.permutation(rows)[:each]] = True
    of_base = (labels < config.softnet.base_classes) & ~held
    train = Split(images[of_base], labels[of_base])
    if config.evaluate == "test":
        return train, data.test
    if not each:
        raise ValueError("evaluate='validation' needs validation_examples above 0")
    return train, Split(images[held], labels[held])
