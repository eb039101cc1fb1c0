"""Which fields of a configuration have an effect beside which others, as one table.

A field whose value is not the default's and that nothing would read is refused before
training, in one line. Two groups are told in the plan instead, because files give them
for whatever is chosen on top: the *recipe* (`RECIPE`: how often and how far a topology
changes, and the cheap tickets' rates), and all fields of a section that is switched off
as a whole, by ``sup.enabled=false`` or ``tost.parts=""``.
"""

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs.common import default
from experiments.build.option_rule import Condition, Conflict, Rule
from experiments.build.text_option_rules import TEXT_CONFLICTS, TEXT_RULES
from experiments.build.tost import tost_parts
from experiments.config.fields import Config, flat
from sup_tickets.dynamic import Method
from sup_tickets.methods import METHODS, example

# --- Conditions -----------------------------------------------------------------------

_SCORES = ("magnitude", "taylor", "snip", "grasp", "synflow")
_OF_DATA = ("taylor", "snip", "grasp")


def _preset(has: Callable[[Method], bool]) -> Condition:
    """Of a name that is none, `make_method` tells."""
    return lambda c: c.method.name not in METHODS or has(example(c.method.name))


def _drops(m: Method) -> bool:
    return bool(m.update_every) and m.rewires


def _mask(*names: str) -> Condition:
    return lambda c: c.mask.name in names


def _part(*names: str) -> Condition:
    return lambda c: bool(set(names) & set(tost_parts(c)))


def _ghost(*names: str) -> Condition:
    """As long as they are there: as released they are no ghosts, and stay."""
    return lambda c: not c.tost.released and _part(*names)(c)


def _draws(c: Config) -> bool:
    """Whether the distribution decides how many weights a layer starts with."""
    own = c.mask.name == "random" and c.masks is None
    dense = c.method.name in ("granet-dense", "gmp")
    return own and c.method.name != "dense" and not (dense and not _initial(c))


def _structured(c: Config) -> bool:
    return bool(c.method.structure) or _preset(lambda m: m.structure is not None)(c)


def _initial(c: Config) -> bool:
    return bool(c.method.initial_sparsity)


# --- The table ------------------------------------------------------------------------

RULES = (
    *TEXT_RULES,
    Rule(
        ("method.distribution",),
        lambda c: _draws(c) and ":" not in c.method.structure,
        "a method draws masks that are not dense, without an N:M structure",
    ),
    Rule(("method.structure",), lambda c: c.method.name != "dense", "masks are there"),
    Rule(
        ("method.keep_dense",),
        lambda c: c.method.name != "dense",
        "the method prunes",
    ),
    Rule(
        ("method.update_every_steps",),
        _preset(lambda m: bool(m.update_every)),
        "the method changes the topology",
    ),
    Rule(
        ("method.update_end_fraction", "method.drop_fraction", "method.drop_schedule"),
        _preset(_drops),
        "the method drops and grows",
    ),
    Rule(
        ("method.prune_end_fraction", "method.initial_sparsity"),
        _preset(lambda m: m.prune_end_step is not None),
        "the method prunes on its way",
    ),
    Rule(("method.sparsity",), lambda c: c.method.name != "dense", "masks are there"),
    Rule(
        ("mask.rounds",),
        _mask(*_OF_DATA, "synflow"),
        "the scores change from round to round",
    ),
    Rule(("mask.scope",), _mask(*_SCORES), "config.mask.name finds masks by scores"),
    Rule(
        ("mask.examples_per_class",), _mask(*_OF_DATA), "config.mask.name looks at data"
    ),
    Rule(
        ("mask.temperature", "mask.pairing"),
        _mask("grasp"),
        "config.mask.name is 'grasp'",
    ),
    Rule(
        ("mask.ratios_only",),
        lambda c: c.method.name != "dense",
        "there are masks",
    ),
    Rule(
        ("mask.orthogonal_gain", "mask.orthogonal_bias"),
        lambda c: c.mask.orthogonal,
        "config.mask.orthogonal is true",
    ),
    Rule(
        ("tost.released",),
        _part("soft", "skips", "rescale"),
        "config.tost.parts has soft, skips or rescale",
    ),
    Rule(
        ("tost.ghost_fraction",),
        _ghost("soft", "skips"),
        "config.tost.parts has soft or skips, which fade",
    ),
    Rule(("tost.soft",), _part("soft"), "config.tost.parts has soft"),
    Rule(
        ("tost.sharpness_start", "tost.sharpness_end", "tost.sharpness_shape"),
        _ghost("soft"),
        "config.tost.parts has soft, which sharpens",
    ),
    Rule(
        ("tost.skip_shape",), _ghost("skips"), "config.tost.parts has skips, which fade"
    ),
    Rule(("tost.label_smoothing",), _part("labels"), "config.tost.parts has labels"),
    Rule(
        ("tost.rescale_steps", "tost.rescale_rate", "tost.rescale_algorithm"),
        _part("rescale"),
        "config.tost.parts has rescale",
    ),
    Rule(
        ("train.averaging_patience",),
        lambda c: c.train.averaging != "none",
        "config.train.averaging is not 'none'",
    ),
    Rule(
        ("train.label_smoothing",),
        lambda c: not _part("labels")(c),
        "config.tost.parts has no labels, which smooth by config.tost.label_smoothing",
    ),
    Rule(
        ("train.label_smoothing_over",),
        lambda c: c.train.label_smoothing > 0,
        "config.train.label_smoothing is above 0",
    ),
    Rule(
        ("train.drop_epochs",),
        lambda c: c.train.schedule == "step",
        "config.train.schedule is 'step'",
    ),
    Rule(
        ("train.momentum",),
        lambda c: c.train.optimizer == "sgd" or not c.train.momentum,
        "config.train.optimizer is 'sgd'",
    ),
    Rule(
        ("train.nesterov",),
        lambda c: c.train.optimizer == "sgd" and c.train.momentum > 0,
        "config.train.optimizer is 'sgd' with a momentum",
    ),
    Rule(
        ("train.no_weight_decay",),
        lambda c: c.train.weight_decay > 0,
        "config.train.weight_decay is above 0",
    ),
    Rule(
        ("sup.cycles", "sup.cycle_epochs"),
        lambda c: c.sup.enabled or c.sup.extend_budget,
        "there are cheap tickets or their budget",
    ),
    Rule(
        ("sup.explore_fraction",),
        lambda c: c.sup.enabled and c.method.name != "dense",
        "there are cheap tickets with masks",
    ),
    Rule(
        ("sup.lr_min",),
        lambda c: c.sup.enabled and c.sup.form != "constant",
        "the rate of a cycle falls",
    ),
    Rule(
        ("sup.lr_max", "sup.form", "sup.kind"),
        lambda c: c.sup.enabled,
        "config.sup.enabled is true",
    ),
    Rule(
        ("sup.include_phase1", "sup.batch_norm"),
        lambda c: c.sup.enabled,
        "config.sup.enabled is true",
    ),
    Rule(
        ("sup.prune_each",),
        lambda c: c.sup.enabled and c.method.name != "dense",
        "the superposed ticket is pruned",
    ),
    Rule(
        ("sup.decay",),
        lambda c: c.sup.enabled and c.sup.kind == "cima",
        "config.sup.kind is 'cima'",
    ),
)
"""When fields have an effect; those of no rule always have one."""

CONFLICTS = (
    Conflict(
        ("train.averaging", "data.validation_examples"),
        lambda c: c.train.averaging != "none" and not c.data.validation_examples,
        "it begins where the validation loss stalls, and there is none",
    ),
    *TEXT_CONFLICTS,
    Conflict(
        ("mask.orthogonal", "method.structure"),
        lambda c: c.mask.orthogonal and _structured(c),
        "orthogonal weights choose their own places",
    ),
    Conflict(
        ("masks", "mask.name"),
        lambda c: c.masks is not None and c.mask.name != "random",
        "config.masks has the masks already; leave config.mask.name out",
    ),
    Conflict(
        ("mask.weights", "masks"),
        lambda c: c.mask.weights == "file" and c.masks is None,
        "it needs a file, config.masks",
    ),
    Conflict(
        ("mask.weights", "mask.orthogonal"),
        lambda c: c.mask.orthogonal and c.mask.weights != "init",
        "orthogonal weights are drawn; config.mask.weights must be 'init'",
    ),
    Conflict(
        ("mask.ratios_only", "mask.weights"),
        lambda c: c.mask.ratios_only and c.mask.weights == "file",
        "at places that are drawn anew the file has no weights; config.mask.weights "
        "must be 'init' or 'new'",
    ),
    Conflict(
        ("mask.ratios_only", "mask.orthogonal"),
        lambda c: c.mask.ratios_only and c.mask.orthogonal,
        "orthogonal weights choose their places by the number of each layer alone; "
        "leave config.mask.ratios_only out",
    ),
    Conflict(
        ("tost.released", "mask.orthogonal"),
        lambda c: c.mask.orthogonal and c.tost.released and _part("rescale")(c),
        "as released, weights are re-scaled before there are masks, and orthogonal "
        "ones are drawn for their masks",
    ),
)
"""What cannot be had together."""

RECIPE = (
    "method.sparsity",
    "method.update_every_steps",
    "method.update_end_fraction",
    "method.drop_fraction",
    "method.drop_schedule",
    "method.prune_end_fraction",
    "sup.explore_fraction",
    "sup.lr_min",
)
"""What files give for every method alike; a method takes what it has a use for."""


# --- Use ------------------------------------------------------------------------------


def check_options(config: Config) -> None:
    """Raises where a field of the configuration could not be honoured.

    Raises:
      ValueError: one line, naming the field, its value and when it would be used.
    """
    tost_parts(config)  # its names
    given = flat(config)
    for conflict in CONFLICTS:
        if conflict.met(config):
            both = " with ".join(f"config.{f}={given[f]!r}" for f in conflict.fields)
            raise ValueError(f"{both}: {conflict.why}")
    for name, rule in _unused(config).items():
        if not _told(config, name):
            raise ValueError(
                f"config.{name}={given[name]!r} would have no effect; it is used where "
                f"{rule.why}"
            )


def unused_fields(config: Config) -> tuple[str, ...]:
    """Fields that differ from the default and that this run has no use for."""
    return tuple(_unused(config))


def without_unused(config: Config) -> Config:
    """A copy with the default in every field that `check_options` would refuse."""
    ours: Config = ConfigDict(config.to_dict())
    plain = _default()
    refused = [name for name in _unused(ours) if not _told(ours, name)]
    with ours.ignore_type():
        ours.update_from_flattened_dict({name: plain[name] for name in refused})
    return ours


def _unused(config: Config) -> dict[str, Rule]:
    given, plain = flat(config), _default()
    return {
        name: rule
        for rule in RULES
        if not rule.used(config)
        for name in rule.fields
        if _value(given[name]) != _value(plain[name])
    }


@functools.cache
def _default() -> dict[str, Any]:
    return flat(default())


def _told(config: Config, name: str) -> bool:
    """Whether the plan tells of a field without effect, which is then not refused."""
    off = {"sup": not config.sup.enabled, "tost": not tost_parts(config)}
    return name in RECIPE or off.get(name.partition(".")[0], False)


def _value(value: Any) -> Any:
    """Of a configuration that was JSON, lists are tuples."""
    return tuple(value) if isinstance(value, list) else value
