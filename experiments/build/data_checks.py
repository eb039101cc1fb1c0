"""Checks of what fits together only once the data set is known."""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax

from experiments.build.parts import make_network, section
from experiments.config.fields import Config
from sup_tickets.checks import check_one_of
from sup_tickets.data.text import is_text, read_text


def checked_network(config: Config, *, classes: int, example: jax.Array) -> nn.Module:
    """The model of the configuration, whose layers can be made for the examples.

    Args:
      config: of the run.
      classes: of the data set.
      example: [1, H, W, C], of which the shape matters.

    Raises:
      ValueError: naming the section ``model``, if a layer cannot be made or is empty.
    """
    model = make_network(config, classes=classes)

    def init(key: jax.Array) -> Any:
        return model.init(key, example, train=False)

    with section("model"):
        try:
            params = jax.eval_shape(init, jax.random.key(0))["params"]
            empty = any(0 in leaf.shape for leaf in jax.tree.leaves(params))
        except ZeroDivisionError:  # of an initializer, which divides by the inputs
            empty = True
        if empty:
            options = config.model.options.to_dict()
            raise ValueError(
                f"a layer would have no weights, with the options {options}"
            )
    return model


def check_examples(examples: int, classes: int, batch_size: int) -> None:
    """Raises unless there is something to learn, a whole batch at a time.

    Args:
      examples: to train on.
      classes: of the set.
      batch_size: of the configuration.

    Raises:
      ValueError: naming what there is too little of.
    """
    if classes < 2:
        raise ValueError(f"the set has {classes} class; at least 2 are needed")
    if batch_size > examples:
        raise ValueError(
            f"batch_size={batch_size} is more than the {examples} examples to train on"
        )


def check_pixels(data: Config, shape: Sequence[int]) -> None:
    """Raises unless what is cut off and cut out is smaller than an image.

    Args:
      data: the section of the configuration.
      shape: [H, W, C] of an image.

    Raises:
      ValueError: naming the field.
    """
    smallest = min(shape[:2])
    for name in ("crop_padding", "cutout"):
        if data.get(name, 0) >= smallest:
            raise ValueError(
                f"{name} must be below the {smallest} pixels of an image, got "
                f"{data[name]}"
            )


def check_different(
    name: str, values: Sequence[Any], known: Iterable[str] | None = None
) -> None:
    """Raises unless there are values, none is there twice, and all are known.

    Raises:
      ValueError: naming the argument, and the first that is unknown.
    """
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must be some and all different, got {values}")
    if known is not None:
        for value in values:
            check_one_of(name, value, known)


def text_digest(config: Config) -> str | None:
    """That of the text that a run reads; ``None`` if there is none."""
    name = config.get("data", {}).get("name", "")
    if not is_text(name):
        return None
    try:
        return read_text(name).digest
    except FileNotFoundError:
        return None
