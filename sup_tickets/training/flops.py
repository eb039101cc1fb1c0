"""Floating point operations of sparse networks, by RigL's convention.

A weight that is used at one place costs 2 operations, a multiplication and an addition.
Counted are kernels alone: no biases, norms, activations, or products of activations (as
within attention). A backward pass costs twice the forward pass. These are the numbers
of papers; hardware without sparse kernels does the dense work all the same, see
`measured_flops`.

f_S is the cost of a forward pass with the active weights, f_D with all of them.

References:
  Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
  https://arxiv.org/abs/1911.11134, appendix H.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.trees import named_leaves
from sup_tickets.types import Masks, Params

Uses = dict[str, int]
"""How often each element of a leaf is used for one example, by the leaf's name.

Of Linen modules see `sup_tickets.training.libraries.linen.kernel_uses`.
"""


# --- One forward pass -----------------------------------------------------------------


def active_counts(masks: Masks, params: Params) -> dict[str, int]:
    """Active weights of every leaf by its name; all of them without a mask.

    Args:
      masks: concrete masks, ``None`` at dense leaves.
      params: arrays, or their shapes.
    """
    counts = {name: int(np.prod(leaf.shape)) for name, leaf in named_leaves(params)}
    sums = {name: jnp.count_nonzero(mask) for name, mask in named_leaves(masks)}
    return counts | {name: int(n) for name, n in jax.device_get(sums).items()}


def flops_of(uses: Uses, active: Mapping[str, int]) -> int:
    """f_S: operations of a forward pass of one example.

    Args:
      uses: of `kernel_uses`.
      active: weights of each leaf that are used, of `active_counts`.

    Raises:
      ValueError: naming the first kernel whose number is missing.
    """
    for name in uses:
        if name not in active:
            raise ValueError(f"active has no number for leaf {name!r}")
    return sum(2 * times * active[name] for name, times in uses.items())


def forward_flops(uses: Uses, masks: Masks, params: Params) -> int:
    """f_S of a network: operations of a forward pass of one example.

    Args:
      uses: of `kernel_uses`.
      masks: ``None`` at dense leaves.
      params: arrays, or their shapes.

    Raises:
      ValueError: naming the first sparse leaf whose uses are not known: a parameter of
        a module that `kernel_uses` does not know.
    """
    for name, _ in named_leaves(masks):
        if name not in uses:
            raise ValueError(
                f"leaf {name!r} is sparse, but no layer is known to use it"
            )
    return flops_of(uses, active_counts(masks, params))


def dense_flops(uses: Uses, params: Params) -> int:
    """f_D of a model: operations of a forward pass of one example, none inactive.

    Args:
      uses: of `kernel_uses`.
      params: arrays, or their shapes.
    """
    return flops_of(uses, active_counts(jax.tree.map(lambda _: None, params), params))


# --- Training -------------------------------------------------------------------------


class Stretch(NamedTuple):
    """Part of a run in which the topology, or at least its f_S, stays the same."""

    forward: int  # f_S, operations
    weight_steps: int  # those that an update replaced left out
    dense_gradients: int = 0  # changes of the topology that look at all gradients


def weight_step_flops(forward: float, dense: float, *, all_gradients: bool) -> float:
    """Operations of a weight step of one example.

    ``3 f_S``; or ``2 f_S + f_D`` if the method looks at the gradients of all weights in
    every step (SNFS). A dense step is ``3 f_D``.

    Args:
      forward: f_S.
      dense: f_D.
      all_gradients: whether inactive weights have gradients.
    """
    return 2 * forward + (dense if all_gradients else forward)


def dense_gradient_flops(forward: float, dense: float) -> float:
    """Operations of a change of the topology that looks at all gradients (RigL).

    ``2 f_S + f_D`` an example: forward and back through the active weights, and the
    gradients of all weights.
    """
    return 2 * forward + dense


def training_flops(
    history: Iterable[Stretch],
    *,
    dense: int,
    batch_size: int,
    all_gradients: bool = False,
) -> int:
    """Operations of a whole run, the exact sum over its steps.

    Args:
      history: all stretches of the run.
      dense: f_D.
      batch_size: examples of a step.
      all_gradients: see `weight_step_flops`.
    """
    total = 0
    for part in history:
        step = weight_step_flops(part.forward, dense, all_gradients=all_gradients)
        total += part.weight_steps * step
        total += part.dense_gradients * dense_gradient_flops(part.forward, dense)
    return round(batch_size * total)


def rigl_step_flops(forward: float, dense: float, *, update_every: int) -> float:
    """Mean operations of a step of RigL and one example, in closed form.

    ``(3 f_S dT + 2 f_S + f_D) / (dT + 1)``: dT weight steps, then an update.

    Args:
      forward: f_S, the same throughout.
      dense: f_D.
      update_every: dT, weight steps.
    """
    steps = 3 * forward * update_every
    return (steps + 2 * forward + dense) / (update_every + 1)


# --- Measured -------------------------------------------------------------------------


def measured_flops(compiled: Any) -> float | None:
    """Operations of a compiled program as the compiler counts them; zeros are work too.

    Args:
      compiled: of ``jax.jit(f).lower(...).compile()``; or of ``lower`` alone, before
        the compiler has simplified it.

    Returns:
      ``None`` if the backend does not say.
    """
    try:
        analysis = compiled.cost_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if isinstance(analysis, (list, tuple)):  # one entry a program
        analysis = analysis[0] if analysis else None
    flops = (analysis or {}).get("flops", -1.0)
    return float(flops) if flops > 0 else None
