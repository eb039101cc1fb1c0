"""How a task is learned by a method, kept, and looked at again.

Whatever is random depends on the seed, the task and an index alone, and is the same for
all methods, so that a task can be gone on with from any of its steps.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from experiments.build.inputs import preparing
from experiments.build.ksm import METHODS, Setup, is_head, make_view, norm_rule
from experiments.config.fields import Config
from experiments.runs.layout import SUFFIX, read_object
from experiments.runs.phases import Phases
from experiments.systems.training import train
from sup_tickets.data.resident import evaluation_batches, steps_per_epoch
from sup_tickets.files import atomic_write
from sup_tickets.learning_rates import cosine_lr
from sup_tickets.training.bundles import (
    Bundle,
    backbone_digest,
    bundle_of,
    load_bundle,
    save_bundle,
    storage_bits,
)
from sup_tickets.training.classification import image_classification
from sup_tickets.training.evaluation import predictions
from sup_tickets.training.learner import Learned, Step, begin, rates_of, scaled, step_of
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.training.partly import (
    chosen,
    frozen,
    frozen_parts,
    seen_through,
    viewed,
)
from sup_tickets.training.state import Network, completed
from sup_tickets.training.task import Task


class Place(NamedTuple):
    """Where a method keeps its bundles."""

    folder: Path
    method: str

    def bundle(self, number: int) -> Path:
        """The file of a task, counted from 0."""
        return self.folder / f"task-{number + 1:02}{SUFFIX}"

    def row(self, number: int) -> Path:
        """What was measured when it was learned; there once it is."""
        return self.bundle(number).with_suffix(".json")


class Lab:
    """What one seed of an experiment computes with; compiled functions are kept."""

    def __init__(self, config: Config, setup: Setup, phases: Phases, backbone: Network):
        self._config, self._setup, self._phases = config, setup, phases
        self._backbone = backbone
        self._digest = backbone_digest(backbone, is_head)
        self._norms = norm_rule(backbone.params)
        self._key = jax.random.key(config.seed)
        self._step = functools.cache(self._make_step)
        self._task = functools.cache(self._make_task)
        self._batches = functools.cache(self._make_batches)

    # --- Learning ---------------------------------------------------------------------

    def learn(self, place: Place, number: int) -> dict[str, Any]:
        """Learns a task unless it is, and gives what was measured then."""
        task, method = self._setup.tasks[number], place.method
        name = f"{method}-{number + 1:02}"
        if place.row(number).exists():
            (self._phases.folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
            return read_object(place.row(number))
        ours, data = self._config.ksm, task.data.train
        total = ours.epochs * steps_per_epoch(len(data.labels), ours.batch_size)
        step, tx = self._step(method, task.data.classes)
        order, draws = jax.random.split(jax.random.fold_in(self._key, 2 + number))
        params, state, rule = self._start(place, number)
        own, rest = frozen_parts(params, state, rule)
        learned = train(
            *(self._phases, name, lambda: begin(own, rest, tx), step, data),
            batch_size=ours.batch_size,
            order=order,
            draws=draws,
            rates=rates_of(cosine_lr(1.0, total_steps=total), total),
        )
        self._keep(place, number, params, learned)
        return self.learn(place, number)

    def _start(
        self, place: Place, number: int
    ) -> tuple[Any, Any, Callable[[str], bool]]:
        """Parameters and state before the first step, and which leaves are trained."""
        way, task = METHODS[place.method], self._setup.tasks[number]
        network = self._setup.model(task.data.classes)
        key = jax.random.fold_in(self._key, 1000 + number)
        drawn, drawn_state = jax.jit(network.init)(key)
        weights, state = self._backbone.params, self._backbone.model_state
        if way.starts == "drawn":
            weights, state = drawn, drawn_state
        elif way.starts == "before" and number:
            before = self._load(place, number - 1)
            weights, state = before.params, before.model_state
        weights = completed(chosen(drawn, is_head), weights)
        view = make_view(self._config, place.method)
        own = self._own(place.method)

        def rule(name: str) -> bool:
            part, _, leaf = name.partition("/")
            return part == "scores" or own(leaf)

        # Nothing of a view is drawn: scores begin alike, and nothing is kept.
        return *viewed(view, weights, state, key), rule

    def _own(self, method: str) -> Callable[[str], bool]:
        way, norms = METHODS[method], self._norms
        return lambda n: way.weights or is_head(n) or (way.norms and norms(n))

    def _make_step(
        self, method: str, classes: int
    ) -> tuple[Step, optax.GradientTransformation]:
        way, ours = METHODS[method], self._config.ksm
        partly = frozen(
            seen_through(self._setup.model(classes), make_view(self._config, method)),
            trained=lambda name: True,  # of `frozen_parts` alone
            statistics=way.norms,
        )
        prepare, _ = preparing(self._config.data, self._setup.numbers)

        def rate(name: str) -> float:
            if is_head(name.removeprefix("weights/")):
                return ours.head_rate
            return ours.weights_rate if way.weights else ours.learning_rate

        tx = optax.chain(optax.scale_by_adam(), scaled(rate))
        return step_of(image_classification(partly, prepare=prepare), tx), tx

    # --- Keeping and looking ----------------------------------------------------------

    def _keep(self, place: Place, number: int, params: Any, learned: Learned) -> None:
        way, task = METHODS[place.method], self._setup.tasks[number]
        bundle = bundle_of(
            make_view(self._config, place.method),
            completed(learned.params, params),
            learned.model_state["state"],
            own=self._own(place.method),
            statistics=way.norms,
            scale=self._config.ksm.scale if way.scaled else 0.0,
        )
        origin = {
            "method": place.method,
            "data": self._config.ksm.data,
            "classes": task.classes,
            "seed": self._config.seed,
        }
        size = save_bundle(
            place.bundle(number), bundle, backbone=self._digest, provenance=origin
        )
        looked_at = range(0 if way.starts == "before" else number, number + 1)
        found = [self._look(i, self._network(place, i, number)) for i in looked_at]
        row = {
            "method": place.method,
            "task": task.name,
            "classes": task.classes,
            # Of the tasks so far, this one last; of others it does not change.
            "accuracy": [accuracy for accuracy, _ in found],
            "scores": found[-1][1],
            "bits": storage_bits(bundle, is_head),
            "bytes": size,
            "places": sum(mask.on.size for mask in bundle.masks.values()),
            "on": sum(int(mask.on.sum()) for mask in bundle.masks.values()),
        }
        atomic_write(place.row(number), json.dumps(row, indent=1) + "\n")

    def unchanged(self, place: Place) -> bool:
        """Whether all scores of all tasks are, bit for bit, what they first were."""
        last = len(self._setup.tasks) - 1
        before = METHODS[place.method].starts == "before"
        networks = (
            self._network(place, number, last if before else number)
            for number in range(last + 1)
        )
        return all(
            self._look(number, network)[1] == read_object(place.row(number))["scores"]
            for number, network in enumerate(networks)
        )

    def _network(self, place: Place, number: int, body: int) -> Network:
        """What the forward pass sees for a task; the body may be a later task's."""
        bundle = self._load(place, number)
        if body != number:
            later = self._load(place, body)
            params = completed(chosen(bundle.params, is_head), later.params)
            bundle = later._replace(params=params)
        return bundle.network(self._backbone)

    def _load(self, place: Place, number: int) -> Bundle:
        return load_bundle(place.bundle(number), backbone=self._digest)[0]

    def _look(self, number: int, network: Network) -> tuple[float, str]:
        """Accuracy on the split of a task, and SHA-256 of the log-probabilities."""
        task = self._setup.tasks[number]
        digest, right, total = hashlib.sha256(), 0, 0
        told = predictions(
            self._task(task.data.classes), network, self._batches(number)
        )
        for one in told:
            log_p, labels, weights = jax.device_get(one)
            digest.update(log_p.tobytes())
            counted = weights > 0
            right += int((log_p.argmax(-1) == labels)[counted].sum())
            total += int(counted.sum())
        return right / total, digest.hexdigest()

    def _make_task(self, classes: int) -> Task:
        return image_classification(
            self._setup.model(classes),
            prepare=lambda batch, key: batch,
            normalize=preparing(self._config.data, self._setup.numbers)[1],
        )

    def _make_batches(self, number: int) -> list[Any]:
        split = getattr(self._setup.tasks[number].data, self._config.evaluate)
        size = self._config.ksm.batch_size
        one = jax.devices()[:1]
        shardings = data_shardings(data_mesh(one), batch_size=size)
        return evaluation_batches(*split, batch_size=size, shardings=shardings)
