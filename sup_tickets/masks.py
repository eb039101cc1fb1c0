"""Masks: make, apply, count, compare, pack.

Masks are pytrees with the structure of the parameters: a bool array at a sparse leaf,
``None`` at a leaf that is never pruned. A weight is *active* where its mask is True.
"""

import functools
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.counting import MAX_COUNT
from sup_tickets.groups import GroupsLike, Split, checked_splits, splits_of
from sup_tickets.place_counts import count_each, count_true
from sup_tickets.selection import select
from sup_tickets.tree_checks import (
    check_same_containers,
    check_same_leaves,
    check_same_names,
)
from sup_tickets.trees import (
    RuleLike,
    default_rule,
    map_named,
    named_leaves,
    sparse_leaves,
    uniform_draws,
)
from sup_tickets.types import Counts, Masks, Params


def full_masks(params: Params, *, where: RuleLike = default_rule) -> Masks:
    """Masks with every weight of the sparse leaves active.

    Args:
      params: pytree of arrays.
      where: which leaves are sparse, see `sparse_leaves`.
    """
    chosen = sparse_leaves(params, where=where)
    return jax.tree.map(
        lambda w, sparse: jnp.ones(w.shape, bool) if sparse else None, params, chosen
    )


def random_masks(
    key: jax.Array, params: Params, counts: Counts, *, groups: GroupsLike = None
) -> Masks:
    """Masks with exactly ``counts`` active weights at random places of each leaf.

    Args:
      key: a random key, consumed; the draw of a leaf depends on its name alone.
      params: pytree of arrays, of which only the shapes are read.
      counts: pytree of integers, ``None`` where a leaf is never pruned; where a leaf
        has groups, of each of them, see `select`.
      groups: who competes with whom, see `select`.
    """
    checked_splits("counts", counts, "params", params, groups)
    return select(uniform_draws(key, params), counts, groups=groups)


def apply_masks(masks: Masks, tree: Any) -> Any:
    """``tree`` with exactly +0 where a mask is False; unchanged where it is ``None``.

    The bits are cleared, not multiplied: what stood in a dead place, NaN, infinity or
    -0, is gone. On a CPU this is also a third cheaper than a ``where``.

    Args:
      masks: masks, or any pytree of bool arrays and ``None``.
      tree: pytree with the same structure: parameters, gradients, moments.
    """
    check_masks(tree, masks, "tree")
    return jax.tree.map(
        lambda leaf, mask: leaf if mask is None else _clear(leaf, mask), tree, masks
    )


def choose(masks: Masks, tree: Any, other: Any) -> Any:
    """``tree`` where a mask is True or ``None``, ``other`` where it is False.

    Args:
      masks: masks, or any pytree of bool arrays and ``None``.
      tree: pytree with the same structure.
      other: likewise.

    Raises:
      ValueError: naming the first leaf or container in which the trees differ.
    """
    check_same_leaves("masks", masks, "tree", tree)
    check_same_leaves("other", other, "tree", tree)
    return jax.tree.map(
        lambda leaf, mask, at_dead: (
            leaf if mask is None else _blend(leaf, mask, at_dead)
        ),
        tree,
        masks,
        other,
    )


def _clear(leaf: jax.Array, mask: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)  # of NumPy it may be wider than JAX is set to
    if _integer_view(leaf) is None:
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))
    bits, ones = _bits_and_ones(leaf, mask)
    return lax.bitcast_convert_type(bits & ones, leaf.dtype)


def _blend(leaf: jax.Array, mask: jax.Array, other: jax.Array) -> jax.Array:
    leaf, other = jnp.asarray(leaf), jnp.asarray(other)
    if _integer_view(leaf) is None or other.dtype != leaf.dtype:
        return jnp.where(mask, leaf, other)
    bits, ones = _bits_and_ones(leaf, mask)
    others = lax.bitcast_convert_type(other, bits.dtype)
    return lax.bitcast_convert_type((bits & ones) | (others & ~ones), leaf.dtype)


def _bits_and_ones(leaf: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bits of ``leaf``, and all ones where the mask is True, zeros elsewhere."""
    integer = _integer_view(leaf)
    return lax.bitcast_convert_type(leaf, integer), -mask.astype(integer)


def _integer_view(leaf: jax.Array) -> Any:
    """The signed integer as wide as the leaf's dtype, or ``None`` if there is none."""
    width = leaf.dtype.itemsize
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or width not in (2, 4, 8):
        return None
    return np.dtype(f"int{8 * width}")


def check_masks(
    params: Params, masks: Masks, name: str = "params", masks_name: str = "masks"
) -> None:
    """Raises unless ``masks`` are masks of ``params``.

    Args:
      params: pytree of arrays.
      masks: pytree of bool arrays and ``None``.
      name: what to call ``params`` in an error.
      masks_name: what to call ``masks``.

    Raises:
      ValueError: naming the first leaf or container that differs.
      TypeError: naming the first leaf that is not bool.
    """
    check_same_leaves(masks_name, masks, name, params)
    _check_bool(masks, masks_name)


def _check_bool(masks: Masks, masks_name: str = "masks") -> None:
    for name, mask in named_leaves(masks):
        dtype = getattr(mask, "dtype", type(mask).__name__)
        if dtype != np.bool_:
            raise TypeError(f"{masks_name} must be bool, got {dtype} at leaf {name!r}")


# --- Counting -------------------------------------------------------------------------


def layer_counts(masks: Masks, *, groups: GroupsLike = None) -> Counts:
    """Active weights of each leaf, integer scalars; ``None`` where masks is ``None``.

    They are int32, but int64 for a leaf of 2**31 places or more. Where a leaf has
    groups, those of each: int32 of the shape of `Split.counts` (per output, a vector).
    """
    _check_bool(masks)
    leaves, structure = jax.tree.flatten(masks)
    splits = structure.flatten_up_to(splits_of(groups, masks, masks))
    found: list[Any] = list(map(_leaf_count, leaves, splits))
    together = [i for i, count in enumerate(found) if count is None]
    counts = count_each([leaves[i] for i in together])
    for i, count in zip(together, counts, strict=True):
        found[i] = count
    return jax.tree.unflatten(structure, found)


def layer_densities(masks: Masks) -> Any:
    """Share of active weights of each leaf, float32 scalars; ``None`` at dense ones."""
    counts = layer_counts(masks)
    return jax.tree.map(lambda n, mask: _share(n, mask.size), counts, masks)


def count(masks: Masks) -> jax.Array:
    """Active weights of all sparse leaves, exact, traced or not.

    Returns:
      int32 scalar; int64, whether or not 64 bits are enabled, if the leaves have 2**31
      places or more.
    """
    return _total(jax.tree.leaves(layer_counts(masks)), size(masks))


def size(masks: Masks) -> int:
    """Number of places of all sparse leaves, active or not."""
    return sum(prod(mask.shape) for mask in jax.tree.leaves(masks))


def density(masks: Masks) -> jax.Array:
    """Share of active weights of the sparse leaves, float32; 1 if none is sparse."""
    return _share(count(masks), size(masks))


def sparsity(masks: Masks) -> jax.Array:
    """Share of inactive weights of the sparse leaves: ``1 - density``, float32."""
    return 1 - density(masks)


def _leaf_count(mask: jax.Array, split: Split | None) -> jax.Array | None:
    """Of a leaf that is not counted together with others."""
    if split is not None or prod(mask.shape) <= MAX_COUNT:
        return None if split is None else count_true(mask, split)
    # Any axis would do; what is left of a row is far below 2**31.
    return _total(jnp.sum(mask, axis=-1, dtype=jnp.int32).reshape(-1), mask.size)


def _total(counts: Any, places: int) -> jax.Array:
    """The sum of int32 counts, wide enough to count so many places."""
    if places <= MAX_COUNT:
        return functools.reduce(jnp.add, counts, jnp.int32(0))
    with jax.enable_x64(True):
        wide = [jnp.sum(jnp.asarray(n).astype(jnp.int64)) for n in _listed(counts)]
        return functools.reduce(jnp.add, wide, jnp.zeros((), jnp.int64))


def _listed(counts: Any) -> list[Any]:
    return counts if isinstance(counts, list) else [counts]


def _share(part: jax.Array, whole: int) -> jax.Array:
    return part.astype(jnp.float32) / float(whole) if whole else jnp.float32(1)


class LayerRow(NamedTuple):
    """One line of `layer_table`."""

    name: str
    shape: tuple[int, ...]
    size: int
    active: int
    density: float


def layer_table(masks: Masks) -> list[LayerRow]:
    """Name, shape and exact counts of every sparse leaf, and their total; on the host.

    Args:
      masks: concrete masks (not traced).

    Returns:
      A row for each sparse leaf in tree order, then one named "total".
    """
    rows = [
        LayerRow(name, mask.shape, mask.size, int(active), int(active) / mask.size)
        for (name, mask), active in zip(
            named_leaves(masks), jax.tree.leaves(layer_counts(masks)), strict=True
        )
        if mask.size
    ]
    places, active = sum(row.size for row in rows), sum(row.active for row in rows)
    share = active / places if places else 1.0
    return [*rows, LayerRow("total", (), places, active, share)]


# --- Comparing ------------------------------------------------------------------------


def union(a: Masks, b: Masks) -> Masks:
    """Active in either."""
    return _pairwise(jnp.logical_or, a, b)


def intersection(a: Masks, b: Masks) -> Masks:
    """Active in both."""
    return _pairwise(jnp.logical_and, a, b)


def difference(a: Masks, b: Masks) -> Masks:
    """Active in the first but not in the second."""
    return _pairwise(lambda x, y: x & ~y, a, b)


def hamming(a: Masks, b: Masks) -> jax.Array:
    """Number of places where two masks differ, an integer scalar as of `count`."""
    return count(_pairwise(jnp.logical_xor, a, b))


def overlap(a: Masks, b: Masks) -> jax.Array:
    """Jaccard index: active in both over active in either, float32 in [0, 1].

    1 if neither has an active weight.
    """
    either = count(union(a, b)).astype(jnp.float32)
    both = count(intersection(a, b)).astype(jnp.float32)
    return jnp.where(either == 0, jnp.float32(1), both / jnp.maximum(either, 1))


def _pairwise(function: Callable[..., jax.Array], a: Masks, b: Masks) -> Masks:
    check_same_leaves("the first masks", a, "the second", b)
    check_same_leaves("the second masks", b, "the first", a)
    return jax.tree.map(function, a, b)


# --- Packing --------------------------------------------------------------------------


def pack(masks: Masks) -> Any:
    """One bit a weight: a uint8 array of ``ceil(size / 8)`` bytes for each mask.

    The first place is the highest bit of the first byte; the last byte is padded with
    zeros. ``None`` stays ``None``.
    """
    _check_bool(masks)
    # In rows of whole bytes: what devices have parts of they then gather as bits.
    rows = jax.tree.map(
        lambda m: m if m.ndim and m.shape[-1] % 8 == 0 else m.reshape(-1), masks
    )
    return jax.tree.map(lambda row: jnp.packbits(row, axis=-1).reshape(-1), rows)


def unpack(packed: Any, params: Params) -> Masks:
    """The masks that were packed; exact inverse of `pack`.

    Args:
      packed: pytree of uint8 arrays of rank 1, ``None`` at dense leaves.
      params: pytree of arrays with the shapes of the masks.

    Raises:
      ValueError: naming the first leaf whose number of bytes does not fit its shape, or
        in which the trees differ.
    """
    check_same_names("packed", packed, "params", params)
    check_same_containers("packed", packed, "params", params)

    def restore(name: str, leaf: Any, bits: Any) -> Any:
        if bits is None:
            return None
        if bits.shape != (-(-leaf.size // 8),):
            raise ValueError(
                f"packed has shape {bits.shape} at leaf {name!r}, "
                f"where shape {leaf.shape} needs {(-(-leaf.size // 8),)}"
            )
        flat = jnp.unpackbits(bits, count=leaf.size)
        return flat.reshape(leaf.shape).astype(bool)

    return map_named(restore, params, packed)
