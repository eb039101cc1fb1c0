"""How many places of a mask are True, in all or in each group, soon on a CPU too.

XLA on a CPU sums slowly, but not along a short axis that is not the last: that runs at
the memory's speed. So the longest axis inside the groups is folded in two, and summed
along the short one first.
"""

import functools
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.groups import Split

_FOLD = 16
_ROW = 256
# Sums of smaller leaves are not worth the time of compiling folds.
_SMALL = 1 << 12


def on_one_cpu(leaves: list[jax.Array]) -> bool:
    """Whether reshaping is free: on one CPU device. A sharded leaf keeps its shape."""
    spread = any(_mesh_size(leaf) > 1 for leaf in leaves)
    return jax.default_backend() == "cpu" and not spread


def folds_well(array: jax.Array) -> bool:
    """Whether an array is to be summed in a `Fold`."""
    return array.size >= _SMALL and on_one_cpu([array])


class Fold(NamedTuple):
    """An array in few axes of which one is cut into equal pieces, and a last one."""

    shape: tuple[int, ...]  # in as few axes as tell groups apart
    inside: tuple[int, ...]  # those within a group
    axis: int  # of them, what is folded

    @property
    def pieces(self) -> list[slice]:
        """Of the folded axis: what folds evenly, and the rest."""
        length = self.shape[self.axis]
        whole = length if length <= _FOLD else length // _FOLD * _FOLD
        return [slice(0, whole), slice(whole, length)][: 1 + (whole < length)]

    def folded(self, length: int) -> tuple[int, int]:
        """A piece of the axis in two; the short one is never the last of all."""
        short = length if length <= _FOLD else _FOLD
        last = self.axis == len(self.shape) - 1
        return (short, length // short) if last else (length // short, short)

    def views(self, array: jax.Array) -> Iterator[jax.Array]:
        """The pieces of an array, with the axis folded."""
        before, after = self.shape[: self.axis], self.shape[self.axis + 1 :]
        whole = array.reshape(self.shape)
        for piece in self.pieces:
            part = lax.slice_in_dim(whole, piece.start, piece.stop, axis=self.axis)
            two = self.folded(piece.stop - piece.start)
            yield part.reshape(*before, *two, *after)

    def short_sum(self, places: jax.Array, dtype: Any = jnp.int32) -> jax.Array:
        """The sum of a view along the short axis, of at most 16 places."""
        last = self.axis == len(self.shape) - 1
        axis = self.axis if last else self.axis + 1
        return jnp.sum(places, axis=axis, dtype=dtype)


def fold_of(split: Split | None, shape: tuple[int, ...]) -> Fold:
    """How an array with these groups, or without, is folded."""
    few, inside = ((prod(shape),), (0,)) if split is None else split.merged
    # The last axis only where no other is long: what lies side by side is added so.
    rank = {i: (few[i] >= _FOLD and i < len(few) - 1, few[i]) for i in inside}
    return Fold(few, inside, max(inside, key=rank.__getitem__))


def count_true(mask: jax.Array, split: Split | None = None) -> jax.Array:
    """How many places are True, int32, without an integer copy; one for each group."""
    if not folds_well(mask):
        if split is not None:
            return split.summed(mask)
        # The dtype is spelled out: with 64 bits enabled int32 would be summed as int64.
        return jnp.sum(mask, dtype=jnp.int32)
    fold = fold_of(split, mask.shape)
    # In bytes: integers of four, of the whole mask, would be stored.
    sums = [
        jnp.sum(fold.short_sum(view, jnp.uint8), axis=fold.inside, dtype=jnp.int32)
        for view in fold.views(mask)
    ]
    return functools.reduce(jnp.add, sums).reshape(
        () if split is None else split.counts
    )


@functools.partial(jax.jit, inline=True)
def count_each(masks: list[jax.Array]) -> jax.Array:
    """[L] int32, how many places of each mask are True.

    On one CPU device the work of all is compiled once, but for the first step.
    """
    if not any(mask.size for mask in masks) or not on_one_cpu(masks):
        return jnp.array([count_true(mask) for mask in masks], jnp.int32)
    rows = [-(-mask.size // (_FOLD * _ROW)) for mask in masks]
    ends = np.cumsum(rows)
    room = jnp.zeros(int(ends[-1]) * _ROW, jnp.uint8)
    for mask, row in zip(masks, ends - rows, strict=True):
        flat, width = mask.reshape(-1), mask.size // _FOLD
        done, start = width * _FOLD, int(row) * _ROW
        # Adding along a short axis that is not the last is fast, and soon compiled.
        few = jnp.sum(flat[:done].reshape(_FOLD, width), axis=0, dtype=jnp.uint8)
        room = lax.dynamic_update_slice(room, few, (start,))
        if done < mask.size:
            rest = jnp.sum(flat[done:], dtype=jnp.uint8)[None]
            room = lax.dynamic_update_slice(room, rest, (start + width,))
    of_rows = jnp.sum(room.reshape(-1, _FOLD, _ROW // _FOLD), axis=1, dtype=jnp.int32)
    of_rows = jnp.sum(of_rows, axis=1, dtype=jnp.int32)
    owner = np.repeat(np.arange(len(masks)), rows)
    found = jnp.zeros(len(masks), jnp.int32).at[owner]
    return found.add(of_rows, indices_are_sorted=True, mode="promise_in_bounds")


def _mesh_size(array: jax.Array) -> int:
    sharding = getattr(jax.typeof(array), "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return 1 if mesh is None or mesh.empty else mesh.size
