"""Layer-wise re-scaled initialization: GradInit, for a network that has its masks.

Initial weights are good if one step of the optimizer lowers the loss far, and bad if
gradients are large. GradInit keeps the directions of the weights and learns their
lengths, one scale for each tensor, so that the loss after a first step is low while the
norm of the gradient stays below a limit. Here all of it happens in the sparse network:
masked weights take part in nothing, and stay exactly 0.

The parts are pure functions; `rescaled_init` is the loop on the host that chooses, at
every iteration, between a step on the norm and a step on the objective. (A choice in a
compiled program, a ``lax.cond``, makes convolutions slow on a CPU.)

Shapes: T is the number of tensors, the leaves of the parameters in tree order. Norms,
slopes and scales are float32 whatever the parameters are.

References:
  Zhu et al., GradInit: Learning to Initialize Neural Networks for Stable and Efficient
  Training, 2021, https://arxiv.org/abs/2102.08098
  Jaiswal et al., Training Your Sparse Neural Network Better with Any Mask, 2022,
  https://arxiv.org/abs/2206.12755
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.checks import check_fraction, check_one_of, check_whole
from sup_tickets.gradinit.adam import RescaleState, rescale_state, rescale_update
from sup_tickets.gradinit.slopes import (
    ALGORITHMS,
    Loss,
    lookahead_slopes,
    measure_gradient,
    norm_slopes,
    scaled,
)
from sup_tickets.masks import apply_masks
from sup_tickets.trees import matching_names, named_leaves
from sup_tickets.types import Masks, Params

Batches = Callable[[int], Any] | Iterable[Any]
"""``index -> minibatch`` for indices 0, 1, 2, ..., or the minibatches one by one."""


_BIAS = re.compile(r"(^|[/_])(bias|offset|beta)$", re.IGNORECASE)


class RescaleHistory(NamedTuple):
    """What happened in each of N iterations, arrays on the host."""

    losses: np.ndarray  # [N] float32: on the minibatches of the gradient
    norms: np.ndarray  # [N] float32: of the gradient, before the step
    constrained: np.ndarray  # [N] bool: was it a step on the norm
    objectives: np.ndarray  # [N] float32: loss after the lookahead / step size, or NaN


class Rescaled(NamedTuple):
    """Result of `rescaled_init`."""

    params: Params  # scale * weight, exactly 0 where a mask is False
    scales: Any  # float32 scalars, a tree like params
    history: RescaleHistory


def rescaled_init(
    loss: Loss,
    params: Params,
    masks: Masks | None,
    batches: Batches,
    *,
    steps: int = 180,
    learning_rate: float = 1e-2,
    step_size: float = 0.1,
    norm_limit: float = 1.0,
    min_scale: float = 0.01,
    clip: float = 1.0,
    algorithm: str = "sgd",
    normalize: bool = True,
    overlap: bool = True,
    masked_gradients: bool = True,
    held: Sequence[str] | str = (),
) -> Rescaled:
    """Initial parameters whose tensors are scaled so that the first step does most.

    Minimizes ``loss(θ - η A(g), S') / η`` over the scales ``α`` of ``θ = α θ₀``, where
    ``g`` is the gradient on S, and A the first step of the optimizer: ``g / ||g||``
    ("sgd"; ``g`` if not normalized) or ``sign(g)`` ("adam"). Where the norm of ``g``
    (L2 over all tensors, L1 for "adam") exceeds the limit, the iteration lowers the
    norm instead, by its true gradient. Scales move by `rescale_update`.

    S are two minibatches. S' are the first of them and a fresh one. A tensor that is 0
    keeps scale 1. Defaults are those of ToST's README.

    Args:
      loss: ``(params, batch) -> scalar``: plain cross-entropy, not smoothed; batch
        norms use the statistics of the batch. Compiled, and differentiated twice
        (forward over reverse).
      params: pytree of floating point arrays.
      masks: masks of ``params``, applied first; ``None`` if the network is dense.
      batches: ``index -> minibatch``, or an iterable of minibatches; two are used in an
        iteration on the norm, three (four) in one on the objective. A minibatch is a
        pytree of arrays that are joined along axis 0.
      steps: iterations, at least 1.
      learning_rate: of the scales, positive.
      step_size: ``η``, positive.
      norm_limit: largest norm of the gradient, positive; infinity is no limit.
      min_scale: least scale, in [0, 1], of a tensor that is no bias; a bias may go
        down to 0, and then stays there.
      clip: bound of the gradient of a scale, positive; infinity is none.
      algorithm: "sgd" or "adam".
      normalize: whether "sgd" steps have length ``η``.
      overlap: whether S' shares a minibatch with S; otherwise both are fresh.
      masked_gradients: False leaves gradients at masked weights in the norm and in the
        lookahead, which then fills the holes: a fault of ToST's released code ("type
        2"), here for comparison alone.
      held: expressions of the names of leaves that keep scale 1.

    Returns:
      Parameters, their scales, and the history.

    Raises:
      ValueError: if an argument is out of its range, or ``batches`` ends too soon.
      FloatingPointError: if a loss or a norm is not finite, naming the iteration.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda params, x: jnp.mean((x @ params["w"]) ** 2)
      >>> params = {"w": jnp.full(2, 4.0), "bias": jnp.zeros(2)}
      >>> masks = {"w": jnp.array([True, False]), "bias": None}
      >>> done = rescaled_init(loss, params, masks, lambda i: jnp.ones((8, 2)), steps=9)
      >>> [round(float(weight), 3) for weight in done.params["w"]]
      [3.64, 0.0]
    """
    check_whole("steps", steps, 1)
    check_fraction(min_scale, "min_scale")
    check_one_of("algorithm", algorithm, ALGORITHMS)
    _check_positive(learning_rate=learning_rate, step_size=step_size)
    _check_positive(infinite=True, norm_limit=norm_limit, clip=clip)
    names = _names(params)
    params, masks = _sparse(params, masks)

    fixed = matching_names(held, names) if held else set()
    free = np.array([name not in fixed for name in names])
    floors = np.array([0.0 if _BIAS.search(n) else min_scale for n in names], "float32")

    move = partial(
        rescale_update, learning_rate=learning_rate, floors=floors, clip=clip
    )
    measure_at = jax.jit(partial(measure_gradient, loss, algorithm=algorithm))

    @jax.jit
    def lower_norm(params, state, at, batch):
        slopes = norm_slopes(loss, params, state.scales, at, batch, algorithm=algorithm)
        return move(state, jnp.where(free, slopes, 0), constraint=True)

    @jax.jit
    def look_ahead(params, state, at, batch):
        objective, slopes = lookahead_slopes(
            loss,
            params,
            state.scales,
            at,
            batch,
            step_size=step_size,
            algorithm=algorithm,
            normalize=normalize,
        )
        return objective, move(state, jnp.where(free, slopes, 0), constraint=False)

    kept = masks if masked_gradients else None
    state, rows, draw = rescale_state(len(names)), [], _drawing(batches)
    for iteration in range(steps):
        first, second = draw(), draw()
        batch, objective = _joined(first, second), np.nan
        at = measure_at(params, kept, state.scales, batch)
        value = _finite("loss", at.loss, iteration)
        norm = _finite("norm of the gradient", at.norm, iteration)
        constrained = norm > norm_limit
        if constrained:
            state = lower_norm(params, state, at, batch)
        else:
            batch = _joined(first if overlap else draw(), draw())
            objective, state = look_ahead(params, state, at, batch)
            objective = _finite("objective", objective, iteration)
        rows.append((value, norm, constrained, objective))
    _finite("sum of the scales", state.scales.sum(), steps)
    return _result(params, state, rows)


# --- Parts of the loop ----------------------------------------------------------------


def _names(params: Params) -> list[str]:
    leaves = named_leaves(params)
    if not leaves:
        raise ValueError("params must have a leaf to scale, got none")
    for name, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params must be floating point arrays, got {dtype} at leaf {name!r}"
            )
    return [name for name, _ in leaves]


def _sparse(params: Params, masks: Masks | None) -> tuple[Params, Masks]:
    params = jax.tree.map(jnp.asarray, params)
    if masks is None:
        masks = jax.tree.map(lambda _: None, params)
    masks = jax.tree.map(jnp.asarray, masks)
    return apply_masks(masks, params), masks


def _drawing(batches: Batches) -> Callable[[], Any]:
    if callable(batches):
        drawn: Iterator[Any] = map(batches, count())
    else:
        drawn = iter(batches)
    taken = 0

    def draw() -> Any:
        nonlocal taken
        try:
            batch = next(drawn)
        except StopIteration:
            raise ValueError(
                f"batches ended after {taken} minibatches, before the last iteration"
            ) from None
        taken += 1
        return batch

    return draw


def _joined(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _finite(name: str, value: Any, iteration: int) -> float:
    number = float(value)
    if not isfinite(number):
        raise FloatingPointError(f"the {name} is {number} at iteration {iteration}")
    return number


def _result(params: Params, state: RescaleState, rows: list[Any]) -> Rescaled:
    losses, norms, constrained, objectives = zip(*rows, strict=True)
    return Rescaled(
        params=scaled(params, state.scales),
        scales=jax.tree.structure(params).unflatten(list(state.scales)),
        history=RescaleHistory(
            losses=np.array(losses, np.float32),
            norms=np.array(norms, np.float32),
            constrained=np.array(constrained, bool),
            objectives=np.array(objectives, np.float32),
        ),
    )


def _check_positive(*, infinite: bool = False, **values: Any) -> None:
    for name, value in values.items():
        positive = isinstance(value, Real) and float(value) > 0
        if not (positive and (infinite or isfinite(value))):
            finite = "" if infinite else " and finite"
            raise ValueError(f"{name} must be positive{finite}, got {value!r}")
