"""Where the parts of a state lie on a mesh: a rule or two for all of them.

Only parameters need rules. Whatever else has an entry for each weight lies as its
parameter does: masks, slots, averages, tickets, what a view keeps. It is found by its
place in the tree, which contains that of its parameter, and by its shape. All the rest
(counters, keys, running statistics) has a copy on every device.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sup_tickets.checks import check_expression
from sup_tickets.training.mesh import DATA
from sup_tickets.trees import leaf_name, matching_names, named_leaves, parts_of_path
from sup_tickets.types import Params

_SMALL = 1 << 10  # places; a smaller leaf is not worth being gathered in every step


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How parameters are spread over the devices of a mesh; by default not at all.

    Example:
      >>> from sup_tickets.training.mesh import data_mesh
      >>> layout = Layout(data_mesh(), fsdp=True)
      >>> specs = layout.specs({"w": jax.ShapeDtypeStruct((3, 4096), "float32")})
      >>> tuple(specs["w"])
      (None, 'data')

    Raises:
      ValueError: if a rule is no expression with a `PartitionSpec` of axes that the
        mesh has, each once, or if FSDP has no axis "data", or one of a single device
        beside others.
    """

    mesh: Mesh  # of `data_mesh`, or any other
    fsdp: bool = False
    """Whether each parameter is split along "data" too, over the largest of its axes
    that is divisible and not taken; of leaves of less than 1024 places none is."""
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    """Expressions of names, and axes of the mesh for those of the leaf: the first that
    is found in a name counts."""
    annotated: Mapping[str, PartitionSpec] | None = None
    """What the model says itself, `PureNetwork.annotated`; a rule comes first."""

    def __post_init__(self) -> None:
        """Checks axes."""
        said = (self.annotated or {}).items()
        fsdp = ("fsdp", PartitionSpec(*(DATA,) * self.fsdp))
        for rule in (*_pairs(self.rules), *said, fsdp):
            text, spec = _checked(rule)
            names = names_in(spec)
            for i, name in enumerate(names):
                if name not in self.mesh.axis_names:
                    raise ValueError(
                        f"{text!r} has the axis {name!r}; those of the mesh are "
                        f"{', '.join(map(str, self.mesh.axis_names))}"
                    )
                if name in names[:i]:
                    raise ValueError(f"{text!r} has the axis {name!r} twice")
        if self.fsdp and self.mesh.shape[DATA] == 1 < self.mesh.size:
            raise ValueError(
                f"fsdp=True would have no effect; of the {self.mesh.size} devices one "
                f"is along {DATA!r}"
            )

    @property
    def is_replicated(self) -> bool:
        """Whether all devices have all of it."""
        return not (self.fsdp or self.rules or self.annotated)

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def specs(self, params: Params) -> dict[str, PartitionSpec]:
        """The axes of the mesh along which each parameter is split, by its name.

        Args:
          params: pytree of arrays, of which only names and shapes are read.

        Raises:
          ValueError: if a rule is found in no name, or gives a leaf more axes than it
            has, or one that it cannot be split along.
        """
        leaves, given = named_leaves(params), dict(self.annotated or {})
        names = [name for name, _ in leaves]
        for text, spec in reversed(self.rules):
            given |= dict.fromkeys(matching_names(text, names, "rules"), spec)
        return {name: self._spec(name, leaf, given.get(name)) for name, leaf in leaves}

    def of(self, tree: Any, params: Params) -> Any:
        """The shardings of a tree, or the one of all its leaves.

        Args:
          tree: a state or a network, of arrays or shapes.
          params: the parameters in it.

        Raises:
          ValueError: as `specs`.
        """
        if self.is_replicated:
            return self.replicated
        specs, owners = self.specs(params), {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            sharding = NamedSharding(self.mesh, specs[leaf_name(path)])
            owners[path] = _Owner(leaf.shape, sharding)

        def place(path: Any, leaf: Any) -> NamedSharding:
            found = (owners.get(part) for part in parts_of_path(path))
            shape = leaf.shape
            fits = (owner.sharding for owner in found if owner and owner.shape == shape)
            return next(fits, self.replicated)

        return jax.tree_util.tree_map_with_path(place, tree)

    def share(self, tree: Any, params: Params) -> float:
        """The part of the bytes of a tree that one device has; arguments as of `of`."""
        leaves, where = jax.tree.leaves(tree), self.of(tree, params)
        one = isinstance(where, NamedSharding)
        places = [where] * len(leaves) if one else jax.tree.leaves(where)
        own = sum(
            math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, place in zip(leaves, places, strict=True)
        )
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        return own / whole if whole else 1.0

    def _spec(self, name: str, leaf: Any, given: PartitionSpec | None) -> PartitionSpec:
        axes = [*(given or ())]
        if len(axes) > leaf.ndim:
            raise ValueError(
                f"leaf {name!r} of shape {leaf.shape} is given {len(axes)} axes, "
                f"{_shown(axes)}"
            )
        axes += [None] * (leaf.ndim - len(axes))
        for size, axis in zip(leaf.shape, axes, strict=True):
            if size % (parts := self._parts(axis)):
                raise ValueError(
                    f"leaf {name!r} of shape {leaf.shape} cannot be split as "
                    f"{_shown(axes)}: {size} is no multiple of {parts}"
                )
        if self.fsdp and leaf.size >= _SMALL and DATA not in names_in(axes):
            free = [i for i, axis in enumerate(axes) if axis is None]
            free = [i for i in free if leaf.shape[i] % self._parts(DATA) == 0]
            if free:
                axes[max(free, key=lambda i: (leaf.shape[i], i))] = DATA
        while axes and axes[-1] is None:
            axes.pop()
        return PartitionSpec(*axes)

    def _parts(self, axis: Any) -> int:
        return math.prod(self.mesh.shape[name] for name in names_in([axis]))


class _Owner(NamedTuple):
    shape: tuple[int, ...]
    sharding: NamedSharding


def _pairs(rules: Any) -> Any:
    if isinstance(rules, str | Mapping):
        raise ValueError(
            f"rules must be a sequence of (expression, PartitionSpec), got {rules!r}"
        )
    return rules


def _checked(rule: Any) -> tuple[str, PartitionSpec]:
    match rule:
        case (str() as text, PartitionSpec() as spec):
            if PartitionSpec.UNCONSTRAINED not in (*spec,):
                return text, spec
    raise ValueError(
        "a rule must be an expression and a PartitionSpec of None and axes of the "
        f"mesh, got {rule!r}"
    )


def parse_rule(text: str) -> tuple[str, PartitionSpec]:
    """A rule of a text, ``EXPRESSION = AXES``, the axes apart by spaces.

    An axis of the leaf that is not split is ``-``; one that is split along two axes of
    the mesh has ``+`` between them.

    Raises:
      ValueError: if it does not look like that.

    Example:
      >>> expression, spec = parse_rule("dense/kernel$ = - model")
      >>> expression, tuple(spec)
      ('dense/kernel$', (None, 'model'))
    """
    expression, equals, axes = (part.strip() for part in text.rpartition("="))
    if not (expression and equals and axes):
        raise ValueError(
            f"a rule must look like 'dense/kernel$ = - model', got {text!r}"
        )
    check_expression("rules", expression)
    return expression, PartitionSpec(*map(_axis, axes.split()))


def _axis(word: str) -> Any:
    if word == "-":
        return None
    return tuple(word.split("+")) if "+" in word else word


def names_in(axes: Any) -> list[str]:
    """The axes of the mesh in a `PartitionSpec`."""
    found: list[str] = []
    for axis in axes:
        if axis is not None:
            found += [axis] if isinstance(axis, str) else axis
    return found


def _shown(axes: Any) -> str:
    words = ("+".join(names_in([axis])) or "-" for axis in axes)
    return repr(" ".join(words))
