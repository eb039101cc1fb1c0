"""Layers of a constant fan-in without their zeros, for inference.

A kernel [n_in, n_out] whose output neurons all have k active inputs (SRigL, or any
method with ``structure=fan_in()``) is kept as k values and k indices for each neuron;
ablated neurons have none. Pure JAX: a loop over k of gathers, along the features of one
input, or along the rows of a transposed batch.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.masks import check_masks
from sup_tickets.trees import RuleLike, judged_leaves, map_named
from sup_tickets.types import Masks, Params

# Tables are looked up, and recurrent layers use their kernels within a scan.
_NO_PRODUCT = re.compile(r"embed|(input|hidden)_kernel\d*$", re.IGNORECASE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condensed:
    """A kernel [n_in, n_out] of which ``a`` neurons have ``k`` inputs; a pytree."""

    values: jax.Array  # [k, a], of the dtype of the kernel
    inputs: jax.Array  # [k, a] int32 in [0, n_in), ascending
    places: jax.Array  # [n_out] int32, which of the a neurons; a where it is ablated
    n_in: int = dataclasses.field(metadata={"static": True})


def multiplied(name: str, leaf: Any) -> bool:
    """Whether a leaf is by its name the kernel of a dense layer: the default rule.

    Tables of embeddings and the kernels of recurrent layers are none.

    Example:
      >>> [multiplied(n, None) for n in ("decoder/kernel", "layer1/hidden_kernel")]
      [True, False]
    """
    del leaf
    return not _NO_PRODUCT.search(name)


def condense(kernel: Any, mask: Any) -> Condensed:
    """The condensed kernel; on the host.

    Args:
      kernel: [n_in, n_out] float array, concrete.
      mask: bool array of its shape; every column has as many True, or none.

    Raises:
      ValueError: if a shape is another, or the columns differ in their counts.
    """
    kernel, mask = np.asarray(kernel), np.asarray(mask)
    if kernel.ndim != 2 or kernel.shape != mask.shape:
        raise ValueError(
            f"kernel must be [n_in, n_out] and mask alike, got {kernel.shape} and "
            f"{mask.shape}"
        )
    counts = mask.sum(axis=0)
    alive = np.flatnonzero(counts)
    found = np.unique(counts[alive])
    if len(found) > 1:
        raise ValueError(
            f"mask must have as many active inputs for every output neuron, got "
            f"{found[0]} and {found[-1]}"
        )
    fan_in = int(found[0]) if len(found) else 0
    # Row-major over [a, n_in]: the inputs of each neuron, ascending.
    inputs = np.nonzero(mask[:, alive].T)[1].reshape(len(alive), fan_in).T
    places = np.full(mask.shape[1], len(alive), np.int32)
    places[alive] = np.arange(len(alive), dtype=np.int32)
    return Condensed(
        jnp.asarray(np.take_along_axis(kernel[:, alive], inputs, axis=0)),
        jnp.asarray(inputs, jnp.int32),
        jnp.asarray(places),
        len(kernel),
    )


def condense_params(
    params: Params, masks: Masks, *, where: RuleLike = multiplied
) -> Any:
    """``params`` with a `Condensed` in place of every kernel that can be one.

    Args:
      params: pytree of concrete arrays, kernels of dense layers as [n_in, n_out].
      masks: of ``params``; kernels of other ranks, or that are dense or of no constant
        fan-in, stay as they are.
      where: which leaves are kernels of dense layers, a rule as of `sparse_leaves`; by
        default all but those of embeddings and of our recurrent layers.

    Raises:
      ValueError: naming the first leaf in which the trees differ; or for a rule that
        does not compile or leaves a leaf undecided.
    """
    check_masks(params, masks)
    judged = judged_leaves(params, where=where)
    kernels = {name for name, _, verdict in judged if verdict.sparse}

    def condensed(name: str, leaf: Any, mask: Any) -> Any:
        if mask is None or leaf.ndim != 2 or name not in kernels:
            return leaf
        counts = np.asarray(mask).sum(axis=0)
        constant = len(np.unique(counts[counts > 0])) <= 1
        return condense(leaf, mask) if constant and counts.min() < len(leaf) else leaf

    return map_named(condensed, params, masks)


def expand(layer: Condensed) -> jax.Array:
    """The kernel [n_in, n_out] again, 0 where it is inactive; on the host."""
    parts = (layer.values, layer.inputs, layer.places)
    values, at, places = (np.asarray(part) for part in parts)
    alive = np.zeros((layer.n_in, values.shape[1] + 1), values.dtype)
    alive[at, np.arange(values.shape[1])] = values
    return jnp.asarray(alive[:, places])


def condensed_matmul(x: jax.Array, kernel: Condensed | jax.Array) -> jax.Array:
    """``x @ kernel``, whether the kernel is condensed or not.

    Args:
      x: [..., n_in] float array.
      kernel: [n_in, n_out]. One input is multiplied feature by feature, several row by
        row of their transpose: each is the faster one on a CPU.

    Returns:
      [..., n_out], 0 at ablated neurons; sums in the order of the inputs.

    Raises:
      ValueError: if the inputs are not as many as the kernel has.
    """
    if not isinstance(kernel, Condensed):
        return x @ kernel
    if x.shape[-1:] != (kernel.n_in,):  # indices beyond x would find its last entry
        raise ValueError(
            f"x must be [..., n_in={kernel.n_in}] as the kernel, got {x.shape}"
        )
    values, inputs, places = kernel.values, kernel.inputs, kernel.places
    dtype = jnp.promote_types(x.dtype, values.dtype)
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    values = values.astype(dtype)
    fan_in, neurons = values.shape

    def add_one(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + values[i] * rows[0][inputs[i]]

    def add_rows(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + values[i][:, None] * columns[inputs[i]]

    if not neurons:
        return jnp.zeros((*x.shape[:-1], len(places)), dtype)
    if len(rows) == 1:
        total = lax.fori_loop(0, fan_in, add_one, jnp.zeros(neurons, dtype))[:, None]
    else:
        columns = rows.T
        start = jnp.zeros((neurons, len(rows)), dtype)
        total = lax.fori_loop(0, fan_in, add_rows, start)
    if len(places) != neurons:  # ablated ones find a row of zeros
        total = jnp.pad(total, ((0, 1), (0, 0)))[places]
    return total.T.reshape(*x.shape[:-1], len(places))
