"""Structures that masks keep through training: N:M, constant fan-in.

A `Structure` is data: the groups of a leaf, in all of which as many weights are active,
and how that number is found. `dynamic.Method` takes one, and `updates` keeps it at the
start, in every update and exploration, and when it prunes.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sup_tickets.checks import check_number, check_whole
from sup_tickets.groups import GroupsLike, Split, per_block, per_output, splits_of
from sup_tickets.trees import map_named, matching_names, named_leaves
from sup_tickets.types import Counts, Masks, Params

_LAST = r"(^|[/._])(classifier|head|lm_head|logits|output|decoder|fc_out)([/._]|$)"


@dataclasses.dataclass(frozen=True)
class Structure:
    """All groups of a leaf have as many active weights.

    Args:
      name: what to call it: "2:4".
      groups: who competes with whom, see `select`; a `Groups`, or a function of name
        and leaf.
      kept: of each group; by default as many as come nearest to the leaf's share of the
        network's weights.
      of: places of a group, where ``kept`` is given.
      ablate_below: in (0, 1]; an update takes all weights of a neuron of which fewer
        than this share of its fan-in are salient, and gives them to the other neurons
        of the leaf (SRigL); ``None`` for never.
      keep_neurons: expressions of the leaves whose neurons are never ablated; by
        default those that are named as the last layer of a network, "classifier",
        "head", "decoder" and the like, of which there must be one.
    """

    name: str
    _: dataclasses.KW_ONLY
    groups: GroupsLike
    kept: int | None = None
    of: int | None = None
    ablate_below: float | None = None
    keep_neurons: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.ablate_below is not None:
            check_number("ablate_below", self.ablate_below, 0, 1, above=True)

    def __str__(self) -> str:
        return self.name

    def splits(self, tree: Any, like: Any) -> Any:
        """The groups of every leaf that is not ``None`` in ``like``.

        Raises:
          ValueError: naming the first leaf that cannot take the structure.
        """
        try:
            splits = splits_of(self.groups, tree, like, f"structure={self}")
        except ValueError as error:
            raise ValueError(f"{error}; keep_dense= or where= leave it out") from None
        having = dict(named_leaves(splits))
        for name, _ in named_leaves(like):
            if name not in having:
                raise ValueError(f"structure={self} has no groups for leaf {name!r}")
        return splits

    def ablates(self, names: Sequence[str]) -> set[str]:
        """The names of the leaves whose neurons may be ablated."""
        if self.ablate_below is None:
            return set()
        if self.keep_neurons is None:
            return {name for name in names if not re.search(_LAST, name)}
        if not self.keep_neurons:
            return set(names)
        return set(names) - matching_names(self.keep_neurons, names, "keep_neurons")

    def check_neurons(self, params: Params, like: Any) -> None:
        """Raises unless it is known which leaf must keep its neurons.

        Args:
          params: pytree of arrays.
          like: pytree with its structure, ``None`` at dense leaves.

        Raises:
          ValueError: if none is named as the last layer of a network, or an expression
            of ``keep_neurons`` matches no sparse leaf.
        """
        ablated = self.ablates([name for name, _ in named_leaves(like)])
        named = any(re.search(_LAST, name) for name, _ in named_leaves(params))
        if ablated and self.keep_neurons is None and not named:
            raise ValueError(
                f"structure={self} ablates neurons, and no leaf is named as the last "
                "layer, which must keep its own; name it by keep_neurons=, or give () "
                "if there is none"
            )


def n_of_m(n: int, m: int, *, axis: int = -2) -> Structure:
    """N:M sparsity: ``n`` of every ``m`` consecutive weights along an axis.

    Args:
      n: at least 1.
      m: more than n.
      axis: -2, the default, is the input axis of Flax kernels; Equinox has it last.

    Raises:
      ValueError: if n is not in [1, m).
    """
    check_whole("n", n, 1, check_whole("m", m, 2) - 1)
    return Structure(f"{n}:{m}", groups=per_block(m, axis=axis), kept=n, of=m)


def fan_in(
    *,
    axis: int | Sequence[int] = -1,
    ablate_below: float | None = None,
    keep_neurons: Sequence[str] | str | None = None,
) -> Structure:
    """Constant fan-in: all output neurons of a leaf have as many active inputs.

    Args:
      axis: of the outputs, see `per_output`.
      ablate_below, keep_neurons: see `Structure`.

    Raises:
      ValueError: if ``ablate_below`` is not in (0, 1].

    References:
      Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024,
      https://arxiv.org/abs/2305.02299
    """
    if keep_neurons is not None:
        given = (keep_neurons,) if isinstance(keep_neurons, str) else keep_neurons
        keep_neurons = tuple(given)
    return Structure(
        "fan-in",
        groups=per_output(axis),
        ablate_below=ablate_below,
        keep_neurons=keep_neurons,
    )


def structure_of(text: str) -> Structure | None:
    """The structure that a text names: "2:4", "fan-in", or "" for none.

    Raises:
      ValueError: for another text.
    """
    if not text:
        return None
    if text == "fan-in":
        return fan_in()
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise ValueError(
            f"structure must be '', 'fan-in' or N:M, such as '2:4', got {text!r}"
        )
    return n_of_m(int(found[1]), int(found[2]))


def check_structured(structure: Any, method: Any) -> None:
    """Raises unless a method, as `dynamic.Method`, can keep a structure.

    Raises:
      ValueError: naming the field of the method that does not go with it.
    """
    if not isinstance(structure, Structure):
        raise ValueError(
            f"structure must be a Structure, such as n_of_m(2, 4), got {structure!r}"
        )
    given = f"structure={structure}"
    if method.where is None:
        raise ValueError(f"where=None leaves all weights dense; {given} needs some")
    if method.redistribute:
        raise ValueError(
            f"redistribute=True moves weights between layers; {given} needs False"
        )
    if method.grow_groups is not None:
        raise ValueError(
            f"grow_groups and {given} both say how many weights a group grows; give one"
        )
    if structure.ablate_below is not None:
        refused = {
            "initial_sparsity": method.initial_sparsity is not None,
            "sparsity_stairs": len(method.sparsity_stairs) > 1,
            "prefer_unexplored": method.prefer_unexplored,
            "regrow_dropped=False": not method.regrow_dropped,
        }
        for name, has in refused.items():
            if has:
                raise ValueError(f"{given} that ablates neurons cannot have {name}")
    if structure.kept is None or structure.of is None:
        return
    check_left("sparsity", method.sparsity, structure, structure.kept)
    check_left("initial_sparsity", method.initial_sparsity or 0, structure)
    for _, value in method.sparsity_stairs:
        check_left("sparsity_stairs", value, structure)


def check_left(
    name: str, sparsity: float, structure: Structure, most: int | None = None
) -> None:
    """Raises unless so many whole weights of every group are left."""
    assert structure.kept is not None and structure.of is not None
    left, most = (1 - sparsity) * structure.of, structure.of if most is None else most
    if abs(left - round(left)) > 1e-6 or not structure.kept <= round(left) <= most:
        counts = range(structure.kept, most + 1)
        allowed = ", ".join(f"{1 - n / structure.of:g}" for n in counts)
        raise ValueError(
            f"{name} with structure={structure} must be {allowed}, got {sparsity}"
        )


# --- Counts ---------------------------------------------------------------------------


def group_counts(structure: Structure, params: Params, counts: Counts) -> Counts:
    """How many weights each group of a leaf has, next to what a distribution gave.

    Where the structure does not say, every leaf's count is rounded to whole groups, at
    least one weight in each, so that the total comes within half of the weights that
    the leaf with fewest groups gains by one more in each.

    Args:
      structure: of all leaves with a count.
      params: pytree of arrays.
      counts: pytree of whole numbers, ``None`` at leaves that are never pruned.

    Returns:
      Pytree of whole numbers.

    Raises:
      ValueError: naming the leaf that cannot take the structure, or if the total cannot
        be met.
    """
    splits = structure.splits(params, counts)
    if structure.kept is not None:
        return jax.tree.map(lambda split: structure.kept, splits)
    leaves, form = jax.tree.flatten(splits)
    given = [int(n) for n in jax.tree.leaves(counts)]
    return jax.tree.unflatten(form, _rounded(leaves, given, structure))


def _rounded(splits: list[Split], given: list[int], structure: Structure) -> list[int]:
    """Weights in a group of each leaf: rounded, then mended while the total gains."""
    wanted = [n / s.number for s, n in zip(splits, given, strict=True)]
    most = [s.members for s in splits]
    found = [min(max(round(n), 1), top) for n, top in zip(wanted, most, strict=True)]
    dense = [n == top for n, top in zip(wanted, most, strict=True)]
    over = sum(k * s.number for k, s in zip(found, splits, strict=True)) - sum(given)
    while True:
        step = -1 if over > 0 else 1
        useful = [
            i
            for i, split in enumerate(splits)
            if not dense[i]
            and 1 <= found[i] + step <= most[i]
            and abs(over + step * split.number) < abs(over)
        ]
        if not useful:
            break
        best = max(useful, key=lambda i: step * (wanted[i] - found[i]))
        found[best] += step
        over += step * splits[best].number
    if over > max((split.number for split in splits), default=0):
        raise ValueError(
            f"structure={structure} needs a weight in each group, and {sum(given)} "
            f"weights in all are {over} too few"
        )
    return found


def check_structure(structure: Structure, masks: Masks) -> None:
    """Raises unless concrete masks have the structure; ablated neurons are empty.

    Raises:
      ValueError: naming the first leaf that has not, and two of its groups.
    """
    splits = structure.splits(masks, masks)

    def check(name: str, mask: Any, split: Split) -> None:
        inside = tuple(i for i, (_, apart, _) in enumerate(split.parts) if not apart)
        places = np.asarray(mask).reshape([size for size, *_ in split.parts])
        counts = np.unique(places.sum(axis=inside))
        if structure.kept is not None and set(counts) - {structure.kept}:
            other = next(n for n in counts if n != structure.kept)
            raise ValueError(
                f"masks has {other} active weights in a group of leaf {name!r}, where "
                f"structure={structure} keeps {structure.kept}"
            )
        if structure.ablate_below is not None:
            counts = counts[counts > 0]
        if len(counts) > 1:
            raise ValueError(
                f"masks has {counts[0]} active weights in one group of leaf {name!r} "
                f"and {counts[-1]} in another, where structure={structure} has as many "
                "in all"
            )

    map_named(check, masks, splits)
