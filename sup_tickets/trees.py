"""Named leaves: which of them are sparse, and a random key for each.

A leaf is named by its path, ``"conv1/kernel"``. Names, never positions, decide which
leaves are sparse and which random numbers they get, so that adding a layer changes
nothing for the others.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.types import Params

Rule = Callable[[str, Any], bool]
"""``(name, leaf) -> is it sparse``."""

RuleLike = Rule | str | Sequence[tuple[str, bool]]
"""A rule, an expression of the sparse names, or ``(expression, sparse)`` pairs."""

# Biases of attention layers, scales of layer norms and what a vision transformer adds
# to its patches can have rank 2 or more. Ghosts are gone before training ends.
_NEVER_SPARSE = re.compile(
    r"(^|/)(bias|scale|offset|gamma|beta|class_token|positions)$"
    r"|norm(?!al)|(^|/|_)bn\d*(/|$)|_ghost(/|$)",
    re.IGNORECASE,
)


def is_none(leaf: Any) -> bool:
    """True for ``None``; passed as ``is_leaf`` so that dense leaves stay visible."""
    return leaf is None


def leaf_name(path: tuple[Any, ...]) -> str:
    """The name of the leaf at a ``jax.tree_util`` key path, ``"dense/kernel"``.

    Flax NNX states end every path in an attribute ``value``, which is left out.
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any, *, keep_none: bool = False) -> list[tuple[str, Any]]:
    """The ``(name, leaf)`` pairs of a tree, in the order of ``jax.tree.leaves``.

    Args:
      tree: any pytree.
      keep_none: whether ``None`` counts as a leaf, as it does in masks.
    """
    is_leaf = is_none if keep_none else None
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return [(leaf_name(path), leaf) for path, leaf in leaves]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """``jax.tree.map`` whose function gets the name of the leaf first.

    ``None`` in ``rest`` where ``tree`` has a leaf is handed to the function.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest
    )


def default_rule(name: str, leaf: Any) -> bool:
    """Kernels and embeddings of rank 2 or more are sparse; norms and biases are dense.

    Args:
      name: name of the leaf, ``"dense/kernel"``.
      leaf: the leaf; whatever is not an array of real floating point numbers is dense.
    """
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return False
    return leaf.ndim >= 2 and not _NEVER_SPARSE.search(name)


def sparse_leaves(params: Params, *, where: RuleLike = default_rule) -> Any:
    """Which leaves of ``params`` are sparse.

    Args:
      params: pytree of arrays (or of ``jax.ShapeDtypeStruct``).
      where: a function ``(name, leaf) -> bool``; or a regular expression, searched in
        the names, of the sparse leaves (the others are dense); or a sequence of
        ``(expression, sparse)`` pairs of which the first match decides.

    Returns:
      Pytree of Python bools with the structure of ``params``.

    Raises:
      ValueError: if an expression matches no leaf, if a leaf matches none of the
        pairs, or if no leaf at all is sparse.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
      >>> sparse_leaves(params)
      {'dense': {'bias': False, 'kernel': True}}
      >>> sparse_leaves(params, where=[("kernel", True), (".*", False)])
      {'dense': {'bias': False, 'kernel': True}}
    """
    names = [name for name, _ in named_leaves(params)]
    rule = where if callable(where) else _rule_of_expressions(where, names)
    chosen = map_named(lambda name, leaf: bool(rule(name, leaf)), params)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(
            f"where={_shown(where)} chooses no leaf to be sparse; "
            f"the leaves are {_listed(names)}"
        )
    return chosen


def matching_names(expressions: Sequence[str] | str, names: Sequence[str]) -> set[str]:
    """The names in which any of the regular expressions is found.

    Raises:
      ValueError: if an expression is found in no name.
    """
    if isinstance(expressions, str):
        expressions = (expressions,)
    found: set[str] = set()
    for expression in expressions:
        matched = {name for name in names if re.search(expression, name)}
        if not matched:
            raise ValueError(
                f"expression {expression!r} matches no leaf; "
                f"the leaves are {_listed(names)}"
            )
        found |= matched
    return found


def leaf_keys(key: jax.Array, tree: Any) -> Any:
    """A random key for each leaf, derived from the leaf's name.

    Args:
      key: a random key, consumed.
      tree: any pytree.

    Returns:
      Pytree of keys. The key of a leaf depends on ``key`` and its name alone, not on
      its place or on the other leaves.
    """
    return map_named(
        lambda name, _: jax.random.fold_in(key, zlib.crc32(name.encode())), tree
    )


def uniform_draws(key: jax.Array, tree: Any) -> Any:
    """Independent uniform draws in [0, 1) shaped like ``tree``, float32.

    Args:
      key: a random key, consumed; the draws of a leaf depend on its name alone.
      tree: pytree of arrays, of which only the shapes are read.
    """
    return jax.tree.map(
        lambda k, leaf: jax.random.uniform(k, leaf.shape, jnp.float32),
        leaf_keys(key, tree),
        tree,
    )


def check_same_leaves(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises unless ``tree`` has, leaf by leaf, the names and shapes of ``like``.

    ``None`` in ``tree`` agrees with any leaf of ``like``.

    Raises:
      ValueError: naming the first leaf that differs.
    """
    # A None in `like` (Equinox's filtered modules) is no leaf, and None in `tree` too.
    wanted = {n: leaf for n, leaf in named_leaves(like, keep_none=True)}
    given = {n: leaf for n, leaf in named_leaves(tree, keep_none=True)}
    for leaf in sorted(wanted.keys() ^ given.keys()):
        holder, other = (name, like_name) if leaf in given else (like_name, name)
        raise ValueError(f"{holder} has a leaf {leaf!r} that {other} lacks")
    for leaf, value in given.items():
        if value is None:
            continue
        if wanted[leaf] is None or jnp.shape(value) != jnp.shape(wanted[leaf]):
            shape = None if wanted[leaf] is None else jnp.shape(wanted[leaf])
            raise ValueError(
                f"{name} has shape {jnp.shape(value)} at leaf {leaf!r}, "
                f"where {like_name} has {shape}"
            )


def _rule_of_expressions(where: Any, names: Sequence[str]) -> Rule:
    if isinstance(where, str):
        found = matching_names(where, names)
        return lambda name, _: name in found
    pairs = list(where)
    matching_names([expression for expression, _ in pairs], names)
    decided = dict(_first_matches(pairs, names))
    uncovered = [name for name in names if name not in decided]
    if uncovered:
        raise ValueError(
            f"where={_shown(where)} leaves {_listed(uncovered)} uncovered; "
            "end it with ('.*', False) to make all others dense"
        )
    return lambda name, _: decided[name]


def _first_matches(
    pairs: Sequence[tuple[str, bool]], names: Sequence[str]
) -> Iterator[tuple[str, bool]]:
    for name in names:
        for expression, sparse in pairs:
            if re.search(expression, name):
                yield name, bool(sparse)
                break


def _shown(where: Any) -> str:
    return getattr(where, "__name__", None) or repr(where)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
