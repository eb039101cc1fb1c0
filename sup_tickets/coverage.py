"""What is sparse and why: how many of all weights a method can prune."""

from math import prod
from typing import Any, NamedTuple

import jax

from sup_tickets.rules import default_rule
from sup_tickets.structures import Structure
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import RuleLike, is_none, judged_leaves, named_leaves
from sup_tickets.types import Masks, Params


class Coverage(NamedTuple):
    """How many of all leaves and weights are sparse; prints as one line."""

    sparse_leaves: int
    leaves: int
    sparse_weights: int
    weights: int

    @property
    def share(self) -> float:
        """Of all weights, those of sparse leaves; 0 if there are none."""
        return self.sparse_weights / self.weights if self.weights else 0.0

    def __str__(self) -> str:
        return (
            f"sparse leaves: {self.sparse_leaves} of {self.leaves}, "
            f"{_percent(self)} of {self.weights:,} weights"
        )


class LeafRow(NamedTuple):
    """One line of `Description`."""

    name: str
    shape: tuple[int, ...]
    size: int
    sparse: bool
    reason: str
    structure: str = ""  # how it takes the structure asked for, or why it cannot


class Description(NamedTuple):
    """What `describe` finds; prints as a table that ends with the `Coverage`."""

    rows: tuple[LeafRow, ...]

    @property
    def coverage(self) -> Coverage:
        """The totals."""
        sparse = [row.size for row in self.rows if row.sparse]
        sizes = [row.size for row in self.rows]
        return Coverage(len(sparse), len(sizes), sum(sparse), sum(sizes))

    def __str__(self) -> str:
        cells = [("leaf", "shape", "weights", "", "because", "")] + [
            (
                row.name,
                " x ".join(map(str, row.shape)) or "scalar",
                f"{row.size:,}",
                "sparse" if row.sparse else "dense",
                row.reason,
                row.structure,
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{name:{widths[0]}}  {shape:{widths[1]}}  {size:>{widths[2]}}  "
            f"{kind:{widths[3]}}  {reason:{widths[4]}}  {structure}".rstrip()
            for name, shape, size, kind, reason, structure in cells
        ]
        return "\n".join([*lines, str(self.coverage)])


def describe(
    params: Params,
    *,
    where: RuleLike = default_rule,
    structure: Structure | None = None,
) -> Description:
    """Which leaves are sparse, why, and how many of all weights they have.

    Unlike `sparse_leaves` it also describes what would be refused: parameters of which
    no leaf is sparse, quantized kernels.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``. Leaves that are no
        arrays (functions in an Equinox module) are left out.
      where: as for `sparse_leaves`.
      structure: that the sparse leaves are to have; the rows say which can.

    Returns:
      A row for each leaf in tree order; ``print`` shows it as a table.

    Raises:
      ValueError: if an expression does not compile or matches no leaf, if a leaf
        matches none of the pairs, or if the structure is none.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"fc": {"kernel": jnp.ones((30, 4)), "bias": jnp.ones(4)}}
      >>> print(describe(params))
      leaf       shape   weights          because
      fc/bias    4             4  dense   a bias
      fc/kernel  30 x 4      120  sparse  a kernel
      sparse leaves: 1 of 2, 96.8% of 124 weights
    """
    if structure is not None and not isinstance(structure, Structure):
        raise ValueError(
            f"structure must be a Structure, such as n_of_m(2, 4), got {structure!r}"
        )
    return Description(
        tuple(
            LeafRow(
                name,
                tuple(leaf.shape),
                prod(leaf.shape),
                *verdict[:2],
                _structured(name, leaf, structure) if verdict.sparse else "",
            )
            for name, leaf, verdict in judged_leaves(params, where=where)
            if hasattr(leaf, "shape")
        )
    )


def coverage(masks: Masks, params: Params) -> Coverage:
    """How many of all leaves and weights have a mask.

    Args:
      masks: of ``params``; bool arrays or ``jax.ShapeDtypeStruct``.
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: naming the first leaf in which masks and parameters differ.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((30, 4)), "b": jnp.ones(4)}
      >>> print(coverage({"w": jnp.ones((30, 4), bool), "b": None}, params))
      sparse leaves: 1 of 2, 96.8% of 124 weights
    """
    check_same_leaves("masks", masks, "params", params)
    masked = [mask is not None for mask in jax.tree.leaves(masks, is_leaf=is_none)]
    sizes = [_size(leaf) for _, leaf in named_leaves(params, keep_none=True)]
    sparse = [size for size, has in zip(sizes, masked, strict=True) if has]
    counted = [size for size in sizes if size is not None]
    return Coverage(len(sparse), len(counted), sum(map(int, sparse)), sum(counted))


def _structured(name: str, leaf: Any, structure: Structure | None) -> str:
    if structure is None:
        return ""
    try:
        found = structure.splits({name: leaf}, {name: leaf})[name]
    except ValueError as error:
        return f"cannot: {str(error).partition(': ')[2].partition('; ')[0]}"
    return f"{structure} in {found.number:,} groups of {found.members:,}"


def _size(leaf: Any) -> Any:
    return prod(leaf.shape) if hasattr(leaf, "shape") else None


def _percent(totals: Coverage) -> str:
    """One decimal, but never "100.0%" or "0.0%" where that is not exactly so."""
    if totals.sparse_weights == totals.weights != 0:
        return "100%"
    if not totals.sparse_weights:
        return "0%"
    return f"{min(max(100 * totals.share, 0.1), 99.9):.1f}%"
