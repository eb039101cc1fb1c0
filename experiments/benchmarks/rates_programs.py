"""What `experiments.benchmarks.rates` runs: trainers, and how programs are traced."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from experiments.benchmarks.cases import Case
from experiments.benchmarks.core import rewire_cases, superposition_cases
from experiments.benchmarks.timing import Program
from experiments.benchmarks.trainer import (
    Scale,
    Trainer,
    configuration,
    make_images,
    placed,
)
from experiments.build.data_checks import check_examples
from experiments.build.experiment import comparisons
from experiments.build.inputs import Inputs
from experiments.build.parts import make_network
from sup_tickets.data.resident import Shardings

BATCH_SIZES = {
    "resnet18": (1024, 128),
    "vgg16": (1024, 128),
    "wrn28x10": (512, 128),
    "resnet50_imagenet": (256,),
}
KINDS = ("dense", "sparse")
CHANGES = {"pass": (0,), "rewire": (0, 1, 2), "superpose and prune": (0,)}
"""What happens between steps, and which of its arguments it writes; "pass" is the
yardstick."""


class Wanted(NamedTuple):
    """What is measured."""

    models: tuple[str, ...]
    dtype: str
    batch_size: int | None  # instead of those of `BATCH_SIZES`
    scale: Scale  # of which batch size and examples depend on the model

    def scales(self, model: str) -> list[Scale]:
        """One for each batch size."""
        if self.batch_size is not None:
            sizes = (self.batch_size,)
        else:
            sizes = (8,) if self.scale.quick else BATCH_SIZES.get(model, (128,))
        examples = 64 if self.scale.quick else 1024 if _photos(model) else 50_000
        return [
            self.scale._replace(batch_size=size, examples=examples) for size in sizes
        ]


def _photos(model: str) -> bool:
    return model.endswith("_imagenet")


# --- Training steps -------------------------------------------------------------------


class Pair(NamedTuple):
    """The trainers of a network, with one batch size."""

    model: str
    batch_size: int
    trainers: dict[str, Trainer]  # by kind
    rows: Any  # of a block of batches

    def name(self, kind: str) -> str:
        """Of the program that trains."""
        return f"{self.model}, batch {self.batch_size}: {kind}"


def check_models(wanted: Wanted) -> None:
    """Raises a ValueError for an unknown model, or sizes that do not fit."""
    for model in wanted.models:
        make_network(configuration(model, wanted.scale), classes=10)
        for scale in wanted.scales(model):
            check_examples(scale.examples, 10, scale.batch_size)


def make_pairs(model: str, wanted: Wanted, place: Shardings) -> list[Pair]:
    """One for each batch size; nothing is compiled yet."""
    large = _photos(model) and not wanted.scale.quick
    side, classes = (224, 1000) if large else (32, 10)

    def images(scale: Scale) -> Inputs:
        return make_images((side, side, 3), scale, place, model=model, classes=classes)

    return [
        _pair(model, scale, images(scale), wanted, place)
        for scale in wanted.scales(model)
    ]


def _pair(
    model: str, scale: Scale, inputs: Inputs, wanted: Wanted, place: Shardings
) -> Pair:
    config = configuration(model, scale)
    config.model.dtype = wanted.dtype
    config.train.block_steps = scale.block_steps
    config.method.update_every_steps = 10  # a run over few images has an update too
    configs = {"dense": comparisons(config)["dense"], "sparse": config}
    name = f"{model}, batch {scale.batch_size}, {{}}"
    trainers = {
        kind: Trainer(name.format(kind), configs[kind], inputs, place) for kind in KINDS
    }
    rows = inputs.batches.block(0, scale.block_steps)
    return Pair(model, scale.batch_size, trainers, rows)


# --- Changes of the topology ----------------------------------------------------------


def change_cases(params: Any, masks: Any, gradients: Any) -> dict[str, Case]:
    """Those of `CHANGES`, over trees or their shapes."""
    cases = rewire_cases(params, masks, gradients)
    cases |= superposition_cases(params, masks, sparsity=0.95)
    return {name: cases[name] for name in CHANGES}


@jax.jit
def begin_changes(params: Any, masks: Any, gradients: Any) -> dict[str, Any]:
    """The first states of the cases."""
    cases = change_cases(params, masks, gradients)
    return {name: case.start() for name, case in cases.items()}


# --- Programs -------------------------------------------------------------------------


class Programs(dict[str, Any]):
    """By name; asking for one that could not be made raises the reason."""

    def __getitem__(self, name: str) -> Program:
        """The program."""
        found = super().__getitem__(name)
        if isinstance(found, BaseException):
            raise found
        return found


def tracings(pairs: list[Pair]) -> list[dict[str, Callable[[], Any]]]:
    """How each program of a network is traced, from shapes alone, in two waves.

    A GPU's compiler tries several ways to compute each convolution, one program at a
    time, and remembers the fastest; the sparse steps of the second wave have those of
    the dense ones.
    """
    first = pairs[0].trainers
    dense, sparse = (
        {
            pair.name(kind): partial(_trace_block, pair, kind, first[kind])
            for pair in pairs
        }
        for kind in KINDS
    )
    return [dense, sparse | _other_tracings(pairs[0].model, first)]


def _trace_block(pair: Pair, kind: str, first: Trainer) -> Any:
    """The shapes of the state do not depend on the batch size: those of the first."""
    return pair.trainers[kind].steps.block.trace(first.shapes, pair.rows)


def _other_tracings(
    model: str, trainers: dict[str, Trainer]
) -> dict[str, Callable[[], Any]]:
    sparse = trainers["sparse"]
    inits = {
        f"{model}: init {kind}": partial(ours.steps.init.trace, jax.random.key(0))
        for kind, ours in trainers.items()
    }
    changes = {
        f"{model}: {name}": partial(_trace_change, sparse, name) for name in CHANGES
    }
    begin = {f"{model}: begin changes": lambda: begin_changes.trace(*_trees(sparse))}
    return inits | changes | begin


def _trees(trainer: Trainer) -> tuple[Any, Any, Any]:
    """The shapes of parameters, masks and gradients."""
    shapes = trainer.shapes
    return shapes.params, shapes.method.masks, shapes.params


def _trace_change(trainer: Trainer, name: str) -> Any:
    trees = _trees(trainer)
    states = placed(jax.eval_shape(begin_changes, *trees), trainer.place)
    return change_cases(*trees)[name].call.trace(*states[name])
