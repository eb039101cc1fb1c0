"""The layer of an LSTM, whose four gates are parts of one matrix.

Shapes: B rows, T tokens of each, D inputs, H features.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

GATES = 4
"""Equal parts of the last axis of each kernel: input, forget, cell and output."""


def uniform(edge: float) -> Callable[..., jax.Array]:
    """An initializer that draws from U(-edge, edge)."""

    def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -edge, edge)

    return draw


def over_tokens(
    layer: Any,
    x: jax.Array,
    carry: Any,
    one: Callable[..., Any],
    wide: int,
    prefix: str = "",
) -> tuple[jax.Array, Any]:
    """A compact layer whose gates are made of each input and the last output.

    Args:
      layer: with the fields ``features``, ``dropout_weights`` and ``dtype``.
      x: [B, T, D].
      carry: (cell, hidden) before the first token, [B, H] each.
      one: from a cell and gates, [B, ``wide``], to the next cell and the output.
      wide: columns of the kernels.
      prefix: before the names of the kernels.
    """
    init = uniform(layer.features**-0.5)
    inward = layer.param(f"{prefix}input_kernel", init, (x.shape[-1], wide))
    hidden = layer.param(f"{prefix}hidden_kernel", init, (layer.features, wide))
    bias = layer.param("bias", init, (wide,)).astype(layer.dtype)
    hidden = nn.Dropout(layer.dropout_weights, deterministic=False)(hidden)
    hidden = hidden.astype(layer.dtype)
    given = x @ inward.astype(layer.dtype) + bias[None, None]

    def step(state: Any, given: jax.Array) -> Any:
        cell, out = state
        state = one(cell, given + out @ hidden)
        return state, state[1]

    carry, outs = jax.lax.scan(step, carry, jnp.swapaxes(given, 0, 1))
    return jnp.swapaxes(outs, 0, 1), carry


class LSTMLayer(nn.Module):
    """One LSTM layer, drawn as PyTorch's; the input's products are made all at once.

    References:
      Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; with the forget gate of
      Gers et al., 2000.
    """

    features: int  # H
    dropout_weights: float = 0.0  # of "hidden_kernel", one draw for all tokens
    dtype: Any = jnp.float32

    @staticmethod
    def start(rows: int, features: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Cell and hidden state before the first token, [B, H] zeros each."""
        return jnp.zeros((rows, features), dtype), jnp.zeros((rows, features), dtype)

    @nn.compact
    def __call__(self, x: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        """[B, T, D] and (cell, hidden) to [B, T, H] and the states after the last."""

        def one(cell: jax.Array, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
            i, f, g, o = jnp.split(gates, GATES, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            return cell, nn.sigmoid(o) * jnp.tanh(cell)

        return over_tokens(self, x, carry, one, GATES * self.features)

    def kernel_uses(self, x: jax.Array) -> dict[str, int]:
        """How often each weight of a kernel is used for one row of inputs."""
        return {"input_kernel": x.shape[1], "hidden_kernel": x.shape[1]}
