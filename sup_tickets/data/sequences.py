"""Batches of a text: as many places in it as a batch has rows, read on and on.

Row b of each batch goes on where row b of the batch before ended, so that a network may
carry its state on. Shapes: B rows, T tokens of each in a batch, L tokens of each in all
that a text has.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.data.resident import Shardings, Source, to_devices


class Window(NamedTuple):
    """A training batch: the whole text, and where it begins."""

    rows: jax.Array  # [B, L + 1] int32, shared out between the devices
    start: jax.Array  # [] int32; in a block [K]


class Sequences(NamedTuple):
    """What a network reads, and what comes next."""

    tokens: jax.Array  # [B, T] int32
    labels: jax.Array  # [B, T] int32, each the token after that of the same place


class WeightedSequences(NamedTuple):
    """Sequences to evaluate. What they were padded with has weight 0."""

    tokens: jax.Array  # [B, T] int32
    labels: jax.Array  # [B, T] int32
    weights: jax.Array  # [B, T] float32, 1 or 0


def in_rows(tokens: np.ndarray, rows: int) -> np.ndarray:
    """A text in rows of one length; each ends with the token that the next begins with.

    Args:
      tokens: [N].
      rows: B; what is left over, fewer than B tokens, is cut off.

    Returns:
      [B, L + 1] with L = (N - 1) // B, so that all B L labels differ in their place.

    Example:
      >>> in_rows(np.arange(8), 2)
      array([[0, 1, 2, 3],
             [3, 4, 5, 6]])
    """
    length = (len(tokens) - 1) // rows
    return tokens[np.arange(rows)[:, None] * length + np.arange(length + 1)[None]]


def text_batches(
    tokens: np.ndarray, *, batch_size: int, length: int, shardings: Shardings
) -> tuple[Source, int]:
    """Training batches by step, and how many an epoch has.

    Every epoch begins at the start of the rows. What is left at their ends, fewer than
    T tokens each, is not trained on.

    Args:
      tokens: [N] int32.
      batch_size: B, a multiple of the number of devices.
      length: T.
      shardings: where to.

    Raises:
      ValueError: for a text that is shorter than a batch.
    """
    needed = batch_size * length + 1
    if len(tokens) < needed:
        raise ValueError(
            f"the text has {len(tokens)} tokens to train on, fewer than one batch of "
            f"{batch_size} rows of {length} tokens, which takes {needed}"
        )
    rows = to_devices(in_rows(tokens, batch_size), shardings.batch)
    per_epoch = (rows.shape[1] - 1) // length

    def start_of(step: int) -> int:
        return step % per_epoch * length

    def batch(step: int) -> Window:
        start = np.asarray(start_of(step), np.int32)
        return Window(rows, to_devices(start, shardings.replicated))

    def block(first: int, count: int) -> Window:
        starts = [start_of(step) for step in range(first, first + count)]
        starts = np.asarray(starts, np.int32)
        return Window(rows, to_devices(starts, shardings.replicated))

    def at(block: Window, i: jax.Array) -> Window:
        return block._replace(start=jnp.take(block.start, i, 0))

    return Source(batch, block, at), per_epoch


def cut(window: Window, length: int) -> Sequences:
    """The sequences of a training batch; inside a jitted step."""
    both = jax.lax.dynamic_slice_in_dim(window.rows, window.start, length + 1, axis=1)
    return Sequences(both[:, :-1], both[:, 1:])


def evaluation_sequences(
    tokens: np.ndarray, *, batch_size: int, length: int, shardings: Shardings
) -> list[WeightedSequences]:
    """Batches in which every token but the first is a label of weight 1 exactly once.

    Args:
      tokens: [N] int32.
      batch_size: B, a multiple of the number of devices.
      length: T.
      shardings: where to.

    Raises:
      ValueError: if nothing can be predicted.
    """
    labels = len(tokens) - 1
    if labels < 1:
        raise ValueError(f"a text to evaluate needs 2 tokens, got {len(tokens)}")
    in_row = -(-labels // batch_size)
    padded = -(-in_row // length) * length
    places = np.arange(batch_size)[:, None] * in_row + np.arange(padded)[None]
    counted = (np.arange(padded)[None] < in_row) & (places < labels)
    places = np.minimum(places, labels - 1)
    whole = tokens[places], tokens[places + 1], counted.astype(np.float32)
    return [
        WeightedSequences(
            *(
                to_devices(part[:, begin : begin + length], shardings.batch)
                for part in whole
            )
        )
        for begin in range(0, padded, length)
    ]
