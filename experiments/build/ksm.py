"""From the configuration of a KSM experiment to its backbone, tasks and methods.

All that can be wrong is found here, before anything is trained.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.build.data_checks import (
    check_different,
    check_examples,
    checked_network,
)
from experiments.build.domains import held_of, load
from experiments.build.experiment import build
from experiments.build.parts import section
from experiments.config.fields import KSM_FIELDS, Config, as_config, check_config
from sup_tickets.data.image_sets import Dataset, load_dataset, of_classes, parted
from sup_tickets.data.incremental import (
    Classes,
    check_disjoint,
    read_classes,
    superclasses,
)
from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.network_files import load_dense, load_sparse
from sup_tickets.training.partly import chosen
from sup_tickets.training.state import Network
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import named_leaves
from sup_tickets.views.kernels import convolutions, ksm
from sup_tickets.views.scores import piggyback
from sup_tickets.views.view import View

HEAD = "classifier"
"""The module that each task has its own of."""

COARSE = "coarse"
"""A task for each superclass of CIFAR-100."""


class Way(NamedTuple):
    """How a network comes to a task; a head is trained in any case."""

    text: str
    view: Callable[[Config], View] | None = None  # of the frozen kernels
    norms: bool = True  # whether norms and their statistics are the task's own
    weights: bool = False  # whether all weights are
    starts: str = "backbone"  # or "drawn" anew; or "before": the task before's weights
    scaled: bool = False  # whether what is off has a scale


METHODS: dict[str, Way] = {
    "head": Way("features of the backbone, a head of its own", norms=False),
    "norms": Way("norms and a head of its own, kernels as they are: the control"),
    "kernel": Way(
        "kernels on or off, besides norms and head", lambda c: _ksm(c, soft=False)
    ),
    "ksm": Way("kernels on or scaled (KSM)", lambda c: _ksm(c, soft=True), scaled=True),
    "element": Way(
        "weights on or off (Piggyback)",
        lambda c: piggyback(
            start=c.ksm.start, threshold=c.ksm.threshold, where=convolutions
        ),
    ),
    "full": Way("a copy of the network, fine-tuned", weights=True),
    "scratch": Way("a network trained anew", weights=True, starts="drawn"),
    "sequential": Way(
        "one network fine-tuned task after task, a head for each: it forgets",
        weights=True,
        starts="before",
    ),
}
"""What is compared, by the name in tables."""


class TaskData(NamedTuple):
    """A task: its classes, which count from 0 in its data."""

    name: str
    classes: Classes
    data: Dataset


class Setup(NamedTuple):
    """What an experiment needs besides its configuration."""

    base: Config  # of the run that trains the backbone
    given: Network | None  # the backbone, if it is read from a file
    tasks: tuple[TaskData, ...]
    numbers: Dataset  # mean and deviation of the backbone's data, scale of the tasks'
    model: Callable[[int], PureNetwork]  # with a head for so many classes


def is_head(name: str) -> bool:
    """Whether a leaf is the head's."""
    return name.split("/")[0] == HEAD


def norm_rule(params: Any) -> Callable[[str], bool]:
    """Whether a leaf belongs to a norm: a module that has a "scale"."""
    modules = {
        name.rpartition("/")[0]
        for name, _ in named_leaves(params)
        if name.rpartition("/")[2] == "scale"
    }
    return lambda name: name.rpartition("/")[0] in modules


def build_ksm(config: Config) -> Setup:
    """Reads the data, and checks everything.

    Raises:
      ValueError: one line, naming the section at fault.
      FileNotFoundError: saying how to prepare a data set, or that of the backbone.
    """
    check_config(config, KSM_FIELDS)
    values = config.to_dict()
    ours = as_config(values.pop("ksm"))
    base = as_config(values)
    with section("ksm"):
        _check_methods(ours)
        views = [make_view(config, name) for name in ours.methods]
    built = build(base)  # whatever is wrong with the backbone is wrong at once
    built.inputs.close()
    example, params = built.inputs.example, built.like(0).train.params
    with section("ksm"):
        tasks = _tasks(config, example.shape[1:])
        if HEAD not in params:
            raise ValueError(f"model {base.model.name!r} has no {HEAD!r} to replace")
        for view in views:
            if view is not None:
                view.covers(params)  # raises where there is no convolution
    # What a frozen backbone knows; a pixel counts as its own data set says.
    source = load_dataset(base.data.name, data_dir=base.data.dir)
    source = source._replace(scale=tasks[0].data.scale)

    def model(classes: int) -> PureNetwork:
        return linen_network(
            checked_network(base, classes=classes, example=example), example
        )

    given = None
    if ours.backbone is not None:
        given = read_backbone(Path(ours.backbone), model(2), base.model.name)
    return Setup(base, given, tasks, source, model)


def make_view(config: Config, method: str) -> View | None:
    """The view of a method of `METHODS`, or ``None``."""
    make = METHODS[method].view
    return None if make is None else make(config)


def read_backbone(path: Path, model: PureNetwork, name: str) -> Network:
    """A network file whose leaves are those of a model, but for the head.

    Args:
      path: sparse or dense.
      model: with any head.
      name: of the model, for errors.

    Raises:
      ValueError: if it is a network of another model, naming a leaf; or damaged.
      OSError: if it cannot be read.
    """
    try:
        network = load_sparse(path)
    except ValueError as error:
        if "it is not a" not in str(error):
            raise
        network = load_dense(path)
    like = jax.eval_shape(model.init, jax.random.key(0))
    for ours, theirs in zip((network.params, network.model_state), like, strict=True):
        parts = (chosen(tree, lambda n: not is_head(n)) for tree in (ours, theirs))
        found, wanted = parts
        check_same_leaves(f"backbone {path}", found, f"model {name!r}", wanted)
    params = jax.tree.map(jnp.asarray, network.params)
    none = jax.tree.map(lambda _: None, params)
    return Network(params, jax.tree.map(jnp.asarray, network.model_state), none)


def _ksm(config: Config, *, soft: bool) -> View:
    names = ("start", "threshold", "steepness", "temperature", "scale")
    return ksm(soft=soft, **{name: config.ksm[name] for name in names})


def _check_methods(ours: Config) -> None:
    check_different("methods", tuple(ours.methods), METHODS)
    if "ksm" in ours.methods and not ours.scale:
        raise ValueError("scale must be above 0 for method 'ksm'; 0 is method 'kernel'")


def _tasks(config: Config, shape: tuple[int, ...]) -> tuple[TaskData, ...]:
    ours, data = config.ksm, config.data
    source, some = parted(ours.data)
    if some is not None:
        raise ValueError(f"data={ours.data!r}: tasks have its classes, say {source!r}")
    whole = load(data, source)
    if whole.train.images.shape[1:] != shape:
        raise ValueError(
            f"data={source!r} has images of {whole.train.images.shape[1:]}, and the "
            f"backbone's are {shape}"
        )
    parts = _classes(ours, source)
    seen = {"the backbone": _backbone_classes(data.name, source, whole.classes)}
    check_disjoint({**seen, **parts}, whole.classes)
    tasks = tuple(
        TaskData(name, classes, of_classes(whole, classes))
        for name, classes in parts.items()
    )
    for task in tasks:
        check_examples(len(task.data.train.labels), task.data.classes, ours.batch_size)
        held_of(task.data, config.evaluate, task.name)
    return tasks


def _classes(ours: Config, source: str) -> dict[str, Classes]:
    """Of each task, by its name."""
    if tuple(ours.tasks) == (COARSE,):
        if source != "cifar100":
            raise ValueError(f"tasks={COARSE!r} are of cifar100, and data={source!r}")
        found = superclasses()
    else:
        found = tuple(map(read_classes, ours.tasks))
    if not found:
        raise ValueError("tasks must be one or more")
    if ours.first_tasks > len(found):
        raise ValueError(f"first_tasks={ours.first_tasks} is more than {len(found)}")
    found = found[: ours.first_tasks or None]
    return {f"task {i}": classes for i, classes in enumerate(found, start=1)}


def _backbone_classes(name: str, source: str, classes: int) -> Classes:
    """Of the tasks' data set."""
    other, some = parted(name)
    if other != source:
        return ()
    return tuple(range(classes)) if some is None else some
