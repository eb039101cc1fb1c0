"""What `experiments.benchmarks.train` trains: a network, images, compiled steps."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import numpy as np

from configs import common, imagenet
from experiments.benchmarks.timing import Program, compiled
from experiments.build.experiment import make_steps
from experiments.build.inputs import Inputs, resident_inputs
from experiments.build.parts import (
    make_network,
    make_parts,
)
from experiments.config.fields import Config
from sup_tickets.data.image_sets import Dataset, Split
from sup_tickets.data.resident import Rows, Shardings
from sup_tickets.dynamic import Method
from sup_tickets.training.plan import Plan
from sup_tickets.training.state import TrainState
from sup_tickets.training.steps import Steps

_TINY: dict[str, dict[str, Any]] = {
    "conv": {"features": (4, 4)},
    "vgg16": {"stages": ((4,),) * 5, "hidden": ()},
    "resnet18": {"widths": (4, 8), "blocks": (1, 1)},
    "resnet50_imagenet": {"widths": (4, 8), "blocks": (1, 1)},
    "wrn28x10": {"widths": (4, 4, 8), "blocks": 1},
}


class Scale(NamedTuple):
    """How much is measured."""

    batch_size: int
    repeats: int
    examples: int
    block_steps: int
    least_s: float
    quick: bool  # tiny widths


class Trainer:
    """A state that the programs of a run take turns to advance, once it has begun."""

    def __init__(self, name: str, config: Config, inputs: Inputs, place: Shardings):
        self.name, self.inputs = name, inputs
        self.network = make_network(config, classes=inputs.classes)
        self.plan, self.method, self.steps = _parts(config, inputs, self.network, place)
        self.fraction = config.sup.explore_fraction
        self.batch: Rows = inputs.batches(0)
        self.programs: dict[str, Program] = {}
        self.place = place
        self.state: Any = None  # `TrainState`
        self.told: Any = None

    @functools.cached_property
    def shapes(self) -> TrainState:
        """Of the state, before there is any."""
        return placed(jax.eval_shape(self.steps.init, jax.random.key(0)), self.place)

    def begin(self, init: Program | None = None) -> Self:
        """Draws the state, by a program that is there already or is compiled here."""
        init = init or self.compile("init", self.steps.init, jax.random.key(0))
        self.state = init.call(jax.random.key(0))
        return self

    def compile(self, name: str, function: Any, *arguments: Any) -> Program:
        """Compiles a program, and notes what that took."""
        name = f"{self.name} {name}"
        self.programs[name] = compiled(name, function, *arguments)
        return self.programs[name]

    def case(self, name: str, *more: Any) -> Callable[[], Any]:
        """A call of one of the steps at always the same batch."""
        arguments = (self.batch, *more)
        program = self.compile(name, getattr(self.steps, name), self.state, *arguments)
        return self.calling(program, *arguments)

    def calling(self, program: Program, *arguments: Any) -> Callable[[], Any]:
        """A call of one of the steps, of which the first argument is the state."""

        def call() -> Any:
            self.state, self.told = program.call(self.state, *arguments)
            return self.state, self.told

        return call

    def check(self) -> None:
        """Raises a ValueError if the loss is not finite: times could be others."""
        told = getattr(self.told, "report", self.told)
        loss = float(np.ravel(told["loss"])[-1])
        if not math.isfinite(loss):
            raise ValueError(f"the loss of the {self.name} network became {loss}")


def placed(shapes: Any, place: Shardings) -> Any:
    """Shapes of arrays that all devices have."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place.replicated),
        shapes,
    )


def _parts(
    config: Config, inputs: Inputs, network: nn.Module, place: Shardings
) -> tuple[Plan, Method, Steps]:
    plan, method, rate = make_parts(config, epoch_steps=inputs.epoch_steps)
    steps = make_steps(config, inputs, method, rate, network, sharding=place.replicated)
    return plan, method, steps


def configuration(model: str, scale: Scale) -> Config:
    """The paper's on CIFAR, or ImageNet, from which `comparisons` makes the dense one.

    Sparsity is 95% either way.
    """
    photos = model.endswith("_imagenet")
    config: Any = imagenet.get_config("sparsity=0.95") if photos else common.default()
    config.compare = True
    config.data.batch_size = scale.batch_size
    config.data.validation_examples = 0
    config.model.name = model
    if scale.quick:
        for name, value in _TINY.get(model, {}).items():
            config.model.options[name] = value
    return config


def random_images(shape: tuple[int, ...], examples: int, classes: int = 10) -> Dataset:
    """A set of noise."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (examples, *shape), np.uint8)
    train = Split(images, draw.integers(0, classes, examples, np.int32))
    none = Split(images[:0], train.labels[:0])
    half = (0.5,) * shape[-1]
    return Dataset("noise", classes, train, none, none, 255.0, half, half)


def make_images(
    shape: tuple[int, ...],
    scale: Scale,
    place: Shardings,
    *,
    model: str = "conv",
    classes: int = 10,
) -> Inputs:
    """Inputs of a run on random images, augmented as for the model."""
    dataset = random_images(shape, scale.examples, classes)
    config = configuration(model, scale)
    return resident_inputs(config, dataset, key=jax.random.key(1), shardings=place)
