"""The layer of a recurrent highway network, whose two gates are parts of one matrix.

Shapes: B rows, T tokens of each, D inputs, H features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sup_tickets.models.lstm import uniform

GATES = 2
"""Equal parts of the last axis of each kernel: candidate and transform gate."""


class HighwayLayer(nn.Module):
    """One recurrent highway layer: ``depth`` steps through it for every token.

    Each takes the state s to ``s + t (h - s)``, with ``h = tanh(x W_h + s R_h + b_h)``
    and ``t = sigmoid(x W_t + s R_t + b_t)``; the input x counts in the first one alone,
    and the carry gate is ``1 - t`` (coupled).

    References:
      Zilly et al., Recurrent Highway Networks, 2017, https://arxiv.org/abs/1607.03474,
      eqs. (7) to (9).
    """

    features: int  # H
    dropout_weights: float = 0.0  # of the kernels from state to state
    depth: int = 10  # L
    transform_bias: float = -2.0  # at first: mostly carries
    dtype: Any = jnp.float32

    @staticmethod
    def start(rows: int, features: int, dtype: Any) -> jax.Array:
        """The state before the first token, [B, H] zeros."""
        return jnp.zeros((rows, features), dtype)

    @nn.compact
    def __call__(self, x: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        """[B, T, D] and the state [B, H] to [B, T, H] and the state after the last."""
        size, wide = self.features, GATES * self.features
        init = uniform(size**-0.5)
        inward = self.param("highway_input_kernel", init, (x.shape[-1], wide))
        kernels, biases = [], []
        for i in range(1, self.depth + 1):
            kernel = self.param(f"highway_hidden_kernel{i}", init, (size, wide))
            kernel = nn.Dropout(self.dropout_weights, deterministic=False)(kernel)
            kernels.append(kernel.astype(self.dtype))
            bias = self.param(f"bias{i}", self._bias, (wide,))
            biases.append(bias.astype(self.dtype)[None])
        given = x @ inward.astype(self.dtype)

        def one(state: jax.Array, given: jax.Array) -> Any:
            for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
                gates = state @ kernel + bias
                h, t = jnp.split(gates + given if i == 0 else gates, GATES, axis=-1)
                state = state + nn.sigmoid(t) * (jnp.tanh(h) - state)
            return state, state

        carry, outs = jax.lax.scan(one, carry, jnp.swapaxes(given, 0, 1))
        return jnp.swapaxes(outs, 0, 1), carry

    def _bias(self, key: jax.Array, shape: Any) -> jax.Array:
        del key
        half = shape[0] // GATES
        return jnp.zeros(shape).at[half:].set(self.transform_bias)

    def kernel_uses(self, x: jax.Array) -> dict[str, int]:
        """How often each weight of a kernel is used for one row of inputs."""
        hidden = (f"highway_hidden_kernel{i}" for i in range(1, self.depth + 1))
        return dict.fromkeys(("highway_input_kernel", *hidden), x.shape[1])
