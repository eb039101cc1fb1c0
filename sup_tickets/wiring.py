"""Which channels of a network belong together, read from its program.

Every axis of every array in the program gets a label. What an operation does to axes
ties labels: an addition those of both arguments, a convolution its input's features and
its kernel's. Labels that are tied are one group of channels. Whatever is not known to
leave the channels apart, as a sum over them, an unknown operation, or the outputs of
the network, makes its labels fixed: those channels cannot be removed. So what is found
is safe, for networks of any library.

The same idea for PyTorch: Fang et al., DepGraph: Towards Any Structural Pruning, 2023,
https://arxiv.org/abs/2301.12900
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

from sup_tickets.channels import ChannelAxis, ChannelGroup
from sup_tickets.trees import named_leaves


class Wiring(NamedTuple):
    """The channels of a network."""

    groups: tuple[ChannelGroup, ...]  # that can be removed, in the order of reading
    outputs: ChannelGroup | None  # made along the last axis of the output: the head's


def channel_groups(
    apply: Callable[[Any, Any], jax.Array], tree: Any, inputs: Any
) -> Wiring:
    """The groups of channels of a network.

    Args:
      apply: ``(tree, inputs) -> outputs`` as when the network is evaluated, pure.
      tree: parameters, statistics and the like; arrays or their shapes.
      inputs: likewise.

    Returns:
      Groups with two channels or more, and the classes, if the last axis of the one
      output is made by a leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> tree = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4))}
      >>> apply = lambda t, x: x @ t["a"] @ t["b"]
      >>> found = channel_groups(apply, tree, jnp.ones((1, 2)))
      >>> [(group.name, group.size) for group in found.groups], found.outputs.name
      ([('a', 3)], 'b')
    """
    named = named_leaves(tree)
    closed = jax.make_jaxpr(apply)(tree, inputs)
    walk = _Walk()
    given = [walk.fresh(leaf.shape) for _, leaf in named]
    for (name, _), ids in zip(named, given, strict=True):
        walk.leaf_of |= {i: (name, axis) for axis, i in enumerate(ids)}
    rest = closed.in_avals[len(named) :]
    given += [walk.fixed(aval.shape) for aval in rest]
    outs = walk.program(closed.jaxpr, closed.consts, given)
    for out in outs:
        walk.fix(out)
    last = walk.find(outs[0][-1]) if outs and outs[0] else None
    return walk.result(last)


class _Walk:
    """Labels of axes, and what ties them."""

    def __init__(self) -> None:
        self.size: list[int] = []
        self.parent: list[int] = []
        self.fixed_ids: set[int] = set()
        self.products: list[tuple[int, int, int, int]] = []  # id, of, outer, inner
        self.leaf_of: dict[int, tuple[str, int]] = {}
        self.reads: list[int] = []  # labels of leaves, in the order of the program
        self.makes: set[int] = set()  # likewise, of those that layers make

    def fresh(self, shape: Sequence[int]) -> list[int]:
        first = len(self.size)
        self.size += shape
        self.parent += range(first, len(self.size))
        return list(range(first, len(self.size)))

    def fixed(self, shape: Sequence[int]) -> list[int]:
        ids = self.fresh(shape)
        self.fix(ids)
        return ids

    def fix(self, ids: Sequence[int]) -> None:
        self.fixed_ids |= {*ids}

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            i = self.parent[i]
        return i

    def tie(self, i: int, j: int) -> None:
        i, j = sorted((self.find(i), self.find(j)))
        self.parent[j] = i

    def tied(self, ids: Sequence[int]) -> list[int]:
        """New labels tied to others: an activation is no parameter any more."""
        new = self.fresh([self.size[i] for i in ids])
        for i, j in zip(new, ids, strict=True):
            self.tie(i, j)
        self.makes |= self.leaf_of.keys() & ids
        return new

    def is_fixed(self, i: int) -> bool:
        root = self.find(i)
        return any(self.find(j) == root for j in self.fixed_ids)

    def program(self, jaxpr: Any, consts: Sequence[Any], given: list[list[int]]) -> Any:
        env: dict[Any, list[int]] = {}
        for var in jaxpr.constvars:
            aval: Any = var.aval
            env[var] = self.fixed(aval.shape)
        env |= dict(zip(jaxpr.invars, given, strict=True))

        def read(atom: Any) -> list[int]:
            if isinstance(atom, Literal):
                aval: Any = atom.aval
                return self.fixed(aval.shape)
            return env[atom]

        for equation in jaxpr.eqns:
            found = self.equation(equation, [read(a) for a in equation.invars])
            env |= dict(zip(equation.outvars, found, strict=True))
        return [read(a) for a in jaxpr.outvars]

    def equation(self, equation: Any, ids: list[list[int]]) -> list[list[int]]:
        shapes = [out.aval.shape for out in equation.outvars]
        inner = _inner_program(equation)
        if inner is not None:
            return self.program(inner[0], inner[1], ids)
        name = equation.primitive.name
        rule = getattr(self, f"_{name}", None)
        if name in _ELEMENTWISE:
            return [self._elementwise(ids, shapes[0])]
        if rule is None and name.startswith("reduce_") and "axes" in equation.params:
            rule = self._reduce
        if rule is None and name.startswith("reduce_window"):
            rule = self._window
        found = rule(equation, *ids) if rule is not None else None
        if found is not None:
            return [found]
        self.fix([i for label in ids for i in label])
        return [self.fixed(shape) for shape in shapes]

    # --- Operations: labels of the output, or None: everything is fixed ---------------

    def _elementwise(self, ids: list[list[int]], shape: Sequence[int]) -> list[int]:
        arrays = [label for label in ids if label]
        if len(arrays) == 1:
            return arrays[0]
        out = self.fresh(shape)
        for label in arrays:
            for i, j in zip(out, label, strict=True):
                self.tie(i, j)
        return out

    def _broadcast_in_dim(self, equation: Any, ids: list[int], *_: Any) -> list[int]:
        out = self.fresh(equation.outvars[0].aval.shape)
        for i, to in zip(ids, equation.params["broadcast_dimensions"], strict=True):
            if self.size[i] == self.size[out[to]]:
                self.tie(i, out[to])
        return out

    def _transpose(self, equation: Any, ids: list[int]) -> list[int]:
        return [ids[i] for i in equation.params["permutation"]]

    def _squeeze(self, equation: Any, ids: list[int]) -> list[int]:
        gone = equation.params["dimensions"]
        return [label for i, label in enumerate(ids) if i not in gone]

    def _reduce(self, equation: Any, ids: list[int], *_: Any) -> list[int]:
        gone = equation.params["axes"]
        self.fix([ids[i] for i in gone])
        return [label for i, label in enumerate(ids) if i not in gone]

    def _window(self, equation: Any, ids: list[int], *_: Any) -> list[int]:
        params, out = equation.params, equation.outvars[0].aval.shape
        new = self.fresh(out)
        for axis, (i, j) in enumerate(zip(ids, new, strict=True)):
            alone = params["window_dimensions"][axis] == 1
            if alone and self.size[i] == self.size[j]:
                self.tie(i, j)
            else:
                self.fix([i, j])
        return new

    def _reshape(self, equation: Any, ids: list[int], *_: Any) -> list[int] | None:
        """Axes stay, or several become one, of which one at most has channels."""
        left = [i for i in ids if self.size[i] != 1]
        out = []
        for size in equation.outvars[0].aval.shape:
            taken = []
            while left and math.prod(self.size[i] for i in taken) < size:
                taken.append(left.pop(0))
            if math.prod(self.size[i] for i in taken) != size:
                return None
            out.append(self._merged(taken, size))
        return out

    def _merged(self, taken: list[int], size: int) -> int:
        if len(taken) == 1:
            return taken[0]
        (new,) = self.fresh([size])
        free = [place for place, i in enumerate(taken) if not self.is_fixed(i)]
        if len(free) != 1:
            self.fix([new, *taken])
            return new
        sizes = [self.size[i] for i in taken]
        outer, inner = math.prod(sizes[: free[0]]), math.prod(sizes[free[0] + 1 :])
        self.products.append((new, taken[free[0]], outer, inner))
        return new

    def _dot_general(self, equation: Any, left: list[int], right: list[int], *_: Any):
        (of_left, of_right), (batch_left, batch_right) = equation.params[
            "dimension_numbers"
        ]
        for i, j in zip(of_left, of_right, strict=True):
            self.contract(left[i], right[j])
        for i, j in zip(batch_left, batch_right, strict=True):
            self.tie(left[i], right[j])
        out = [left[i] for i in batch_left]
        gone_left, gone_right = (*of_left, *batch_left), (*of_right, *batch_right)
        for ids, gone in ((left, gone_left), (right, gone_right)):
            out += [label for i, label in enumerate(ids) if i not in gone]
        return self.tied(out)

    def _conv_general_dilated(self, equation: Any, left: list[int], right: list[int]):
        params = equation.params
        of_left, of_right, of_out = params["dimension_numbers"]
        out = self.fresh(equation.outvars[0].aval.shape)
        batch, features = of_out[:2]
        self.fix([out[i] for i in of_out[2:]])
        self.fix([right[i] for i in of_right[2:]])
        self.fix([left[i] for i in of_left[2:]])
        groups, channels = params["feature_group_count"], self.size[left[of_left[1]]]
        made = right[of_right[0]]
        if params["batch_group_count"] != 1:
            return None
        if groups == 1:
            self.contract(left[of_left[1]], right[of_right[1]])
        elif groups == channels == self.size[made]:  # depthwise: each of its own
            self.tie(left[of_left[1]], made)
            self.fix([right[of_right[1]]])
        else:
            return None
        self.tie(out[features], made)
        self.makes.add(made)
        self.tie(out[batch], left[of_left[0]])
        return out

    def contract(self, i: int, j: int) -> None:
        """A sum over channels is a layer that reads them if a leaf weighs them."""
        leaves = [k for k in (i, j) if k in self.leaf_of]
        if len(leaves) != 1:
            self.fix([i, j])
            return
        self.reads.append(leaves[0])
        self.tie(i, j)

    def result(self, last: int | None) -> Wiring:
        # A table that is an encoder and a decoder makes channels and reads them.
        self.fix([i for i in self.reads if i in self.makes])
        within = self._products()
        fixed = self._all_fixed(within)
        made: dict[int, list[ChannelAxis]] = {}
        read: dict[int, list[ChannelAxis]] = {}
        reading = dict.fromkeys(self.reads)
        ordered = [*reading, *(i for i in self.leaf_of if i not in reading)]
        for i in ordered:
            root = self.find(i)
            base, outer, inner = within.get(root, (root, 1, 1))
            kind = read if i in reading else made
            axis = ChannelAxis(*self.leaf_of[i], outer, inner)
            kind.setdefault(base, []).append(axis)
        groups = [
            self._group(root, made[root], axes)
            for root, axes in read.items()
            if root in made and root not in fixed and self.size[root] > 1
        ]
        outputs = None
        if last in made and last not in read and last not in within:
            outputs = self._group(last, made[last], [])
        return Wiring(tuple(groups), outputs)

    def _group(
        self, root: int, made: list[ChannelAxis], read: list[ChannelAxis]
    ) -> ChannelGroup:
        ranks: dict[str, int] = {}
        for leaf, axis in self.leaf_of.values():
            ranks[leaf] = max(ranks.get(leaf, 0), axis)
        first = max(made, key=lambda part: ranks[part.leaf]).leaf
        name = first.rpartition("/")[0] or first
        return ChannelGroup(name, self.size[root], tuple(made), tuple(read))

    def _products(self) -> dict[int, tuple[int, int, int]]:
        """What several axes became, as part of what group; two answers fix both."""
        within: dict[int, tuple[int, int, int]] = {}
        for i, of, outer, inner in self.products:
            root, found = self.find(i), (self.find(of), outer, inner)
            if within.setdefault(root, found) != found:
                self.fix([i, of])
        return within

    def _all_fixed(self, within: dict[int, tuple[int, int, int]]) -> set[int]:
        fixed = {self.find(i) for i in self.fixed_ids}
        fixed |= {base for base, *_ in within.values() if base in within}
        before = -1
        while len(fixed) != before:
            before = len(fixed)
            for root, (base, *_) in within.items():
                if {root, base} & fixed:
                    fixed |= {root, base}
        return fixed


def _inner_program(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """The program that an equation stands for, if it is called once as it is."""
    if equation.primitive.name not in _CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        if inner is not None and len(getattr(inner, "in_avals", inner.invars)) == len(
            equation.invars
        ):
            closed = hasattr(inner, "jaxpr")
            return (inner.jaxpr, inner.consts) if closed else (inner, ())
    return None


_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}

_ELEMENTWISE = {
    *("abs", "add", "and", "cbrt", "ceil", "clamp", "convert_element_type", "copy"),
    *("cos", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor"),
    *("ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt"),
    *("max", "min", "mul", "ne", "neg", "not", "or", "pow", "reduce_precision", "rem"),
    *("round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "stop_gradient"),
    *("sub", "tan", "tanh", "xor", "add_any"),
}
