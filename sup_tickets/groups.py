"""Who competes with whom: leaves split into groups, each with a count of its own.

A `Groups` says how the axes of an array are split and which of the parts tell groups
apart; the places that differ in the other parts alone are one group, and compete. It is
data, the same for any shape; `split_of` lays it over one.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.checks import check_count, check_whole
from sup_tickets.tree_checks import (
    check_counts,
    check_same_containers,
    check_same_names,
)
from sup_tickets.trees import map_named
from sup_tickets.types import Counts


class Part(NamedTuple):
    """One factor of an axis that is split."""

    size: int | None  # None for whatever the other parts leave
    apart: bool  # whether places that differ in it are of different groups


@dataclasses.dataclass(frozen=True)
class Groups:
    """A split of axes into parts that tell groups apart and parts inside a group.

    Args:
      axes: the parts of every axis that is split, the slowest first; negative axes
        count from the end.
      others_apart: whether the axes that are not named tell groups apart.

    Raises:
      ValueError: if there is no axis, or an axis has no parts or two without a size.

    Example:
      >>> gates = Groups({-1: [Part(4, True), Part(None, False)]})
      >>> gates == per_part(4), split_of(gates, "kernel", (10, 8)).counts
      (True, (4,))
    """

    axes: Any  # a mapping when made, then pairs
    others_apart: bool = False

    def __post_init__(self) -> None:
        given = self.axes
        pairs = given.items() if isinstance(given, Mapping) else given
        try:
            axes = tuple((axis, tuple(Part(*p) for p in each)) for axis, each in pairs)
        except TypeError:
            axes = ()
        object.__setattr__(self, "axes", axes)
        if not axes or any(not isinstance(a, int) or not each for a, each in axes):
            raise ValueError(
                f"axes must give parts (size, apart) by axis, got {given!r}"
            )
        for axis, parts in axes:
            for part in parts:
                if part.size is not None:
                    check_whole(f"a part of axis {axis}", part.size, 1)
            if sum(part.size is None for part in parts) > 1:
                raise ValueError(
                    f"one part of axis {axis} at most may be without a size, got "
                    f"{parts}"
                )

    def __str__(self) -> str:
        return ", ".join(_said(*pair) for pair in self.axes)


def per_output(axes: int | Sequence[int] = -1) -> Groups:
    """A group for every output neuron: exact counts of its inputs, its *fan-in*.

    Args:
      axes: of the outputs; -1, the default, is that of Flax kernels, where PyTorch and
        Equinox have 0. Of an attention's kernel there may be two.
    """
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    return Groups({axis: [Part(None, True)] for axis in axes})


def per_block(size: int, *, axis: int = -2) -> Groups:
    """A group for every ``size`` consecutive places along an axis (N:M sparsity).

    Args:
      size: the M.
      axis: -2, the default, is the input axis of Flax kernels, along which hardware
        for 2:4 sparsity multiplies.
    """
    return Groups({axis: [Part(None, True), Part(size, False)]}, others_apart=True)


def per_part(parts: int, *, axis: int = -1) -> Groups:
    """A group for each of so many equal parts of an axis: the gates of an LSTM."""
    return Groups({axis: [Part(parts, True), Part(None, False)]})


GroupsLike = Any
"""A `Groups` for every leaf, ``None`` for none, a function ``(name, leaf) -> Groups or
None``, or a pytree of either."""


# --- A grouping laid over a shape -----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """The groups of an array: all that selection needs, in plain integers."""

    shape: tuple[int, ...]  # of the array
    parts: tuple[tuple[int, bool, int], ...]  # (size, apart, axis of the array)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """The shape of a number for each group: a size for each part apart."""
        return tuple(size for size, apart, _ in self.parts if apart)

    @property
    def number(self) -> int:
        """How many groups there are."""
        return prod(self.counts)

    @property
    def members(self) -> int:
        """How many places each has."""
        return prod(size for size, apart, _ in self.parts if not apart)

    @functools.cached_property
    def whole(self) -> tuple[int, ...]:
        """Axes of the array that lie in a group as they are."""
        axes = range(len(self.shape))
        return tuple(a for a in axes if not any(p[1] for p in self.parts if p[2] == a))

    @functools.cached_property
    def block(self) -> tuple[int, int] | None:
        """``(axis, size)`` if a group is consecutive places of an axis, not all."""
        inside = [part for part in self.parts if not part[1] and part[0] > 1]
        if len(inside) != 1 or inside[0][2] in self.whole:
            return None
        size, _, axis = inside[0]
        last = [part for part in self.parts if part[2] == axis][-1]
        return (axis, size) if last == inside[0] else None

    @functools.cached_property
    def merged(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The array's shape in as few axes as tell groups apart, and those inside."""
        runs = [(apart, list(p)) for apart, p in groupby(self.parts, lambda p: p[1])]
        shape = tuple(prod(size for size, *_ in parts) for _, parts in runs)
        inside = tuple(i for i, (apart, _) in enumerate(runs) if not apart)
        return (shape, inside) if inside else ((*shape, 1), (len(shape),))

    @property
    def index(self) -> jax.Array:
        """The row-major index of every place within its group, int32.

        To be broadcast to the array's shape; without a reshape.
        """
        index, stride = jnp.zeros((1,) * len(self.shape), jnp.int32), 1
        within = dict.fromkeys(range(len(self.shape)), 1)
        for size, apart, axis in reversed(self.parts):
            if not apart and size > 1:
                shape = [n if a == axis else 1 for a, n in enumerate(self.shape)]
                place = lax.broadcasted_iota(jnp.int32, shape, axis) // within[axis]
                index = index + place % size * stride
                stride *= size
            within[axis] *= size
        return index

    def beside(self, values: jax.Array) -> jax.Array:
        """``values``, one a group, to be compared with an array of shape `merged`."""
        shape, inside = self.merged
        return values.reshape([1 if i in inside else n for i, n in enumerate(shape)])

    def spread(self, values: jax.Array) -> jax.Array:
        """``values``, one a group, to be compared with the array."""
        # Whole axes stay 1 and are broadcast, so that a sharded axis is not reshaped.
        kept = [part for part in self.parts if part[2] not in self.whole]
        spread = values.reshape([size if apart else 1 for size, apart, _ in kept])
        spread = jnp.broadcast_to(spread, [size for size, *_ in kept])
        axes = enumerate(self.shape)
        return spread.reshape([1 if a in self.whole else n for a, n in axes])

    def summed(self, places: jax.Array) -> jax.Array:
        """The sum over every group of an int32 array of our shape."""
        sums = jnp.sum(places, axis=self.whole, dtype=jnp.int32)
        kept = [part for part in self.parts if part[2] not in self.whole]
        inside = tuple(i for i, (_, apart, _) in enumerate(kept) if not apart)
        return jnp.sum(
            sums.reshape([size for size, *_ in kept]), axis=inside, dtype=jnp.int32
        )


@functools.lru_cache(maxsize=4096)
def split_of(
    groups: Groups, name: str, shape: tuple[int, ...], argument: str = "groups"
) -> Split:
    """The groups of an array.

    Args:
      groups: who competes with whom.
      name: of the leaf, for an error.
      shape: of the array.
      argument: what to call the groups in an error.

    Raises:
      ValueError: if the array lacks an axis, or its parts do not divide it.
    """
    at = f"leaf {name!r} of shape {shape}"
    named: dict[int, tuple[Part, ...]] = {}
    for axis, parts in groups.axes:
        if not -len(shape) <= axis < len(shape) or axis % len(shape) in named:
            raise ValueError(f"{argument}: {groups} needs another axis than {at} has")
        named[axis % len(shape)] = parts
    found: list[tuple[int, bool, int]] = []
    for axis, size in enumerate(shape):
        parts = named.get(axis, (Part(None, groups.others_apart),))
        given = prod(part.size for part in parts if part.size is not None)
        free = any(part.size is None for part in parts)
        if size % given or (given != size and not free):
            raise ValueError(f"{argument}: {groups} does not divide {at}")
        for part in parts:
            wide = size // given if part.size is None else part.size
            found.append((wide, part.apart, axis))
    return Split(tuple(shape), tuple(found))


def splits_of(
    groups: GroupsLike, tree: Any, like: Any, argument: str = "groups"
) -> Any:
    """The `Split` of every leaf that has groups.

    Args:
      groups: for the whole tree, by a function, or leaf by leaf.
      tree: pytree of arrays.
      like: pytree with its structure; where it is ``None`` there is nothing to split.
      argument: what to call ``groups`` in an error.

    Returns:
      Pytree with the structure of ``tree``, ``None`` where a leaf is not split.

    Raises:
      ValueError: naming the leaf that cannot be split so, or has none.
    """
    if groups is None:
        return jax.tree.map(lambda _: None, tree)
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(groups)):
        given = jax.tree.map(lambda _: groups, tree)
    else:
        check_same_names(argument, groups, "the tree", tree)
        check_same_containers(argument, groups, "the tree", tree)
        given = groups

    def split(name: str, leaf: Any, ours: Any, beside: Any) -> Split | None:
        if beside is None:
            return None
        found = ours(name, leaf) if callable(ours) else ours
        if found is None:
            return None
        if not isinstance(found, Groups):
            raise ValueError(
                f"{argument} must be Groups or None at leaf {name!r}, got {found!r}"
            )
        return split_of(found, name, tuple(leaf.shape), argument)

    return map_named(split, tree, given, like)


def checked_splits(
    name: str, counts: Counts, like_name: str, like: Any, groups: GroupsLike
) -> Any:
    """The `splits_of` the leaves of ``like`` that have counts, once these are checked.

    Args:
      name: of the counts.
      counts: pytree of integers and ``None``; where a leaf has groups, one for all of
        them or an array of one for each, of shape `Split.counts`.
      like_name: of the other argument.
      like: pytree of arrays.
      groups: see `splits_of`.

    Raises:
      ValueError: naming the first leaf or container that differs or is out of range.
    """
    if groups is None:
        check_counts(name, counts, like_name, like)
        return splits_of(None, like, counts)
    check_same_names(name, counts, like_name, like)
    check_same_containers(name, counts, like_name, like)
    splits = splits_of(groups, like, counts)

    def check(leaf: str, size: Any, split: Split | None, count: Any) -> None:
        if count is not None:
            check_group_counts(f"{name} at leaf {leaf!r}", count, split, size.size)

    map_named(check, like, splits, counts)
    return splits


def check_group_counts(name: str, count: Any, split: Split | None, size: int) -> None:
    """Raises unless this is a count of one leaf, or one for each of its groups.

    Raises:
      ValueError: naming the count and its value.
    """
    if split is None or not np.ndim(count):
        check_count(name, count, size if split is None else split.members)
        return
    if np.shape(count) != split.counts or not jnp.issubdtype(count.dtype, np.integer):
        raise ValueError(
            f"{name} must be an integer, or integers of shape {split.counts}, got "
            f"{count.dtype} of shape {np.shape(count)}"
        )
    if isinstance(count, np.ndarray) and count.size:
        check_count(name, int(count.min()), split.members)
        check_count(name, int(count.max()), split.members)


# --- Parts ----------------------------------------------------------------------------


def _said(axis: int, parts: tuple[Part, ...]) -> str:
    """What a split of one axis is called."""
    match parts:
        case (Part(None, True),):
            return f"a group for each index of axis {axis}"
        case (Part(None, True), Part(size, False)):
            return f"blocks of {size} along axis {axis}"
        case (Part(size, True), Part(None, False)):
            return f"{size} parts of axis {axis}"
    sizes = [f"{p.size or '...'}{' apart' if p.apart else ''}" for p in parts]
    return f"axis {axis} as {' x '.join(sizes)}"
