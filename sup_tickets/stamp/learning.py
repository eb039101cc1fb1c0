"""Adapting weights and gates to a task in a few steps, and learning to do so.

A learner is one pytree of parameters: those of the network, and those that its gates
come from, a generator's or free ones. `adapt_step` is one step of it on one batch;
`reptile` moves what is meta-learned towards where a few such steps have led. No second
derivatives are taken.

References:
  Nichol et al., On First-Order Meta-Learning Algorithms, 2018,
  https://arxiv.org/abs/1803.02999; inner steps are Adam's without momentum, as there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.channels import channel_flops, gate_channels
from sup_tickets.stamp.gates import Gate, straight_through
from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.flops import Uses
from sup_tickets.training.libraries.linen_channels import PARAMS
from sup_tickets.training.losses import cross_entropy
from sup_tickets.wiring import Wiring


class Learner(NamedTuple):
    """What adapts to a task."""

    params: Any  # of the network, with a head for the classes of the task
    model_state: Any  # running statistics of the network
    gates: Any  # parameters of a generator, or [C, P] raw numbers by group
    slots: Any = None  # of the optimizer, see `first_slots`


class Objective(NamedTuple):
    """What a step lowers: cross-entropy + terms in the gates."""

    network: PureNetwork  # that takes any head
    wiring: Wiring
    gate: Gate
    raw: Callable[[Any, Any], Mapping[str, jax.Array]]
    """``(gates, means) -> [C, P] by group``: `generate`; or the gates themselves."""
    uses: Uses
    shapes: Mapping[str, tuple[int, ...]]  # of kernels, of the whole network
    ratio: float  # of operations that is aimed at
    flops_weight: float  # of |share of operations - ratio|
    kl_weight: float  # of the KL of the gates, divided by the number of channels
    kl_prior: float  # see `Gate.kl`
    temperature: float  # of the draws


class Rates(NamedTuple):
    """Learning rates of a learner."""

    params: Any  # of the network
    gates: Any


def first_slots(params: Any, gates: Any) -> Any:
    """The slots of a learner before its first step.

    Args:
      params: of the network.
      gates: likewise.
    """
    trained = {"params": params, "gates": gates}
    # On the host: every shape would have a program of its own.
    return np.int32(0), jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), trained)


def adapt_step(
    objective: Objective,
    rates: Rates,
    learner: Learner,
    means: Any,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> tuple[Learner, dict[str, jax.Array]]:
    """One step on one batch, with gates drawn once for it.

    Args:
      objective: what is lowered.
      rates: of the step.
      learner: before.
      means: [K, C] by group, of the set that the gates are made from.
      inputs: [B, ...], normalized.
      labels: [B] integers, from 0.
      key: a random key, consumed.

    Returns:
      The learner after, and scalars by name: "loss" (cross-entropy, nats), "flops" (the
      share of operations that the gates stand for).
    """
    trained = {"params": learner.params, "gates": learner.gates}
    (_, (report, model_state)), slopes = jax.value_and_grad(
        _loss, argnums=1, has_aux=True
    )(objective, trained, learner.model_state, means, inputs, labels, key)
    trained, slots = _stepped(trained, slopes, learner.slots, rates)
    return Learner(model_state=model_state, slots=slots, **trained), report


def _stepped(trained: Any, slopes: Any, slots: Any, rates: Rates) -> Any:
    """A step of Adam with beta_1 = 0, beta_2 = 0.999 and epsilon = 1e-8."""
    count, squares = slots
    count = count + 1
    squares = jax.tree.map(
        lambda v, g: _KEPT * v + (1 - _KEPT) * g * g, squares, slopes
    )
    known = 1 - _KEPT ** count.astype(jnp.float32)

    def step(rate: Any) -> Callable[..., jax.Array]:
        return lambda p, g, v: p - rate * g / (jnp.sqrt(v / known) + 1e-8)

    trained = {
        name: jax.tree.map(step(rate), trained[name], slopes[name], squares[name])
        for name, rate in rates._asdict().items()
    }
    return trained, (count, squares)


_KEPT = 0.999


def _loss(
    objective: Objective,
    trained: Any,
    model_state: Any,
    means: Any,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> Any:
    groups, gate = objective.wiring.groups, objective.gate
    raw = objective.raw(trained["gates"], means)
    names = [group.name for group in groups]
    of_gates, of_network = jax.random.split(key)
    draws = {
        name: straight_through(gate.sample(k, raw[name], objective.temperature))
        for name, k in zip(names, jax.random.split(of_gates, len(names)), strict=True)
    }
    params = gate_channels({PARAMS: trained["params"]}, _reading(objective), draws)
    logits, changed = objective.network.apply(
        params[PARAMS], model_state, inputs, True, of_network, 0
    )
    loss = cross_entropy(logits, labels).mean()
    share = flops_share(objective, {name: gate.mean(raw[name]) for name in names})
    value = loss + objective.flops_weight * jnp.abs(share - objective.ratio)
    if objective.kl_weight:
        kl = [gate.kl(raw[name], objective.kl_prior).sum() for name in names]
        channels = sum(group.size for group in groups)
        value += objective.kl_weight * jnp.stack(kl).sum() / channels
    return value, ({"loss": loss, "flops": share}, changed)


def flops_share(objective: Objective, means: Mapping[str, jax.Array]) -> jax.Array:
    """The share of operations that gates open with some probabilities stand for."""
    parts = objective.uses, objective.shapes, objective.wiring.groups
    shares = {name: mean.mean() for name, mean in means.items()}
    return channel_flops(*parts, shares) / channel_flops(*parts, {})


def _reading(objective: Objective) -> Any:
    """The groups by the parameters that read them: there are no others in the tree."""
    return [group._replace(made=()) for group in objective.wiring.groups]


def reptile(meta: Any, adapted: Any, rate: Any) -> Any:
    """``meta + rate * (adapted - meta)``, leaf by leaf; integers are left as they are.

    Args:
      meta: pytree of arrays.
      adapted: likewise.
      rate: scalar, 1 is the adapted one.

    Example:
      >>> float(reptile(jnp.float32(1), jnp.float32(3), 0.25))
      1.5
    """
    return jax.tree.map(
        lambda a, b: (
            a + jnp.asarray(rate, a.dtype) * (b - a)
            if jnp.issubdtype(a.dtype, jnp.inexact)
            else a
        ),
        meta,
        adapted,
    )
