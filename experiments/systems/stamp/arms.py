"""The arms of a STAMP experiment: ways to get a small network for a target."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.build.stamp import WRONG_SET
from experiments.runs.phases import Notes
from experiments.systems.stamp.gates import (
    adapt,
    learn_free_gates,
    new_generator,
    set_means,
)
from experiments.systems.stamp.lab import Kept, Lab
from sup_tickets.stamp import Learner, kernel_norms, ranked
from sup_tickets.stamp.training import Trained
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.libraries.linen_channels import following, whole_tree


class Choice(NamedTuple):
    """What an arm begins to train."""

    kept: Kept  # channels
    params: Any  # of the network without the others
    model_state: Any
    before: int  # operations that it took on the target


class Target(NamedTuple):
    """What the arms of one target start from."""

    lab: Lab
    name: str
    reference: Trained  # the network before the episodes
    meta: Learner  # after them

    @property
    def domain(self) -> Any:
        """Of the target."""
        return self.lab.setup.targets[self.name]

    @property
    def file(self) -> str:
        """The name as that of a phase."""
        return self.name.replace(":", "_").replace("/", "_")

    @property
    def next(self) -> str:
        """Another target, whose sets are wrong for this one."""
        names = [*self.lab.setup.targets]
        return names[(names.index(self.name) + 1) % len(names)]

    def start(self) -> tuple[Any, Any]:
        """The network after the episodes with a new head."""
        params = self.lab.headed(self.meta.params, self.domain, self.name)
        return params, self.meta.model_state


def train_arm(target: Target, arm: str) -> dict[str, Any]:
    """Chooses the channels of an arm, removes the others, trains what is left.

    Returns:
      JSON: what it has cost, what was kept, loss and accuracy after every epoch.
    """
    lab, domain, ours = target.lab, target.domain, target.lab.config.stamp
    choice = _CHOICES[arm](target)
    parts = choice.params, choice.model_state
    _, notes = lab.train(
        f"{target.file} {arm}",
        domain,
        lambda: parts,
        ours.finetune_epochs,
        lambda i: ours.finetune_rate,
    )
    flops = lab.flops(domain, choice.kept)
    return {
        "target": target.name,
        "arm": arm,
        "flops": flops,
        "share": flops / lab.flops(domain),
        "measured": lab.programs.measured(domain.classes, choice.kept),
        "measured_share": lab.programs.measured_share(domain.classes, choice.kept),
        "before_flops": choice.before,
        "epoch_flops": lab.training_flops(domain, flops),
        "kept": {n: "".join(map(str, k.astype(int))) for n, k in choice.kept.items()},
        **notes,
    }


def train_dense(target: Target) -> tuple[Trained, Notes]:
    """The whole network, from before the episodes, trained on the target."""
    lab, ours = target.lab, target.lab.config.stamp

    def begin() -> Any:
        params = lab.headed(target.reference.params, target.domain, target.name)
        return params, target.reference.model_state

    return lab.train(
        f"{target.file} dense",
        target.domain,
        begin,
        ours.dense_epochs,
        lambda i: ours.finetune_rate,
    )


def set_overlaps(target: Target) -> dict[str, float]:
    """Of the channels that two sets keep, the share that both do.

    If sets of other targets agree as well as sets of the same one, the generator is a
    fixed way to prune.
    """
    own = _generated(target, target.meta.gates, target.name)
    others = {
        "another set": _generated(target, target.meta.gates, target.name, "again")
    }
    if target.next != target.name:
        others[WRONG_SET] = _generated(target, target.meta.gates, target.next)
    return {name: overlap(own, other) for name, other in others.items()}


def overlap(a: Kept, b: Kept) -> float:
    """Channels that both keep, by those that either keeps.

    Example:
      >>> ones = {"x": np.array([True, True, False])}
      >>> overlap(ones, {"x": np.array([True, False, False])})
      0.5
    """
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    return both / sum(int((a[name] | b[name]).sum()) for name in a)


# --- The arms -------------------------------------------------------------------------


def _generated(target: Target, gates: Any, of: str, name: str = "set") -> Kept:
    """The channels that a generator keeps, from a set of this or another target."""
    lab, domain = target.lab, target.lab.setup.targets[of]
    params = lab.headed(target.meta.params, domain, of)
    learner = target.meta._replace(params=params, gates=gates)
    among = np.arange(len(domain.train.labels))
    places = np.arange(domain.classes, dtype=np.int32)
    steps, name = lab.config.stamp.adapt_steps, f"{of} {name}"
    adapted, _ = adapt(lab, learner, domain, among, places, domain.classes, steps, name)
    # The set is seen by the network that all arms begin with.
    means = set_means(lab, learner, domain, among, name)
    opened = jax.device_get(lab.programs.opened(adapted.gates, means))
    return lab.kept(opened, target.domain)


def _of_generator(target: Target, gates: Any, of: str) -> Choice:
    lab, kept = target.lab, _generated(target, gates, of)
    steps = lab.config.stamp.adapt_steps
    before = lab.adapting_flops(lab.setup.targets[of], steps)
    return _cut(target, kept, target.start(), before)


def _cut(target: Target, kept: Kept, network: Any, before: int = 0) -> Choice:
    params, state = network
    return Choice(kept, *target.lab.sliced(params, state, kept), before)


def _untrained(target: Target) -> Choice:
    gates = new_generator(target.lab, "another generator")
    return _of_generator(target, gates, target.name)


def _by_chance(target: Target) -> Kept:
    rng, groups = target.lab.rng(f"{target.name} random"), target.lab.groups
    return target.lab.kept(
        ranked({g.name: rng.random(g.size) for g in groups}), target.domain
    )


def _largest(target: Target, network: Any, before: int = 0) -> Choice:
    norms = kernel_norms(whole_tree(*network), target.lab.groups)
    kept = target.lab.kept(ranked(norms), target.domain)
    return _cut(target, kept, network, before)


def _free(target: Target) -> Choice:
    lab, domain = target.lab, target.domain
    learner, _ = learn_free_gates(lab, target.meta, domain, f"{target.file} gates")
    before = lab.training_flops(domain, lab.flops(domain), lab.config.stamp.free_epochs)
    network = learner.params, learner.model_state
    return _cut(
        target,
        lab.kept(jax.device_get(lab.programs.opened_freely(learner.gates)), domain),
        network,
        before,
    )


def _dense_prune(target: Target) -> Choice:
    lab, domain = target.lab, target.domain
    state, _ = train_dense(target)
    epochs = lab.config.stamp.dense_epochs
    before = lab.training_flops(domain, lab.flops(domain), epochs)
    return _largest(target, (state.params, state.model_state), before)


def _small(target: Target) -> Choice:
    """Initial weights as of a network that has these widths."""
    lab, kept = target.lab, _by_chance(target)
    params, state = target.start()
    like, _ = lab.sliced(params, state, kept)
    network = linen_network(lab.setup.model, lab.setup.example)

    def init(key: jax.Array) -> Any:
        with following(like):
            return network.init(key)

    params, state = jax.jit(init)(lab.key(f"small {target.name}"))
    return Choice(kept, params, state, 0)


_CHOICES: Mapping[str, Callable[[Target], Choice]] = {
    "generator": lambda t: _of_generator(t, t.meta.gates, t.name),
    WRONG_SET: lambda t: _of_generator(t, t.meta.gates, t.next),
    "untrained": _untrained,
    "random": lambda t: _cut(t, _by_chance(t), t.start()),
    "l1": lambda t: _largest(t, t.start()),
    "free": _free,
    "dense-prune": _dense_prune,
    "small": _small,
}
