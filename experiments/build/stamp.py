"""From the configuration of a STAMP experiment to its domains, network and objective.

All that can be wrong is found here, before anything is trained.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.build.data_checks import (
    check_different,
    check_examples,
    check_pixels,
    checked_network,
)
from experiments.build.domains import Domain, conforming, load_domain
from experiments.build.parts import section
from experiments.config.fields import STAMP_FIELDS, Config, check_config
from sup_tickets.channels import slice_channels
from sup_tickets.checks import check_density
from sup_tickets.stamp import GATES, Objective, keep_within
from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.flops import Uses
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.libraries.linen_channels import (
    channel_uses,
    check_follows,
    following_network,
    linen_channels,
    whole_tree,
)
from sup_tickets.trees import named_leaves
from sup_tickets.wiring import Wiring

WRONG_SET = "wrong set"
ARMS = {
    "generator": "gates of the meta-learned generator, from a set of the target",
    WRONG_SET: "likewise, from a set of the next target in the list",
    "untrained": "gates of a generator that was not meta-learned",
    "random": "the same share of each layer, at random",
    "l1": "the same share of each layer, the largest weights",
    "free": "gates of their own, trained on the target with the weights",
    "dense-prune": "the whole network trained on the target, then as l1",
    "small": "a network as small as random, trained from scratch",
}
"""What is compared."""


class Setup(NamedTuple):
    """What an experiment needs besides its configuration."""

    reference: Domain
    targets: dict[str, Domain]  # by name, in the order of the configuration
    model: nn.Module
    network: PureNetwork  # takes any widths and any head
    wiring: Wiring
    uses: Uses
    example: Any  # the shape of an input

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the whole network's leaves, with a head for some classes."""
        model = self.model.clone(classes=classes)
        params, state = jax.eval_shape(
            linen_network(model, self.example).init, jax.random.key(0)
        )
        return {n: leaf.shape for n, leaf in named_leaves(whole_tree(params, state))}

    def costs(self, classes: int) -> Mapping[str, Any]:
        """Arguments of `sup_tickets.stamp.keep_within`."""
        return {"uses": self.uses, "shapes": self.shapes(classes)}


def build_stamp(config: Config) -> Setup:
    """Reads the data, and checks everything.

    Raises:
      ValueError: one line, naming the section at fault.
      FileNotFoundError: saying how to prepare a data set.
    """
    check_config(config, STAMP_FIELDS)
    ours = config.stamp
    with section("stamp"):
        _check_arms(config)
        check_density(ours.flops_ratio, "flops_ratio")
    with section("data"):
        reference = load_domain(config, ours.reference)
        shape = reference.train.images.shape[1:]
        found = [
            load_domain(config, name, training_examples=config.data.training_examples)
            for name in ours.targets
        ]
        targets = {domain.name: conforming(domain, shape) for domain in found}
        check_pixels(config.data, shape)
    with section("stamp"):
        _check_domains(config, reference, targets)
    model = checked_network(
        config, classes=reference.classes, example=jnp.zeros((1, *shape))
    )
    with section("model"):
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        wiring = linen_channels(model, example)
        if not wiring.groups or wiring.outputs is None:
            raise ValueError("it has no channels that can be removed, or no head")
        network = following_network(linen_network(model, example))
        uses = channel_uses(model, example)
    setup = Setup(reference, targets, model, network, wiring, uses, example)
    with section("stamp"):
        for domain in targets.values():
            _check_slices(setup, domain, ours.flops_ratio)
    return setup


def make_objective(
    config: Config, setup: Setup, *, raw: Any, classes: int
) -> Objective:
    """What a learner lowers, see `sup_tickets.stamp.Objective`.

    Args:
      config: of the experiment.
      setup: likewise.
      raw: from the learner's gates and the means of a set to raw numbers.
      classes: of the head.
    """
    ours = config.stamp
    return Objective(
        network=setup.network,
        wiring=setup.wiring,
        gate=GATES[ours.gate],
        raw=raw,
        ratio=ours.flops_ratio,
        flops_weight=ours.flops_weight,
        kl_weight=ours.kl_weight,
        kl_prior=ours.kl_prior,
        temperature=ours.temperature,
        **setup.costs(classes),
    )


def _check_arms(config: Config) -> None:
    ours = config.stamp
    check_different("arms", tuple(ours.arms), ARMS)
    check_different("targets", tuple(ours.targets))
    if WRONG_SET in ours.arms and len(ours.targets) < 2:
        raise ValueError(
            f"arm {WRONG_SET!r} needs two targets or more, got {tuple(ours.targets)}"
        )
    if max(ours.report_epochs, default=0) > ours.finetune_epochs:
        raise ValueError(
            f"report_epochs must be at most finetune_epochs={ours.finetune_epochs}, "
            f"got {tuple(ours.report_epochs)}"
        )


def _check_domains(
    config: Config, reference: Domain, targets: dict[str, Domain]
) -> None:
    ours = config.stamp
    if ours.episode_classes > reference.classes:
        raise ValueError(
            f"episode_classes={ours.episode_classes} is more than the "
            f"{reference.classes} classes of the reference {reference.name!r}"
        )
    counts = np.sort(np.bincount(reference.train.labels, minlength=reference.classes))
    smallest = {reference.name: int(counts[: ours.episode_classes].sum())}
    for domain in (reference, *targets.values()):
        examples = len(domain.train.labels)
        check_examples(examples, domain.classes, config.data.batch_size)
    for domain in targets.values():
        smallest[domain.name] = len(domain.train.labels)
        shared = {*domain.labels} & {*reference.labels}
        if domain.source == reference.source and shared:
            raise ValueError(
                f"target {domain.name!r} has class {min(shared)} of the reference "
                f"{reference.name!r}; what was meta-learned has seen it"
            )
    for name, examples in smallest.items():
        if ours.set_size > examples:
            raise ValueError(
                f"set_size={ours.set_size} is more than the {examples} examples that "
                f"{name!r} has for a set"
            )


def _check_slices(setup: Setup, domain: Domain, ratio: float) -> None:
    """A budget that buys too little, or a model that cannot be sliced."""
    groups = setup.wiring.groups
    scores = {group.name: np.arange(group.size) for group in groups}
    costs = setup.costs(domain.classes)
    kept = keep_within(scores, groups, ratio=ratio, **costs)
    like = jax.eval_shape(setup.network.init, jax.random.key(0))
    whole = jax.tree.map(lambda leaf: np.zeros(leaf.shape), whole_tree(*like))
    small = slice_channels(whole, groups, kept)
    check_follows(setup.model, small["params"], setup.example)
