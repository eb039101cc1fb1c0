"""What `sparse_training` keeps in the state of an optimizer, and where it is found."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sup_tickets.masks import apply_masks, check_masks
from sup_tickets.trees import map_named, named_leaves
from sup_tickets.types import Masks, Params
from sup_tickets.updates import MethodState


class SparseTrainingState(NamedTuple):
    """State of `sparse_training`: arrays alone, no two of them in one buffer."""

    step: jax.Array  # calls of update so far, int32 scalar
    method: MethodState  # masks and what else the method carries
    inner: Any  # state of the wrapped optimizer; slots of inactive weights are as new
    update_waits: jax.Array  # [] bool: an update waits for gradients that are finite
    explore_waits: jax.Array  # [] bool: so does an exploration


def keep_sparse(params: Params, opt_state: Any) -> Params:
    """``params`` with exactly 0 at every weight that the optimizer's masks leave out.

    Call it once after ``init``; after each update it guards against transformations
    outside `sparse_training` that move inactive weights. The masks are found by the
    names of the leaves, so the state may be of another container: ``params`` may be a
    whole Equinox model, and with Flax NNX it is done in place by::

        nnx.update(model, keep_sparse(nnx.state(model, nnx.Param), optimizer.opt_state))

    Args:
      params: pytree of arrays, or the `optax.LookaheadParams` of two.
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.

    Raises:
      ValueError: see `masks_of`.
    """
    if isinstance(params, optax.LookaheadParams):
        return optax.LookaheadParams(*(keep_sparse(p, opt_state) for p in params))
    return apply_masks(masks_of(opt_state, like=params), params)


def masks_of(opt_state: Any, like: Params | None = None) -> Masks:
    """The masks inside an optimizer state.

    Args:
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.
      like: parameters. With them the masks have their structure, leaf by leaf of the
        same name: for Flax NNX, whose optimizer renames the containers, and for
        `optax.partition`, where each part may hold masks of its own; a leaf that no
        part masks has ``None``.

    Raises:
      ValueError: if there is no such state; if there are several, without ``like`` or
        with masks of the same leaf; if ``like`` lacks a leaf that has a mask.
    """
    if like is None:
        return method_state_of(opt_state).masks
    found: dict[str, Any] = {}
    for state in _states_in(opt_state):
        for name, mask in named_leaves(state.method.masks):
            if name in found:
                raise ValueError(f"opt_state holds two masks of leaf {name!r}")
            found[name] = mask
    masks = map_named(lambda name, _: found.pop(name, None), like)
    if found:
        raise ValueError(
            f"opt_state has a mask of leaf {min(found)!r} that params lacks"
        )
    check_masks(like, masks)
    return masks


def method_state_of(opt_state: Any) -> MethodState:
    """The method's state inside an optimizer state.

    Args:
      opt_state: optimizer state with a `SparseTrainingState` anywhere inside.

    Raises:
      ValueError: unless there is exactly one.
    """
    found = _states_in(opt_state)
    if len(found) > 1:
        raise ValueError(
            "opt_state must hold exactly one SparseTrainingState, found "
            f"{len(found)}; ask masks_of(opt_state, like=params) for all their masks"
        )
    return found[0].method


def _states_in(opt_state: Any) -> list[SparseTrainingState]:
    leaves = jax.tree.leaves(opt_state, is_leaf=is_ours)
    found = [leaf for leaf in leaves if is_ours(leaf)]
    if not found:
        raise ValueError(
            "opt_state must hold exactly one SparseTrainingState, found 0; "
            "wrap the whole optimizer in sparse_training"
        )
    return found


def in_own_buffers(state: Any, params: Params) -> Any:
    """``state`` as it is, copied where it shares an array with itself or the params.

    What is shared cannot be donated.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def own(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, state)


def is_ours(leaf: Any) -> bool:
    """Whether it is a state of `sparse_training`."""
    return isinstance(leaf, SparseTrainingState)
