"""The layer of an ordered-neurons LSTM: four gates, and two master gates in chunks.

Shapes: B rows, T tokens of each, D inputs, H features in C chunks of H / C.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sup_tickets.models.lstm import GATES, LSTMLayer, over_tokens


class OrderedLSTMLayer(nn.Module):
    """One ON-LSTM layer; kernels have the two master gates [C] before the gates [H].

    References:
      Shen et al., Ordered Neurons: Integrating Tree Structures into Recurrent Neural
      Networks, 2019, https://arxiv.org/abs/1810.09536, eqs. (7) to (12).
    """

    features: int  # H
    dropout_weights: float = 0.0  # of the hidden kernel, one draw for all tokens
    chunk: int = 10  # H / C, features that a place of a master gate is for
    dtype: Any = jnp.float32

    start = staticmethod(LSTMLayer.start)

    @nn.compact
    def __call__(self, x: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        """[B, T, D] and (cell, hidden) to [B, T, H] and the states after the last.

        Raises:
          ValueError: unless the features are whole chunks.
        """
        size = self.features
        if size % self.chunk:
            raise ValueError(f"features must be a multiple of {self.chunk}, got {size}")
        chunks = size // self.chunk

        def one(cell: jax.Array, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
            masters, rest = gates[:, : 2 * chunks], gates[:, 2 * chunks :]
            forget, enter = jnp.split(masters, 2, axis=-1)
            forget = self._spread(_cumulative(forget))  # rises from 0 to 1
            enter = self._spread(1 - _cumulative(enter))  # falls
            both = forget * enter
            i, f, g, o = jnp.split(rest, GATES, axis=-1)
            keep = nn.sigmoid(f) * both + forget - both
            add = nn.sigmoid(i) * both + enter - both
            cell = keep * cell + add * jnp.tanh(g)
            return cell, nn.sigmoid(o) * jnp.tanh(cell)

        wide = GATES * size + 2 * chunks
        return over_tokens(self, x, carry, one, wide, "ordered_")

    def _spread(self, gate: jax.Array) -> jax.Array:
        return jnp.repeat(gate, self.chunk, axis=-1)

    def kernel_uses(self, x: jax.Array) -> dict[str, int]:
        """How often each weight of a kernel is used for one row of inputs."""
        names = ("ordered_input_kernel", "ordered_hidden_kernel")
        return dict.fromkeys(names, x.shape[1])


def _cumulative(gate: jax.Array) -> jax.Array:
    """``cumax``: the running sum of a softmax."""
    return jnp.cumsum(jax.nn.softmax(gate, axis=-1), axis=-1)
