"""Methods whose masks have a structure: SRigL."""

from collections.abc import Callable, Sequence
from typing import Any

from sup_tickets.dynamic import Method
from sup_tickets.methods.rewiring import rigl
from sup_tickets.methods.spans import Drop
from sup_tickets.structures import fan_in
from sup_tickets.trees import RuleLike, default_rule


def srigl(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    ablate_below: float | None = 0.3,
    keep_neurons: Sequence[str] | str | None = None,
    outputs: int | Sequence[int] = -1,
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """SRigL: RigL with a constant fan-in, whose neurons may be ablated.

    Args:
      sparsity: in [0, 1).
      total_steps, update_every, end_step, drop_fraction: as in `rigl`.
      ablate_below: the share of its fan-in that must be salient for a neuron to stay,
        in (0, 1]; 0.3 for convolutional networks and 0.95 for vision transformers in
        the paper. ``None`` for no ablation.
      keep_neurons: expressions of the layers whose neurons always stay; by default
        those that are named as the last one, which must be there, see `Structure`.
      outputs: axis or axes of the output neurons, see `per_output`.
      distribution, where, keep_dense: see `Method`.

    References:
      Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024,
      https://arxiv.org/abs/2305.02299
    """
    plain = rigl(
        sparsity=sparsity,
        total_steps=total_steps,
        update_every=update_every,
        end_step=end_step,
        drop_fraction=drop_fraction,
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )
    structure = fan_in(
        axis=outputs, ablate_below=ablate_below, keep_neurons=keep_neurons
    )
    return plain.replace(name="srigl", structure=structure)
