"""Checks that two trees agree: one line names the leaf or container that differs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from sup_tickets.checks import check_count
from sup_tickets.trees import is_none, leaf_name, named_leaves


def check_same_leaves(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises unless ``tree`` has, leaf by leaf, the names and shapes of ``like``.

    The containers must be of one type too. ``None`` in ``tree`` agrees with any leaf of
    ``like``.

    Raises:
      ValueError: naming the first leaf or container that differs.
    """
    given, wanted = check_same_names(name, tree, like_name, like)
    for leaf, value in given.items():
        if value is None:
            continue
        if wanted[leaf] is None or jnp.shape(value) != jnp.shape(wanted[leaf]):
            shape = None if wanted[leaf] is None else jnp.shape(wanted[leaf])
            raise ValueError(
                f"{name} has shape {jnp.shape(value)} at leaf {leaf!r}, "
                f"where {like_name} has {shape}"
            )
    check_same_containers(name, tree, like_name, like)


def check_same_names(
    name: str, tree: Any, like_name: str, like: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves of two trees by name, if they have the same names.

    Raises:
      ValueError: naming the first leaf that only one of them has.
    """
    # A None in `like` (Equinox's filtered modules) is no leaf, and None in `tree` too.
    given = dict(named_leaves(tree, keep_none=True))
    wanted = dict(named_leaves(like, keep_none=True))
    for leaf in sorted(wanted.keys() ^ given.keys()):
        holder, other = (name, like_name) if leaf in given else (like_name, name)
        raise ValueError(f"{holder} has a leaf {leaf!r} that {other} lacks")
    return given, wanted


def check_auto_axes(name: str, tree: Any) -> None:
    """Raises for leaves on a mesh with explicit axes, the default of `jax.make_mesh`.

    Raises:
      ValueError: naming the first of them.
    """
    for leaf, value in named_leaves(tree):
        mesh = getattr(getattr(jax.typeof(value), "sharding", None), "mesh", None)
        types = getattr(mesh, "axis_types", ())
        if AxisType.Explicit in types:
            raise ValueError(
                f"{name} must lie on a mesh whose axes are Auto, got {types} "
                f"at leaf {leaf!r}; make it by jax.make_mesh(..., "
                "axis_types=(jax.sharding.AxisType.Auto,) * n), with n axes"
            )


def check_same_dtypes(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises unless leaves, of the names of those of ``like``, have their dtypes.

    Raises:
      TypeError: naming the first leaf that has another.
    """
    wanted = dict(named_leaves(like))
    for leaf, value in named_leaves(tree):
        if value.dtype != wanted[leaf].dtype:
            raise TypeError(
                f"{name} has dtype {value.dtype} at leaf {leaf!r}, "
                f"where {like_name} has {wanted[leaf].dtype}"
            )


def check_counts(
    name: str,
    counts: Any,
    like_name: str,
    like: Any,
    size_of: Callable[[Any], int] = lambda leaf: leaf.size,
) -> None:
    """Raises unless ``counts`` are whole numbers of places of the leaves of ``like``.

    ``None`` is no count. The values of JAX arrays are not looked at, see
    `checks.check_count`.

    Args:
      name: of the argument.
      counts: pytree of integers and ``None``.
      like_name: of the other argument.
      like: pytree of arrays with the structure of ``counts``.
      size_of: a leaf's number of places.

    Raises:
      ValueError: naming the first leaf or container that differs or is out of range.
    """
    given, wanted = check_same_names(name, counts, like_name, like)
    check_same_containers(name, counts, like_name, like)
    for leaf, value in given.items():
        if value is None:
            continue
        if wanted[leaf] is None:
            raise ValueError(
                f"{name} has a count at leaf {leaf!r}, where {like_name} has None"
            )
        check_count(f"{name} at leaf {leaf!r}", value, size_of(wanted[leaf]))


def check_same_containers(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises unless two trees have the same containers; ``None`` is a leaf in both.

    Raises:
      ValueError: naming the first leaf or container that differs.
    """
    structures = (jax.tree.structure(t, is_leaf=is_none) for t in (tree, like))
    if len(set(structures)) == 1:
        return
    here, one, other = _first_difference(tree, like) or ("the top", tree, like)
    kinds = _kind(one), _kind(other)
    if kinds[0] == kinds[1]:
        raise ValueError(
            f"{name} and {like_name} have a {kinds[0]} of different leaves or fields "
            f"at {here}"
        )
    raise ValueError(
        f"{name} has a {kinds[0]} at {here}, where {like_name} has a {kinds[1]}"
    )


# --- Parts ----------------------------------------------------------------------------


def _first_difference(one: Any, other: Any) -> tuple[str, Any, Any] | None:
    """Where two trees begin to differ, and what stands there in each."""
    waiting = [((), one, other)]
    while waiting:
        path, one, other = waiting.pop()
        (ours, kind), (theirs, like) = _children(one), _children(other)
        if kind != like or len(ours) != len(theirs):
            return (repr(leaf_name(path)) if path else "the top"), one, other
        waiting += [
            ((*path, *key), a, b)
            for (key, a), (_, b) in reversed(list(zip(ours, theirs, strict=True)))
        ]
    return None


def _children(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """The named children of a container, and what it is beside them."""
    return jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda part: part is not node or part is None
    )


def _kind(node: Any) -> str:
    return "leaf" if jax.tree_util.all_leaves([node]) else type(node).__name__
