"""Selfish-RNN: the gates of a recurrent matrix compete to stay, and grow alike."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sup_tickets.checks import check_one_of
from sup_tickets.dynamic import Method
from sup_tickets.groups import Groups, GroupsLike, per_part
from sup_tickets.methods.spans import LAST_DROP, Drop, annealed, update_span
from sup_tickets.saliency import by_random
from sup_tickets.trees import RuleLike, default_rule

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
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    gate_growth: str = "equal",
    gates: GroupsLike = recurrent_gates,
    distribution: str | Callable[..., Any] = "uniform",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """Selfish-RNN: drop the smallest of all gates together, grow at random.

    The drop fraction falls along a cosine to 0.005 at ``end_step``.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training.
      update_every: 100 by default. (In the release an epoch.)
      end_step: last step that may have an update; ``total_steps`` by default.
      drop_fraction: at the start, 0.5 by default; 0.8 for the stacked LSTM of the
        paper. With neither ``total_steps`` nor ``end_step`` it must be given and stays
        for ever.
      gate_growth: "equal": every gate of a matrix grows the same number, as the figure
        of the paper shows, as far as it has room; what it has not is for the others.
        "pooled": anywhere in the matrix, as the release does.
      gates: which leaves have gates and where they are, see `sup_tickets.groups`;
        of "equal" alone. Those of PyTorch and Equinox are ``per_part(4, axis=0)``.
      distribution: "uniform" as in the release, or "er".
      where, keep_dense: see `Method`.

    References:
      Liu et al., Selfish Sparse RNN Training, 2021, https://arxiv.org/abs/2101.09048
    """
    check_one_of("gate_growth", gate_growth, GATE_GROWTH)
    every, end = update_span(
        "selfish-rnn", sparsity, total_steps, update_every, end_step, default=100
    )
    return Method(
        "selfish-rnn",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **annealed("selfish-rnn", drop_fraction, end, initial=0.5, final=LAST_DROP),
        grow_score=by_random,
        grow_groups=gates if gate_growth == "equal" else None,
        rounding="ceil",
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )
