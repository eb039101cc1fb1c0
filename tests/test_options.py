"""Every pair of options is honoured, told of in the plan, or refused before training."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import cifar10, cifar100, common, digits, fashion_mnist, small_resnet
from configs import imagenet as imagenet_config
from experiments.build import parts, start
from experiments.build.experiment import build
from experiments.build.rules import (
    CONFLICTS,
    RULES,
    check_options,
    unused_fields,
    without_unused,
)
from experiments.build.tost import with_tost
from experiments.config.fields import FIELDS, check_config, flat
from sup_tickets.training.network_files import load_sparse
from sup_tickets.training.plan import drop_steps
from tests.test_experiments import config_of, one

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
    ("method.dense", ("classifier",), {}),
    ("method.update_every_steps", 3, {}),
    ("method.update_end_fraction", 0.5, {}),
    ("method.drop_fraction", 0.2, {}),
    ("method.drop_schedule", "linear", {}),
    ("method.initial_sparsity", 0.3, {"method.name": "granet"}),
    ("method.prune_end_fraction", 0.8, {"method.name": "granet"}),
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
    ("train.label_smoothing", 0.2, {}),
    ("train.label_smoothing_over", "others", {"train.label_smoothing": 0.2}),
    ("train.accumulate", 2, {}),
    ("train.block_steps", 2, {}),
    ("train.validate_every_epochs", 3, {}),
    ("train.check_every_steps", 7, {}),
    ("sup.enabled", False, {}),
    ("sup.cycles", 1, {}),
    ("sup.cycle_epochs", 2, {}),
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
    plain = flat(config_of())
    assert all(plain[name] != value for name, value, _ in VALUES)
    words = {name: set(field.words) for name, field in FIELDS.items() if field.words}
    for name in ours & words.keys():
        used = {value for n, value, _ in VALUES if n == name}
        assert used | {plain[name]} >= words[name] - {"erk", "er"} - {"constant"} * (
            name == "method.drop_schedule"
        )


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
        monkeypatch.setattr(start, "provenance_of", lambda path: {})

    def _keep(self, name, args, kwargs):
        plain = [a for a in args if isinstance(a, (str, int, float, tuple))]
        named = {
            k: tuple(float(v(s)) for s in (0, 3, 9)) if callable(v) else v
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
        return SimpleNamespace(params={}, batch_stats={}, masks={})

    def of(self, function, *args, **kwargs):
        self.calls = []
        found = function(*args, **kwargs)
        return found, tuple(self.calls)


class FakeModel:
    """As much of a model as ToST changes."""

    activation = staticmethod(jax.nn.relu)

    def clone(self, **changes):
        x = jnp.float32(0.3)
        return {k: str(v(x)) if k == "activation" else str(v) for k, v in changes.items()}


def cached(sections):
    """Keeps what a function of some sections of a configuration gives or raises."""

    def decorator(function):
        known = {}

        def wrapped(config, spies):
            key = str([(n, v) for n, v in flat(config).items() if n.startswith(sections)])
            if key not in known:
                try:
                    known[key] = function(config, spies)
                except ValueError as error:
                    known[key] = error
            if isinstance(known[key], ValueError):
                raise known[key]
            return known[key]

        return wrapped

    return decorator


@cached(("method.", "sup.", "train.e", "train.l", "train.s", "train.d", "train.w"))
def plan_of(config, spies):
    (plan, method, rate), calls = spies.of(parts.make_parts, config, epoch_steps=5)
    rates = tuple(float(rate(s)) for s in range(0, plan.total_steps, 2))
    cycles = None
    ours, more = spies.of(parts.make_superposition, config)
    if plan.tickets.cycles:
        sup = config.sup
        assert ours is not None
        explores = sup.explore_fraction if method.sparsity else None
        cycles = (sup.include_phase1, sup.batch_norm, explores, more)
    return plan, calls, rates, cycles


@cached(("train.", "tost.parts", "tost.label"))
def recipe_of(config, spies):
    loss = parts.make_loss(config)
    scores = jnp.asarray([[0.1, 2.0, -1.0]])
    params = {"a": {"kernel": jnp.asarray([1.0, -2.0])}, "b": jnp.asarray([0.5])}
    gradient = jax.tree.map(lambda p: 0.3 * p, params)
    tx = parts.make_optimizer(config)
    state, updates = tx.init(params), None
    for _ in range(2):
        updates, state = tx.update(gradient, state, params)
    plain = tuple(config.train[name.partition(".")[2]] for name in PLAIN)
    return str(loss(scores, jnp.asarray([1]))), str(updates), plain


@cached(("method.name", "mask", "tost."))
def start_of(config, spies):
    empty = start.Start({}, {}, None)
    state = SimpleNamespace(
        method=SimpleNamespace(masks={}),
        step=SimpleNamespace(sharding=jax.devices()[0]),
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


def made_of(config, spies):
    """All that would be trained with, as values that can be compared.

    Raises:
      ValueError: before anything is trained, if it cannot be.
    """
    check_config(config)
    check_options(config)
    start.check_start(config)
    return tuple(
        of(config, spies) for of in (plan_of, recipe_of, start_of, young_of)
    )  # fmt: skip


@pytest.fixture
def spies(monkeypatch):
    with jax.numpy_dtype_promotion("standard"):
        yield Spies(monkeypatch)


@pytest.fixture(autouse=True)
def loose():
    """Optax's Adam multiplies floats by integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def verdict(changes, field, spies):
    """ "refused", "told" or "honoured"; anything else is an error."""
    config = config_of(**changes)
    try:
        found = made_of(config, spies)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text
        words = [name.rsplit(".", 1)[-1] for name in changes]
        assert any(word in text for word in (*words, "method", "cycles")), text
        return "refused"
    if field in unused_fields(config):
        return "told"
    plain = flat(config_of())[field]
    try:
        other = made_of(config_of(**{**changes, field: plain}), spies)
    except ValueError:
        return "honoured"  # nothing goes without it
    assert found != other, f"{field}={changes[field]!r} has no effect in {changes}"
    return "honoured"


@pytest.mark.parametrize("row", range(len(VALUES)), ids=lambda i: str(VALUES[i][:2]))
def test_a_value_with_every_other(row, spies):
    """Either may have what it needs, as far as the other does not say otherwise."""
    name, value, needs = VALUES[row]
    assert verdict({**needs, name: value}, name, spies) == "honoured"
    for other, its_value, its_needs in VALUES:
        if other == name:
            continue
        changes = {**its_needs, **needs, other: its_value, name: value}
        verdict(changes, name, spies)
