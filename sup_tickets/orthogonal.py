"""Exact orthogonal initialization: sparse orthogonal weights, with their masks.

A random mask over ordinary weights shrinks what passes through a layer, the more the
sparser it is. Here weights and mask are made together: random rotations of two columns
at a time turn an identity into an orthogonal matrix that has as many nonzeros as asked.
All is NumPy on the host, float64 inside, and depends on the key and the name of a leaf
alone.

Shapes: kernels [I, O] or [K, K, I, O]; S is the smaller and M the larger of I and O.

References:
  Nowak et al., Sparser, Better, Deeper, Stronger: Improving Sparse Training with Exact
  Orthogonal Initialization, 2024, https://arxiv.org/abs/2406.01755
"""

import operator
import re
from collections.abc import Sequence
from math import isfinite, isqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sup_tickets.checks import check_one_of
from sup_tickets.rotations import SparseMatrix, rotated_identity
from sup_tickets.trees import leaf_keys, map_named, matching_names, named_leaves
from sup_tickets.types import Counts, Masks, Params

CENTRES = ("sqrt", "same")
"""How dense the centre tap of a convolution is, see `exact_orthogonal`."""

# The shifts of norms too, by the names of Flax, Haiku and others.
_BIAS = re.compile(r"(^|[/_])(bias|offset|beta)$", re.IGNORECASE)


def exact_orthogonal(
    key: jax.Array,
    params: Params,
    counts: Counts,
    *,
    gain: float = 1.0,
    bias_std: float = 0.0,
    centre: str = "sqrt",
    depthwise: str | Sequence[str] | None = None,
) -> tuple[Params, Masks]:
    """Orthogonal weights with exactly ``counts`` active ones, and their masks.

    A matrix is ``gain * H`` of `orthogonal_matrix`. A convolution is delta-orthogonal:
    its centre tap is ``gain * H``, all else is 0. Of a density ``d`` of the kernel, H
    gets ``min(d K^2, 1, sqrt(d))`` ("sqrt") or ``d`` ("same"), but S nonzeros at least.
    What is missing to the count are random places of the kernel that start at 0, and
    train. Of the base method, only the counts matter.

    The reference takes the rotation that comes closest to a density; here the counts
    are exact, so it is the last that does not exceed one, and matrices are filled up
    with zeros as convolutions are.

    Args:
      key: a random key, consumed; the draw of a leaf depends on its name alone.
      params: pytree of arrays. Leaves without a count stay as they are, except biases;
        of the others only shape and dtype are read.
      counts: pytree of integers, ``None`` where a leaf is never pruned.
      gain: the singular values of each layer.
      bias_std: standard deviation of biases and of the shifts of norms, around 0:
        of leaves without a count named "bias", "offset" or "beta".
      centre: of `CENTRES`.
      depthwise: expressions of the kernels [K, K, 1, O] that are depthwise convolutions
        with one output a channel, ``()`` if none is. Each channel is an own 1 x 1
        problem: its centre is ``gain`` or ``-gain``. It has to be said if there are
        such kernels: a convolution of grey images has the same shape. (Other grouped
        convolutions cannot be told from ordinary ones, and are orthogonal as if they
        were.)

    Returns:
      Params with the dtypes of ``params``, and masks with exactly ``counts`` active.

    Raises:
      ValueError: naming the leaf and its count, if that is below S (of a depthwise
        kernel: O), which an identity needs, or above its size; if a leaf with a count
        is no matrix or convolution of odd K, or may be depthwise; if an argument is out
        of range or the key is traced.

    Example:
      >>> params = {"kernel": jnp.zeros((6, 8)), "bias": jnp.ones(8)}
      >>> counts = {"kernel": 20, "bias": None}
      >>> params, masks = exact_orthogonal(jax.random.key(0), params, counts)
      >>> int(masks["kernel"].sum()), orthogonality_error(params["kernel"]) < 2e-6
      (20, True)
    """
    _check_arguments(key, gain, bias_std, centre)
    is_depthwise = _depthwise_names(params, counts, depthwise)

    def make(name: str, leaf: Any, leaf_key: jax.Array, count: Any) -> Any:
        # Seeded by the whole key, so that NumPy's draws differ as JAX's would.
        rng = np.random.default_rng(np.ravel(jax.random.key_data(leaf_key)).tolist())
        if count is None:
            if not _BIAS.search(name):
                return leaf, None
            return _as(leaf, bias_std * rng.standard_normal(leaf.shape)), None
        count = _checked_count(name, leaf, count, name in is_depthwise)
        if name in is_depthwise:
            made = _signs(rng, leaf.shape[-1])
        else:
            rows, columns = leaf.shape[-2:]
            made = rotated_identity(rng, rows, columns, _nonzeros(leaf, count, centre))
        kernel, mask = _embedded(leaf.shape, made)
        _activate_more(rng, mask, count)
        return _as(leaf, gain * kernel), jnp.asarray(mask)

    made = map_named(make, params, leaf_keys(key, params), counts)
    return (
        jax.tree.map(lambda _, pair: pair[0], params, made),
        jax.tree.map(lambda _, pair: pair[1], params, made),
    )


def orthogonality_error(kernel: Any, *, gain: float = 1.0) -> float:
    """How far a kernel is from orthogonal: ``max |A A^T - gain^2 I|``, smaller side.

    Args:
      kernel: [I, O], or [K, K, I, O] of odd K, whose centre tap is looked at; not of a
        depthwise convolution.
      gain: that its singular values should be.
    """
    a = np.asarray(kernel).astype(np.float64)
    _check_shape("kernel", a.shape)
    a = a[_centre(a.shape)]
    a = a if a.shape[0] <= a.shape[1] else a.T
    return float(np.abs(a @ a.T - gain**2 * np.eye(len(a))).max(initial=0.0))


# --- Matrices -------------------------------------------------------------------------


def _signs(rng: np.random.Generator, channels: int) -> SparseMatrix:
    """The centres of a depthwise convolution, 1 or -1."""
    values = rng.choice([-1.0, 1.0], (1, channels))
    return SparseMatrix(values, np.ones((1, channels), bool))


# --- Kernels --------------------------------------------------------------------------


def _nonzeros(leaf: Any, count: int, centre: str) -> int:
    """How many of the active weights of a kernel are for its centre tap at most."""
    rows, columns = leaf.shape[-2:]
    taps = leaf.size // max(rows * columns, 1)
    # d * I * O and sqrt(d) * I * O, rounded down, for d = count / size: exact integers.
    if centre == "same":
        most = count // taps if taps else 0
    else:
        most = isqrt(count * rows * columns // taps) if taps else 0
    # Below S there is only the identity. Of a matrix (1 tap) all are for it.
    most = count if taps == 1 else max(most, min(rows, columns))
    return min(most, count, rows * columns)


def _embedded(shape: tuple[int, ...], centre: SparseMatrix) -> SparseMatrix:
    """A kernel that is 0 but for its centre tap."""
    kernel = SparseMatrix(np.zeros(shape), np.zeros(shape, bool))
    for whole, part in zip(kernel, centre, strict=True):
        whole[_centre(shape)] = part
    return kernel


def _activate_more(rng: np.random.Generator, mask: np.ndarray, count: int) -> None:
    """Activates random places, in place, until ``count`` are active."""
    free = np.flatnonzero(~mask)
    missing = count - (mask.size - free.size)
    mask.reshape(-1)[rng.choice(free, missing, replace=False, shuffle=False)] = True


def _centre(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side // 2 for side in shape[:-2])


def _as(leaf: Any, values: np.ndarray) -> jax.Array:
    # Adding 0 turns -0 into +0, which is what stands where a mask is False.
    return jnp.asarray((values + 0.0).astype(leaf.dtype))


# --- Checks ---------------------------------------------------------------------------


def _check_arguments(key: jax.Array, gain: float, bias_std: float, centre: str) -> None:
    if isinstance(key, Tracer):
        raise ValueError(
            "key must be concrete, since the weights are made on the host; got a "
            "traced one"
        )
    if not (isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a finite number above 0, got {gain!r}")
    if not (isfinite(bias_std) and bias_std >= 0):
        raise ValueError(
            f"bias_std must be a finite number of at least 0, got {bias_std!r}"
        )
    check_one_of("centre", centre, CENTRES)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 4):
        raise ValueError(
            f"{name} must be a matrix [I, O] or a convolution [K, K, I, O] to be "
            f"orthogonal, has shape {tuple(shape)}"
        )
    if any(side % 2 == 0 for side in shape[:-2]):
        raise ValueError(
            f"{name} must have odd spatial sides, for the sake of a centre tap, has "
            f"shape {tuple(shape)}"
        )


def _depthwise_names(
    params: Params, counts: Counts, expressions: str | Sequence[str] | None
) -> set[str]:
    """The names of the depthwise kernels; every kernel that may be one is decided."""
    counted = {name for name, _ in named_leaves(counts)}
    kernels = {name: leaf for name, leaf in named_leaves(params) if name in counted}
    possible = [name for name, leaf in kernels.items() if _may_be_depthwise(leaf.shape)]
    if expressions is not None:
        try:
            return matching_names(expressions, possible)
        except ValueError as error:
            raise ValueError(f"depthwise={expressions!r}: {error}") from None
    if possible:
        raise ValueError(
            f"leaf {possible[0]!r} of shape {kernels[possible[0]].shape} may be a "
            "depthwise convolution or one of a single channel; say which are the "
            "former by depthwise='EXPRESSION', or depthwise=() if none is"
        )
    return set()


def _may_be_depthwise(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[2] == 1 and shape[3] > 1


def _checked_count(name: str, leaf: Any, count: Any, is_depthwise: bool) -> int:
    _check_shape(f"leaf {name!r}", leaf.shape)
    count = operator.index(count)
    floor = leaf.shape[-1] if is_depthwise else min(leaf.shape[-2:])
    if count < floor:
        raise ValueError(
            f"leaf {name!r} of shape {tuple(leaf.shape)} has count {count}, but an "
            f"orthogonal kernel needs at least {floor}"
        )
    if count > leaf.size:
        raise ValueError(
            f"leaf {name!r} of shape {tuple(leaf.shape)} has count {count}, above its "
            f"size {leaf.size}"
        )
    return count
