"""The states of several runs as one, [R, ...], and where it lies.

Where every device has all of a state, and the runs can be shared out evenly, each
device has some of the runs, and trains them on whole batches: nothing is exchanged
between devices. Else each state lies as it would alone, and batches are shared out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sup_tickets.training.mesh import stacked
from sup_tickets.training.state import TrainState


class Stack:
    """The states of some runs, [R, ...]; of those that are not in it anything."""

    def __init__(self, states: Sequence[TrainState]):
        every = {leaf.sharding for leaf in jax.tree.leaves(states[0])}
        split = _shared_out(len(states), *every) if len(every) == 1 else None
        self.split = split  # sharding of the runs, if each device has some of them
        self.state = _stacked(states, split)

    def row(self, row: int) -> TrainState:
        """The state of a run; whole on every device, if the runs are shared out."""
        place = None if self.split is None else _on_all(self.split)
        return _row_to(place)(self.state, row)

    def places(self, tells: bool) -> Any:
        """Where a call leaves the state and what it tells: the state where it was.

        Of a state that is spread over devices, what tells nothing may give another
        tree, and leaves all that it keeps where it lies.
        """
        if self.split is not None:
            return self.split, _on_all(self.split)
        places = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        every = set(jax.tree.leaves(places))
        if len(every) == 1:
            return every.pop()
        return (places, None) if tells else None


def at(tree: Any, row: Any) -> Any:
    """A row of each leaf."""
    return jax.tree.map(lambda leaf: leaf[row], tree)


def _stacked(states: Sequence[TrainState], split: Any) -> TrainState:
    """States on a new first axis, which is split, or else each leaf as it was."""

    def place(leaf: jax.Array) -> Any:
        one = leaf.sharding
        return split or (one if one.is_fully_replicated else stacked(one))

    places = jax.tree.map(place, states[0])
    return jax.jit(_stack_all, out_shardings=places)(states)


def _shared_out(runs: int, one: Any) -> NamedSharding | None:
    """The sharding of runs over devices that all have all of each, if there is any."""
    if not (isinstance(one, NamedSharding) and one.is_fully_replicated):
        return None
    if one.mesh.size == 1 or runs % one.mesh.size:
        return None
    return NamedSharding(one.mesh, PartitionSpec(one.mesh.axis_names))


def _on_all(one: Any) -> NamedSharding:
    return NamedSharding(one.mesh, PartitionSpec())


def _stack_all(states: Sequence[TrainState]) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@functools.lru_cache(maxsize=4)
def _row_to(place: Any) -> Callable[..., Any]:
    return jax.jit(at, out_shardings=place)
