"""Networks without some of their channels, smaller and not only sparser.

A group of channels is data: along which axes of which leaves its channels are made, and
along which they are read. Channels that are added to each other, as by the shortcuts of
a residual network, are one group. `sup_tickets.wiring.channel_groups` finds the groups
of any network; one may write them by hand too.

Shapes: C is the number of channels of a group.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.trees import map_named, named_leaves


class ChannelAxis(NamedTuple):
    """Where the channels of a group are in a leaf: an axis of [outer, C, inner]."""

    leaf: str  # its name, as of `sup_tickets.trees.named_leaves`
    axis: int
    outer: int = 1  # pixels, where an image was flattened
    inner: int = 1


class ChannelGroup(NamedTuple):
    """Channels that can only go together, the same number of each leaf."""

    name: str  # of the first layer that makes them
    size: int  # C
    made: tuple[ChannelAxis, ...]  # outputs of kernels, biases, norms and statistics
    read: tuple[ChannelAxis, ...]  # inputs of kernels

    @property
    def axes(self) -> tuple[ChannelAxis, ...]:
        """All of them."""
        return self.made + self.read


def slice_channels(
    tree: Any, groups: Sequence[ChannelGroup], kept: Mapping[str, Any]
) -> Any:
    """The leaves without the channels that are not kept.

    A network that reads no channel that is gone gives the same outputs as before:
    slicing is gating by zeros, see `gate_channels`, at a lower cost.

    Args:
      tree: parameters, statistics, masks, or a tree of them, with the groups' leaves;
        others stay as they are.
      groups: of channels.
      kept: by the name of a group, [C] booleans or the places that stay, in their new
        order; concrete. Groups without an entry stay whole.

    Returns:
      The tree with smaller leaves, NumPy or JAX arrays as they were.

    Raises:
      ValueError: naming a group that is not known, or whose entry is of another length,
        is no such array, or keeps nothing, which would remove a whole layer; or a leaf
        that is not in the tree or has another shape.

    Example:
      >>> group = ChannelGroup("a", 3, (ChannelAxis("a", 1),), (ChannelAxis("b", 0),))
      >>> tree = {"a": np.ones((2, 3)), "b": np.ones((3, 4))}
      >>> small = slice_channels(tree, [group], {"a": np.array([True, False, True])})
      >>> small["a"].shape, small["b"].shape
      ((2, 2), (2, 4))
    """
    places = {name: _places(name, groups, entry) for name, entry in kept.items()}
    _check_leaves(tree, groups)
    by_leaf: dict[str, list[tuple[int, np.ndarray]]] = {}
    for group in groups:
        for part in group.axes if group.name in places else ():
            whole = np.arange(part.outer * group.size * part.inner)
            whole = whole.reshape(part.outer, group.size, part.inner)
            rows = whole[:, places[group.name]].reshape(-1)
            by_leaf.setdefault(part.leaf, []).append((part.axis, rows))

    def sliced(name: str, leaf: Any) -> Any:
        for axis, rows in by_leaf.get(name, ()):
            leaf = leaf.take(rows, axis=axis)
        return leaf

    return map_named(sliced, tree)


def gate_channels(
    tree: Any, groups: Sequence[ChannelGroup], gates: Mapping[str, jax.Array]
) -> Any:
    """The leaves by which every channel is multiplied by its gate where it is read.

    Kernels are linear in what they read, so that scaling their inputs is scaling the
    activations, whatever the network is made of. A channel whose gate is 0 is without
    effect. Differentiable in both.

    Args:
      tree: with the leaves that read channels.
      groups: of channels.
      gates: [C] arrays by the names of groups; others are open.

    Raises:
      ValueError: naming a group that is not known or whose gates are of another shape,
        or a leaf that is not in the tree or has another shape.
    """
    for name, gate in gates.items():
        size = _group(name, groups).size
        if jnp.shape(gate) != (size,):
            raise ValueError(
                f"gates of {name!r} must be of shape ({size},), got {jnp.shape(gate)}"
            )
    _check_leaves(tree, groups)
    by_leaf: dict[str, list[tuple[ChannelAxis, jax.Array]]] = {}
    for group in groups:
        for part in group.read if group.name in gates else ():
            by_leaf.setdefault(part.leaf, []).append((part, gates[group.name]))

    def gated(name: str, leaf: Any) -> Any:
        for part, gate in by_leaf.get(name, ()):
            spread = jnp.broadcast_to(
                jnp.asarray(gate, leaf.dtype)[None, :, None],
                (part.outer, gate.shape[0], part.inner),
            )
            shape = [1] * leaf.ndim
            shape[part.axis] = spread.size
            leaf = leaf * jnp.broadcast_to(spread.reshape(shape), leaf.shape)
        return leaf

    return map_named(gated, tree)


def channel_flops(
    uses: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    groups: Sequence[ChannelGroup],
    shares: Mapping[str, Any],
) -> Any:
    """Operations of a forward pass of one example with a share of each group.

    Args:
      uses: of `sup_tickets.training.libraries.linen.kernel_uses`, with the names that
        the groups have for their leaves.
      shapes: of those leaves, whole.
      groups: of channels.
      shares: of the channels that are there, by the names of groups, 1 if not given:
        `fractions.Fraction` for an exact number, or traced numbers, in which it is
        differentiable, as means of gates.

    Returns:
      A number of the type of the shares.
    """
    axes: dict[str, list[str]] = {}
    for group in groups:
        for part in group.axes if group.name in shares else ():
            axes.setdefault(part.leaf, []).append(group.name)
    total: Any = 0
    for leaf, times in uses.items():
        cost: Any = 2 * times * math.prod(shapes[leaf])
        for name in axes.get(leaf, ()):
            cost = shares[name] * cost
        total = total + cost
    return total


def _places(name: str, groups: Sequence[ChannelGroup], entry: Any) -> np.ndarray:
    """The places of the channels that are kept, integers."""
    size, found = _group(name, groups).size, np.asarray(entry)
    if found.dtype == bool and found.shape == (size,):
        found = np.flatnonzero(found)
    elif (
        found.dtype.kind not in "iu"
        or found.ndim != 1
        or np.unique(found).size != found.size
        or not ((found >= 0) & (found < size)).all()
    ):
        raise ValueError(
            f"kept of {name!r} must be {size} booleans, or different places below "
            f"{size}, got {found.dtype} of shape {found.shape}"
        )
    if not found.size:
        raise ValueError(
            f"kept of {name!r} removes all {size} channels, a whole layer; at least 1 "
            "must stay"
        )
    return found


def _group(name: str, groups: Sequence[ChannelGroup]) -> ChannelGroup:
    for group in groups:
        if group.name == name:
            return group
    known = ", ".join(repr(group.name) for group in groups)
    raise ValueError(f"there is no group of channels {name!r}; there are {known}")


def _check_leaves(tree: Any, groups: Sequence[ChannelGroup]) -> None:
    shapes = {name: jnp.shape(leaf) for name, leaf in named_leaves(tree)}
    for group in groups:
        for leaf, axis, outer, inner in group.axes:
            if leaf not in shapes:
                raise ValueError(
                    f"group {group.name!r} has a leaf {leaf!r}, which is not in the "
                    "tree"
                )
            wanted = outer * group.size * inner
            if len(shapes[leaf]) <= axis or shapes[leaf][axis] != wanted:
                raise ValueError(
                    f"group {group.name!r} has {wanted} entries on axis {axis} of leaf "
                    f"{leaf!r}, whose shape is {shapes[leaf]}"
                )
