"""The family of methods, each a value of `Method`, and their registry.

A preset is the method it is named after, with the schedule of its release or paper laid
over ``total_steps``, the steps of the training (of phase 1, with cheap tickets). What a
preset has no argument for, `Method.replace` sets.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from sup_tickets.checks import check_number, check_sparsity, check_whole, did_you_mean
from sup_tickets.counting import exact
from sup_tickets.dynamic import Method, Stairs, check_fields
from sup_tickets.saliency import (
    by_magnitude_and_gradient,
    by_momentum,
    by_random,
)
from sup_tickets.topology import Scope
from sup_tickets.trees import RuleLike, default_rule
from sup_tickets.types import Schedule

Drop = float | Stairs | Schedule

BEYOND = ("total_steps", "extra_density", "gradient_weight")
"""What presets take that is no field of `Method`."""

_FINAL = 0.005  # drop fraction at the end, in the releases in PyTorch
_PRUNING = Fraction(110, 160)  # of the training, in GraNet's release


def dense() -> Method:
    """No sparsity: every mask is ``None``. The baseline of all."""
    return Method("dense", sparsity=0.0, where=None, update_every=0)


def static(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int = 0,
    distribution: str | Callable[..., Any] = "erk",
    distribution_options: Mapping[str, Any] | None = None,
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
) -> Method:
    """A random mask that never changes (random pruning).

    Exploring a cheap ticket drops by magnitude and grows by gradient; the paper leaves
    open what it did there.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training, as every sparse method takes it.
      update_every: 0, for never.
      distribution, distribution_options, where, dense: see `Method`.
    """
    if update_every:
        raise ValueError(
            "method 'static' never updates; it has no option 'update_every', got "
            f"{update_every}"
        )
    if total_steps is not None:
        check_whole("total_steps", total_steps, 1)
    return Method(
        "static",
        sparsity=sparsity,
        update_every=0,
        distribution=distribution,
        distribution_options=distribution_options,
        where=where,
        dense=dense,
    )


def sparse_evolutionary(
    *,
    sparsity: float,
    total_steps: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop = 0.3,
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
) -> Method:
    """SET: drop a constant fraction by magnitude, grow at random, to the end.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training; may be left out if ``update_every`` is given.
      update_every: 100 by default. (In the paper an epoch.)
      end_step: last step that may have an update; ``total_steps`` by default.
      drop_fraction: the paper's zeta.
      distribution, where, dense: see `Method`.

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive
      sparse connectivity inspired by network science, 2018,
      https://arxiv.org/abs/1707.04780
    """
    every, end = _span(
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
        dense=dense,
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
    dense: Sequence[str] | str = (),
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
      distribution, where, dense: see `Method`.

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      https://arxiv.org/abs/1911.11134
    """
    every, end = _span(
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
        **_annealed("rigl", drop_fraction, end, initial=0.3, final=0.0),
        consumes_step=consumes_step,
        distribution=distribution,
        where=where,
        dense=dense,
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
    dense: Sequence[str] | str = (),
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
      distribution, where, dense: see `Method`.

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    every, end = _span(
        "set-itop", sparsity, total_steps, update_every, end_step, default=1500
    )
    return Method(
        "set-itop",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **_annealed("set-itop", drop_fraction, end, initial=0.5, final=_FINAL),
        grow_score=by_random,
        rounding="ceil",
        track_exploration=True,
        prefer_unexplored=prefer_unexplored,
        distribution=distribution,
        where=where,
        dense=dense,
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
    dense: Sequence[str] | str = (),
) -> Method:
    """RigL as In-Time Over-Parameterization runs it: long intervals, R_s tracked.

    Its updates replace no weight step, as in the PyTorch family. The drop fraction
    falls along a cosine to 0.005 at ``end_step``.

    Args:
      sparsity: in [0, 1).
      total_steps: of the training.
      update_every: 4000 by default.
      end_step, drop_fraction: as in `set_itop`.
      distribution, where, dense: see `Method`.

    References:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021,
      https://arxiv.org/abs/2102.02887
    """
    every, end = _span(
        "rigl-itop", sparsity, total_steps, update_every, end_step, default=4000
    )
    return Method(
        "rigl-itop",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **_annealed("rigl-itop", drop_fraction, end, initial=0.5, final=_FINAL),
        rounding="ceil",
        track_exploration=True,
        distribution=distribution,
        where=where,
        dense=dense,
    )


def granet(
    *,
    sparsity: float,
    total_steps: int | None = None,
    initial_sparsity: float = 0.5,
    prune_end_step: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    keep_pruned: bool = False,
    prune_scope: Scope = "global",
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
) -> Method:
    """GraNet: prune globally along a cubic schedule, and rewire, at every update.

    The drop fraction falls along a cosine to 0.005 at ``end_step``. A weight that is
    pruned and grown again in one update starts anew, as in the release; one that is
    dropped and grown again keeps its value and its slots.

    Args:
      sparsity: in [0, 1), at the end.
      total_steps: of the training.
      initial_sparsity: 0.5 is the sparse-to-sparse form, 0 the dense-to-sparse one.
      prune_end_step: end of the pruning window; by default 110 of 160 parts of
        ``total_steps``.
      update_every: 1000 by default.
      end_step: last step that may have an update; ``total_steps`` by default.
      drop_fraction: at the start, 0.5 by default. With neither ``total_steps`` nor
        ``end_step`` it must be given and stays for ever.
      keep_pruned, prune_scope, distribution, where, dense: see `Method`.

    References:
      Liu et al., Sparse Training via Boosting Pruning Plasticity with
      Neuroregeneration, 2021, https://arxiv.org/abs/2106.10404. The release stops one
      update short of the final sparsity; here it is met exactly.
    """
    every, end = _span(
        "granet", sparsity, total_steps, update_every, end_step, default=1000
    )
    return Method(
        "granet",
        sparsity=sparsity,
        initial_sparsity=initial_sparsity,
        prune_end_step=_prune_end("granet", total_steps, prune_end_step),
        update_every=every,
        end_step=end,
        **_annealed("granet", drop_fraction, end, initial=0.5, final=_FINAL),
        keep_pruned=keep_pruned,
        prune_scope=prune_scope,
        rounding="ceil",
        distribution=distribution,
        where=where,
        dense=dense,
    )


def granet_dense(
    *,
    sparsity: float,
    total_steps: int | None = None,
    initial_sparsity: float = 0.0,
    prune_end_step: int | None = None,
    update_every: int | None = None,
    end_step: int | None = None,
    drop_fraction: Drop | None = None,
    keep_pruned: bool = False,
    prune_scope: Scope = "global",
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
) -> Method:
    """GraNet from a dense network; see `granet`."""
    method = granet(
        sparsity=sparsity,
        total_steps=total_steps,
        initial_sparsity=initial_sparsity,
        prune_end_step=prune_end_step,
        update_every=update_every,
        end_step=end_step,
        drop_fraction=drop_fraction,
        keep_pruned=keep_pruned,
        prune_scope=prune_scope,
        distribution=distribution,
        where=where,
        dense=dense,
    )
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
    distribution: str | Callable[..., Any] = "erk",
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
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
      distribution, where, dense: see `Method`.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878
    """
    pruned = _prune_end("gmp", total_steps, prune_end_step)
    every, end = _span(
        "gmp",
        sparsity,
        None,
        update_every,
        pruned if end_step is None else end_step,
        default=100,
    )
    return Method(
        "gmp",
        sparsity=sparsity,
        initial_sparsity=initial_sparsity,
        prune_begin_step=prune_begin_step,
        prune_end_step=pruned,
        update_every=every,
        begin_step=begin_step,
        end_step=end,
        prune_scope=prune_scope,
        rewires=False,
        distribution=distribution,
        where=where,
        dense=dense,
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
    dense: Sequence[str] | str = (),
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
      distribution, where, dense: see `Method`.

    References:
      Dettmers and Zettlemoyer, Sparse Networks from Scratch, 2019,
      https://arxiv.org/abs/1907.04840
    """
    every, end = _span(
        "snfs", sparsity, total_steps, update_every, end_step, default=100
    )
    return Method(
        "snfs",
        sparsity=sparsity,
        update_every=every,
        end_step=end,
        **_annealed("snfs", drop_fraction, end, initial=0.5, final=_FINAL),
        rounding="ceil",
        grow_score=by_momentum,
        momentum_decay=momentum_decay,
        redistribute=redistribute,
        spare_dense=redistribute if spare_dense is None else spare_dense,
        distribution=distribution,
        where=where,
        dense=dense,
    )


def acdc(
    *,
    sparsity: float,
    total_steps: int,
    prune_scope: Scope = "global",
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
) -> Method:
    """AC/DC: dense and sparse training by turns, pruned globally by magnitude.

    Of 100 parts of the training the first 10 are dense, then 5 sparse and 5 dense by
    turns, 10 dense from part 75 on, and the last 15 sparse. All pruned weights return
    as 0.

    Args:
      sparsity: in [0, 1), of the sparse phases.
      total_steps: of the training.
      prune_scope, where, dense: see `Method`.

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
        dense=dense,
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
    dense: Sequence[str] | str = (),
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
      distribution, where, dense: see `Method`.

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
        dense=dense,
    )


METHODS: dict[str, Callable[..., Method]] = {
    "dense": dense,
    "static": static,
    "set": sparse_evolutionary,
    "rigl": rigl,
    "set-itop": set_itop,
    "rigl-itop": rigl_itop,
    "granet": granet,
    "granet-dense": granet_dense,
    "gmp": gradual_magnitude,
    "snfs": sparse_momentum,
    "acdc": acdc,
    "mest": mest,
}
"""Every preset by its short name."""


def make_method(name: str, **options: Any) -> Method:
    """The method with a short name, `METHODS`.

    Args:
      name: "rigl", for example.
      **options: of the preset.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest; for a field
        that the preset does not take; and as the preset does.
    """
    if name not in METHODS:
        full = {preset.__name__: short for short, preset in METHODS.items()}
        hint = did_you_mean(full.get(name, name), METHODS)
        raise ValueError(f"unknown method {name!r}{hint}")
    check_fields(name, options, also=BEYOND)
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ValueError(
            f"method {name!r}: {error}; set other fields by Method.replace"
        ) from None


def example(name: str) -> Method:
    """A method with a short name, for questions that its numbers do not answer.

    Raises:
      ValueError: for an unknown name, suggesting the nearest.
    """
    if METHODS.get(name) is dense:
        return dense()
    return make_method(name, sparsity=0.5, total_steps=10**6)


# --- Parts ----------------------------------------------------------------------------


def _span(
    name: str,
    sparsity: float,
    total_steps: int | None,
    update_every: int | None,
    end_step: int | None,
    *,
    default: int,
    part: Fraction = Fraction(1),
) -> tuple[int, int | None]:
    """The interval of updates and the last step that may have one."""
    check_sparsity(sparsity)  # the first thing to say
    every = default if update_every is None else update_every
    check_whole("update_every", every, 1)
    if end_step is not None:
        if check_whole("end_step", end_step, 0) < every:
            raise ValueError(
                f"{name} would never change the topology: update_every={every} leaves "
                f"no update up to end_step={end_step}"
            )
        return every, end_step
    if total_steps is None:
        if update_every is None:
            raise ValueError(
                f"{name} needs total_steps, the steps of the training, or update_every "
                f"(it is {default} by default)"
            )
        return every, None
    end = int(part * check_whole("total_steps", total_steps, 1))
    if every > end:
        raise ValueError(
            f"{name} would never change the topology: update_every={every} and "
            f"total_steps={total_steps} leave no update up to step {end}"
        )
    return every, end


def _annealed(
    name: str, fraction: Drop | None, end: int | None, *, initial: float, final: float
) -> dict[str, Any]:
    """The fields of a drop fraction that falls along a cosine."""
    if end is None:
        if fraction is None:
            raise ValueError(
                f"{name} needs total_steps, the steps of the training, over which its "
                "drop fraction falls; or end_step; or a drop_fraction that stays"
            )
        return {"drop_fraction": fraction}
    if callable(fraction) or isinstance(fraction, tuple):
        return {"drop_fraction": fraction}
    return {
        "drop_fraction": initial if fraction is None else fraction,
        "drop_decay": "cosine",
        "drop_final": final,
    }


def _prune_end(name: str, total_steps: int | None, prune_end_step: int | None) -> int:
    if prune_end_step is not None:
        return check_whole("prune_end_step", prune_end_step, 0)
    if total_steps is None:
        raise ValueError(
            f"{name} needs total_steps, the steps of the training, or prune_end_step"
        )
    return int(_PRUNING * check_whole("total_steps", total_steps, 1))
