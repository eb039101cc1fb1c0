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

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sup_tickets.checks import (
    check_density,
    did_you_mean,
)
from sup_tickets.counting import exact
from sup_tickets.densities import (
    ONE,
    Expressions,
    Layers,
    allocated,
    er_raw,
    erk_raws,
    target_density,
)
from sup_tickets.trees import (
    RuleLike,
    default_rule,
)
from sup_tickets.types import Counts, Params


def uniform(
    params: Params,
    *,
    sparsity: float,
    where: RuleLike = default_rule,
    keep_dense: Expressions = (),
) -> Counts:
    """The same density in every sparse leaf, ``d_l = D``.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      where: which leaves are sparse, see `trees.sparse_leaves`.
      keep_dense: sparse leaves that are kept fully dense. Their weights count towards
        the target: the other leaves pay for them. (A leaf outside ``where`` is dense
        too, but is not counted.)

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
      >>> uniform(params, sparsity=0.5, keep_dense="stem")
      {'bias': None, 'fc': 56, 'stem': 8}
    """
    layers = Layers.of(params, where)
    return allocated(
        layers, sparsity, [ONE] * len(layers.names), layers.held(keep_dense)
    )


def uniform_plus(
    params: Params,
    *,
    sparsity: float,
    first: str,
    classifier: str,
    where: RuleLike = default_rule,
    keep_dense: Expressions = (),
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
      keep_dense: further sparse leaves that are kept fully dense, as in `uniform`.
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
    layers = Layers.of(params, where)
    held = layers.held(keep_dense)
    first_place = layers.place("first", first)
    classifier_place = layers.place("classifier", classifier)
    if first_place == classifier_place:
        raise ValueError(
            f"first={first!r} and classifier={classifier!r} must match two sparse "
            f"leaves, both match {layers.names[first_place]!r}"
        )
    held[first_place] = ONE
    if target_density(sparsity) < exact(classifier_density):
        held.setdefault(classifier_place, exact(classifier_density))
    return allocated(layers, sparsity, [ONE] * len(layers.names), held)


def erdos_renyi(
    params: Params,
    *,
    sparsity: float,
    where: RuleLike = default_rule,
    keep_dense: Expressions = (),
    channel_axes: tuple[int, int] = (-2, -1),
) -> Counts:
    """Erdos-Renyi: ``raw_l = (n_in + n_out) / (n_in * n_out)``, of the channels alone.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      where: which leaves are sparse, see `trees.sparse_leaves`.
      keep_dense: sparse leaves that are kept fully dense, as in `uniform`.
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
    layers = Layers.of(params, where)
    raws = [er_raw(shape, channel_axes) for shape in layers.shapes]
    return allocated(layers, sparsity, raws, layers.held(keep_dense))


def erk(
    params: Params,
    *,
    sparsity: float,
    where: RuleLike = default_rule,
    keep_dense: Expressions = (),
    power: float = 1.0,
) -> Counts:
    """Erdos-Renyi-Kernel: ``raw_l = (sum(s_l) / prod(s_l)) ** power``.

    It does not depend on the order of the axes.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      where: which leaves are sparse, see `trees.sparse_leaves`.
      keep_dense: sparse leaves that are kept fully dense, as in `uniform`.
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
    layers = Layers.of(params, where)
    raws = erk_raws(layers.shapes, power)
    return allocated(layers, sparsity, raws, layers.held(keep_dense))


def erk_plus(
    params: Params,
    *,
    sparsity: float,
    classifier: str,
    where: RuleLike = default_rule,
    keep_dense: Expressions = (),
    classifier_density: float = 1.0,
    power: float = 1.0,
) -> Counts:
    """ERK, but the classifier is held at a density of its own.

    Args:
      params: pytree of arrays, or of ``jax.ShapeDtypeStruct``.
      sparsity: fraction of zeros over all sparse leaves together, in [0, 1).
      classifier: expression that matches one sparse leaf, the last layer.
      where: which leaves are sparse, see `trees.sparse_leaves`.
      keep_dense: further sparse leaves that are kept fully dense, as in `uniform`.
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
    layers = Layers.of(params, where)
    held = layers.held(keep_dense)
    held.setdefault(layers.place("classifier", classifier), exact(classifier_density))
    return allocated(layers, sparsity, erk_raws(layers.shapes, power), held)


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
      **options: handed to the distribution: ``where``, ``keep_dense``, ...

    Raises:
      ValueError: if no distribution has that name, and as the distribution does.

    Example:
      >>> import jax.numpy as jnp
      >>> allocate({"w": jnp.ones((30, 4))}, sparsity=0.5, distribution="uniform")
      {'w': 60}
    """
    function = distribution_of(distribution, options)
    return function(params, sparsity=sparsity, **options)


def distribution_of(
    distribution: str | Callable[..., Counts], options: Mapping[str, Any]
) -> Callable[..., Counts]:
    """The function of that name, or the function itself.

    Args:
      distribution: see `allocate`.
      options: that it will be handed; those of a function of one's own are not looked
        at.

    Raises:
      ValueError: if no distribution has that name, or it does not take the options.
    """
    if callable(distribution):
        return distribution
    if not isinstance(distribution, str) or distribution not in DISTRIBUTIONS:
        hint = did_you_mean(distribution, DISTRIBUTIONS)
        raise ValueError(
            f"distribution must be a function or one of {', '.join(DISTRIBUTIONS)}, "
            f"got {distribution!r}{hint}"
        )
    function = DISTRIBUTIONS[distribution]
    try:
        inspect.signature(function).bind((), sparsity=0, **options)
    except TypeError as error:
        raise ValueError(
            f"options of distribution {distribution!r}: {error}, got {options}"
        ) from None
    return function


# --- Counts ---------------------------------------------------------------------------
