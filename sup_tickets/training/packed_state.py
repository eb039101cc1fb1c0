"""A `RunState` as it is stored: masks in bits, random keys as numbers."""

from collections.abc import Callable
from typing import Any

import jax

from sup_tickets.masks import pack, unpack
from sup_tickets.training.state import RunState


def pack_state(state: RunState) -> RunState:
    """The state as arrays of numbers, a mask in bits."""
    state = _with_masks(state, pack)
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state
    )


def unpack_state(state: RunState, like: RunState) -> RunState:
    """What `pack_state` was given, ``like`` its shapes."""

    def as_it_was(leaf: Any, shape: Any) -> Any:
        if not _is_key(shape):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=_key_impl(shape))

    shapes = jax.eval_shape(lambda s: _with_masks(s, pack), like)
    state = jax.tree.map(as_it_was, state, shapes)
    return _with_masks(state, lambda masks: unpack(masks, state.train.params))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(shape: Any) -> Any:
    """Of the shape of a key."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), shape)
    return found[0]


def _with_masks(state: RunState, change: Callable[[Any], Any]) -> RunState:
    """The masks of the average are packed all the time."""
    method = state.train.method
    ever = method.ever_active
    method = method._replace(
        masks=change(method.masks), ever_active=None if ever is None else change(ever)
    )
    return state.replace(train=state.train.replace(method=method))
