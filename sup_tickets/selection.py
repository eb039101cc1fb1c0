"""Exact top-k masks, of each leaf, of groups within it, or of all leaves together.

Everywhere: ties are broken by index (row-major within a leaf, leaves in tree order), so
a mask has exactly the count asked for; ``NaN`` ranks below ``-inf``; both are chosen
only when nothing better is left; where ``among`` is False nothing is ever chosen.
"""

import functools
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_count
from sup_tickets.counting import MAX_COUNT
from sup_tickets.groups import GroupsLike, Split, checked_splits
from sup_tickets.place_counts import on_one_cpu
from sup_tickets.selection_cpu import Rows, largest_of_rows, rows_needed, width_for
from sup_tickets.selection_groups import largest_of_groups
from sup_tickets.selection_mesh import Leaf, largest_at_once
from sup_tickets.sort_keys import check_scores, ordered_keys
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import map_named
from sup_tickets.types import Counts, Masks, Number, Scores


def select(
    scores: Scores,
    counts: Counts,
    *,
    among: Masks | None = None,
    groups: GroupsLike = None,
) -> Masks:
    """In each leaf, or in each group of it, the exact top-k: the largest scores.

    Args:
      scores: pytree of floating point arrays.
      counts: pytree of integers (Python or traced int32 scalars) with the structure of
        ``scores``; ``None`` where a leaf is never pruned. Where a leaf has groups, the
        count of each: one for all of them, or an array with the shape of `Split.counts`
        (per output, a vector). More than there are candidates choose all of them.
        Values of JAX arrays are clipped to what there is; others are checked.
      among: candidates, a pytree of bool arrays or ``None``; by default all.
      groups: who competes with whom: a `Groups` for all leaves, a function ``(name,
        leaf) -> Groups or None``, or a pytree; by default the places of a leaf.

    Returns:
      Masks: True at the chosen places; ``None`` where ``counts`` is ``None``.

    Raises:
      ValueError: if ``among`` has other leaves or shapes than ``scores``, or if a
        count is no whole number in [0, size of its leaf or group], or if a leaf cannot
        be split into its groups.
      TypeError: if a score is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from sup_tickets.groups import per_output
      >>> select({"w": jnp.array([0.5, 0.1, 0.5, 0.9])}, {"w": 2})["w"].tolist()
      [True, False, False, True]
      >>> scores = {"w": jnp.array([[4.0, 1.0], [3.0, 2.0]])}
      >>> select(scores, {"w": 1}, groups=per_output())["w"].tolist()
      [[True, False], [False, True]]
    """
    splits = checked_splits("counts", counts, "scores", scores, groups)
    if among is None:
        among = jax.tree.map(lambda _: None, scores)
    else:
        check_same_leaves("among", among, "scores", scores)

    def choose(name: str, score: jax.Array, count: Any, *rest: Any) -> Selecting:
        if count is None:
            return None
        return (yield top_k(name, score, count, *rest))

    return map_selecting(choose, scores, counts, among, splits)


def select_globally(
    scores: Scores, count: Number, *, among: Masks | None = None
) -> Masks:
    """Over all leaves together, the exact top-k: the ``count`` largest scores.

    Args:
      scores: pytree of floating point arrays; compared in the widest of their dtypes.
      count: integer scalar; the value of a JAX array is clipped, another is checked.
      among: candidates, a pytree of bool arrays; ``None`` at a leaf leaves it out of
        the selection, and its mask is ``None``. By default all places of all leaves.

    Returns:
      Masks with ``min(count, candidates)`` places True in all.

    Raises:
      ValueError: if ``among`` has other leaves or shapes than ``scores``, if the count
        is no whole number in [0, number of places], or if one leaf has more than
        2**31 - 1 places.
      TypeError: if a score is not floating point.
    """
    if among is None:
        among = jax.tree.map(lambda s: jnp.ones(s.shape, bool), scores)
    else:
        check_same_leaves("among", among, "scores", scores)
    taking_part = jax.tree.map(lambda s, m: None if m is None else s, scores, among)
    leaves = jax.tree.leaves(taking_part)
    check_count("count", count, sum(leaf.size for leaf in jax.tree.leaves(scores)))
    if not leaves:
        return taking_part
    with jax.numpy_dtype_promotion("standard"):
        widest = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves])
    asked = map_named(
        lambda name, s, m: top_k(name, s, 0, m)._replace(sources=(s.astype(widest), m)),
        taking_part,
        among,
    )
    all_asked, structure = jax.tree.flatten(asked, is_leaf=_is_wanted)
    return jax.tree.unflatten(structure, _together(all_asked, count))


# --- Selections of many leaves --------------------------------------------------------

_BATCHES = 8  # into about so many are leaves divided at most, on one CPU device


class Wanted(NamedTuple):
    """A selection that is asked for: the ``k`` largest keys of a leaf or its groups."""

    keys: Callable[..., jax.Array]  # of the sources
    sources: tuple[Any, ...]  # arrays of the leaf's shape, or None
    k: Any
    split: Split | None = None


Selecting = Generator[Wanted, jax.Array, Any]
"""A function of one leaf that yields what it wants selected and is sent the mask."""


def top_k(
    name: str,
    score: jax.Array,
    k: Any,
    candidates: jax.Array | None,
    split: Split | None = None,
) -> Wanted:
    """The ``k`` largest scores of one array, or of each of its groups.

    Args:
      name: what to call the array in an error.
      score: floating point array.
      k: integer scalar, Python or traced, or one for each group; clipped to [0, number
        of candidates].
      candidates: bool array shaped like ``score``, or ``None`` for all.
      split: the groups.

    Raises:
      TypeError: naming the leaf whose scores are not floating point.
    """
    check_scores(name, score, candidates)
    return Wanted(ordered_keys, (score, candidates), k, split)


def map_selecting(function: Callable[..., Selecting], tree: Any, *rest: Any) -> Any:
    """`map_named` of functions that yield selections, which are made together.

    On one CPU device a few leaves at a time go through all of their selections, as many
    as have together the size of the largest, or an eighth of all: keys of so many are
    live. On a mesh, and on accelerators, all leaves go in step, and one loop serves
    them all. Leaves with groups are selected from one after the other, each in one loop
    for its groups.

    Args:
      function: generator function ``(name, leaf, *leaves)``, see `Selecting`.
      tree: pytree.
      *rest: pytrees with its structure, which may have ``None`` at its leaves.
    """
    running: list[Selecting] = []

    def begin(name: str, *leaves: Any) -> int:
        running.append(function(name, *leaves))
        return len(running) - 1

    numbers = map_named(begin, tree, *rest)
    results, first = [None] * len(running), {}
    for number in range(len(running)):
        _go_on(running, number, None, first, results)
    largest_size = max((w.sources[0].size for w in first.values()), default=0)
    on_cpu = _in_rows(list(first.values()), largest_size)
    turn = jnp.int32(0)
    batches, room = _batches(first) if on_cpu else ([list(first)], 0)
    for batch in batches:
        waiting = {number: first[number] for number in batch}
        while waiting:
            asked = list(waiting.values())
            if on_cpu:
                masks, turn = _in_turn(asked, turn, room)
            else:
                masks = _at_once(asked)
            answers = dict(zip(waiting, masks, strict=True))
            waiting = {}
            for number, mask in answers.items():
                _go_on(running, number, mask, waiting, results)
    return jax.tree.map(lambda number: results[number], numbers)


def _go_on(
    running: list[Selecting],
    number: int,
    mask: Any,
    waiting: dict[int, Wanted],
    results: list[Any],
) -> None:
    """Sends a mask, and files what is wanted next, or the result."""
    try:
        waiting[number] = running[number].send(mask)
    except StopIteration as stop:
        results[number] = stop.value


def _batches(first: dict[int, Wanted]) -> tuple[list[list[int]], int]:
    """Numbers of leaves to be selected together, and the room of the largest."""
    alone = [[number] for number, wanted in first.items() if wanted.split is not None]
    sizes = {n: w.sources[0].size for n, w in first.items() if w.split is None}
    if not sizes:
        return alone, 0
    width = width_for(max(sizes.values()))
    need = {n: rows_needed([size], width) for n, size in sizes.items()}
    # Every batch is compiled by itself: however deep a network is, they are few.
    room = max(*need.values(), -(-sum(need.values()) // _BATCHES))
    batches: list[list[int]] = []
    for number in sorted(sizes, key=lambda n: -need[n]):
        for batch in batches:
            used = sum(need[n] for n in batch)
            if used + need[number] <= room and _wide(first[batch[0]]) == _wide(
                first[number]
            ):
                batch.append(number)
                break
        else:
            batches.append([number])
    return alone + batches, room * width


def _in_turn(
    asked: list[Wanted], turn: jax.Array, room: int
) -> tuple[list[Any], jax.Array]:
    """On one CPU device: masks, and what the next selection has to wait for."""
    masks, turn = _of_groups(asked, turn)
    for wide in (False, True):
        of = [i for i, w in enumerate(asked) if w.split is None and _wide(w) == wide]
        if of:
            keys = [asked[i].keys(*asked[i].sources) for i in of]
            found, turn = _of_rows(keys, [asked[i].k for i in of], turn, room)
            for i, mask in zip(of, found, strict=True):
                masks[i] = mask
    return masks, turn


def _of_groups(asked: list[Wanted], turn: jax.Array) -> tuple[list[Any], jax.Array]:
    """Masks of the leaves with groups, one after the other, ``None`` for the others."""
    masks: list[Any] = [None] * len(asked)
    for i, wanted in enumerate(asked):
        if wanted.split is not None:
            keys = wanted.keys(*wanted.sources)
            masks[i], turn = largest_of_groups(keys, wanted.k, turn, split=wanted.split)
    return masks, turn


def _of_rows(
    keys: list[jax.Array], counts: list[Any], turn: jax.Array, room: int = 0
) -> tuple[list[jax.Array], jax.Array]:
    """On one CPU device, where other selections take so many places."""
    sizes = tuple(key.size for key in keys)
    if not sum(sizes):
        return [jnp.zeros(key.shape, bool) for key in keys], turn
    width = width_for(max(sizes))
    together = len(counts) == 1
    # Few numbers of comparisons: programs of the same shapes are compiled once.
    comparisons = 1 if together else 1 << (len(keys) - 1).bit_length()
    of = (0,) * len(keys) if together else tuple(range(len(keys)))
    # Selections with as many rows have the same memory, one after the other.
    number = rows_needed(list(sizes), width)
    if number < room // width <= 2 * number:
        number, comparisons = room // width, comparisons << 1
    rows = Rows(width, number, sizes, of, comparisons)
    k = [jnp.clip(jnp.asarray(k, jnp.int32), 0, MAX_COUNT) for k in counts]
    k += [jnp.int32(MAX_COUNT)] * (comparisons - len(k))
    return largest_of_rows(keys, jnp.stack(k), turn, rows)


def _at_once(asked: list[Wanted]) -> list[Any]:
    """On a mesh or an accelerator."""
    masks, _ = _of_groups(asked, jnp.int32(0))
    for wide in (False, True):
        of = [i for i, w in enumerate(asked) if w.split is None and _wide(w) == wide]
        problems = [([Leaf(asked[i].keys, asked[i].sources)], asked[i].k) for i in of]
        full = [problem for problem in problems if problem[0][0].sources[0].size]
        found = iter(largest_at_once(full) if full else [])
        for i in of:
            shape = asked[i].sources[0].shape
            empty = not asked[i].sources[0].size
            masks[i] = jnp.zeros(shape, bool) if empty else next(found)[0]
    return masks


def _wide(wanted: Wanted) -> bool:
    """Whether the keys have 64 bits."""
    arrays = [source for source in wanted.sources if source is not None]
    return any(source.dtype.itemsize == 8 for source in arrays)


def _together(asked: list[Wanted], count: Any) -> list[jax.Array]:
    """Masks of the largest keys of all, compared with each other."""
    size = sum(w.sources[0].size for w in asked)
    if not size:
        return [jnp.zeros(w.sources[0].shape, bool) for w in asked]
    if _in_rows(asked, size):
        keys = [w.keys(*w.sources) for w in asked]
        return _of_rows(keys, [count], jnp.int32(0))[0]
    some = [w for w in asked if w.sources[0].size]
    (found,) = largest_at_once([([Leaf(w.keys, w.sources) for w in some], count)])
    masks = iter(found)
    return [
        next(masks) if w.sources[0].size else jnp.zeros(w.sources[0].shape, bool)
        for w in asked
    ]


def _in_rows(asked: list[Wanted], size: int) -> bool:
    """Whether leaves are selected from on one CPU, where rows of so many have room."""
    arrays = [s for wanted in asked for s in wanted.sources if s is not None]
    return size <= MAX_COUNT // 2 and on_one_cpu(arrays)


def _is_wanted(value: Any) -> bool:
    return isinstance(value, Wanted)
