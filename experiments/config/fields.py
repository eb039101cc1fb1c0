"""Checks a configuration before anything is computed: names, types, ranges.

A new field has its default and comment in `configs.common`, its type and range here,
and what it cannot be combined with in `experiments.build.option_rules`.
"""

import difflib
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, NamedTuple, get_args

from ml_collections import ConfigDict

from sup_tickets.checks import check_one_of, percent_hint
from sup_tickets.data.text import UNITS
from sup_tickets.gradinit import ALGORITHMS
from sup_tickets.learning_rates import CYCLE_FORMS
from sup_tickets.pruning import Scope
from sup_tickets.stamp.gates import GATES
from sup_tickets.superposition import Kind
from sup_tickets.training.optimizers import AVERAGING

Config = Any
"""A ConfigDict; the type checker cannot know its fields."""


def as_config(values: Mapping[str, Any]) -> Config:
    """A configuration of nested values, as a run's folder keeps them."""
    return ConfigDict(values)


class Field(NamedTuple):
    """What a field may hold."""

    kind: str  # "int", "float", "bool", "str", "path", "ints" or "strs"; "... or none"
    low: float = float("-inf")
    high: float = float("inf")
    words: tuple[str, ...] = ()  # of a str: all that it may be, if that is checked here
    below: bool = False  # whether ``high`` itself is refused


_SEED = Field("int", 0, 2**32 - 1)
_BELOW_1 = Field("float", 0, 1, below=True)

# Ranges that the library checks itself, with the name of the argument, are left to it.
FIELDS: dict[str, Field] = {
    "seed": _SEED,
    "evaluate": Field("str", words=("test", "validation")),
    "compare": Field("bool"),
    "data.name": Field("str"),
    "data.dir": Field("path or none"),
    "data.split_seed": _SEED,
    "data.validation_examples": Field("int", 0),
    "data.training_examples": Field("int", 0),
    "data.shrink": Field("int", 1),
    "data.batch_size": Field("int", 1),
    "data.unit": Field("str", words=UNITS),
    "data.vocabulary": Field("int", 0),
    "data.sequence": Field("int", 1),
    "data.crop_padding": Field("int", 0),
    "data.crop_mode": Field("str", words=("zero", "reflect")),
    "data.flip": Field("bool"),
    "data.cutout": Field("int", 0),
    "data.workers": Field("int", 0),
    "model.name": Field("str"),
    "model.dtype": Field("str", words=("float32", "bfloat16")),
    "method.name": Field("str"),
    "method.sparsity": _BELOW_1,
    # The others need the names of layers.
    "method.distribution": Field("str", words=("uniform", "er", "erk")),
    "method.keep_dense": Field("strs"),
    "method.structure": Field("str"),
    "method.update_every_steps": Field("int", 1),
    "method.update_end_fraction": Field("float", 0, 1),
    "method.drop_fraction": Field("float", 0, 1),
    "method.drop_schedule": Field("str", words=("cosine", "linear", "constant")),
    "method.initial_sparsity": Field("float or none", 0, 1, below=True),
    "method.prune_end_fraction": Field("float", 0, 1),
    "view.name": Field("str"),
    "masks": Field("path or none"),
    "branch_from": Field("path or none"),
    "mask.name": Field("str"),
    "mask.rounds": Field("int", 0),
    "mask.scope": Field("str", words=get_args(Scope)),
    "mask.examples_per_class": Field("int", 1),
    "mask.temperature": Field("float", 1e-6),
    "mask.pairing": Field("str", words=("all", "each")),
    "mask.ratios_only": Field("bool"),
    "mask.orthogonal": Field("bool"),
    "mask.orthogonal_gain": Field("float", 1e-6),
    "mask.orthogonal_bias": Field("float", 0),
    "mask.weights": Field("str", words=("init", "new", "file")),
    "tost.parts": Field("str"),
    "tost.released": Field("bool"),
    "tost.ghost_fraction": Field("float", 0, 1),
    "tost.soft": Field("str", words=("swish", "mish")),
    "tost.sharpness_start": Field("float", 1e-6),
    "tost.sharpness_end": Field("float", 1e-6),
    "tost.sharpness_shape": Field("str", words=("exponential", "linear")),
    "tost.skip_shape": Field("str", words=("linear", "cosine")),
    "tost.label_smoothing": _BELOW_1,
    "tost.rescale_steps": Field("int", 1),
    "tost.rescale_rate": Field("float", 1e-12),
    "tost.rescale_algorithm": Field("str", words=ALGORITHMS),
    "train.epochs": Field("int", 1),
    "train.optimizer": Field("str", words=("sgd", "adamw")),
    "train.learning_rate": Field("float", 0),
    "train.schedule": Field("str", words=("step", "cosine", "constant")),
    "train.drop_epochs": Field("ints", 0),
    "train.warmup_epochs": Field("int", 0),
    "train.momentum": _BELOW_1,
    "train.nesterov": Field("bool"),
    "train.weight_decay": Field("float", 0),
    "train.no_weight_decay": Field("strs"),
    "train.clip_norm": Field("float or none", 0),
    "train.averaging": Field("str", words=AVERAGING),
    "train.averaging_patience": Field("int", 1),
    "train.label_smoothing": _BELOW_1,
    "train.label_smoothing_over": Field("str", words=("all", "others")),
    "train.accumulate": Field("int", 1),
    "train.block_steps": Field("int", 1),
    "train.validate_every_epochs": Field("float", 0),
    "train.check_every_steps": Field("int", 1),
    "sup.enabled": Field("bool"),
    "sup.cycles": Field("int", 1),
    "sup.cycle_epochs": Field("int", 1),
    "sup.extend_budget": Field("bool"),
    "sup.explore_fraction": Field("float", 0, 1),
    "sup.lr_min": Field("float", 0),
    "sup.lr_max": Field("float", 0),
    "sup.form": Field("str", words=CYCLE_FORMS),
    "sup.kind": Field("str", words=get_args(Kind)),
    "sup.decay": Field("float or none", 0, 1),
    "sup.prune_each": Field("bool"),
    "sup.include_phase1": Field("bool"),
    "sup.batch_norm": Field("str", words=("av", "bu")),
    "checkpoint.every_minutes": Field("float", 0),
    "checkpoint.every_steps": Field("int", 0),
    "checkpoint.keep_epochs": Field("ints", 0),
    "mesh.model": Field("int", 1),
    "mesh.fsdp": Field("bool"),
    "mesh.rules": Field("strs"),
    "report.path_points": Field("int", 0),
    "report.plane_points": Field("int", 0),
    "report.examples": Field("int", 0),
}
"""Every field of a configuration by its dotted name."""

KSM_FIELDS: dict[str, Field] = FIELDS | {
    "ksm.data": Field("str"),
    "ksm.tasks": Field("strs"),
    "ksm.first_tasks": Field("int", 0),
    "ksm.methods": Field("strs"),
    "ksm.backbone": Field("path or none"),
    "ksm.epochs": Field("int", 1),
    "ksm.batch_size": Field("int", 1),
    "ksm.learning_rate": Field("float", 0),
    "ksm.head_rate": Field("float", 0),
    "ksm.weights_rate": Field("float", 0),
    "ksm.start": Field("float"),
    "ksm.threshold": Field("float"),
    "ksm.steepness": Field("float", 1e-6),
    "ksm.temperature": Field("float", 1e-6),
    "ksm.scale": Field("float", 0, 1),
}
"""Likewise of `experiments.ksm`: what is beside those of a run is of its tasks."""

_OF_SOFTNET = (
    *("seed", "evaluate", "model.name", "model.dtype", "data.name", "data.dir"),
    *("data.split_seed", "data.validation_examples", "data.shrink", "data.batch_size"),
    *("data.crop_padding", "data.crop_mode", "data.flip", "data.cutout"),
    *("train.epochs", "train.learning_rate", "train.schedule", "train.drop_epochs"),
    *("train.momentum", "train.nesterov", "train.weight_decay"),
    *("checkpoint.every_minutes", "checkpoint.every_steps"),
)
SOFTNET_FIELDS: dict[str, Field] = {name: FIELDS[name] for name in _OF_SOFTNET} | {
    "softnet.base_classes": Field("int", 2),
    "softnet.ways": Field("int", 1),
    "softnet.shots": Field("int", 1),
    "softnet.split": Field("str", words=("topic", "drawn", "file")),
    "softnet.rows": Field("path or none"),
    "softnet.draws": Field("int", 1),
    "softnet.draw_seed": _SEED,
    "softnet.bases": Field("strs"),
    "softnet.soft_epoch": Field("int", 0),
    "softnet.rules": Field("strs"),
    "softnet.block": Field("str"),
    "softnet.epochs": Field("int", 1),
    "softnet.learning_rate": Field("float", 0),
    "softnet.metric": Field("str", words=("cosine", "euclidean")),
}
"""Likewise of `experiments.softnet`, whose configurations have these alone."""

STAMP_FIELDS: dict[str, Field] = {
    name: FIELDS[name]
    for name in (
        *("seed", "evaluate", "model.name", "model.dtype"),
        *("data.dir", "data.split_seed", "data.validation_examples"),
        *("data.training_examples", "data.shrink", "data.batch_size"),
        *("data.crop_padding", "data.flip"),
        *("train.learning_rate", "train.momentum", "train.weight_decay"),
        *("checkpoint.every_minutes", "checkpoint.every_steps"),
    )
} | {
    "stamp.reference": Field("str"),
    "stamp.targets": Field("strs"),
    "stamp.pretrain_epochs": Field("int", 1),
    "stamp.episodes": Field("int", 1),
    "stamp.episode_classes": Field("int", 2),
    "stamp.set_size": Field("int", 1),
    "stamp.inner_steps": Field("int", 1),
    "stamp.inner_rate": Field("float", 0),
    "stamp.gate_rate": Field("float", 0),
    "stamp.meta_rate": Field("float", 0, 1),
    "stamp.adapt_steps": Field("int", 0),
    "stamp.hidden": Field("int", 1),
    "stamp.gate": Field("str", words=tuple(GATES)),
    "stamp.temperature": Field("float", 1e-3),
    "stamp.flops_ratio": Field("float"),
    "stamp.flops_weight": Field("float", 0),
    "stamp.kl_weight": Field("float", 0),
    "stamp.kl_prior": Field("float", 1e-6, 1 - 1e-6),
    "stamp.arms": Field("strs"),
    "stamp.free_epochs": Field("int", 1),
    "stamp.dense_epochs": Field("int", 1),
    "stamp.finetune_epochs": Field("int", 1),
    "stamp.finetune_rate": Field("float", 0),
    "stamp.report_epochs": Field("ints", 1),
}
"""Likewise of `experiments.stamp`, whose configurations have these alone."""

KNOWN = FIELDS | STAMP_FIELDS | KSM_FIELDS | SOFTNET_FIELDS
"""Every field of any command."""

# Names and values in these are checked by the functions that take them.
OPEN = ("model.options.", "method.options.", "view.options.")


def flat(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The fields of a nested configuration by their dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the dotted name that was probably meant, or an empty text."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if not near:  # Perhaps the section is missing or wrong.
        last = {full.rsplit(".", 1)[-1]: full for full in reversed(known)}
        found = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1)
        near = [last[field] for field in found]
    return f"; did you mean config.{near[0]}?" if near else ""


def check_config(config: Config, fields: Mapping[str, Field] = FIELDS) -> None:
    """Raises unless every field is known, there, of its type and in its range.

    Args:
      config: of a run, or of another command.
      fields: that it has.

    Raises:
      ValueError: one line, naming the field and its value.
    """
    given = flat(config)
    for name in given:
        if name not in fields and not name.startswith(OPEN):
            hint = nearest(name, fields)
            raise ValueError(f"unknown field config.{name}{hint}")
    for name, field in fields.items():
        if name not in given:
            raise ValueError(f"the configuration has no field config.{name}")
        _check_value(f"config.{name}", field, given[name])
    for section in dict.fromkeys(name.split(".")[0] for name in OPEN):
        if f"{section}.name" in fields and not isinstance(
            config[section].get("options"), ConfigDict
        ):
            raise ValueError(
                f"the configuration has no section config.{section}.options"
            )


def _check_value(name: str, field: Field, value: Any) -> None:
    if not _is_kind(field.kind, value):
        raise ValueError(f"{name} must be of type {field.kind}, got {value!r}")
    if field.words:
        check_one_of(name, value, field.words)
    numbers = value if isinstance(value, (tuple, list)) else [value]
    for number in numbers:
        if isinstance(number, (int, float)) and not _is_in(field, number):
            hint = percent_hint(number) if field.high == 1 else ""
            raise ValueError(f"{name} must be {_range(field)}, got {value!r}{hint}")


def _is_in(field: Field, number: float) -> bool:
    low_enough = number < field.high if field.below else number <= field.high
    return isfinite(number) and field.low <= number and low_enough


def _range(field: Field) -> str:
    """In the words of `sup_tickets.checks`."""
    if field.high < float("inf"):
        return f"in [{field.low}, {field.high}{')' if field.below else ']'}"
    return "finite" if field.low == float("-inf") else f"at least {field.low}"


def _is_kind(kind: str, value: Any) -> bool:
    if kind.endswith(" or none"):
        return value is None or _is_kind(kind.removesuffix(" or none"), value)
    if kind in ("ints", "strs"):
        one = kind.removesuffix("s")
        return isinstance(value, (tuple, list)) and all(_is_kind(one, v) for v in value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "str" | "path":
            return isinstance(value, str)
        case "int":
            return number and isinstance(value, int)
    return number
