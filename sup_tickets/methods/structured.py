"""Methods whose masks have a structure: SRigL."""

from collections.abc import Sequence
from typing import Unpack

from sup_tickets.dynamic import Method
from sup_tickets.methods.rewiring import rigl
from sup_tickets.methods.shared import Updates
from sup_tickets.structures import fan_in


def srigl(
    *,
    sparsity: float,
    ablate_below: float | None = 0.3,
    keep_neurons: Sequence[str] | str | None = None,
    outputs: int | Sequence[int] = -1,
    **options: Unpack[Updates],
) -> Method:
    """SRigL: RigL with a constant fan-in, whose neurons may be ablated.

    Args:
      sparsity: in [0, 1).
      ablate_below: the share of its fan-in that must be salient for a neuron to stay,
        in (0, 1]; 0.3 for convolutional networks and 0.95 for vision transformers in
        the paper. ``None`` for no ablation.
      keep_neurons: expressions of the layers whose neurons always stay; by default
        those that are named as the last one, which must be there, see `Structure`.
      outputs: axis or axes of the output neurons, see `per_output`.
      **options: as in `rigl`.

    References:
      Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024,
      https://arxiv.org/abs/2305.02299
    """
    structure = fan_in(
        axis=outputs, ablate_below=ablate_below, keep_neurons=keep_neurons
    )
    plain = rigl(sparsity=sparsity, **options)
    return plain.replace(name="srigl", structure=structure)
