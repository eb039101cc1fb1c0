"""Selfish-RNN: the gates of a recurrent matrix compete to stay, and grow alike."""

import re
from typing import Any, Unpack

from sup_tickets.checks import check_one_of
from sup_tickets.dynamic import Method
from sup_tickets.groups import Groups, GroupsLike, per_part
from sup_tickets.methods.shared import Updates, rewiring
from sup_tickets.saliency import by_random

GATE_GROWTH = ("equal", "pooled")

# Names of kernels, and how many equal parts their last axes have.
_GATES = (
    (re.compile(r"(^|/)(input|hidden)_kernel$"), per_part(4)),
    (re.compile(r"(^|/)highway_(input|hidden)_kernel\d*$"), per_part(2)),
)


def recurrent_gates(name: str, leaf: Any) -> Groups | None:
    """The gates of the kernels of our LSTM and RHN layers; other leaves have none.

    (Those of ON-LSTM, of two sizes in one matrix, are one group.)

    Example:
      >>> recurrent_gates("layer1/hidden_kernel", None) == per_part(4)
      True
    """
    del leaf
    return next((groups for kernel, groups in _GATES if kernel.search(name)), None)


def selfish_rnn(
    *,
    sparsity: float,
    gate_growth: str = "equal",
    gates: GroupsLike = recurrent_gates,
    **options: Unpack[Updates],
) -> Method:
    """Selfish-RNN: drop the smallest of all gates together, grow at random.

    Args:
      sparsity: in [0, 1).
      gate_growth: "equal": every gate of a matrix grows the same number, as the figure
        of the paper shows, as far as it has room; what it has not is for the others.
        "pooled": anywhere in the matrix, as the release does.
      gates: which leaves have gates and where they are, see `sup_tickets.groups`;
        of "equal" alone. Those of PyTorch and Equinox are ``per_part(4, axis=0)``.
      **options: `Updates`. By default every 100 steps (in the release an epoch), up to
        ``total_steps``; the drop fraction falls from 0.5 (0.8 for the stacked LSTM of
        the paper) to 0.005; the distribution is "uniform" as in the release, or "er".

    References:
      Liu et al., Selfish Sparse RNN Training, 2021, https://arxiv.org/abs/2101.09048
    """
    check_one_of("gate_growth", gate_growth, GATE_GROWTH)
    return rewiring(
        "selfish-rnn",
        options,
        every=100,
        drop=0.5,
        sparsity=sparsity,
        distribution="uniform",
        grow_score=by_random,
        grow_groups=gates if gate_growth == "equal" else None,
        rounding="ceil",
    )
