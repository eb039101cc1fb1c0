"""Averages of the weights over the steps: NT-ASGD, and SNT-ASGD for sparse training.

    tx = optax.chain(optax.sgd(20.0), iterate_averaging())
    ...
    opt_state = after_validation(opt_state, loss)  # whenever there is a validation loss
    evaluate(averaged_params(params, opt_state))  # and save these; train the others

Once the validation loss does not fall any more, every weight is averaged over its own
steps. A weight that is dropped and grows anew starts its average again, so that the
network is evaluated by weights that it has had with this topology; what was never
dropped is averaged as ASGD does it. Without masks that is NT-ASGD.

`iterate_averaging` changes no update and may stand anywhere in a chain. Within
`sparse_training` it is told of masks by its slots, which are as new at weights that are
inactive; elsewhere give ``update`` the masks.

References:
  Liu et al., Selfish Sparse RNN Training, 2021, https://arxiv.org/abs/2101.09048
  Merity et al., Regularizing and Optimizing LSTM Language Models, 2018,
  https://arxiv.org/abs/1708.02182
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import check_whole
from sup_tickets.masks import check_masks
from sup_tickets.running_averages import running_mean, wide_dtype
from sup_tickets.tree_checks import check_same_names
from sup_tickets.types import Masks, Number, Params


class Watched(NamedTuple):
    """What is known of past validation losses; see `stalled`."""

    recent: jax.Array  # [patience] float32, the last ones, the oldest first
    best: jax.Array  # [] float32, the least of those before


class AveragingState(NamedTuple):
    """State of `iterate_averaging`. Slots of inactive weights are 0."""

    started: jax.Array  # [] bool, whether steps are averaged
    count: Any  # int32 of each weight, or [] of all: steps since the average began
    average: Params  # float32 or wider, of the weights after steps 1 to count - 1
    watched: Watched


def iterate_averaging(
    *, patience: int = 5, restart: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Averages the weights from where the validation loss stalls, see `stalled`.

    After c steps of a weight, with value p_c after the last, its average is p_c for
    c = 1 and 2, and from there on ``average + (p_c - average) / (c - 1)``: the mean of
    all but the first, as in PyTorch's ASGD.

    Args:
      patience: validation losses that the least of those before them must stay below.
      restart: whether the average of a weight that grows begins with it. If not
        (plain averaging) all weights share one count, and what was inactive counts as
        0 for all the steps before.

    Returns:
      A transformation whose ``update`` takes ``masks`` if its state is not within
      `sparse_training`. It needs the parameters.

    Raises:
      ValueError: if the patience is no whole number of at least 1; by ``update``
        without parameters, or with masks of others.
    """
    check_whole("patience", patience, 1)

    def init(params: Params) -> AveragingState:
        def zeros(p: Any) -> jax.Array:
            return jnp.zeros(p.shape, jnp.int32)

        return AveragingState(
            started=jnp.zeros((), bool),
            count=jax.tree.map(zeros, params) if restart else jnp.int32(0),
            average=jax.tree.map(
                lambda p: jnp.zeros(p.shape, wide_dtype(p.dtype)), params
            ),
            watched=unwatched(patience),
        )

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        masks: Masks | None = extra.get("masks")
        if params is None:
            raise ValueError("iterate_averaging needs update(updates, state, params)")
        if masks is not None:
            check_masks(params, masks)
        on = state.started
        # The parameters are those after the step before, which is what is added.
        average = _each(
            lambda a, p, n: jnp.where(on & (n > 0), _with(a, p, n), a), state, params
        )
        count = jax.tree.map(lambda n: jnp.where(on, n + 1, n), state.count)
        if masks is not None:
            average = _where(masks, average)
            count = _where(masks, count) if restart else count
        return updates, state._replace(average=average, count=count)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged_params(params: Params, opt_state: Any) -> Params:
    """The parameters to evaluate and to save; those to train stay as they are.

    Args:
      params: pytree of arrays, after the last update.
      opt_state: optimizer state, with or without an `AveragingState` inside.

    Returns:
      ``params`` as long as nothing is averaged.

    Raises:
      ValueError: if there are several, or one of other parameters.
    """
    found = _found(opt_state)
    if not found:
        return params
    if len(found) > 1:
        raise ValueError(f"opt_state holds {len(found)} averages, of which one is used")
    (state,) = found
    check_same_names("params", params, "the averages in opt_state", state.average)
    return _each(
        lambda a, p, n: jnp.where(n > 0, _with(a, p, n).astype(p.dtype), p),
        state,
        params,
    )


def is_averaging(opt_state: Any) -> bool:
    """Whether there is an `AveragingState` anywhere inside."""
    return bool(_found(opt_state))


def after_validation(opt_state: Any, loss: Number) -> Any:
    """The optimizer state that has heard of a validation loss, which may begin it all.

    Args:
      opt_state: optimizer state, with or without an `AveragingState` inside.
      loss: may be traced.
    """

    def hear(state: AveragingState) -> AveragingState:
        watched, stalls = stalled(state.watched, loss)
        return state._replace(started=state.started | stalls, watched=watched)

    return _changed(hear, opt_state)


def start_averaging(opt_state: Any) -> Any:
    """The optimizer state with averages from here on, whatever the losses are."""
    return _changed(
        lambda state: state._replace(started=jnp.ones_like(state.started)), opt_state
    )


def restart_averages(opt_state: Any) -> Any:
    """The optimizer state with averages that begin anew, if they have begun at all."""
    return _changed(
        lambda state: state._replace(count=jax.tree.map(jnp.zeros_like, state.count)),
        opt_state,
    )


# --- The trigger ----------------------------------------------------------------------


def unwatched(patience: int) -> Watched:
    """Before the first validation loss."""
    infinite = jnp.float32(jnp.inf)
    return Watched(jnp.full((patience,), infinite), jnp.full((), infinite))


def stalled(watched: Watched, loss: Number) -> tuple[Watched, jax.Array]:
    """Whether a validation loss is no progress: above the least of the older ones.

    With ``losses`` before it, that is ``len(losses) > patience and loss >
    min(losses[:-patience])``.

    Args:
      watched: what is known of the losses before.
      loss: the new one; may be traced. NaN is no progress, and no loss to compare with.

    Returns:
      What is known then, and a bool scalar.

    Example:
      >>> watched = unwatched(5)
      >>> for loss in (5, 4, 3, 2, 1, 1.5, 1.6):
      ...     watched, _ = stalled(watched, loss)
      >>> [bool(stalled(watched, loss)[1]) for loss in (5.1, 3.9)]
      [True, False]
    """
    loss = jnp.asarray(loss, jnp.float32)
    recent = jnp.concatenate([watched.recent[1:], loss[None]])
    # A loss that is NaN is none: it says nothing of those that follow.
    best = jnp.fmin(watched.best, watched.recent[0])
    return Watched(recent, best), loss > watched.best


# --- Parts ----------------------------------------------------------------------------


def _with(average: jax.Array, value: jax.Array, count: jax.Array) -> jax.Array:
    """The average with the value after step ``count``, which is at least 1."""
    value = value.astype(average.dtype)
    others = jnp.maximum(count - 1, 1).astype(average.dtype)
    return jnp.where(count <= 2, value, running_mean(average, value, others))


def _each(
    function: Callable[..., jax.Array], state: AveragingState, params: Params
) -> Params:
    """``function(average, value, count)`` of every leaf."""
    counts = state.count
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(counts)):  # one of all
        counts = jax.tree.map(lambda _: state.count, params)
    return jax.tree.map(function, state.average, params, counts)


def _where(masks: Masks, tree: Any) -> Any:
    return jax.tree.map(
        lambda x, m: x if m is None else jnp.where(m, x, jnp.zeros_like(x)), tree, masks
    )


def _is_ours(node: Any) -> bool:
    return isinstance(node, AveragingState)


def _found(opt_state: Any) -> list[AveragingState]:
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_ours)
    return [leaf for leaf in leaves if _is_ours(leaf)]


def _changed(change: Callable[[AveragingState], Any], opt_state: Any) -> Any:
    return jax.tree.map(
        lambda node: change(node) if _is_ours(node) else node,
        opt_state,
        is_leaf=_is_ours,
    )
