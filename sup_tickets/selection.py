"""Exact top-k masks, of each leaf, of groups within it, or of all leaves together.

Everywhere: ties are broken by index (row-major within a leaf, leaves in tree order), so
a mask has exactly the count asked for; ``NaN`` ranks below ``-inf``; both are chosen
only when nothing better is left; where ``among`` is False nothing is ever chosen.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.bisection import largest, ordered_keys
from sup_tickets.checks import check_count
from sup_tickets.groups import GroupsLike, Split, checked_splits
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

    def choose(name: str, turn: Turn, score: jax.Array, count: Any, *rest: Any):
        if count is None:
            return None, turn
        return top_k(name, turn, score, count, *rest)

    return map_in_turn(choose, scores, counts, among, splits)


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
        is no whole number in [0, number of places], or if more than 2**31 - 1 scores
        are compared.
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
    keys = map_named(
        lambda name, s, m: ordered_keys(name, s.astype(widest), m), taking_part, among
    )
    leaves, structure = jax.tree.flatten(keys)
    return jax.tree.unflatten(structure, largest(leaves, count)[0])


# --- One leaf after another -----------------------------------------------------------

Turn = jax.Array | None
"""Waits for the leaf before: an int32 scalar, 0, that only its selection can tell."""


def map_in_turn(
    function: Callable[..., tuple[Any, Turn]], tree: Any, *rest: Any
) -> Any:
    """`map_named` that works on one leaf at a time, so that one leaf's keys are live.

    Args:
      function: ``(name, turn, leaf, *leaves) -> (result, turn)``, handing ``turn`` to
        and on from `top_k`.
      tree: pytree.
      *rest: pytrees with its structure, which may have ``None`` at its leaves.
    """
    turn = None

    def step(name: str, *leaves: Any) -> Any:
        nonlocal turn
        result, turn = function(name, turn, *leaves)
        return result

    return map_named(step, tree, *rest)


def top_k(
    name: str,
    turn: Turn,
    score: jax.Array,
    k: Number,
    candidates: jax.Array | None,
    split: Split | None = None,
) -> tuple[jax.Array, Turn]:
    """Mask of the ``k`` largest scores of one array, or of each of its groups.

    Args:
      name: what to call the array in an error.
      turn: from the selection that must come first, or ``None``.
      score: floating point array.
      k: integer scalar, Python or traced, or one for each group; clipped to [0, number
        of candidates].
      candidates: bool array shaped like ``score``, or ``None`` for all.
      split: the groups.

    Returns:
      The mask and the turn for the next selection.
    """
    keys = ordered_keys(name, score, candidates)
    if turn is not None:
        keys = keys + turn.astype(keys.dtype)
    (mask,), cut = largest([keys], k, split=split)
    # Never negative, so always 0, but the compiler cannot know and keeps the order.
    return mask, jnp.minimum(jnp.min(cut), 0)
