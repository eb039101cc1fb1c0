"""The base session of a SoftNet experiment, and the sessions of few shots after it.

Whatever is random depends on the seed and an index alone, and is the same for all base
networks, so that every session can be gone on with from any of its steps.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.build.inputs import preparing
from experiments.build.softnet import (
    Setup,
    make_optimizer,
    make_rate,
    make_view,
    soft_leaves,
)
from experiments.config.fields import Config
from experiments.runs.phases import Phases
from experiments.systems.training import train
from sup_tickets.data.resident import steps_per_epoch
from sup_tickets.training.classification import image_classification
from sup_tickets.training.learner import Learned, Step, begin, rates_of, step_of
from sup_tickets.training.libraries.linen import linen_features, linen_network
from sup_tickets.training.partly import seen_through, viewed
from sup_tickets.training.prototypes import (
    class_means,
    moving,
    nearness,
    seen_with,
    session_step,
    soft_masks,
    with_session,
)
from sup_tickets.types import Masks, Params
from sup_tickets.views.view import Extra

_DENSE = "base-dense-start"


class Base(NamedTuple):
    """A network after the base session; its masks do not change any more."""

    params: Params  # stored
    masks: Masks  # what is seen of ones, `soft_masks`
    statistics: Any  # of batch norm; those of evaluation from here on
    prototypes: jax.Array  # [C, D], of the base classes; others 0
    features: jax.Array  # [N, D] of what is evaluated


class Lab:
    """What one seed of an experiment computes with; compiled functions are kept."""

    def __init__(self, config: Config, setup: Setup, phases: Phases):
        self._config, self._setup, self._phases = config, setup, phases
        self._prepare, inputs_of = preparing(config.data, setup.data)
        self._key = jax.random.key(config.seed)
        self._epoch_steps = steps_per_epoch(
            len(setup.base.labels), config.data.batch_size
        )
        self._step = functools.cache(self._make_step)
        self._network = linen_network(setup.model, setup.example)
        features = linen_features(setup.model)
        self._features_of = jax.jit(
            lambda seen, state, images: features(seen, state, inputs_of(images))
        )

        def plain(params: Params, inputs: Any) -> jax.Array:
            state, images = inputs
            return features(params, state, inputs_of(images))

        self._session = session_step(plain, config.softnet.ways)
        self._with_session = jax.jit(with_session, static_argnums=4)
        self._nearest = jax.jit(
            lambda found, prototypes, seen: jnp.argmax(
                nearness(found, prototypes, seen, config.softnet.metric), axis=-1
            )
        )

    # --- The base session -------------------------------------------------------------

    def base(self, name: str) -> Base:
        """A base network; the epochs before masks come are shared by all."""
        soft = self._config.softnet.soft_epoch * self._epoch_steps
        total = self._config.train.epochs * self._epoch_steps
        start = jax.jit(self._network.init)(jax.random.fold_in(self._key, 0))
        if soft:
            learned = self._train(_DENSE, "dense", start, 0, soft)
            start = learned.params["weights"], learned.model_state["statistics"]
        learned = self._train(f"base-{name}", name, start, soft, total)
        weights, state = learned.params["weights"], learned.model_state
        extra = Extra(learned.params["scores"], state["kept"])
        # Of a dense network too, so that all have one program for their sessions.
        masks = soft_masks(self._view(name), weights, extra, soft_leaves)
        return self._known(weights, masks, state["statistics"])

    def _view(self, name: str) -> Any:
        return make_view(name, redraw_every=self._epoch_steps)

    def _make_step(self, name: str) -> tuple[Step, optax.GradientTransformation]:
        """The step of the base session of a network, by its name."""
        through = seen_through(self._network, self._view(name))
        tx = make_optimizer(self._config)
        return step_of(image_classification(through, prepare=self._prepare), tx), tx

    def _train(
        self, phase: str, name: str, start: Any, first: int, last: int
    ) -> Learned:
        """Steps of the base session of a network, with new scores and slots."""
        (step, tx), (weights, statistics) = self._step(name), start
        rate = make_rate(self._config, epoch_steps=self._epoch_steps)
        order, draws, scores = jax.random.split(jax.random.fold_in(self._key, 1), 3)
        params, state = viewed(self._view(name), weights, statistics, scores)
        return train(
            self._phases,
            phase,
            lambda: begin(params, state, tx),
            step,
            self._setup.base,
            batch_size=self._config.data.batch_size,
            order=order,
            draws=draws,
            rates=rates_of(rate, last),
            first=first,
        )

    def _known(self, params: Params, masks: Masks, statistics: Any) -> Base:
        """With the prototypes of the base classes, and the features to evaluate."""
        base, count = self._setup.base, self._config.softnet.base_classes
        seen = seen_with(params, masks)
        found, held = (
            self._features(seen, statistics, split.images)
            for split in (base, self._setup.held)
        )
        means = class_means(found, jnp.asarray(base.labels), count)
        later = self._setup.data.classes - count
        prototypes = jnp.pad(means, ((0, later), (0, 0)))
        return Base(params, masks, statistics, prototypes, held)

    def _features(self, seen: Params, statistics: Any, images: np.ndarray) -> jax.Array:
        """[N, D], a batch at a time; the last is filled up, and cut."""
        size = self._config.data.batch_size
        parts = []
        for at in range(0, len(images), size):
            part = images[at : at + size]
            full = np.resize(part, (size, *part.shape[1:]))
            parts.append(self._features_of(seen, statistics, full)[: len(part)])
        return jnp.concatenate(parts)

    # --- Sessions ---------------------------------------------------------------------

    def sessions(
        self, name: str, base: Base, rule: str, draw: int
    ) -> list[list[float]]:
        """Accuracies after each session, on the classes of each session so far.

        Args:
          name: of the base network.
          base: the network.
          rule: of `sup_tickets.training.prototypes.RULES`.
          draw: which examples the sessions show.
        """
        ours, setup = self._config.softnet, self._setup
        block = re.compile(ours.block)
        moves = moving(rule, base.masks, block.search)
        trains = any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(moves))
        epochs = ours.epochs if trains else 1

        def one(state: Any, notes: Any, index: int) -> Any:
            (params, prototypes), (number, epoch) = state, divmod(index, epochs)
            rows, classes = setup.draws[draw][number], setup.sessions[number]
            images = setup.data.train.images[rows.ravel()]
            labels = setup.data.train.labels[rows.ravel()]
            first = np.int32(classes[0])
            if trains:
                inputs, rate = (base.statistics, images), np.float32(ours.learning_rate)
                params, _ = self._session(
                    params, base.masks, moves, prototypes, inputs, labels, first, rate
                )
            if epoch == epochs - 1:
                seen = seen_with(params, base.masks)
                found = self._features_of(seen, base.statistics, images)
                prototypes = self._with_session(
                    prototypes, found, labels, first, len(classes)
                )
                held = base.features
                if trains:
                    held = self._features(seen, base.statistics, setup.held.images)
                row = self._accuracies(held, prototypes, number + 1)
                notes = {"rows": [*notes.get("rows", ()), row]}
            return (params, prototypes), notes

        first = self._accuracies(base.features, base.prototypes, 0)
        _, notes = self._phases.run(
            f"sessions-{name}-{rule}-{draw}",
            lambda: (base.params, base.prototypes),
            epochs * len(setup.sessions),
            one,
        )
        return [first, *notes["rows"]]

    def _accuracies(
        self, features: jax.Array, prototypes: jax.Array, number: int
    ) -> list[float]:
        """On all classes so far; then on those of the base and of each session."""
        base, labels = self._config.softnet.base_classes, self._setup.held.labels
        parts = [range(base), *self._setup.sessions[:number]]
        seen = parts[-1][-1] + 1
        found = np.asarray(self._nearest(features, prototypes, np.int32(seen)))
        right = found == labels
        groups = [labels < seen, *(np.isin(labels, part) for part in parts)]
        return [float(right[group].mean()) for group in groups]
