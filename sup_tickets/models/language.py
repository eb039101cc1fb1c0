"""Networks that predict the next token of a text.

All are called as ``module(tokens, carry, train=...)`` and give logits and what they
carry on to the tokens that follow; without a carry they begin anew. Those that carry
nothing, as Transformers, take and give ``None``.

Shapes: B rows, T tokens of each, V the size of the vocabulary, D and H widths.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from sup_tickets.models.layers import Layers, gelu, wide
from sup_tickets.models.lstm import LSTMLayer, uniform
from sup_tickets.models.vit import Block, layer_norm, normal

_EDGE = 0.1  # embeddings and decoders are drawn from U(-0.1, 0.1), as in the releases


class Recurrent(nn.Module):
    """Embedding, recurrent layers one above the other, decoder.

    Five dropouts, all off by default. A weight is a place in the state of a layer;
    "variational" ones are the same at all T tokens of a row (Gal and Ghahramani),
    others are drawn at each.

    References:
      Merity et al., Regularizing and Optimizing LSTM Language Models, 2018,
      https://arxiv.org/abs/1708.02182
    """

    classes: int = 10000  # V
    embedding: int = 200  # D
    features: Sequence[int] = (200, 200)  # H of each layer
    tied: bool = False  # whether the decoder is the embedding
    dropout: float = 0.0  # of what the last layer gives
    dropout_between: float = 0.0  # of what the others give
    dropout_input: float = 0.0  # of embedded tokens
    dropout_words: float = 0.0  # of tokens as a whole, wherever they stand in a batch
    dropout_weights: float = 0.0  # of the matrices that go from token to token
    variational: bool = True
    layer: Callable[..., Any] = LSTMLayer
    layer_options: Mapping[str, Any] = FrozenDict()  # further fields of a layer
    dtype: Any = jnp.float32

    def start(self, rows: int) -> Any:
        """What is carried before the first token: zeros, a part for each layer."""
        return tuple(self.layer.start(rows, h, self.dtype) for h in self.features)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carry: Any = None, *, train: bool
    ) -> tuple[jax.Array, Any]:
        """[B, T] int32 to logits [B, T, V] of float32 or wider, and the next carry.

        Raises:
          ValueError: if a tied decoder would have another width than the last layer.
        """
        if self.tied and self.features[-1] != self.embedding:
            raise ValueError(
                f"tied=True needs as many features in the last layer as in the "
                f"embedding, got {self.features[-1]} and {self.embedding}"
            )
        carry = self.start(len(tokens)) if carry is None else carry
        table = _table(self.classes, self.embedding, uniform(_EDGE), self.dtype)
        x = table(tokens)
        if train and self.dropout_words:
            x = _without_words(self, x, tokens)
        x = self._dropped(x, self.dropout_input, train)
        after = []
        for i, (features, before) in enumerate(
            zip(self.features, carry, strict=True), 1
        ):
            last = i == len(self.features)
            layer = self.layer(
                features,
                dropout_weights=self.dropout_weights if train else 0.0,
                dtype=self.dtype,
                name=f"layer{i}",
                **self.layer_options,
            )
            x, state = layer(x, before)
            after.append(state)
            rate = self.dropout if last else self.dropout_between
            x = self._dropped(x, rate, train)
        logits = _decoded(x, table, self.tied, self.classes, uniform(_EDGE))
        return logits, tuple(after)

    def _dropped(self, x: jax.Array, rate: float, train: bool) -> jax.Array:
        same = (1,) if self.variational else ()
        return nn.Dropout(rate, broadcast_dims=same, deterministic=not train)(x)


class Transformer(nn.Module):
    """A decoder-only Transformer: learned positions, pre-norm blocks, as GPT-2.

    It sees the tokens of its own batch alone and carries nothing.

    References:
      Radford et al., Language Models are Unsupervised Multitask Learners, 2019
    """

    classes: int = 10000  # V
    width: int = 128  # D
    depth: int = 2  # number of blocks
    heads: int = 4
    hidden: int = 512  # between the two dense layers of a block
    tied: bool = True  # whether the decoder is the embedding
    dropout: float = 0.0  # of embeddings, and of what each half of a block adds
    dtype: Any = jnp.float32

    def start(self, rows: int) -> None:
        """Nothing is carried."""

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carry: None = None, *, train: bool
    ) -> tuple[jax.Array, None]:
        """[B, T] int32 to logits [B, T, V] of float32 or wider.

        Raises:
          ValueError: if the width does not divide by the number of heads.
        """
        del carry
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of {self.heads} (heads), got {self.width}"
            )
        layers = Layers(train=train, activation=gelu, dtype=self.dtype)
        table = _table(self.classes, self.width, normal, self.dtype)
        shape = (1, tokens.shape[1], self.width)
        positions = self.param("positions", normal, shape)
        x = table(tokens) + positions.astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(1, self.depth + 1):
            x = Block(
                layers,
                self.heads,
                self.hidden,
                causal=True,
                dropout=self.dropout,
                name=f"block{i}",
            )(x)
        x = layer_norm(x, "norm", self.dtype)
        return _decoded(x, table, self.tied, self.classes, normal), None


# --- Parts ----------------------------------------------------------------------------


def _table(classes: int, width: int, init: Any, dtype: Any) -> nn.Embed:
    return nn.Embed(classes, width, embedding_init=init, dtype=dtype, name="embedding")


def _without_words(module: nn.Module, x: jax.Array, tokens: jax.Array) -> jax.Array:
    """Embedded tokens, those of some words of the vocabulary 0, the rest larger."""
    rate, classes = module.dropout_words, module.classes
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, (classes,))
    return jnp.where(kept[tokens][..., None], x / (1 - rate), jnp.zeros_like(x))


def _decoded(
    x: jax.Array, table: nn.Embed, tied: bool, classes: int, init: Any
) -> jax.Array:
    if tied:
        logits = table.attend(x)
    else:
        logits = nn.Dense(classes, dtype=x.dtype, kernel_init=init, name="decoder")(x)
    return logits.astype(wide(x.dtype))
