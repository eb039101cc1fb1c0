"""The phases of a STAMP experiment in which gates are learned."""

import functools
from typing import Any

import jax
import numpy as np

from experiments.build.domains import Domain
from experiments.runs.phases import Notes
from experiments.systems.stamp.lab import Lab
from sup_tickets.channels import slice_channels
from sup_tickets.learning_rates import cosine_lr
from sup_tickets.stamp import GATES, Learner, Rates, first_slots, init_generator
from sup_tickets.stamp.training import Trained
from sup_tickets.training.libraries.linen_channels import PARAMS, STATE, whole_tree
from sup_tickets.trees import map_named


def train_reference(lab: Lab) -> tuple[Trained, Notes]:
    """The whole network, trained on the reference."""
    domain, epochs = lab.setup.reference, lab.config.stamp.pretrain_epochs
    steps = lab.epoch_steps(domain) * epochs
    rate = cosine_lr(lab.config.train.learning_rate, total_steps=steps)
    begin = functools.partial(lab.programs.init, lab.key("init"))
    return lab.train("reference", domain, begin, epochs, jax.jit(rate))


def new_generator(lab: Lab, name: str) -> Any:
    """A generator that has learned nothing."""
    ours, sizes = lab.config.stamp, {group.name: group.size for group in lab.groups}
    start = GATES[ours.gate].start
    return init_generator(lab.key(name), sizes, hidden=ours.hidden, start=start)


def meta_learn(lab: Lab, reference: Trained) -> tuple[Learner, Notes]:
    """Generator and weights that adapt within a few steps.

    Returns:
      The learner; notes have "loss" and "flops" of the last step of every episode.
    """

    def begin() -> Any:
        parts = reference.params, reference.model_state
        return Learner(*parts, new_generator(lab, "generator"))

    step = functools.partial(_episode, lab)
    return lab.phases.run("episodes", begin, lab.config.stamp.episodes, step)


def _episode(lab: Lab, meta: Any, notes: Notes, index: int) -> tuple[Any, Notes]:
    """Reptile: adapt to some classes, go part of the way there."""
    ours, domain, programs = lab.config.stamp, lab.setup.reference, lab.programs
    rng = lab.rng("episode", index)
    classes = rng.choice(domain.classes, ours.episode_classes, replace=False)
    among = np.flatnonzero(np.isin(domain.train.labels, classes))
    outputs = programs.outputs
    tree = jax.device_get(whole_tree(meta.params, meta.model_state))
    tree = slice_channels(tree, [outputs], {outputs.name: classes})
    places = np.zeros(domain.classes, np.int32)
    places[classes] = np.arange(len(classes))
    learner = Learner(tree[PARAMS], tree[STATE], meta.gates)
    name = f"episode {index}"
    adapted, report = adapt(
        lab, learner, domain, among, places, len(classes), ours.inner_steps, name
    )
    # The head that has adapted is of these classes alone, and is left there.
    params = map_named(
        lambda name, new, old: old if name in programs.head else new,
        adapted.params,
        meta.params,
    )
    moved = adapted._replace(params=params, slots=None)
    notes = {k: [*notes.get(k, []), value] for k, value in report.items()}
    return programs.reptile(meta, moved, np.float32(ours.meta_rate)), notes


def adapt(
    lab: Lab,
    learner: Learner,
    domain: Domain,
    among: np.ndarray,
    places: np.ndarray,
    classes: int,
    steps: int,
    name: str,
) -> tuple[Learner, dict[str, float]]:
    """A learner after some steps, and what the last one reports.

    Args:
      lab: of the experiment.
      learner: whose gates a generator makes from one set.
      domain: of the examples.
      among: [M] rows of its training split that are drawn from.
      places: from labels to those of the head.
      classes: of the head.
      steps: how many.
      name: that what is drawn depends on.
    """
    ours, rng, programs = lab.config.stamp, lab.rng(name), lab.programs
    means = set_means(lab, learner, domain, among, name)
    slots = first_slots(learner.params, learner.gates)
    learner, report = learner._replace(slots=slots), {}
    rates = Rates(np.float32(ours.inner_rate), np.float32(ours.gate_rate))
    for i in range(steps):
        rows = rng.choice(among, lab.size)
        x = programs.inputs(domain.train.images[rows], domain, lab.key(name, i))
        given = x, places[domain.train.labels[rows]], lab.key(f"{name} gates", i)
        step = programs.adapt(False, classes)
        learner, report = step(rates, learner, means, *given)
    return learner, {k: float(value) for k, value in report.items()}


def set_means(
    lab: Lab, learner: Learner, domain: Domain, among: np.ndarray, name: str
) -> Any:
    """What a generator sees of a set, which is drawn without repetition."""
    rng = lab.rng(f"set of {name}")
    rows = rng.choice(among, lab.config.stamp.set_size, replace=False)
    x = lab.programs.inputs(domain.train.images[rows], domain)
    return lab.programs.means(learner.params, learner.model_state, x)


def learn_free_gates(
    lab: Lab, meta: Learner, domain: Domain, name: str
) -> tuple[Learner, Notes]:
    """Gates of their own and weights, trained on a target in the phase of a name."""
    ours, (images, labels) = lab.config.stamp, domain.train
    start = np.asarray(GATES[ours.gate].start, np.float32)[None]
    rates = Rates(np.float32(ours.inner_rate), np.float32(ours.gate_rate))

    def begin() -> Learner:
        params = lab.headed(meta.params, domain, name)
        gates = {group.name: np.tile(start, (group.size, 1)) for group in lab.groups}
        return Learner(params, meta.model_state, gates, first_slots(params, gates))

    def step(learner: Any, notes: Notes, i: int) -> Any:
        rows = lab.rng(name, i).choice(len(labels), lab.size)
        x = lab.programs.inputs(images[rows], domain, lab.key(name, i))
        given = x, labels[rows], lab.key(f"{name} gates", i)
        one = lab.programs.adapt(True, domain.classes)
        return one(rates, learner, {}, *given)[0], notes

    return lab.phases.run(name, begin, ours.free_epochs * lab.epoch_steps(domain), step)
