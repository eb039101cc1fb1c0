"""Densities and counts of leaves whose proportions are given: exact, in plain Python.

A network of ``L`` sparse leaves has sizes ``N_l``, ``N`` in all, and a target density
``D = 1 - sparsity``. Given proportions ``raw_l``, the densities are ``d_l = min(1, e *
raw_l)``; the one scalar ``e`` follows from ``sum(d_l * N_l) = D * N``. They are solved
in rational arithmetic and rounded by largest remainder, so the counts always add up to
`counting.active_count(total, sparsity)`: no weight more, no weight fewer. Every leaf
that has a weight keeps at least one.
"""

import heapq
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor, prod
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from sup_tickets.checks import (
    check_density,
    check_expression,
    check_number,
    check_sparsity,
)
from sup_tickets.counting import active_count, exact
from sup_tickets.trees import (
    RuleLike,
    matching_names,
    named_leaves,
    sparse_leaves,
)
from sup_tickets.types import Counts, Params

ONE = Fraction(1)

Held = Mapping[int, Fraction]
"""The densities that are given, by the place of the leaf among the sparse ones."""

Expressions = str | Sequence[str]
"""One or more regular expressions, searched in the names of the sparse leaves."""


# --- The sparse leaves of a network ---------------------------------------------------


class Layers(NamedTuple):
    """The sparse leaves of a network, in tree order."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    chosen: Any  # pytree of bools with the structure of the network

    @classmethod
    def of(cls, params: Params, where: RuleLike) -> "Layers":
        """Those of ``params`` that ``where`` chooses."""
        chosen = sparse_leaves(params, where=where)
        pairs = zip(named_leaves(params), jax.tree.leaves(chosen), strict=True)
        sparse = [named for named, is_sparse in pairs if is_sparse]
        return cls(
            names=[name for name, _ in sparse],
            shapes=[tuple(getattr(leaf, "shape", ())) for _, leaf in sparse],
            chosen=chosen,
        )

    @property
    def sizes(self) -> list[int]:
        """The number of places of each leaf."""
        return [prod(shape) for shape in self.shapes]

    def held(self, keep_dense: Expressions) -> dict[int, Fraction]:
        """The leaves that ``keep_dense`` fixes, at density 1."""
        try:
            found = matching_names(keep_dense, self.names)
        except ValueError as error:
            raise ValueError(f"keep_dense={keep_dense!r}: {error}") from None
        return {i: ONE for i, name in enumerate(self.names) if name in found}

    def place(self, argument: str, expression: str) -> int:
        """The place of the one leaf that an expression matches."""
        pattern = check_expression(argument, expression)
        found = [i for i, name in enumerate(self.names) if pattern.search(name)]
        if len(found) != 1:
            matched = [self.names[i] for i in found] or "none"
            raise ValueError(
                f"{argument}={expression!r} must match exactly one sparse leaf of "
                f"{self.names}, matches {matched}"
            )
        return found[0]

    def fill(self, counts: Sequence[int]) -> Counts:
        """The counts at their leaves, ``None`` at the others."""
        flags, structure = jax.tree.flatten(self.chosen)
        left = iter(counts)
        return jax.tree.unflatten(structure, [next(left) if f else None for f in flags])


# --- Proportions ----------------------------------------------------------------------


def erk_raws(shapes: Sequence[Sequence[int]], power: float) -> list[Fraction]:
    """Erdos-Renyi-Kernel: ``(sum(s) / prod(s)) ** power`` of each shape."""
    check_number("power", power, 0)
    return [_erk_raw(tuple(shape) or (1,), power) for shape in shapes]


def er_raw(shape: Sequence[int], channel_axes: tuple[int, int]) -> Fraction:
    """Erdos-Renyi: ``(n_in + n_out) / (n_in * n_out)`` of the channel axes."""
    rank = len(shape)
    axes = [axis % rank for axis in _whole(channel_axes) if -rank <= axis < rank]
    if len(set(axes)) != 2:
        raise ValueError(
            f"channel_axes={channel_axes} must name two axes of every sparse leaf, "
            f"got a leaf of shape {tuple(shape)}"
        )
    n_in, n_out = (shape[axis] for axis in axes)
    return ONE if 0 in shape else Fraction(n_in + n_out, n_in * n_out)


def _erk_raw(shape: tuple[int, ...], power: float) -> Fraction:
    if 0 in shape:
        return ONE  # no weight to distribute; any number will do
    ratio = Fraction(sum(shape), prod(shape))
    return ratio if power == 1 else Fraction(float(ratio) ** power)


def _whole(axes: Any) -> list[int]:
    """The axes that are whole numbers; none if these are no axes."""
    axes = axes if isinstance(axes, Sequence) else ()
    return [int(axis) for axis in axes if isinstance(axis, (int, np.integer))]


# --- Densities ------------------------------------------------------------------------


def target_density(sparsity: float) -> Fraction:
    """The exact density; the sparsity must be a concrete number in [0, 1)."""
    if isinstance(sparsity, Tracer):
        raise ValueError(
            "sparsity must be a concrete number where counts are allocated, "
            f"got the traced {sparsity}"
        )
    check_sparsity(sparsity)
    return 1 - exact(sparsity)


def erk_densities(
    shapes: Sequence[Sequence[int]], density: float, power: float = 1.0
) -> list[float]:
    """The densities that `erk` aims at, before they become counts.

    Args:
      shapes: shape of every sparse layer.
      density: of all layers together, in (0, 1].
      power: as in `erk`.

    Returns:
      One density for each shape, in (0, 1]; 0 where the shape holds no weight.

    Raises:
      ValueError: if ``density`` is outside (0, 1], or ``power`` is not allowed.

    Example:
      >>> [round(d, 6) for d in erk_densities([(784, 300), (300, 100), (100, 10)], 0.1)]
      [0.079568, 0.230189, 1.0]
    """
    return _densities(shapes, density, erk_raws(shapes, power))


def erdos_renyi_densities(
    shapes: Sequence[Sequence[int]],
    density: float,
    channel_axes: tuple[int, int] = (-2, -1),
) -> list[float]:
    """The densities that `erdos_renyi` aims at, before they become counts.

    Args:
      shapes: shape of every sparse layer.
      density: of all layers together, in (0, 1].
      channel_axes: as in `erdos_renyi`.

    Returns:
      One density for each shape, in (0, 1]; 0 where the shape holds no weight.

    Raises:
      ValueError: if ``density`` is outside (0, 1], or a shape lacks the channel axes.

    Example:
      >>> erdos_renyi_densities([(3, 3, 8, 8), (2, 6)], 0.5)
      [0.4895833333333333, 1.0]
    """
    raws = [er_raw(shape, channel_axes) for shape in shapes]
    return _densities(shapes, density, raws)


def _densities(
    shapes: Sequence[Sequence[int]], density: float, raws: Sequence[Fraction]
) -> list[float]:
    check_density(density)
    sizes = [prod(shape) for shape in shapes]
    return [float(d) for d in _solve(exact(density), sizes, raws, {})]


def _solve(
    density: Fraction, sizes: Sequence[int], raws: Sequence[Fraction], held: Held
) -> list[Fraction]:
    """The densities, each ``min(1, e * raw)`` where it is not held.

    The set of leaves that reach 1 grows until the others stay below; all leaves tied at
    the largest ``raw`` enter together, so that the order of leaves is of no effect.
    The free leaves must be able to hold the budget: then they never run out.
    """
    solved = dict(held)
    free = [i for i, size in enumerate(sizes) if size and i not in held]
    budget = density * sum(sizes) - sum(d * sizes[i] for i, d in held.items())
    while free:
        scale = budget / sum(raws[i] * sizes[i] for i in free)
        largest = max(raws[i] for i in free)
        if scale * largest <= 1:
            solved.update({i: scale * raws[i] for i in free})
            break
        full = [i for i in free if raws[i] == largest]
        solved.update(dict.fromkeys(full, ONE))
        budget -= sum(sizes[i] for i in full)
        free = [i for i in free if raws[i] != largest]
    return [solved[i] if size else Fraction(0) for i, size in enumerate(sizes)]


# --- Counts ---------------------------------------------------------------------------


def allocated(
    layers: Layers, sparsity: float, raws: Sequence[Fraction], held: Held
) -> Counts:
    """The counts of a network whose densities are proportional to ``raws``.

    Args:
      layers: its sparse leaves.
      sparsity: in [0, 1), of all of them together.
      raws: a proportion for each.
      held: densities that are given, of leaves that take no part.

    Raises:
      ValueError: if the target cannot be met.
    """
    density, sizes = target_density(sparsity), layers.sizes
    if density == 1 or not any(sizes):
        return layers.fill(sizes)
    total = active_count(sum(sizes), sparsity)
    _check_target(layers, sparsity, total, held)
    densities = _solve(density, sizes, raws, held)
    shares = [d * size for d, size in zip(densities, sizes, strict=True)]
    fixed = {i for i, d in held.items() if d == 1}
    return layers.fill(_largest_remainder(shares, sizes, total, fixed))


def _check_target(layers: Layers, sparsity: float, total: int, held: Held) -> None:
    sizes = layers.sizes
    filled = [i for i, size in enumerate(sizes) if size]
    fixed = [i for i in filled if held.get(i) == 1]
    others = len(filled) - len(fixed)
    target = f"sparsity={sparsity} of {sum(sizes)} weights leaves {total} active"
    kept = sum(sizes[i] for i in fixed)
    names = [layers.names[i] for i in fixed]
    if not others:
        raise ValueError(f"{target}, but all sparse leaves are fixed dense: {names}")
    if total < kept + others:
        if fixed:
            raise ValueError(
                f"{target}, but the leaves fixed dense {names} have {kept} and each of "
                f"the {others} others needs at least 1"
            )
        raise ValueError(
            f"{target}, but there are {others} sparse leaves and each needs at least 1"
        )
    _check_held(layers, target, (1 - exact(sparsity)) * sum(sizes), held)


def _check_held(layers: Layers, target: str, active: Fraction, held: Held) -> None:
    """Raises unless the free leaves can complete what the held ones keep."""
    sizes = layers.sizes
    kept = sum((d * sizes[i] for i, d in held.items()), start=Fraction(0))
    room = sum(size for i, size in enumerate(sizes) if i not in held)
    budget = active - kept
    # Half a weight more than there is room for is what the total is rounded by.
    if not (0 < budget < room + Fraction(1, 2) or budget == room == 0):
        raise ValueError(
            f"{target}, but the leaves held at a density "
            f"{[layers.names[i] for i in held]} keep {float(kept):g} and the others "
            f"can add between 1 and {room}"
        )


def _largest_remainder(
    shares: Sequence[Fraction], sizes: Sequence[int], total: int, fixed: set[int]
) -> list[int]:
    """Integers next to the shares that add up to ``total``.

    Every share is rounded down, but to 1 at least; what is missing goes to the largest
    remainders, ties by leaf order. There are never more units missing than shares with
    a remainder: ``total`` is the rounded sum of the shares.
    """
    pairs = zip(shares, sizes, strict=True)
    counts = [min(size, max(1, floor(share))) for share, size in pairs]
    missing = total - sum(counts)
    if missing < 0:
        return _take(counts, shares, sizes, -missing, fixed)
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - shares[i])
    for i in [i for i in by_remainder if counts[i] < sizes[i]][:missing]:
        counts[i] += 1
    return counts


def _take(
    counts: list[int],
    shares: Sequence[Fraction],
    sizes: Sequence[int],
    excess: int,
    fixed: set[int],
) -> list[int]:
    """Takes back what lifting small leaves to 1 added.

    One weight at a time, from the leaf furthest above its share; from leaves that the
    distribution made fully dense only when no other has two weights left.
    """

    def key(i: int) -> tuple[bool, Fraction, int]:
        return counts[i] == sizes[i], shares[i] - counts[i], i

    heap = [key(i) for i, n in enumerate(counts) if n > 1 and i not in fixed]
    heapq.heapify(heap)
    for _ in range(excess):
        i = heapq.heappop(heap)[-1]
        counts[i] -= 1
        if counts[i] > 1:
            heapq.heappush(heap, key(i))
    return counts
