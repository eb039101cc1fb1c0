"""Methods that drop and grow: SET, RigL, ITOP, SNFS, MEST."""

from fractions import Fraction
from typing import Unpack

from sup_tickets.checks import check_number, check_sparsity, check_whole
from sup_tickets.counting import exact
from sup_tickets.dynamic import Method
from sup_tickets.methods.shared import Leaves, Updates, options_of, rewiring
from sup_tickets.saliency import (
    by_magnitude_and_gradient,
    by_momentum,
    by_random,
)


def sparse_evolutionary(*, sparsity: float, **options: Unpack[Updates]) -> Method:
    """SET: drop a constant fraction by magnitude, grow at random, to the end.

    Args:
      sparsity: in [0, 1).
      **options: `Updates`. By default every 100 steps (in the paper an epoch), up to
        ``total_steps``; the paper's zeta, the drop fraction, is 0.3 all the time.

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive
      sparse connectivity inspired by network science, 2018,
      https://arxiv.org/abs/1707.04780
    """
    return rewiring(
        "set",
        options,
        every=100,
        drop=0.3,
        last_drop=0.3,
        sparsity=sparsity,
        grow_score=by_random,
    )


def rigl(
    *, sparsity: float, consumes_step: bool = True, **options: Unpack[Updates]
) -> Method:
    """RigL: drop by magnitude, grow by the dense gradient, instead of a weight step.

    Args:
      sparsity: in [0, 1).
      consumes_step: see `Method`.
      **options: `Updates`. By default every 100 steps, up to three quarters of
        ``total_steps``; the drop fraction falls from 0.3 to 0.

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134
    """
    return rewiring(
        "rigl",
        options,
        every=100,
        drop=0.3,
        last_drop=0.0,
        part=Fraction(3, 4),
        sparsity=sparsity,
        consumes_step=consumes_step,
    )


def set_itop(
    *, sparsity: float, prefer_unexplored: bool = False, **options: Unpack[Updates]
) -> Method:
    """SET as In-Time Over-Parameterization runs it: long intervals, R_s tracked.

    Args:
      sparsity: in [0, 1).
      prefer_unexplored: whether never-active places grow first (the release's
        "random_unfired").
      **options: `Updates`. By default every 1500 steps, up to ``total_steps``; the drop
        fraction falls from 0.5 to 0.005.

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    return rewiring(
        "set-itop",
        options,
        every=1500,
        drop=0.5,
        sparsity=sparsity,
        grow_score=by_random,
        rounding="ceil",
        track_exploration=True,
        prefer_unexplored=prefer_unexplored,
    )


def rigl_itop(*, sparsity: float, **options: Unpack[Updates]) -> Method:
    """RigL as In-Time Over-Parameterization runs it: long intervals, R_s tracked.

    Its updates replace no weight step, as in the PyTorch family.

    Args:
      sparsity: in [0, 1).
      **options: `Updates`. As in `set_itop`, but every 4000 steps by default.

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    return rewiring(
        "rigl-itop",
        options,
        every=4000,
        drop=0.5,
        sparsity=sparsity,
        rounding="ceil",
        track_exploration=True,
    )


def sparse_momentum(
    *,
    sparsity: float,
    momentum_decay: float = 0.9,
    redistribute: bool = True,
    spare_dense: bool | None = None,
    **options: Unpack[Updates],
) -> Method:
    """SNFS: grow by the averaged dense gradient, shared out between layers by it.

    Args:
      sparsity: in [0, 1).
      momentum_decay: of the running average of dense gradients.
      redistribute: ``False`` keeps every layer's count (the variant in RigL's code).
      spare_dense: whether dense layers that grow drop less, see `Method`; by default
        where layers are redistributed, as in the release.
      **options: `Updates`. By default every 100 steps (in the release an epoch), up to
        ``total_steps``; the drop fraction falls from 0.5 to 0.005.

    References:
      Dettmers and Zettlemoyer, Sparse Networks from Scratch, 2019,
      https://arxiv.org/abs/1907.04840
    """
    return rewiring(
        "snfs",
        options,
        every=100,
        drop=0.5,
        sparsity=sparsity,
        rounding="ceil",
        grow_score=by_momentum,
        momentum_decay=momentum_decay,
        redistribute=redistribute,
        spare_dense=redistribute if spare_dense is None else spare_dense,
    )


def mest(
    *,
    sparsity: float,
    total_steps: int,
    update_every: int | None = None,
    end_step: int | None = None,
    extra_density: float = 0.0,
    gradient_weight: float = 0.0,
    **leaves: Unpack[Leaves],
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
      **leaves: `Leaves`; "uniform" by default.

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
        **{"distribution": "uniform", **options_of("mest", leaves, Leaves)},
    )
