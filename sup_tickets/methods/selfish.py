"""Selfish-RNN: the gates of a recurrent matrix compete to stay, and grow alike."""

from collections.abc import Callable, Sequence
from typing import Any

from sup_tickets.checks import check_one_of
from sup_tickets.dynamic import Method
from sup_tickets.groups import Groups, GroupsLike, per_part
from sup_tickets.methods.spans import LAST_DROP, Drop, annealed, update_span
from sup_tickets.saliency import by_random
from sup_tickets.trees import RuleLike, default_rule

GATE_GROWTH = ("equal", "pooled")

_GATES = per_part(4)
_KERNELS = ("input_kernel", "hidden_kernel")


def lstm_gates(name: str, leaf: Any) -> Groups | None:
    """The four gates of the kernels of `sup_tickets.models.lstm.LSTMLayer`.

    They are equal parts of the last axis; other leaves have none.
    """
    del leaf
    return _GATES if name.rsplit("/", 1)[-1] in _KERNELS else None


def selfish_rnn(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    gate_growth: str = "equal",
    gates: GroupsLike = lstm_gates,
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
