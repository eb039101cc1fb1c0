"""Functions that are one program but for constants in it: rates, portions, counts.

    steps = alike([step_at_rate_1, step_at_rate_2])
    steps[1](state, batch)  # the second, by itself
    steps[1].family(state, np.int32(1), batch)  # also with a traced number under `vmap`

All are traced. Where the programs agree in every operation and differ in the value of a
constant, the value is looked up by the number of the function; where they differ in
anything else they are not alike. So nothing has to say which options of a run can vary
within a program: whatever leaves its operations and shapes as they are.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from sup_tickets.training.gradients import side_by_side


class Unlike(ValueError):
    """Two functions that differ in more than constants."""


class Alike:
    """One of some functions, which knows the others."""

    def __init__(self, family: "Family", number: int):
        self.family, self.number = family, number

    def __call__(self, *arguments: Any) -> Any:
        """What it gives by itself."""
        return self._own(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """That of the function by itself, which is jitted."""
        return self._own.lower(*arguments)

    @property
    def _own(self) -> Any:
        return self.family.functions[self.number]


class Family:
    """Functions of the same arguments, as one that is told which."""

    def __init__(self, functions: Sequence[Callable[..., Any]]):
        self.functions = tuple(functions)

    def __call__(self, first: Any, number: Any, *rest: Any) -> Any:
        """What ``functions[number](first, *rest)`` gives.

        Args:
          first: of the arguments.
          number: int32 scalar, which may be traced.
          rest: of them.

        Raises:
          Unlike: when traced, naming the operation in which two differ.
        """
        given = (first, *rest)
        programs, structures = zip(
            *(_traced(f, given) for f in self.functions), strict=True
        )
        for other, structure in zip(programs[1:], structures[1:], strict=True):
            if structure != structures[0]:
                raise Unlike("what they give has another structure")
            is_same(programs[0], other)
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(given)]
        found = _evaluated(number, programs, leaves)
        return jax.tree.unflatten(structures[0], found)


_known: Any = weakref.WeakKeyDictionary()  # programs by function, and by shapes


def _traced(function: Callable[..., Any], arguments: Any) -> tuple[Any, Any]:
    """The program of a function, and the structure of what it gives."""
    ours = _known.setdefault(function, {})
    leaves, structure = jax.tree.flatten(arguments)
    what = (structure, *map(jax.typeof, map(jnp.asarray, leaves)))
    if what not in ours:
        # Without the shardings that a jitted step asks for.
        plain = getattr(function, "__wrapped__", function)
        program, shape = jax.make_jaxpr(plain, return_shape=True)(*arguments)
        ours[what] = program, jax.tree.structure(shape)
    return ours[what]


def alike(functions: Sequence[Callable[..., Any]]) -> list[Alike]:
    """The functions, each of which knows the others."""
    family = Family(functions)
    return [Alike(family, number) for number in range(len(functions))]


def family_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is the same object for functions that go together."""
    return function.family if isinstance(function, Alike) else function


# --- Whether programs are the same ----------------------------------------------------


def is_same(one: Any, other: Any) -> bool:
    """Whether two programs are the same, their constants too.

    Args:
      one: a program, closed or not.
      other: likewise.

    Raises:
      Unlike: if they differ in more than constants.
    """
    same = all([_same_constant(a, b) for a, b in _paired(_consts(one), _consts(other))])
    one, other = _open(one), _open(other)
    known: dict[Any, Any] = {}  # variables of the other, by those of the one
    _bind(known, [*one.constvars, *one.invars], [*other.constvars, *other.invars])
    for ours, theirs in _paired(one.eqns, other.eqns):
        if ours.primitive is not theirs.primitive:
            raise Unlike(f"{ours.primitive} is {theirs.primitive} in the other")
        same &= _same_atoms(known, ours.invars, theirs.invars)
        same &= _same_params(ours, theirs)
        _bind(known, ours.outvars, theirs.outvars)
    return same & _same_atoms(known, one.outvars, other.outvars)


def _paired(ours: Sequence[Any], theirs: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    if len(ours) != len(theirs):
        raise Unlike(f"{len(ours)} operations or values are {len(theirs)} in the other")
    return zip(ours, theirs, strict=True)


def _bind(known: dict[Any, Any], ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    for a, b in _paired(ours, theirs):
        if a.aval != b.aval:
            raise Unlike(f"{a.aval} is {b.aval} in the other")
        known[a] = b


def _same_atoms(
    known: dict[Any, Any], ours: Sequence[Any], theirs: Sequence[Any]
) -> bool:
    same = True
    for a, b in _paired(ours, theirs):
        if isinstance(a, Literal) and isinstance(b, Literal):
            if a.aval != b.aval:
                raise Unlike(f"{a.aval} is {b.aval} in the other")
            same &= _same_constant(a.val, b.val)
        elif isinstance(a, Literal) or isinstance(b, Literal) or known[a] is not b:
            raise Unlike(f"a value of {a.aval} is another in the other")
    return same


def _same_constant(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if jnp.shape(a) != jnp.shape(b) or jnp.result_type(a) != jnp.result_type(b):
        raise Unlike(f"a constant of {jnp.shape(a)} is another in the other")
    if jnp.issubdtype(jnp.result_type(a), jax.dtypes.extended):
        return False
    return np.array_equal(a, b)


# Rules for what is not done with a program any more, of which the programs say enough.
_RULES = {"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees", "rule"}


def _same_params(ours: Any, theirs: Any) -> bool:
    same = True
    for name in ours.params.keys() | theirs.params.keys():
        a, b = (eqn.params.get(name) for eqn in (ours, theirs))
        inner = _programs_in(a)
        if inner:
            same &= all([is_same(x, y) for x, y in _paired(inner, _programs_in(b))])
        elif name not in _RULES and not _equal(a, b):
            raise Unlike(f"{name} of {ours.primitive} is another in the other")
    return same


def _equal(a: Any, b: Any) -> bool:
    arrays = isinstance(a, np.ndarray) or isinstance(b, np.ndarray)
    return a is b or bool(np.array_equal(a, b) if arrays else a == b)


def _programs_in(value: Any) -> list[Any]:
    values = value if isinstance(value, tuple | list) else [value]
    return [value for value in values if isinstance(value, ClosedJaxpr | Jaxpr)]


def _inner(eqn: Any) -> list[Any]:
    """All programs in the parameters of an operation."""
    return [program for value in eqn.params.values() for program in _programs_in(value)]


def _open(program: Any) -> Any:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _consts(program: Any) -> Sequence[Any]:
    return program.consts if isinstance(program, ClosedJaxpr) else ()


# --- What they give -------------------------------------------------------------------


def _evaluated(number: Any, programs: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """What the program of a number gives.

    Args:
      number: int32 scalar.
      programs: that are alike.
      given: to them.
    """
    first, known = _open(programs[0]), {}
    consts = [
        _chosen(number, values) for values in zip(*map(_consts, programs), strict=True)
    ]
    known |= zip(first.constvars, consts, strict=True)
    known |= zip(first.invars, given, strict=True)

    def read(atoms: Sequence[Any]) -> Any:
        if isinstance(atoms[0], Literal):
            dtype = atoms[0].aval.dtype
            return _chosen(number, [np.asarray(atom.val, dtype) for atom in atoms])
        return known[atoms[0]]

    for eqns in zip(*(_open(program).eqns for program in programs), strict=True):
        inputs = zip(*(eqn.invars for eqn in eqns), strict=True)
        found = _done(number, eqns, [read(atoms) for atoms in inputs])
        known |= zip(eqns[0].outvars, found, strict=True)
    outputs = zip(*(_open(program).outvars for program in programs), strict=True)
    return [read(atoms) for atoms in outputs]


def _chosen(number: Any, values: Sequence[Any]) -> Any:
    """The value of a number; no look-up where all are the same."""
    if all(_same_constant(values[0], value) for value in values[1:]):
        return values[0]
    table = jnp.stack([jnp.asarray(value) for value in values])
    return lax.dynamic_index_in_dim(table, number, keepdims=False)


def _done(number: Any, eqns: Sequence[Any], given: list[Any]) -> list[Any]:
    """What one operation gives."""
    first = eqns[0]
    if all([_same_params(first, eqn) for eqn in eqns[1:]]):
        params: Any = first.primitive.get_bind_params(first.params)
        # Before JAX 0.10 with the functions among them.
        functions, params = params if isinstance(params, tuple) else ((), params)
        found = first.primitive.bind(*functions, *given, **params)
        return found if first.primitive.multiple_results else [found]
    inner = list(zip(*map(_inner, eqns), strict=True))
    name = first.primitive.name
    match name:
        case "scan":
            return _scanned(number, first, inner[0], given)
        case "while":
            return _looped(number, eqns, given)
        case "cond":
            branches = [
                lambda *given, of=of: _evaluated(number, of, given) for of in inner
            ]
            return lax.switch(given[0], branches, *given[1:])
        case "custom_vmap_call":
            return side_by_side(
                lambda number, *given: _evaluated(number, inner[0], given)
            )(number, *given)
    if name not in _CALLS:
        raise Unlike(f"constants within {name} differ")
    return _evaluated(number, inner[0], given)


_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
}


def _scanned(number: Any, eqn: Any, body: Any, given: list[Any]) -> list[Any]:
    # From the shapes: how JAX notes the three kinds of inputs has changed.
    params, one_step = eqn.params, _open(body[0])
    carried = len(eqn.outvars) - _rows(eqn.outvars, one_step.outvars)
    consts = len(given) - carried - _rows(eqn.invars, one_step.invars)

    def one(carry: Any, row: Any) -> Any:
        found = _evaluated(number, body, [*given[:consts], *carry, *row])
        return found[:carried], found[carried:]

    carry, rows = lax.scan(
        one,
        given[consts : consts + carried],
        given[consts + carried :],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *rows]


def _rows(whole: Sequence[Any], of_a_step: Sequence[Any]) -> int:
    """How many have an axis of steps."""
    return sum(
        one.aval.ndim > each.aval.ndim
        for one, each in zip(whole, of_a_step, strict=True)
    )


def _looped(number: Any, eqns: Sequence[Any], given: list[Any]) -> list[Any]:
    test, body = ([e.params[n] for e in eqns] for n in ("cond_jaxpr", "body_jaxpr"))
    tests = eqns[0].params["cond_nconsts"]
    begin = tests + eqns[0].params["body_nconsts"]
    return lax.while_loop(
        lambda carry: _evaluated(number, test, [*given[:tests], *carry])[0],
        lambda carry: _evaluated(number, body, [*given[tests:begin], *carry]),
        given[begin:],
    )
