"""A `RunState` as it is stored: masks in bits, random keys as numbers.

It is packed on the host, where all of a mask is: on devices, bits of a mask that is
spread over several would have to move. So files do not tell how it was spread.
"""

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.training.processes import on_host, placed
from sup_tickets.training.state import RunState


def pack_state(state: RunState) -> RunState:
    """The state as NumPy arrays of numbers, a mask in bits as of `masks.pack`."""
    state = on_host(_numbers(state))
    bits = jax.tree.map(lambda m: np.packbits(m.reshape(-1)), _masks_of(state, state))
    return _with_masks(state, bits)


def packed_shapes(like: RunState) -> RunState:
    """The shapes of what `pack_state` makes of a state of these shapes."""

    def pack(state: RunState) -> RunState:
        masks = _masks_of(state, state)
        bits = jax.tree.map(lambda mask: jnp.packbits(mask.reshape(-1)), masks)
        return _with_masks(_numbers(state), bits)

    return jax.eval_shape(pack, like)


def unpack_state(packed: RunState, like: RunState, sharding: Any) -> RunState:
    """What `pack_state` was given, on devices.

    Args:
      packed: NumPy arrays that all processes have.
      like: the shapes of the state.
      sharding: of all its arrays, or a tree of shardings.
    """
    masks = jax.tree.map(_unpacked, _masks_of(packed, like), _masks_of(like, like))
    state = placed(_with_masks(packed, masks), sharding)

    def as_it_was(leaf: Any, shape: Any) -> Any:
        if not _is_key(shape):
            return leaf
        wrap = partial(jax.random.wrap_key_data, impl=_key_impl(shape))
        return jax.jit(wrap, out_shardings=leaf.sharding)(leaf)

    return jax.tree.map(as_it_was, state, like)


def _numbers(state: RunState) -> RunState:
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state
    )


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(shape: Any) -> Any:
    """Of the shape of a key."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), shape)
    return found[0]


def _unpacked(bits: np.ndarray, like: Any) -> np.ndarray:
    flat = np.unpackbits(bits, count=prod(like.shape))
    return flat.reshape(like.shape).astype(bool)


def _masks_of(state: RunState, like: RunState) -> tuple[Any, Any, Any]:
    """What is bools in ``like``: an average may keep its masks in bits all the time."""
    method, kept = state.train.method, None
    if like.average is not None and state.average is not None:
        theirs = jax.tree.leaves(like.average.masks)
        if any(leaf.dtype == bool for leaf in theirs):
            kept = state.average.masks
    return method.masks, method.ever_active, kept


def _with_masks(state: RunState, masks: tuple[Any, Any, Any]) -> RunState:
    own, ever, kept = masks
    method = state.train.method._replace(masks=own, ever_active=ever)
    state = state.replace(train=state.train.replace(method=method))
    if kept is None or state.average is None:
        return state
    return state.replace(average=state.average._replace(masks=kept))
