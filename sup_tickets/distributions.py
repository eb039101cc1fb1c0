"""How many weights each layer keeps: uniform, Erdos-Renyi and their variants.

Everything here is plain Python on shapes. The densities are solved in exact rational
arithmetic and rounded by largest remainder, so the counts of a network always add up to
`counting.active_count(total, sparsity)`: no weight more, no weight fewer. Every leaf
that has a weight keeps at least one.

A network of ``L`` sparse leaves has shapes ``s_l``, sizes ``N_l = prod(s_l)``, ``N`` in
all, and a target density ``D = 1 - sparsity``. A distribution says in which proportion
``raw_l`` the densities stand, ``d_l = min(1, e * raw_l)``; the one scalar ``e`` follows
from ``sum(d_l * N_l) = D * N``.
"""

import heapq
import inspect
from collections.abc import Callable, Mapping, Sequence
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
    did_you_mean,
)
from sup_tickets.counting import active_count, exact
from sup_tickets.trees import (
    RuleLike,
    default_rule,
    matching_names,
    named_leaves,
    sparse_leaves,
)
from sup_tickets.types import Counts, Params

Expressions = str | Sequence[str]
"""One or more regular expressions, searched in the names of the sparse leaves."""

Held = Mapping[int, Fraction]
"""The densities that are given, by the place of the leaf among the sparse ones."""

_ONE = Fraction(1)


def uniform(
    params: Params,
    *,
    sparsity: float,
    where: RuleLike = default_rule,
    dense: Expressions = (),
) -> Counts:
    """The same density in every sparse leaf, ``d_l = D``.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      where: which leaves are sparse, see `trees.sparse_leaves`.
      dense: sparse leaves that are kept fully dense. Their weights count towards the
        target: the other leaves pay for them. (A leaf outside ``where`` is dense too,
        but is not counted.)

    Returns:
      Pytree of Python ints with the structure of ``params``: the active weights of each
      sparse leaf, ``None`` at the others.

    Raises:
      ValueError: if the sparsity is outside [0, 1) or NaN; if an expression matches no
        sparse leaf; or if the target cannot be met: fewer active weights than leaves,
        more weights fixed dense than active ones, or no leaf left to be sparse.

    Example:
      >>> import jax.numpy as jnp
      >>> shapes = {"fc": (30, 4), "stem": (2, 4), "bias": (4,)}
      >>> params = {name: jnp.ones(shape) for name, shape in shapes.items()}
      >>> uniform(params, sparsity=0.5)
      {'bias': None, 'fc': 60, 'stem': 4}
      >>> uniform(params, sparsity=0.5, dense="stem")
      {'bias': None, 'fc': 56, 'stem': 8}
    """
    layers = _Layers.of(params, where)
    return _allocate(layers, sparsity, [_ONE] * len(layers.names), layers.held(dense))


def uniform_plus(
    params: Params,
    *,
    sparsity: float,
    first: str,
    classifier: str,
    where: RuleLike = default_rule,
    dense: Expressions = (),
    classifier_density: float = 0.2,
) -> Counts:
    """Uniform, but the first layer is dense and the classifier is never very sparse.

    The classifier is held at ``classifier_density`` if ``D`` is below it, and is a leaf
    like the others if not. All others have ``(D N - kept) / (N - size)``, where
    ``kept`` and ``size`` are the active and all weights of the held layers. (The
    release of Random Pruning divides by ``N``, and pays for the first layer only where
    ``D < 0.2``: its networks miss the target.)

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      first: expression that matches one sparse leaf, the first layer. It has to be
        said: the order of a tree is that of names, not of layers.
      classifier: expression that matches one other sparse leaf, the last layer.
      where: which leaves are sparse, see `trees.sparse_leaves`.
      dense: further sparse leaves that are kept fully dense, as in `uniform`.
      classifier_density: in (0, 1].

    Returns:
      Pytree of Python ints and ``None``, as `uniform` does.

    Raises:
      ValueError: as `uniform` does; also if ``first`` or ``classifier`` does not match
        exactly one sparse leaf, if both match the same, or if ``classifier_density`` is
        outside (0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> params = {n: jnp.ones((10, 10)) for n in ("body", "head", "stem")}
      >>> uniform_plus(params, sparsity=0.5, first="stem", classifier="head")
      {'body': 25, 'head': 25, 'stem': 100}

    References:
      Gale et al., The State of Sparsity in Deep Neural Networks, 2019,
      https://arxiv.org/abs/1902.09574; the threshold is that of Liu et al., The
      Unreasonable Effectiveness of Random Pruning, 2022,
      https://arxiv.org/abs/2202.02643
    """
    check_density(classifier_density, "classifier_density")
    layers = _Layers.of(params, where)
    held = layers.held(dense)
    first_place = layers.place("first", first)
    classifier_place = layers.place("classifier", classifier)
    if first_place == classifier_place:
        raise ValueError(
            f"first={first!r} and classifier={classifier!r} must match two sparse "
            f"leaves, both match {layers.names[first_place]!r}"
        )
    held[first_place] = _ONE
    if _density(sparsity) < exact(classifier_density):
        held.setdefault(classifier_place, exact(classifier_density))
    return _allocate(layers, sparsity, [_ONE] * len(layers.names), held)


def erdos_renyi(
    params: Params,
    *,
    sparsity: float,
    where: RuleLike = default_rule,
    dense: Expressions = (),
    channel_axes: tuple[int, int] = (-2, -1),
) -> Counts:
    """Erdos-Renyi: ``raw_l = (n_in + n_out) / (n_in * n_out)``, of the channels alone.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      where: which leaves are sparse, see `trees.sparse_leaves`.
      dense: sparse leaves that are kept fully dense, as in `uniform`.
      channel_axes: axes of the two channel dimensions: the last two of Flax kernels
        (HWIO), the first two of PyTorch's (OIHW).

    Returns:
      Pytree of Python ints and ``None``, as `uniform` does.

    Raises:
      ValueError: as `uniform` does; also if a sparse leaf lacks two channel axes.

    Example:
      >>> import jax.numpy as jnp
      >>> erdos_renyi({"1": jnp.ones((8, 8)), "2": jnp.ones((2, 8))}, sparsity=0.5)
      {'1': 25, '2': 15}

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive
      sparse connectivity inspired by network science, 2018,
      https://arxiv.org/abs/1707.04780
    """
    layers = _Layers.of(params, where)
    raws = [_er_raw(shape, channel_axes) for shape in layers.shapes]
    return _allocate(layers, sparsity, raws, layers.held(dense))


def erk(
    params: Params,
    *,
    sparsity: float,
    where: RuleLike = default_rule,
    dense: Expressions = (),
    power: float = 1.0,
) -> Counts:
    """Erdos-Renyi-Kernel: ``raw_l = (sum(s_l) / prod(s_l)) ** power``.

    It does not depend on the order of the axes.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      where: which leaves are sparse, see `trees.sparse_leaves`.
      dense: sparse leaves that are kept fully dense, as in `uniform`.
      power: at least 0; 0 is the uniform distribution.

    Returns:
      Pytree of Python ints and ``None``, as `uniform` does.

    Raises:
      ValueError: as `uniform` does; also if ``power`` is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> shapes = {"1": (784, 300), "2": (300, 100), "3": (100, 10)}
      >>> lenet = {name: jnp.ones(shape) for name, shape in shapes.items()}
      >>> erk(lenet, sparsity=0.9)
      {'1': 18714, '2': 6906, '3': 1000}

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134
    """
    layers = _Layers.of(params, where)
    raws = _erk_raws(layers.shapes, power)
    return _allocate(layers, sparsity, raws, layers.held(dense))


def erk_plus(
    params: Params,
    *,
    sparsity: float,
    classifier: str,
    where: RuleLike = default_rule,
    dense: Expressions = (),
    classifier_density: float = 1.0,
    power: float = 1.0,
) -> Counts:
    """ERK, but the classifier is held at a density of its own.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      classifier: expression that matches one sparse leaf, the last layer.
      where: which leaves are sparse, see `trees.sparse_leaves`.
      dense: further sparse leaves that are kept fully dense, as in `uniform`.
      classifier_density: in (0, 1]; of no effect at sparsity 0.
      power: as in `erk`.

    Returns:
      Pytree of Python ints and ``None``, as `uniform` does.

    Raises:
      ValueError: as `erk` does; also if ``classifier`` does not match exactly one
        sparse leaf, or if ``classifier_density`` is outside (0, 1] or asks for a
        network that the other leaves cannot complete.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {n: jnp.ones((10, 10)) for n in ("1", "2", "head")}
      >>> erk_plus(params, sparsity=0.5, classifier="head")
      {'1': 25, '2': 25, 'head': 100}

    References:
      Liu et al., The Unreasonable Effectiveness of Random Pruning, 2022,
      https://arxiv.org/abs/2202.02643
    """
    check_density(classifier_density, "classifier_density")
    layers = _Layers.of(params, where)
    held = layers.held(dense)
    held.setdefault(layers.place("classifier", classifier), exact(classifier_density))
    return _allocate(layers, sparsity, _erk_raws(layers.shapes, power), held)


DISTRIBUTIONS: dict[str, Callable[..., Counts]] = {
    "uniform": uniform,
    "uniform_plus": uniform_plus,
    "er": erdos_renyi,
    "erk": erk,
    "erk_plus": erk_plus,
}
"""The distributions by the names that configurations use."""


def allocate(
    params: Params,
    *,
    sparsity: float,
    distribution: str | Callable[..., Counts] = "erk",
    **options: Any,
) -> Counts:
    """The active weights of every leaf, by the name of a distribution.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      distribution: a name in `DISTRIBUTIONS`, or a function of the same form.
      **options: handed to the distribution: ``where``, ``dense``, ...

    Raises:
      ValueError: if no distribution has that name, and as the distribution does.

    Example:
      >>> import jax.numpy as jnp
      >>> allocate({"w": jnp.ones((30, 4))}, sparsity=0.5, distribution="uniform")
      {'w': 60}
    """
    if callable(distribution):
        return distribution(params, sparsity=sparsity, **options)
    if not isinstance(distribution, str) or distribution not in DISTRIBUTIONS:
        hint = did_you_mean(distribution, DISTRIBUTIONS)
        raise ValueError(
            f"distribution must be a function or one of {', '.join(DISTRIBUTIONS)}, "
            f"got {distribution!r}{hint}"
        )
    function = DISTRIBUTIONS[distribution]
    try:
        inspect.signature(function).bind(params, sparsity=sparsity, **options)
    except TypeError as error:
        raise ValueError(
            f"options of distribution {distribution!r}: {error}, got {options}"
        ) from None
    return function(params, sparsity=sparsity, **options)


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
    return _densities(shapes, density, _erk_raws(shapes, power))


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
    raws = [_er_raw(shape, channel_axes) for shape in shapes]
    return _densities(shapes, density, raws)


# --- The sparse leaves of a network ---------------------------------------------------


class _Layers(NamedTuple):
    names: list[str]
    shapes: list[tuple[int, ...]]
    chosen: Any  # pytree of bools with the structure of the network

    @classmethod
    def of(cls, params: Params, where: RuleLike) -> "_Layers":
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
        return [prod(shape) for shape in self.shapes]

    def held(self, dense: Expressions) -> dict[int, Fraction]:
        """The leaves that ``dense`` fixes, at density 1."""
        try:
            found = matching_names(dense, self.names)
        except ValueError as error:
            raise ValueError(f"dense={dense!r}: {error}") from None
        return {i: _ONE for i, name in enumerate(self.names) if name in found}

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


def _erk_raws(shapes: Sequence[Sequence[int]], power: float) -> list[Fraction]:
    check_number("power", power, 0)
    return [_erk_raw(tuple(shape) or (1,), power) for shape in shapes]


def _erk_raw(shape: tuple[int, ...], power: float) -> Fraction:
    if 0 in shape:
        return _ONE  # no weight to distribute; any number will do
    ratio = Fraction(sum(shape), prod(shape))
    return ratio if power == 1 else Fraction(float(ratio) ** power)


def _er_raw(shape: Sequence[int], channel_axes: tuple[int, int]) -> Fraction:
    rank = len(shape)
    axes = [axis % rank for axis in _whole(channel_axes) if -rank <= axis < rank]
    if len(set(axes)) != 2:
        raise ValueError(
            f"channel_axes={channel_axes} must name two axes of every sparse leaf, "
            f"got a leaf of shape {tuple(shape)}"
        )
    n_in, n_out = (shape[axis] for axis in axes)
    return _ONE if 0 in shape else Fraction(n_in + n_out, n_in * n_out)


def _whole(axes: Any) -> list[int]:
    """The axes that are whole numbers; none if these are no axes."""
    axes = axes if isinstance(axes, Sequence) else ()
    return [int(axis) for axis in axes if isinstance(axis, (int, np.integer))]


# --- Densities ------------------------------------------------------------------------


def _density(sparsity: float) -> Fraction:
    if isinstance(sparsity, Tracer):
        raise ValueError(
            "sparsity must be a concrete number where counts are allocated, "
            f"got the traced {sparsity}"
        )
    check_sparsity(sparsity)
    return 1 - exact(sparsity)


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
        solved.update(dict.fromkeys(full, _ONE))
        budget -= sum(sizes[i] for i in full)
        free = [i for i in free if raws[i] != largest]
    return [solved[i] if size else Fraction(0) for i, size in enumerate(sizes)]


# --- Counts ---------------------------------------------------------------------------


def _allocate(
    layers: _Layers, sparsity: float, raws: Sequence[Fraction], held: Held
) -> Counts:
    density, sizes = _density(sparsity), layers.sizes
    if density == 1 or not any(sizes):
        return layers.fill(sizes)
    total = active_count(sum(sizes), sparsity)
    _check_target(layers, sparsity, total, held)
    densities = _solve(density, sizes, raws, held)
    shares = [d * size for d, size in zip(densities, sizes, strict=True)]
    fixed = {i for i, d in held.items() if d == 1}
    return layers.fill(_largest_remainder(shares, sizes, total, fixed))


def _check_target(layers: _Layers, sparsity: float, total: int, held: Held) -> None:
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


def _check_held(layers: _Layers, target: str, active: Fraction, held: Held) -> None:
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
