"""Selection over meshes and accelerators: all leaves of a tree at once.

One loop searches every threshold. A pass counts how many keys reach a few trial keys of
each comparison and exchanges these counts between devices: 32 bits take 11 passes at
most with seven trial keys, 16 with three. Nothing as large as a leaf is kept: keys are
made of the scores in every pass.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sup_tickets.counting import MAX_COUNT, in_64_bits
from sup_tickets.sort_keys import lowest_of
from sup_tickets.thresholds import Bracket, Cut, search_with_ties, whole_range

# A comparison more costs an accelerator little beside a pass over the memory and an
# exchange. A CPU computes each: RigL's rewire of 5.2 million weights on eight devices
# that one pretends to have took 717, 679, 940 and 1,524 ms of its time with 1, 3, 7 and
# 15 trial keys, in 51, 26, 18 and 14 exchanges.
_TRIALS, _TRIALS_ON_A_CPU = 7, 3


class Leaf(NamedTuple):
    """What keys are made of."""

    keys: Callable[..., jax.Array]  # of the sources
    sources: tuple[Any, ...]  # arrays of one shape, or None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys."""
        return self.sources[0].shape


def largest_at_once(
    asked: list[tuple[list[Leaf], Any]],
) -> list[list[jax.Array]]:
    """Masks of the ``k`` largest keys of each list of leaves, ties by index.

    Args:
      asked: leaves that are compared together, all with keys of one dtype, and ``k``;
        each has at most 2**31 - 1 places.
    """
    problems = [_Problem(leaves, k) for leaves, k in asked]
    wide = any(problem.places > MAX_COUNT for problem in problems)
    with in_64_bits(wide):
        return _largest(problems, np.dtype(np.int64 if wide else np.int32))


class _Problem:
    """Leaves that are compared together."""

    def __init__(self, leaves: list[Leaf], k: Any):
        self.leaves, self.k = leaves, k
        sizes = [prod(leaf.shape) for leaf in leaves]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.places = sum(sizes)

    def summed(self, hits: list[jax.Array], dtype: np.dtype) -> jax.Array:
        """How many are True, over all leaves."""
        numbers = [jnp.sum(hit, dtype=jnp.int32).astype(dtype) for hit in hits]
        return sum(numbers[1:], start=numbers[0])


def _largest(problems: list[_Problem], dtype: np.dtype) -> list[list[jax.Array]]:
    kind = jax.eval_shape(problems[0].leaves[0].keys, *problems[0].leaves[0].sources)

    def count(levels: jax.Array, lasts: jax.Array, tied: jax.Array) -> jax.Array:
        """[T, C] how many keys are above levels, or are ties up to an index."""
        del tied
        # No level is the largest integer: always 0, but the compiler does not know.
        same = levels.reshape(-1)[:1] == np.iinfo(kind.dtype).max
        found = []
        for c, problem in enumerate(problems):

            def of_one(level: jax.Array, last: jax.Array, problem: _Problem = problem):
                places = range(len(problem.leaves))
                hits = [_hits(problem, i, level, last, same) for i in places]
                return problem.summed(hits, dtype)

            found.append(jax.vmap(of_one)(levels[:, c], lasts[:, c]))
        return jnp.stack(found, axis=1)

    places = np.array([problem.places for problem in problems], dtype)
    members = jnp.asarray(places)
    k = jnp.stack([jnp.asarray(problem.k, dtype) for problem in problems])
    k = jnp.clip(k, 0, members)
    start = whole_range(members, kind.dtype)
    with jax.numpy_dtype_promotion("standard"):
        both = jnp.promote_types(kind.dtype, dtype)  # holds keys and indices
    start = Bracket(start.ends.astype(both), start.reached)
    trials = _TRIALS_ON_A_CPU if jax.default_backend() == "cpu" else _TRIALS
    cut = search_with_ties(count, k, start, places=members, trials=trials, guesses=0)
    return _masks(problems, cut)


def _hits(
    problem: _Problem, i: int, level: jax.Array, last: jax.Array, same: jax.Array
) -> jax.Array:
    """Which keys of a leaf are above a level, or are ties up to an index.

    Args:
      problem: of the leaf.
      i: its place there.
      level: [] key.
      last: [] the complement of the index.
      same: [1] bool, always False.
    """
    leaf = problem.leaves[i]
    keys = leaf.keys(*(_again(source, same) for source in leaf.sources))
    start = problem.starts[i] + same[0].astype(last.dtype)
    backwards = ~_index_from(start, leaf.shape)
    # No score has the largest key, so that there is room for one more.
    return keys >= level.astype(keys.dtype) + (backwards < last).astype(keys.dtype)


def _masks(problems: list[_Problem], cut: Cut) -> list[list[jax.Array]]:
    """The masks, made in a loop of one step.

    What a loop reads is stored, so that these are the scores that were searched. Made
    elsewhere, the compiler might compute them once more, rounded differently.
    """

    def make(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        same = state[0].reshape(1)
        masks = []
        for c, problem in enumerate(problems):
            made = []
            for i, leaf in enumerate(problem.leaves):
                hits = _hits(problem, i, cut.level[c], cut.last[c], same)
                made.append(hits & _candidates(leaf, same))
            masks.append(made)
        return jnp.bool_(True), masks

    none = [
        [jnp.zeros_like(leaf.sources[0], bool) for leaf in problem.leaves]
        for problem in problems
    ]
    # Whether they are made already, which the compiler must not be able to tell.
    return lax.while_loop(lambda s: ~s[0], make, (cut.never, none))[1]


def _index_from(start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The row-major index of every place, from a number on.

    Of a number that differs in each pass, or the index would be made before the loop,
    and kept.
    """
    index, stride = start.reshape((1,) * len(shape)), prod(shape)
    for axis, size in enumerate(shape):
        stride //= size
        along = tuple(size if i == axis else 1 for i in range(len(shape)))
        index = index + lax.broadcasted_iota(start.dtype, along, axis) * stride
    return jnp.broadcast_to(index, shape)


def _candidates(leaf: Leaf, same: jax.Array) -> jax.Array:
    keys = leaf.keys(*(_again(source, same) for source in leaf.sources))
    return keys != lowest_of(keys)


def _again(source: Any, same: jax.Array) -> Any:
    """The source, which the compiler takes for another one in each pass.

    It would make keys of it before the loop, and keep them.
    """
    if source is None:
        return None
    changed = jnp.broadcast_to(same.reshape((1,) * source.ndim), source.shape)
    # Not of the bits as integers, which would be made before the loop.
    return lax.select(changed, jnp.zeros_like(source), source)
