"""Methods that drop and grow: SET, RigL, ITOP, SNFS, MEST."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from sup_tickets.checks import check_number, check_sparsity, check_whole
from sup_tickets.counting import exact
from sup_tickets.dynamic import Method
from sup_tickets.methods.spans import LAST_DROP, Drop, annealed, update_span
from sup_tickets.saliency import (
    by_magnitude_and_gradient,
    by_momentum,
    by_random,
)
from sup_tickets.trees import RuleLike, default_rule


def sparse_evolutionary(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop = 0.3,
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """SET: drop a constant fraction by magnitude, grow at random, to the end.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training; may be left out if ``update_every`` is given.
      update_every: 100 by default. (In the paper an epoch.)
      end_step: last step that may have an update; ``total_steps`` by default.
      drop_fraction: the paper's zeta.
      distribution, where, keep_dense: see `Method`.

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive
      sparse connectivity inspired by network science, 2018,
      https://arxiv.org/abs/1707.04780
    """
    every, end = update_span(
        "set", sparsity, total_steps, update_every, end_step, default=100
    )
    return Method(
        "set",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        drop_fraction=drop_fraction,
        grow_score=by_random,
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )


def rigl(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    consumes_step: bool = True,
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """RigL: drop by magnitude, grow by the dense gradient, instead of a weight step.

    The drop fraction falls along a cosine to 0 at ``end_step``.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training.
      update_every: 100 by default.
      end_step: last step that may have an update; three quarters of ``total_steps`` by
        default.
      drop_fraction: at the start, 0.3 by default. With neither ``total_steps`` nor
        ``end_step`` it must be given and stays for ever.
      consumes_step: see `Method`.
      distribution, where, keep_dense: see `Method`.

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134
    """
    every, end = update_span(
        "rigl",
        sparsity,
        total_steps,
        update_every,
        end_step,
        default=100,
        part=Fraction(3, 4),
    )
    return Method(
        "rigl",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **annealed("rigl", drop_fraction, end, initial=0.3, final=0.0),
        consumes_step=consumes_step,
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )


def set_itop(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    prefer_unexplored: bool = False,
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """SET as In-Time Over-Parameterization runs it: long intervals, R_s tracked.

    The drop fraction falls along a cosine to 0.005 at ``end_step``.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training.
      update_every: 1500 by default.
      end_step: last step that may have an update; ``total_steps`` by default.
      drop_fraction: at the start, 0.5 by default. With neither ``total_steps`` nor
        ``end_step`` it must be given and stays for ever.
      prefer_unexplored: whether never-active places grow first (the release's
        "random_unfired").
      distribution, where, keep_dense: see `Method`.

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    every, end = update_span(
        "set-itop", sparsity, total_steps, update_every, end_step, default=1500
    )
    return Method(
        "set-itop",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **annealed("set-itop", drop_fraction, end, initial=0.5, final=LAST_DROP),
        grow_score=by_random,
        rounding="ceil",
        track_exploration=True,
        prefer_unexplored=prefer_unexplored,
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )


def rigl_itop(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """RigL as In-Time Over-Parameterization runs it: long intervals, R_s tracked.

    Its updates replace no weight step, as in the PyTorch family. The drop fraction
    falls along a cosine to 0.005 at ``end_step``.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training.
      update_every: 4000 by default.
      end_step, drop_fraction: as in `set_itop`.
      distribution, where, keep_dense: see `Method`.

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    every, end = update_span(
        "rigl-itop", sparsity, total_steps, update_every, end_step, default=4000
    )
    return Method(
        "rigl-itop",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **annealed("rigl-itop", drop_fraction, end, initial=0.5, final=LAST_DROP),
        rounding="ceil",
        track_exploration=True,
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )


def sparse_momentum(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    momentum_decay: float = 0.9,
    redistribute: bool = True,
    spare_dense: bool | None = None,
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """SNFS: grow by the averaged dense gradient, shared out between layers by it.

    The drop fraction falls along a cosine to 0.005 at ``end_step``.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training.
      update_every: 100 by default. (In the release an epoch.)
      end_step: last step that may have an update; ``total_steps`` by default.
      drop_fraction: at the start, 0.5 by default. With neither ``total_steps`` nor
        ``end_step`` it must be given and stays for ever.
      momentum_decay: of the running average of dense gradients.
      redistribute: ``False`` keeps every layer's count (the variant in RigL's code).
      spare_dense: whether dense layers that grow drop less, see `Method`; by default
        where layers are redistributed, as in the release.
      distribution, where, keep_dense: see `Method`.

    References:
      Dettmers and Zettlemoyer, Sparse Networks from Scratch, 2019,
      https://arxiv.org/abs/1907.04840
    """
    every, end = update_span(
        "snfs", sparsity, total_steps, update_every, end_step, default=100
    )
    return Method(
        "snfs",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **annealed("snfs", drop_fraction, end, initial=0.5, final=LAST_DROP),
        rounding="ceil",
        grow_score=by_momentum,
        momentum_decay=momentum_decay,
        redistribute=redistribute,
        spare_dense=redistribute if spare_dense is None else spare_dense,
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )


def mest(
    *,
    sparsity: float,
    total_steps: int,
    update_every: int | None = None,
    end_step: int | None = None,
    extra_density: float = 0.0,
    gradient_weight: float = 0.0,
    distribution: str | Callable[..., Any] = "uniform",
    where: RuleLike = default_rule,
    keep_dense: Sequence[str] | str = (),
) -> Method:
    """MEST: drop by ``|w| + gradient_weight |dL/dw|``, grow at random, ever fewer.

    A fifth of the active weights mutates in every update, a tenth from 90 of 160 parts
    of the training on, none from 120 on: at a sparsity of 0.9 that is 2%, 1% and 0 of
    all weights. With ``extra_density`` (the paper's soft memory bound, EM&S) the
    network is that much denser at first, half as much from 90 parts on, and what is
    more than the final sparsity leaves is what mutates.

    Args:
      sparsity: in [0, 1), at the end.
      total_steps: of the training.
      update_every: a 32nd of the training by default (5 epochs of 160).
      end_step: last step that may have an update; by default where no weight mutates.
      extra_density: in [0, sparsity]; 0.05 in the scripts of the release, 0 for EM.
      gradient_weight: the paper's lambda; 0 in the release.
      distribution, where, keep_dense: see `Method`.

    References:
      Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training Framework on
      the Edge, 2021, https://arxiv.org/abs/2110.14032
    """
    least = 32 if update_every is None else 4  # steps that part the updates, the stairs
    check_whole("total_steps", total_steps, least)
    steps = (0, total_steps * 90 // 160, total_steps * 120 // 160)
    check_sparsity(sparsity)
    check_number("extra_density", extra_density, 0, sparsity)
    extra, rest = exact(extra_density), 1 - exact(sparsity)
    extras = (extra, extra / 2, Fraction(0))
    if extra:
        drops = [part / (rest + part) for part in extras]
        stairs = tuple(
            (step, float(1 - rest - part))
            for step, part in zip(steps, extras, strict=True)
        )
    else:
        drops, stairs = [Fraction(1, 5), Fraction(1, 10), Fraction(0)], ()
    return Method(
        "mest",
        sparsity=sparsity,
        sparsity_stairs=stairs,
        update_every=total_steps // 32 if update_every is None else update_every,
        end_step=steps[-1] if end_step is None else end_step,
        drop_fraction=tuple(zip(steps, map(float, drops), strict=True)),
        drop_score=by_magnitude_and_gradient(gradient_weight),
        grow_score=by_random,
        rounding="nearest",
        distribution=distribution,
        where=where,
        keep_dense=keep_dense,
    )
