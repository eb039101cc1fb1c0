"""Every pair of options is honoured, told of, or refused before training."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import cifar10, cifar100, common, digits, fashion_mnist, small_resnet
from configs import imagenet as imagenet_config
from experiments.build import mask_file, parts, start
from experiments.build.experiment import build
from experiments.build.option_rules import (
    CONFLICTS,
    RULES,
    check_options,
    unused_fields,
    without_unused,
)
from experiments.build.tost import with_tost
from experiments.config.fields import FIELDS, check_config, flat
from tests.test_experiments import config_of, one

pytestmark = pytest.mark.usefixtures("loose")

SECTIONS = ("masks", "mask.", "tost.", "method.", "sup.", "train.")

_STATIC = {"method.name": "static"}
_GRASP = {**_STATIC, "mask.name": "grasp"}
_SNIP = {**_STATIC, "mask.name": "snip"}
_FILE = {**_STATIC, "masks": "FILE"}
_EOI = {**_STATIC, "mask.orthogonal": True}
_SOFT, _SKIPS = {"tost.parts": "soft"}, {"tost.parts": "skips"}
_RESCALE = {"tost.parts": "rescale"}

# Field, a value that is not the default, and what it needs to be of use.
VALUES = [
    *(("method.name", n, {}) for n in ("dense", "static", "granet", "gmp", "snfs")),
    ("method.sparsity", 0.7, {}),
    ("method.distribution", "uniform", {}),
    ("method.keep_dense", ("classifier",), {}),
    ("method.structure", "fan-in", {}),
    ("method.structure", "1:2", {"method.sparsity": 0.5}),
    ("method.update_every_steps", 3, {}),
    ("method.update_end_fraction", 0.5, {}),
    ("method.drop_fraction", 0.2, {}),
    ("method.drop_schedule", "linear", {}),
    ("method.initial_sparsity", 0.3, {"method.name": "granet"}),
    (
        "method.prune_end_fraction",
        0.8,
        {"method.name": "granet", "method.update_every_steps": 1},
    ),
    ("masks", "FILE", _STATIC),
    *(("mask.name", n, _STATIC) for n in start.MASKS if n != "random"),
    ("mask.rounds", 3, _SNIP),
    ("mask.scope", "layer", _SNIP),
    ("mask.examples_per_class", 3, _SNIP),
    ("mask.temperature", 7.0, _GRASP),
    ("mask.pairing", "each", _GRASP),
    ("mask.ratios_only", True, _SNIP),
    ("mask.orthogonal", True, _STATIC),
    ("mask.orthogonal_gain", 0.5, _EOI),
    ("mask.orthogonal_bias", 0.1, _EOI),
    ("mask.weights", "new", _SNIP),
    ("mask.weights", "file", _FILE),
    *(("tost.parts", p, {}) for p in common.TOST_PARTS),
    ("tost.parts", "soft+skips+rescale+labels", {}),
    ("tost.released", True, {"tost.parts": "soft+skips+rescale"}),
    ("tost.ghost_fraction", 0.6, _SOFT),
    ("tost.soft", "mish", _SOFT),
    ("tost.sharpness_start", 3.0, _SOFT),
    ("tost.sharpness_end", 5.0, _SOFT),
    ("tost.sharpness_shape", "linear", _SOFT),
    ("tost.skip_shape", "cosine", _SKIPS),
    ("tost.label_smoothing", 0.3, {"tost.parts": "labels"}),
    ("tost.rescale_steps", 7, _RESCALE),
    ("tost.rescale_rate", 0.3, _RESCALE),
    ("tost.rescale_algorithm", "adam", _RESCALE),
    ("train.epochs", 8, {}),
    ("train.optimizer", "adamw", {}),
    ("train.learning_rate", 0.3, {}),
    ("train.schedule", "cosine", {}),
    ("train.schedule", "constant", {}),
    ("train.drop_epochs", (1,), {}),
    ("train.warmup_epochs", 1, {}),
    ("train.momentum", 0.5, {}),
    ("train.momentum", 0.0, {}),
    ("train.nesterov", True, {}),
    ("train.weight_decay", 0.3, {}),
    ("train.weight_decay", 0.0, {}),
    ("train.no_weight_decay", ("kernel",), {}),
    ("train.clip_norm", 0.01, {}),
    ("train.averaging", "restart", {}),
    ("train.averaging", "plain", {}),
    ("train.averaging_patience", 2, {"train.averaging": "restart"}),
    ("train.label_smoothing", 0.2, {}),
    ("train.label_smoothing_over", "others", {"train.label_smoothing": 0.2}),
    ("train.accumulate", 2, {}),
    ("train.block_steps", 2, {}),
    ("train.validate_every_epochs", 3, {}),
    ("train.check_every_steps", 7, {}),
    ("sup.enabled", False, {}),
    ("sup.cycles", 1, {}),
    ("sup.cycle_epochs", 2, {"train.epochs": 8}),
    ("sup.extend_budget", True, {}),
    ("sup.explore_fraction", 0.4, {}),
    ("sup.lr_min", 0.002, {}),
    ("sup.lr_max", 0.03, {}),
    *(("sup.form", f, {}) for f in ("release", "restart", "constant")),
    ("sup.kind", "caa", {}),
    ("sup.kind", "cima", {"sup.decay": 0.5}),
    ("sup.decay", 0.7, {"sup.kind": "cima"}),
    ("sup.prune_each", False, {}),
    ("sup.include_phase1", True, {}),
    ("sup.batch_norm", "bu", {}),
]
# The loop reads them as they are, whatever else is chosen.
PLAIN = (
    *("train.accumulate", "train.block_steps", "train.validate_every_epochs"),
    "train.check_every_steps",
)


def test_every_field_of_the_sections_is_in_the_table():
    ours = {name for name in FIELDS if name.startswith(SECTIONS)}
    assert {name for name, _, _ in VALUES} == ours
    plain = PLAIN_VALUES
    assert all(plain[name] != value for name, value, _ in VALUES)
    words = {name: set(field.words) for name, field in FIELDS.items() if field.words}
    for name in ours & words.keys():
        used = {value for n, value, _ in VALUES if n == name}
        # Of the first two the rest is of the kind of what is there.
        some = {"er"} if name == "method.distribution" else set()
        some |= {"constant"} if name == "method.drop_schedule" else set()
        assert used | {plain[name]} | some >= words[name]


def test_the_table_names_fields():
    for rule in (*RULES, *CONFLICTS):
        assert set(rule.fields) <= FIELDS.keys()


# --- What a run is made of, seen without training -------------------------------------


class Spies:
    """Stands in for what computes, and keeps the arguments."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("make_method", "superposition"):
            self._wrap(monkeypatch, parts, name)
        # An answer of nothing: scores and masks of a network without a weight.
        for name in ("snip", "grasp", "taylor", "magnitude", "synflow", "resample"):
            self._replace(monkeypatch, name, lambda *a, **k: {})
        for name in ("classification_loss", "total_gradient", "full_masks"):
            self._replace(monkeypatch, name, lambda *a, **k: {})
        self._replace(monkeypatch, "_examples", self._examples)
        self._replace(monkeypatch, "prune_in_rounds", self._pruned)
        self._replace(monkeypatch, "exact_orthogonal", lambda *a, **k: ({}, {}))
        self._replace(
            monkeypatch, "rescaled_init", lambda *a, **k: SimpleNamespace(params={})
        )
        self._replace(monkeypatch, "layer_counts", lambda *a, **k: {})
        self._replace(monkeypatch, "_depthwise", lambda *a, **k: [])
        self._replace(monkeypatch, "load_sparse", self._loaded)
        monkeypatch.setattr(mask_file, "load_sparse", start.load_sparse)
        monkeypatch.setattr(mask_file, "provenance_of", lambda path: {})

    def _keep(self, name, args, kwargs):
        plain = [a for a in args if isinstance(a, (str, int, float, tuple))]
        named = {
            k: v(jnp.arange(0, 10, 3)).tolist() if callable(v) else v
            for k, v in kwargs.items()
            if k not in ("depthwise", "masks", "where")
        }
        self.calls.append((name, str(plain), str(sorted(named.items()))))

    def _wrap(self, monkeypatch, module, name):
        real = getattr(module, name)

        def spy(*args, **kwargs):
            self._keep(name, args, kwargs)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    def _replace(self, monkeypatch, name, fake):
        def spy(*args, **kwargs):
            self._keep(name, args, kwargs)
            return fake(*args, **kwargs)

        monkeypatch.setattr(start, name, spy)

    def _examples(self, begin):
        self.calls.append(("examples", begin.config.mask.examples_per_class, ""))
        return []

    def _pruned(self, score, params, **kwargs):
        score(params, {})
        return {}

    def _loaded(self, path):
        return SimpleNamespace(params={}, model_state={}, masks={})

    def of(self, function, *args, **kwargs):
        self.calls = []
        found = function(*args, **kwargs)
        return found, tuple(self.calls)


class FakeModel:
    """As much of a model as ToST changes."""

    activation = staticmethod(jax.nn.relu)

    def clone(self, **changes):
        x = jnp.float32(0.3)
        return {
            k: str(v(x)) if k == "activation" else str(v) for k, v in changes.items()
        }


def cached(sections):
    """Keeps what a function of some sections of a configuration gives or raises."""

    def decorator(function):
        known = {}

        def wrapped(config, given, spies):
            key = repr([v for n, v in given.items() if n.startswith(sections)])
            if key not in known:
                try:
                    known[key] = function(config, spies)
                except ValueError as error:
                    known[key] = error
            return known[key]

        return wrapped

    return decorator


@cached(("method.", "sup.", "train.e", "train.l", "train.s", "train.d", "train.w"))
def plan_of(config, spies):
    (plan, method, rate), calls = spies.of(parts.make_parts, config, epoch_steps=5)
    rates = rate(jnp.arange(0, plan.total_steps, 2)).tolist()
    cycles = None
    ours, more = spies.of(parts.make_superposition, config, method)
    if plan.tickets.cycles:
        sup = config.sup
        assert ours is not None
        explores = sup.explore_fraction if method.sparsity else None
        cycles = (sup.include_phase1, sup.batch_norm, explores, more)
    return plan, calls, repr(method), rates, cycles


@cached(("tost.parts", "tost.label", "train.label"))
def loss_of(config, spies):
    loss = parts.make_loss(config)
    return str(loss(jnp.asarray([[0.1, 2.0, -1.0]]), jnp.asarray([1])))


_OPTIMIZER = ("optimizer", "momentum", "nesterov", "weight", "no_weight", "clip")
_OPTIMIZER += ("averaging",)


@cached(tuple(f"train.{name}" for name in _OPTIMIZER))
def updates_of(config, spies):
    params = {"kernel": jnp.asarray([1.0, -2.0]), "bias": jnp.asarray([0.5])}
    gradient = {"kernel": jnp.asarray([0.3, 0.1]), "bias": jnp.asarray([0.2])}
    tx = parts.make_optimizer(config)
    state, updates = tx.init(params), None
    for _ in range(2):
        updates, state = tx.update(gradient, state, params)
    return str(updates), [leaf.shape for leaf in jax.tree.leaves(state)]


@cached(("method.name", "mask", "tost."))
def start_of(config, spies):
    empty = start.Start({}, {}, None)
    state = SimpleNamespace(
        method=SimpleNamespace(masks={}),
        params={},
    )
    steps = SimpleNamespace(begin=lambda key: empty, init=lambda key: state)
    inputs = SimpleNamespace(
        example=jnp.zeros((1, 2)), prepare=lambda b, k: b, batches=lambda i: i
    )
    key = jax.random.key(0)
    begin = start.Begin(config, None, inputs, steps, key)  # pyright: ignore
    _, calls = spies.of(start.make_start, begin)
    mask = config.mask
    drawn = (mask.weights, mask.ratios_only, mask.orthogonal, mask.name, config.masks)
    return calls, drawn


@cached(("tost.", "train.epochs", "sup."))
def young_of(config, spies):
    phase1 = config.train.epochs - config.sup.cycles * config.sup.cycle_epochs
    model, young = with_tost(
        config,
        FakeModel(),  # pyright: ignore
        phase1_steps=5 * (phase1 if config.sup.enabled else config.train.epochs),
        epoch_steps=5,
    )
    forms = model if young is None else [str(young.form(s)) for s in (0, 2)]
    return (None if isinstance(model, FakeModel) else model), (
        young and (young.until, forms)
    )


class Made(NamedTuple):
    """What would be trained with, or the error of what cannot be."""

    parts: tuple
    unused: tuple[str, ...]  # what the plan tells of
    error: str | None


KNOWN: dict[str, Made] = {}
PLAIN_VALUES = {n: v for n, v in flat(config_of()).items() if ".options." not in n}


def made_of(changes, spies):
    key = repr(sorted(changes.items()))
    if key not in KNOWN:
        KNOWN[key] = _made_of(changes, spies)
    return KNOWN[key]


def _made_of(changes, spies):
    given = {**PLAIN_VALUES, **changes}
    config = View.of(given)
    try:
        check_config(config)
        check_options(config)
        start.check_start(config)
    except ValueError as error:
        return Made((), (), str(error))
    makers = (plan_of, loss_of, updates_of, start_of, young_of)
    found = [of(config, given, spies) for of in makers]
    wrong = [str(part) for part in found if isinstance(part, ValueError)]
    found.append([given[name] for name in PLAIN])
    return Made(tuple(found), unused_fields(config), wrong[0] if wrong else None)


class View(dict):
    """A configuration that is made fast."""

    __getattr__ = dict.__getitem__

    @classmethod
    def of(cls, given):
        found = cls()
        for name, value in given.items():
            *path, last = name.split(".")
            section = found
            for step in path:
                section = section.setdefault(step, cls())
            section[last] = value
        found["model"]["options"] = ConfigDict()
        found["method"]["options"] = ConfigDict()
        found["view"]["options"] = ConfigDict()
        return found


@pytest.fixture
def spies(monkeypatch):
    with jax.numpy_dtype_promotion("standard"):
        yield Spies(monkeypatch)


def verdict(changes, field, spies):
    """What becomes of a field: it is refused, told of, or honoured."""
    made = made_of(changes, spies)
    if made.error is not None:
        assert "config." in made.error and "\n" not in made.error
        words = [name.rsplit(".", 1)[-1] for name in changes]
        assert any(w in made.error for w in (*words, "method", "phase 1")), made.error
        return "refused"
    if field in made.unused:
        return "told"
    other = made_of({**changes, field: PLAIN_VALUES[field]}, spies)
    none = changes[field] == 0 and field == "train.momentum"  # an Adam has none either
    if other.error is None and not (none and "train.optimizer" in changes):
        assert made.parts != other.parts, f"{field} has no effect in {changes}"
    return "honoured"


@pytest.mark.parametrize("row", range(len(VALUES)), ids=lambda i: str(VALUES[i][:2]))
def test_a_value_with_every_other(row, spies):
    """Either may have what it needs, as far as the other does not say otherwise."""
    name, value, needs = VALUES[row]
    assert verdict({**needs, name: value}, name, spies) == "honoured"
    for other, its_value, its_needs in VALUES[:row]:
        if other != name:
            changes = {**its_needs, **needs, other: its_value, name: value}
            verdict(changes, name, spies)
            verdict(changes, other, spies)


# --- Files ----------------------------------------------------------------------------

FILES = (cifar10, cifar100, digits, fashion_mnist, imagenet_config, small_resnet)
ARGUMENTS = (
    *("", "sup=false", "method=dense", "method=gmp", "method=granet,sup=false"),
    *("mask=snip", "mask=grasp,method=set,sup=true", "mask=random,tost=soft+skips"),
    *("sup.form=constant", "sup.kind=caa", "sup.extend_budget=true,sup=false"),
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__)
def test_what_a_file_sets_is_never_refused(file):
    for argument in ARGUMENTS:
        check_options(file.get_config(argument))


@pytest.mark.parametrize("file", [f for f in FILES if f is not imagenet_config])
def test_a_run_of_a_file_as_it_is_uses_all_that_it_sets(file):
    assert unused_fields(file.get_config()) == ()


def test_two_ways_to_smooth_labels_are_refused():
    text = r"config.train.label_smoothing=0.1 would have no effect; .* no labels, which"
    with pytest.raises(ValueError, match=text):
        check_options(imagenet_config.get_config("tost=labels"))


def test_the_plan_tells_what_a_run_has_no_use_for():
    config = config_of(**{"method.name": "gmp", "sup.enabled": False})
    text = build(config, devices=one()).plan_text.splitlines()[-1]
    assert text.startswith("of no use to this run: method.update_end_fraction, method")
    assert "prune" not in text and "sup.cycles" in text


def test_without_unused():
    config: Any = config_of(**{"train.schedule": "cosine", "train.drop_epochs": [2]})
    ours = without_unused(config)
    assert (ours.train.drop_epochs, config.train.drop_epochs) == ((), (2,))
    assert ours.method == config.method  # told of, not refused
    check_options(ours)
