"""The compiled functions of a STAMP experiment, which all its seeds share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.build.domains import Domain
from experiments.build.stamp import Setup, make_objective
from experiments.config.fields import Config
from sup_tickets.channels import slice_channels
from sup_tickets.data.augment import Augmentation, augment, normalize
from sup_tickets.stamp import GATES, adapt_step, generate, reptile
from sup_tickets.stamp.training import Recipe, correct, train_step
from sup_tickets.training.flops import measured_flops
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.libraries.linen_channels import (
    PARAMS,
    STATE,
    channel_means,
    whole_tree,
)
from sup_tickets.trees import named_leaves


class Programs:
    """Functions of a configuration, whatever its seed."""

    def __init__(self, config: Config, setup: Setup):
        outputs = setup.wiring.outputs
        assert outputs is not None  # build_stamp has checked it
        self._setup, self.size = setup, config.data.batch_size
        self.outputs = outputs
        self.head = {axis.leaf.removeprefix(f"{PARAMS}/") for axis in outputs.made}
        """The names of the head's parameters."""
        self._changes = Augmentation(config.data.crop_padding, flip=config.data.flip)
        # Apart from what is trained, which every shape of a network has anew.
        self._inputs = jax.jit(self._prepared)
        network, groups = setup.network, setup.wiring.groups
        recipe = Recipe(config.train.momentum, config.train.weight_decay)
        gate = GATES[config.stamp.gate]

        @jax.jit
        def train(state, total, rate, x, labels, key):
            state, loss = train_step(network, recipe, state, rate, x, labels, key)
            return state, total + loss

        @functools.cache
        def adapt(free: bool, classes: int):
            raw = (lambda gates, means: gates) if free else generate
            objective = make_objective(config, setup, raw=raw, classes=classes)
            return jax.jit(functools.partial(adapt_step, objective))

        @functools.cache
        def new_head(classes: int):
            init = linen_network(setup.model.clone(classes=classes), setup.example).init

            # Nothing else is returned, so that nothing else is compiled.
            def leaves(key):
                found = named_leaves(init(key)[0])
                return {name: leaf for name, leaf in found if name in self.head}

            return jax.jit(leaves)

        self.train, self.adapt, self.new_head = train, adapt, new_head
        self.init, self.reptile = jax.jit(setup.network.init), jax.jit(reptile)
        self.means = jax.jit(functools.partial(channel_means, network, groups))
        self.opened = jax.jit(
            lambda gates, means: jax.tree.map(gate.mean, generate(gates, means))
        )
        self.opened_freely = jax.jit(functools.partial(jax.tree.map, gate.mean))
        self._counts = jax.jit(functools.partial(correct, network))
        self._measured: dict[Any, float | None] = {}
        self._zeros = functools.cache(functools.partial(_zeros, setup))

    def inputs(self, images: Any, domain: Domain, key: Any = None) -> jax.Array:
        """What the network sees of images; augmented, if there is a key."""
        # Arrays, so that all domains share what is compiled.
        numbers = [
            np.asarray(n, np.float32) for n in (domain.scale, domain.mean, domain.std)
        ]
        return self._inputs(images, numbers, key)

    def counts(self, params: Any, state: Any, domain: Domain) -> Callable[..., Any]:
        """``(images, labels) -> how many are right`` of a network."""
        return lambda images, labels: self._counts(
            params, state, self.inputs(images, domain), labels
        )

    def measured(self, classes: int, kept: Any = None) -> float | None:
        """Operations an example as the compiler counts them.

        Args:
          classes: of the head.
          kept: channels, by group; by default all.
        """
        groups = self._setup.wiring.groups
        tree = slice_channels(self._zeros(classes), groups, kept or {})
        name = tuple(leaf.shape for leaf in jax.tree.leaves(tree))
        if name not in self._measured:
            x = jax.ShapeDtypeStruct(
                (self.size, *self._setup.example.shape[1:]), jnp.float32
            )
            labels = jax.ShapeDtypeStruct((self.size,), jnp.int32)
            found = measured_flops(
                self._counts.lower(tree[PARAMS], tree[STATE], x, labels)
            )
            self._measured[name] = None if found is None else found / self.size
        return self._measured[name]

    def measured_share(self, classes: int, kept: Any) -> float | None:
        """Likewise, to those of the whole network."""
        small, whole = self.measured(classes, kept), self.measured(classes)
        return small / whole if small and whole else None

    def _prepared(self, images: Any, domain: Any, key: Any) -> jax.Array:
        scale, mean, std = domain
        if key is not None:
            images = augment(key, images, self._changes)
        return normalize(images, scale=scale, mean=mean, std=std)


def _zeros(setup: Setup, classes: int) -> Any:
    """The whole network's leaves, which take no memory."""
    init = linen_network(setup.model.clone(classes=classes), setup.example).init
    like = whole_tree(*jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like
    )
