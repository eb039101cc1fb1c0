"""Named leaves: which of them are sparse, and a random key for each.

A leaf is named by its path, ``"conv1/kernel"``. Names, never positions, decide which
leaves are sparse and which random numbers they get, so that adding a layer changes
nothing for the others.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_expression
from sup_tickets.rules import Verdict, can_be_scored, default_rule, judge
from sup_tickets.types import Params

Rule = Callable[[str, Any], bool]
"""``(name, leaf) -> is it sparse``."""

RuleLike = Rule | str | Sequence[tuple[str, bool]]
"""A rule, an expression of the sparse names, or ``(expression, sparse)`` pairs."""


def is_none(leaf: Any) -> bool:
    """True for ``None``; passed as ``is_leaf`` so that dense leaves stay visible."""
    return leaf is None


def leaf_name(path: tuple[Any, ...]) -> str:
    """The name of the leaf at a ``jax.tree_util`` key path, ``"dense/kernel"``.

    Flax NNX states end every path in an attribute ``value``, which is left out.
    """
    return jax.tree_util.keystr(_without_value(path), simple=True, separator="/")


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


def sparse_leaves(params: Params, *, where: RuleLike = default_rule) -> Any:
    """Which leaves of ``params`` are sparse; `coverage.describe` says why.

    Args:
      params: pytree of arrays (or of ``jax.ShapeDtypeStruct``).
      where: a function ``(name, leaf) -> bool``; or a regular expression, searched in
        the names, of the sparse leaves (the others are dense); or a sequence of
        ``(expression, sparse)`` pairs of which the first match decides. The default,
        `rules.default_rule`, also knows the class of an Equinox or NNX module.

    Returns:
      Pytree of Python bools with the structure of ``params``.

    Raises:
      ValueError: if an expression does not compile or matches no leaf, if a leaf
        matches none of the pairs, or if no leaf at all is sparse; if a leaf that is
        chosen is a scalar, or no array of real floating point of 16 bits or more; with
        the default rule, if a leaf named as a kernel is of another dtype (quantized or
        complex): a rule of one's own leaves it dense.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
      >>> sparse_leaves(params)
      {'dense': {'bias': False, 'kernel': True}}
      >>> sparse_leaves(params, where=[("kernel", True), (".*", False)])
      {'dense': {'bias': False, 'kernel': True}}
    """
    verdicts = judged_leaves(params, where=where)
    names = [name for name, _, _ in verdicts]
    for name, leaf, verdict in verdicts:
        _check_verdict(name, leaf, verdict, where)
    if not any(verdict.sparse for _, _, verdict in verdicts):
        raise ValueError(
            f"where={_shown(where)} chooses no leaf to be sparse; "
            f"the leaves are {_listed(names)}"
        )
    chosen = [verdict.sparse for _, _, verdict in verdicts]
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def judged_leaves(
    params: Params, *, where: RuleLike = default_rule
) -> list[tuple[str, Any, Verdict]]:
    """Name, leaf and verdict of every leaf, in the order of ``jax.tree.leaves``.

    Raises:
      ValueError: if an expression does not compile or matches no leaf, or if a leaf
        matches none of the pairs.
    """
    named = named_leaves(params)
    if where is default_rule:
        types = _module_types(params)
        judged = [judge(*pair, of) for pair, of in zip(named, types, strict=True)]
    elif callable(where):
        reason = f"by {_shown(where)}"
        judged = [Verdict(bool(where(*pair)), reason) for pair in named]
    else:
        by_name = _verdicts_of_expressions(where, [name for name, _ in named])
        judged = [by_name[name] for name, _ in named]
    return [(*pair, verdict) for pair, verdict in zip(named, judged, strict=True)]


def matching_names(
    expressions: Sequence[str] | str,
    names: Sequence[str],
    argument: str = "expression",
) -> set[str]:
    """The names in which any of the regular expressions is found.

    Args:
      expressions: one or more.
      names: to search.
      argument: what to call the expressions in an error.

    Raises:
      ValueError: if an expression does not compile, or is found in no name.
    """
    if isinstance(expressions, str) or not isinstance(expressions, Iterable):
        expressions = (expressions,)
    found: set[str] = set()
    for expression in expressions:
        pattern = check_expression(argument, expression)
        matched = {name for name in names if pattern.search(name)}
        if not matched:
            raise ValueError(
                f"{argument} {expression!r} matches no leaf; "
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


# --- Parts ----------------------------------------------------------------------------


def parts_of_path(path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The runs of keys in a path: those that end with it first, the longest before.

    A leaf of an optimizer's state has the path of its parameter among them: usually at
    the end, and before it where each parameter has a structure of its own.
    """
    for end in range(len(path), -1, -1):
        for start in range(end + 1):
            yield path[start:end]


def _without_value(path: tuple[Any, ...]) -> tuple[Any, ...]:
    of_variable = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value")
    return path[:-1] if of_variable else path


def _check_verdict(name: str, leaf: Any, verdict: Verdict, where: Any) -> None:
    if verdict.kernel_of:
        raise ValueError(
            f"leaf {name!r} is named as a kernel but is of {verdict.kernel_of}; only "
            "real floating point of 16 bits or more can be sparse; to leave it dense, "
            "give a rule of your own as where="
        )
    if not verdict.sparse:
        return
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        what = f"is a {type(leaf).__name__}"
    elif not can_be_scored(dtype):
        what = f"is of {dtype}"
    elif not shape:
        what = "is a scalar"
    else:
        return
    raise ValueError(
        f"where={_shown(where)} chooses leaf {name!r} to be sparse, which {what}; only "
        "arrays of real floating point of 16 bits or more can be"
    )


def _module_types(tree: Any) -> list[str]:
    """The class of the object that holds each leaf as an attribute, else ``""``."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [_module_type(tree, _without_value(path)) for path in paths]


def _module_type(node: Any, path: tuple[Any, ...]) -> str:
    kind = ""
    for key in path:
        match key:
            case jax.tree_util.GetAttrKey(name=attribute):
                kind, node = type(node).__name__, getattr(node, attribute, None)
            case jax.tree_util.SequenceKey(idx=place) if isinstance(node, Sequence):
                node = node[place]
            case jax.tree_util.DictKey(key=place) if isinstance(node, Mapping):
                kind, node = "", node[place]
            case _:
                return ""
    return kind


def _verdicts_of_expressions(where: Any, names: Sequence[str]) -> dict[str, Verdict]:
    if isinstance(where, str):
        found = matching_names(where, names, "where: expression")
        return {
            name: Verdict(name in found, f"{'' if name in found else 'not '}{where!r}")
            for name in names
        }
    pairs = _pairs(where)
    matched = [(e, s, matching_names(e, names, "where: expression")) for e, s in pairs]
    decided: dict[str, Verdict] = {}
    for expression, sparse, found in reversed(matched):
        decided |= dict.fromkeys(found, Verdict(sparse, repr(expression)))
    uncovered = [name for name in names if name not in decided]
    if uncovered:
        raise ValueError(
            f"where={_shown(where)} leaves {_listed(uncovered)} uncovered; "
            "end it with ('.*', False) to make all others dense"
        )
    return decided


def _pairs(where: Any) -> list[tuple[str, bool]]:
    pairs = list(where) if isinstance(where, Sequence) else [where]
    for pair in pairs:
        if not (
            isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        ):
            raise ValueError(
                "where must be a function, an expression or (expression, sparse) "
                f"pairs, got {pair!r}"
            )
    return [(expression, bool(sparse)) for expression, sparse in pairs]


def _shown(where: Any) -> str:
    return getattr(where, "__name__", None) or repr(where)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
