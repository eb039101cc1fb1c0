"""What the modules of several libraries share: names, leniency, one form of call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import PartitionSpec

from sup_tickets.training.classification import PureNetwork
from sup_tickets.trees import leaf_name
from sup_tickets.types import Number, Params


@contextmanager
def lenient() -> Iterator[None]:
    """For layers of other libraries, that mix types and ranks where JAX is strict."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def unchanging(
    init: Callable[[jax.Array], tuple[Params, Any]],
    run: Callable[..., tuple[jax.Array, Any]],
    statistics: Callable[..., Any],
) -> PureNetwork:
    """A network that is the same at every step.

    Args:
      init: see `PureNetwork`.
      run: ``(params, model_state, inputs, train, key) -> (logits, model_state)``; what
        it makes of the state is kept in training alone.
      statistics: see `PureNetwork`.
    """

    def apply(
        params: Params,
        model_state: Any,
        inputs: jax.Array,
        train: bool,
        key: jax.Array,
        step: Number,
    ) -> tuple[jax.Array, Any]:
        del step
        logits, state = run(params, model_state, inputs, train, key)
        return logits, state if train else model_state

    return PureNetwork(init, apply, statistics)


def said_specs(specs: Any) -> dict[str, PartitionSpec]:
    """The specs of a tree that are not empty, by the names of their leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(
        specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )[0]
    return {leaf_name(path): spec for path, spec in leaves if any(spec or ())}


class Named:
    """The names of the leaves of a tree: to a nested dict, and back.

    Example:
      >>> named = Named([1.0, (2.0, 3.0)])
      >>> named.to_dict([4.0, (5.0, 6.0)])
      {'0': 4.0, '1': {'0': 5.0, '1': 6.0}}
      >>> named.from_dict({'0': 4.0, '1': {'0': 5.0, '1': 6.0}})
      [4.0, (5.0, 6.0)]
    """

    def __init__(self, like: Any):
        """Takes the names.

        Args:
          like: a tree of arrays, or of their shapes.

        Raises:
          ValueError: if two leaves have one name, or one is within another.
        """
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(like)
        self._paths = [leaf_name(path).split("/") for path, _ in leaves]
        if len(jax.tree.leaves(self._nested(range(len(leaves))))) != len(leaves):
            raise ValueError("the leaves of a network must have names of their own")

    def to_dict(self, tree: Any) -> dict[str, Any]:
        """The leaves of a tree of the same structure, by name."""
        return self._nested(self._structure.flatten_up_to(tree))

    def from_dict(self, named: Any) -> Any:
        """The inverse of `to_dict`."""
        leaves = []
        for path in self._paths:
            place = named
            for part in path:
                place = place[part]
            leaves.append(place)
        return jax.tree.unflatten(self._structure, leaves)

    def _nested(self, leaves: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for path, leaf in zip(self._paths, leaves, strict=True):
            place = tree
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = leaf
        return tree
