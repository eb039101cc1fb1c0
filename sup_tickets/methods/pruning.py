"""Methods that become sparse while they train: GraNet, gradual pruning, AC/DC."""

from collections.abc import Sequence
from typing import Unpack

from sup_tickets.checks import check_sparsity, check_whole
from sup_tickets.dynamic import Method
from sup_tickets.methods.shared import (
    Leaves,
    Updates,
    options_of,
    prune_end,
    rewiring,
)
from sup_tickets.pruning import Scope
from sup_tickets.trees import RuleLike, default_rule


def granet(
    *,
    sparsity: float,
    initial_sparsity: float = 0.5,
    prune_end_step: int | None = None,
    keep_pruned: bool = False,
    prune_scope: Scope = "global",
    **options: Unpack[Updates],
) -> Method:
    """GraNet: prune globally along a cubic schedule, and rewire, at every update.

    A weight that is pruned and grown again in one update starts anew, as in the
    release; one that is dropped and grown again keeps its value and its slots.

    Args:
      sparsity: in [0, 1), at the end.
      initial_sparsity: 0.5 is the sparse-to-sparse form, 0 the dense-to-sparse one.
      prune_end_step: end of the pruning window; by default 110 of 160 parts of
        ``total_steps``.
      keep_pruned, prune_scope: see `Method`.
      **options: `Updates`. By default every 1000 steps, up to ``total_steps``; the drop
        fraction falls from 0.5 to 0.005.

    References:
      Liu et al., Sparse Training via Boosting Pruning Plasticity with
      Neuroregeneration, 2021, https://arxiv.org/abs/2106.10404. The release stops one
      update short of the final sparsity; here it is met exactly.
    """
    check_sparsity(sparsity)  # the first thing to say
    return rewiring(
        "granet",
        options,
        every=1000,
        drop=0.5,
        sparsity=sparsity,
        initial_sparsity=initial_sparsity,
        prune_end_step=prune_end("granet", options.get("total_steps"), prune_end_step),
        keep_pruned=keep_pruned,
        prune_scope=prune_scope,
        rounding="ceil",
    )


class _Granet(Updates, total=False):
    prune_end_step: int | None
    keep_pruned: bool
    prune_scope: Scope


def granet_dense(
    *, sparsity: float, initial_sparsity: float = 0.0, **options: Unpack[_Granet]
) -> Method:
    """GraNet from a dense network; see `granet`."""
    method = granet(sparsity=sparsity, initial_sparsity=initial_sparsity, **options)
    return method.replace(name="granet-dense")


def gradual_magnitude(
    *,
    sparsity: float,
    total_steps: int | None = None,
    initial_sparsity: float = 0.0,
    prune_begin_step: int = 0,
    prune_end_step: int | None = None,
    update_every: int | None = None,
    begin_step: int | None = None,
    end_step: int | None = None,
    prune_scope: Scope = "global",
    **leaves: Unpack[Leaves],
) -> Method:
    """GMP: prune a dense network by magnitude along a cubic schedule, never grow.

    Args:
      sparsity: in [0, 1), at the end.
      total_steps: of the training.
      initial_sparsity: at the start.
      prune_begin_step: of the pruning window.
      prune_end_step: of the pruning window; by default 110 of 160 parts of
        ``total_steps``, as in GraNet's release.
      update_every: 100 by default.
      begin_step: first step that may have an update; ``update_every`` by default.
      end_step: last step that may have an update; ``prune_end_step`` by default.
      prune_scope: "layer" prunes each layer alike.
      **leaves: `Leaves`.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878
    """
    check_sparsity(sparsity)  # the first thing to say
    pruned = prune_end("gmp", total_steps, prune_end_step)
    return Method(
        "gmp",
        sparsity=sparsity,
        initial_sparsity=initial_sparsity,
        prune_begin_step=prune_begin_step,
        prune_end_step=pruned,
        update_every=100 if update_every is None else update_every,
        begin_step=begin_step,
        end_step=pruned if end_step is None else end_step,
        prune_scope=prune_scope,
        rewires=False,
        **options_of("gmp", leaves, Leaves),
    )


def acdc(
    *,
    sparsity: float,
    total_steps: int,
    prune_scope: Scope = "global",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """AC/DC: dense and sparse training by turns, pruned globally by magnitude.

    Of 100 parts of the training the first 10 are dense, then 5 sparse and 5 dense by
    turns, 10 dense from part 75 on, and the last 15 sparse. All pruned weights return
    as 0.

    Args:
      sparsity: in [0, 1), of the sparse phases.
      total_steps: of the training.
      prune_scope, where, keep_dense: see `Method`.

    References:
      Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural
      Networks, 2021, https://arxiv.org/abs/2106.12379
    """
    least = 20  # steps that give every phase one
    check_whole("total_steps", total_steps, least)
    turns = (*range(10, 80, 5), 85)  # in hundredths; sparse first
    phases = [(0, 0.0)]
    for i, part in enumerate(turns):
        phases.append((total_steps * part // 100, 0.0 if i % 2 else sparsity))
    return Method(
        "acdc",
        sparsity=sparsity,
        sparsity_stairs=tuple(phases),
        update_every=0,
        rewires=False,
        prune_scope=prune_scope,
        where=where,
        keep_dense=keep_dense,
    )
