"""What a run starts with, where data are looked at or a file is read before training.

In this order: the masks (of a file, or found by scores of the initial weights), their
places drawn anew if only the counts are wanted, the weights, and their scales.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.build.inputs import Inputs
from experiments.build.mask_file import from_file
from experiments.build.tost import tost_parts
from experiments.config.fields import Config
from sup_tickets.checks import check_one_of
from sup_tickets.data.text import is_text
from sup_tickets.foresight import (
    classification_loss,
    grasp,
    snip,
    synflow,
    total_gradient,
)
from sup_tickets.gradinit import rescaled_init
from sup_tickets.masks import full_masks, layer_counts, layer_table
from sup_tickets.methods import example
from sup_tickets.orthogonal import exact_orthogonal
from sup_tickets.rounds import dead_layers, prune_in_rounds, resample
from sup_tickets.saliency import magnitude, taylor
from sup_tickets.structures import Structure
from sup_tickets.training.network_files import load_sparse
from sup_tickets.training.processes import agreed
from sup_tickets.training.state import Start, TrainState
from sup_tickets.training.steps import Steps
from sup_tickets.trees import default_rule
from sup_tickets.types import Masks, Params, Scores

MASKS = ("random", "magnitude", "taylor", "snip", "grasp", "synflow")
"""Where masks come from; "random" ones are those of the method itself."""

_CHUNK = 256  # examples that scores look at together


class Begin(NamedTuple):
    """All that a start is made from."""

    config: Config
    model: nn.Module  # without ghosts
    inputs: Inputs
    steps: Steps  # of that model
    key: jax.Array  # that the steps begin with
    structure: Structure | None = None  # of the method's masks


def check_start(config: Config) -> None:
    """Raises where a method cannot start with the masks that are asked for.

    No file is read: a finished run is built again without it, see `mask_file`.

    Raises:
      ValueError: one line, naming a field.
    """
    mask = config.mask
    check_one_of("config.mask.name", mask.name, MASKS)
    if mask.name != "random" or config.masks is not None or mask.orthogonal:
        check_takes_masks(config)


def check_takes_masks(config: Config) -> None:
    """Raises where a method begins with more weights than masks would leave.

    Raises:
      ValueError: one line, naming the method.
    """
    if example(config.method.name).starts_denser:
        raise ValueError(
            f"method {config.method.name!r} does not start with the final sparsity; "
            "config.mask and config.masks are of no use to it"
        )


def forget_masks(config: Config) -> None:
    """Changes a configuration, in place, to begin as the method itself does."""
    config.masks = None
    config.mask.update(
        {"name": "random", "weights": "init", "ratios_only": False, "orthogonal": False}
    )


def is_plain(config: Config) -> bool:
    """Whether a run begins as its method does, with masks and weights by the key."""
    mask = config.mask
    drawn = mask.ratios_only or mask.orthogonal or mask.weights != "init"
    return mask.name == "random" and config.masks is None and not drawn


def make_start(begin: Begin) -> Start | None:
    """What the run starts with, or ``None`` if the key alone says.

    Raises:
      ValueError: one line, if the masks are of another network, or scores are of no
        use.
    """
    config, mask = begin.config, begin.config.mask
    rescales = "rescale" in tost_parts(config)
    if is_plain(config) and not rescales:
        return None

    def weights(key: jax.Array) -> Start:
        """By the key or of the file; as released, re-scaled before there are masks."""
        start = begin.steps.begin(key)
        if mask.weights == "file":
            start = from_file(config, start)
        if rescales and config.tost.released:
            start = _rescaled(begin, start, full_masks(start.params))
        return start

    start = weights(begin.key)
    masks = _masks(begin, start)
    places_key, weights_key = jax.random.split(jax.random.fold_in(begin.key, 1))
    if mask.ratios_only:
        groups = None if begin.structure is None else begin.structure.groups
        masks = resample(places_key, masks, groups=groups)
    if mask.weights == "new":
        start = weights(weights_key)
    start = start._replace(masks=masks)
    if mask.orthogonal:
        params, masks = exact_orthogonal(
            weights_key,
            start.params,
            jax.tree.map(int, layer_counts(masks)),
            gain=mask.orthogonal_gain,
            bias_std=mask.orthogonal_bias,
            depthwise=_depthwise(begin),
        )
        start = start._replace(params=params, masks=masks)
    if rescales and not config.tost.released:
        start = _rescaled(begin, start, masks)
    return start._replace(params=agreed(start.params, start.params))


def describe_start(start: Start) -> str:
    """What the masks are like, as a line or two."""
    if start.masks is None:
        return "start: weights re-scaled"
    total = layer_table(start.masks)[-1]
    text = f"start: {total.active} of {total.size} weights are active"
    dead = dead_layers(start.masks)
    return f"{text}; no weight is left in {', '.join(dead)}" if dead else text


def start_flops(begin: Begin, *, dense: float, sparse: float) -> int:
    """Operations of finding the masks and of re-scaling the weights.

    By the convention of training: a gradient costs three forward passes, its product
    with the Hessian two gradients, and GradInit looks ahead by three gradients a step.

    Args:
      begin: what the start is made from.
      dense: a forward pass of an example with all weights.
      sparse: likewise with the active ones.
    """
    config, mask = begin.config, begin.config.mask
    gradients = {"snip": 1, "taylor": 1, "grasp": 3, "synflow": 1}.get(mask.name, 0)
    found = 0.0
    if gradients and config.masks is None:
        alone = mask.name == "synflow"  # one input of ones is its data
        examples = 1 if alone else mask.examples_per_class * begin.inputs.classes
        found += 3 * dense * gradients * _rounds(config) * examples
    if "rescale" in tost_parts(config):
        forward = dense if config.tost.released else sparse
        found += 3 * 3 * forward * config.tost.rescale_steps * config.data.batch_size
    return round(found)


# --- Masks ----------------------------------------------------------------------------


def _rounds(config: Config) -> int:
    return config.mask.rounds or (100 if config.mask.name == "synflow" else 1)


def _masks(begin: Begin, start: Start) -> Masks:
    config = begin.config
    if config.masks is not None:
        return load_sparse(config.masks).masks
    drawn = _drawn(begin)
    own = drawn.method.masks
    if config.mask.name == "random":
        return own
    found = prune_in_rounds(
        _score(begin, start),
        start.params,
        where=config.method.options.get("where", default_rule),
        sparsity=config.method.sparsity,
        rounds=_rounds(config),
        scope=config.mask.scope,
        keep_dense=tuple(config.method.keep_dense),
        structure=begin.structure,
    )
    return agreed(found, drawn.params)


def _drawn(begin: Begin) -> TrainState:
    """The state that the key alone says."""
    if is_text(begin.config.data.name):  # networks carry a state from batch to batch
        return begin.steps.init(begin.key, None, begin.inputs.batches(0))
    return begin.steps.init(begin.key)


def _score(begin: Begin, start: Start) -> Callable[[Params, Masks], Scores]:
    """``(params, masks) -> scores``."""
    mask, model = begin.config.mask, begin.model
    if mask.name == "magnitude":
        return lambda params, masks: magnitude(params)
    if mask.name == "synflow":
        shape = begin.inputs.example.shape
        apply = _evaluated(model, start.model_state)
        return lambda params, masks: synflow(apply, params, shape)
    batches = _examples(begin)
    warm = mask.temperature if mask.name == "grasp" else 1.0
    # Compiled for one batch, not for all: images would be constants of the program,
    # which would have the network in it as often as there are batches.
    apply = jax.jit(_trained(model, start.model_state))
    loss = classification_loss(apply, temperature=warm)
    match mask.name:
        case "snip":
            return lambda p, m: snip(loss, p, batches, masks=m)
        case "grasp":
            return lambda p, m: grasp(loss, p, batches, pairing=mask.pairing, masks=m)
    return lambda p, m: taylor(p, total_gradient(loss, p, batches))


def _trained(model: nn.Module, batch_stats: Any) -> Callable[[Params, Any], Any]:
    """Scores by the statistics of the batch; the running ones stay as they are."""

    def apply(params: Params, inputs: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, inputs, train=True, mutable=["batch_stats"])[0]

    return apply


def _evaluated(model: nn.Module, batch_stats: Any) -> Callable[[Params, Any], Any]:
    """Scores by the statistics at the start, mean 0 and variance 1, as wide."""

    def apply(params: Params, inputs: jax.Array) -> Any:
        stats = jax.tree.map(lambda s: s.astype(inputs.dtype), batch_stats)
        variables = {"params": params, "batch_stats": stats}
        return model.clone(dtype=inputs.dtype).apply(variables, inputs, train=False)

    return apply


def _examples(begin: Begin) -> list[tuple[np.ndarray, np.ndarray]]:
    """As many of each class, in batches; augmented as in training."""
    wanted = begin.config.mask.examples_per_class
    left = np.full(begin.inputs.classes, wanted)
    inputs, labels = [], []
    for i in range(begin.inputs.epoch_steps):
        x, y = _batch(begin, i)
        x, y = _on_host(x), _on_host(y)
        rows = [r for r, label in enumerate(y) if _take(left, label)]
        inputs.append(x[rows])
        labels.append(y[rows])
        if not left.any():
            break
    if left.any():
        raise ValueError(
            f"config.mask.examples_per_class={wanted} is more than an epoch has of "
            f"class {int(np.argmax(left))}"
        )
    x, y = np.concatenate(inputs), np.concatenate(labels)
    order = np.argsort(np.arange(len(y)) % -(-len(y) // _CHUNK), kind="stable")
    parts = np.array_split(order, -(-len(y) // _CHUNK))
    return [(x[part], y[part]) for part in parts]


def _take(left: np.ndarray, label: int) -> bool:
    if left[label]:
        left[label] -= 1
        return True
    return False


def _batch(begin: Begin, i: int) -> tuple[jax.Array, jax.Array]:
    """The batch of step i, augmented otherwise than by that step."""
    key = jax.random.fold_in(jax.random.fold_in(begin.key, 2), i)
    batch = begin.inputs.batches(i)
    return jax.jit(begin.inputs.prepare)(batch, key)


def _on_host(array: jax.Array) -> np.ndarray:
    if jax.process_count() > 1:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _depthwise(begin: Begin) -> list[str]:
    """Expressions of the kernels of convolutions of single channels."""
    found: list[str] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.Conv) and module.feature_group_count > 1:
            found.append("^" + re.escape("/".join([*module.path, "kernel"])) + "$")
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        example = begin.inputs.example
        jax.eval_shape(lambda k: begin.model.init(k, example, train=False), begin.key)
    return sorted(set(found))


# --- Weights --------------------------------------------------------------------------


def _rescaled(begin: Begin, start: Start, masks: Masks) -> Start:
    tost = begin.config.tost
    loss = classification_loss(_trained(begin.model, start.model_state))
    prepare = jax.jit(begin.inputs.prepare)
    key = jax.random.fold_in(begin.key, 3)

    def batch(i: int) -> Any:
        return prepare(begin.inputs.batches(i), jax.random.fold_in(key, i))

    found = rescaled_init(
        loss,
        start.params,
        masks,
        batch,
        steps=tost.rescale_steps,
        learning_rate=tost.rescale_rate,
        algorithm=tost.rescale_algorithm,
    )
    return start._replace(params=found.params)
