"""The search for exact thresholds, of any number of comparisons at once.

In every comparison we look for a key that exactly ``k`` keys reach, or else the largest
that at least ``k`` reach, by counting how many reach a few trial keys. All comparisons
are searched together, so that a selection over sharded arrays exchanges one array of
counts a pass, and never a weight. Shapes: C comparisons, T trial keys of each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# How many passes guess where the threshold lies from the counts at the ends. They
# rarely need more; what does, is better divided into equal parts.
GUESSES = 6
_DEVIATIONS = 2.0


class Bracket(NamedTuple):
    """Where the thresholds are; an array of both ends is one value to the compiler."""

    ends: jax.Array  # [2, C] keys: what at least k reach, and what lies above
    reached: jax.Array  # [2, C] how many reach each

    @property
    def low(self) -> jax.Array:
        """[C] keys that at least ``k`` reach."""
        return self.ends[0]

    @property
    def at_least(self) -> jax.Array:
        """[C] how many reach them."""
        return self.reached[0]

    @property
    def span(self) -> jax.Array:
        """[C] how many keys the threshold may be, unsigned."""
        return _unsigned(self.ends[1]) - _unsigned(self.ends[0])

    def undecided(self, k: jax.Array) -> jax.Array:
        """Where the search has to go on."""
        return (self.at_least != k) & (self.span > 1)


def whole_range(members: jax.Array, dtype: np.dtype) -> Bracket:
    """The bracket of all keys of a dtype, of comparisons with so many members [C]."""
    info = np.iinfo(dtype)
    ends = np.array([[info.min], [info.max]], dtype)
    return Bracket(
        jnp.broadcast_to(ends, (2, *members.shape)),
        jnp.stack([members, jnp.zeros_like(members)]),
    )


def search(
    count: Callable[[jax.Array], jax.Array],
    k: jax.Array,
    start: Bracket,
    *,
    trials: int,
    guesses: int = GUESSES,
) -> Bracket:
    """Narrows the brackets until all thresholds are found.

    Args:
      count: how many keys reach trial keys [T, C], in order; of their shape.
      k: [C] of the dtype of the counts.
      start: what is known.
      trials: T, one less than a power of two.
      guesses: how many passes may take the trial keys from the counts so far, as if
        keys lay evenly between the ends. The others divide the bracket evenly, so that
        of 32 bits ``guesses + ceil(32 / log2(T + 1))`` passes are enough.

    Returns:
      Brackets in which ``k`` reach the low end, or the ends are neighbours.
    """

    def narrow(state: tuple[jax.Array, Bracket, jax.Array]):
        step, old, tried = state
        new, slow = _narrowed(old, tried, count(tried), k)
        # Keys to try are handed on, or each place that is counted would find them anew.
        return step + 1, new, _next(step + 1, slow, new, k, trials, guesses)

    zero = jnp.zeros(k.shape, jnp.int32)
    first = _next(zero, zero > 0, start, k, trials, guesses)
    state = (zero, start, first)
    return lax.while_loop(lambda s: jnp.any(s[1].undecided(k)), narrow, state)[1]


class Cut(NamedTuple):
    """What is chosen: the keys above a level, and its ties up to an index."""

    level: jax.Array  # [C] keys
    last: jax.Array  # [C] of the keys' dtype, the complement of the index
    never: jax.Array  # [] bool, False, which the compiler cannot tell


def search_with_ties(
    count: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    k: jax.Array,
    start: Bracket,
    *,
    places: jax.Array,
    trials: int,
    first: jax.Array | None = None,
    guesses: int = GUESSES,
) -> Cut:
    """`search`, and where more than ``k`` keys reach a threshold, that of its ties.

    Both in one loop: where a threshold is found, its comparison goes on with the index.

    Args:
      count: how many keys [T, C] are above a level [T, C], or equal to it and have an
        index whose complement is at least another number [T, C]; and whether any
        comparison is among ties, or else all numbers are at or below those of indices.
      k: [C] of the dtype of the counts.
      start: the bracket of all keys.
      places: [C] how many indices there are.
      trials: see `search`.
      first: [T, C], in order, the trial keys of the first pass.
      guesses: see `search`, of each of the two.
    """
    places = places.astype(start.ends.dtype)
    indices = jnp.stack([-places, jnp.zeros_like(places)])

    def narrow(state: tuple[jax.Array, Bracket, jax.Array, jax.Array, jax.Array]):
        step, old, tried, tied, level = state
        of = jnp.where(tied[None], level[None], tried)
        last = jnp.where(tied[None], tried, -places[None])
        counts = count(of, last, jnp.any(tied))
        new, slow = _narrowed(old, tried, counts, k)
        # Where even the last candidate is chosen there is nothing to decide.
        more = (new.at_least > k) & (new.low > start.low)
        begins = ~new.undecided(k) & ~tied & more
        level = jnp.where(tied, level, new.low)
        new = Bracket(jnp.where(begins[None], indices, new.ends), new.reached)
        step = jnp.where(begins, 0, step + 1)
        trial = _next(step, slow & ~begins, new, k, trials, guesses)
        return step, new, trial, tied | begins, level

    zero = jnp.zeros(k.shape, jnp.int32)
    if first is None:
        first = _next(zero, zero > 0, start, k, trials, guesses)
    else:
        low, high = start.ends[:1], start.ends[1:]
        first = _moved(start, _unsigned(jnp.clip(first, low, high)) - _unsigned(low))
    state = (zero, start, first, zero > 0, start.low)
    state = lax.while_loop(lambda s: jnp.any(s[1].undecided(k)), narrow, state)
    _, found, _, tied, level = state
    last = jnp.where(tied, found.low, -places)
    return Cut(jnp.where(tied, level, found.low), last, jnp.any(found.at_least < 0))


# --- Parts ----------------------------------------------------------------------------


def _narrowed(
    old: Bracket, tried: jax.Array, counts: jax.Array, k: jax.Array
) -> tuple[Bracket, jax.Array]:
    """The part of a bracket, between two neighbours of the trial keys, with ``k``.

    And where it is larger than an equal part.
    """
    low, high, at_least, above = *old.ends, *old.reached
    reached = counts >= k[None]  # in order: of the first trial keys, not of the others
    low = jnp.max(jnp.where(reached, tried, low[None]), axis=0)
    at_least = jnp.min(jnp.where(reached, counts, at_least[None]), axis=0)
    high = jnp.min(jnp.where(reached, high[None], tried), axis=0)
    above = jnp.max(jnp.where(reached, above[None], counts), axis=0)
    new = Bracket(jnp.stack([low, high]), jnp.stack([at_least, above]))
    return new, new.span > old.span >> _bits(len(tried))


def _next(
    step: jax.Array,
    slow: jax.Array,
    b: Bracket,
    k: jax.Array,
    trials: int,
    guesses: int,
) -> jax.Array:
    """The trial keys [T, C] of a pass, the ``step``-th [C] in its bracket."""
    offset = _even(b.span, trials)
    if guesses:
        guess = ~slow & (step < guesses)
        offset = jnp.where(guess[None], _likely(b, k, trials), offset)
    return _moved(b, offset)


def _even(span: jax.Array, trials: int) -> jax.Array:
    """Offsets [T, C] that divide a bracket into equal parts."""
    part = (span >> _bits(trials)) + (span & trials > 0).astype(span.dtype)
    return part[None] * np.arange(1, trials + 1, dtype=span.dtype)[:, None]


def _likely(old: Bracket, k: jax.Array, trials: int) -> jax.Array:
    """Offsets [T, C] at and around where the thresholds are to be expected.

    Of n keys strewn evenly over a bracket, those above a share p of it vary by the root
    of n p (1 - p).
    """
    at_least, above = old.reached
    number = jnp.maximum(at_least - above, 1).astype(jnp.float32)
    share = jnp.clip((at_least - k).astype(jnp.float32) / number, 0.0, 1.0)
    spread = (_DEVIATIONS * jnp.sqrt(number * share * (1 - share)) + 0.5) / number
    middle = trials // 2
    sides = np.arange(-middle, trials - middle, dtype=np.float32) / max(middle, 1)
    sides = sides[:, None]
    # Short of 1, for float32 rounds the largest integers up.
    place = jnp.clip(share[None] + spread[None] * sides, 0.0, 1 - 2.0**-20)
    return (place * old.span.astype(jnp.float32)[None]).astype(old.span.dtype)


def _moved(old: Bracket, offset: jax.Array) -> jax.Array:
    """Keys [T, C] so far above the low end, but inside the bracket."""
    one = offset.dtype.type(1)
    offset = jnp.minimum(jnp.maximum(offset, one), old.span[None] - one)
    low = _unsigned(old.ends[:1])
    return lax.bitcast_convert_type(low + offset, old.ends.dtype)


def _bits(trials: int) -> int:
    """By how many bits a pass with so many trial keys narrows a bracket."""
    return (trials + 1).bit_length() - 1


def _unsigned(keys: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(keys, np.dtype(f"uint{8 * keys.dtype.itemsize}"))
