"""A program whose outputs are changed where they are computed, not at its end.

A slot that is changed after the optimizer's step, to be as new or to stay as it was,
costs a copy on a CPU, at each step: XLA computes the updates from the unchanged new
slot, so from the old one once more, which then cannot be overwritten. Changed inside,
the slot is written once, in its place, and what follows is computed from that. To the
bit this is the same if what follows is dropped where it differs: all of it at a step
that is left out, the inactive places alone where slots become as new (`confined`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from sup_tickets.zeros import program_of

Change = Callable[[Any], Any]

SPREAD = -2

_ELEMENTWISE = {
    "abs", "add", "add_any", "and", "cbrt", "clamp", "convert_element_type", "copy",
    "div", "eq", "exp", "expm1", "ge", "gt", "integer_pow", "is_finite", "le", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow",
    "rsqrt", "select_n", "sign", "sqrt", "square", "sub", "tanh",
}  # fmt: skip


def run_changed(
    program: Any,
    arguments: Sequence[Any],
    changes: Sequence[Change | None],
    exact: Sequence[bool],
) -> list[Any]:
    """The outputs of a program after their changes.

    Args:
      program: a closed jaxpr.
      arguments: its inputs.
      changes: for each output, what is made of it, or ``None``.
      exact: for each output whether nothing that is changed may enter it: then what it
        is computed from is changed at the end.
    """
    jaxpr = program.jaxpr
    outs = list(enumerate(jaxpr.outvars))
    fixed = _sources(jaxpr, (out for i, out in outs if exact[i]))
    inside: dict[Any, int] = {}
    for i, out in outs:
        if changes[i] and isinstance(out, core.Var) and out not in fixed:
            inside.setdefault(out, i)
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)
    done = set()
    for equation in jaxpr.eqns:
        for out, value in _results(jaxpr, equation, values):
            if (i := inside.get(out)) is not None:
                value = _changed(changes[i], value)
                done.add(i)
            values[out] = value
    found = [
        out.val if isinstance(out, core.Literal) else values[out] for _, out in outs
    ]
    return [
        value if i in done else _changed(changes[i], value)
        for i, value in enumerate(found)
    ]


def confined(
    program: Any, changed: Sequence[int | None], places: Sequence[int | None]
) -> bool:
    """Whether changes at some places of outputs reach no others.

    Args:
      program: a closed jaxpr.
      changed: for each output the mark of the places where it is changed, or ``None``.
      places: for each output the mark of the places where it may differ, or ``None``.
    """
    jaxpr = program.jaxpr
    begun = {
        out: mark
        for out, mark in zip(jaxpr.outvars, changed, strict=True)
        if mark is not None and isinstance(out, core.Var)
    }
    marks = _reached(jaxpr, [None] * len(jaxpr.invars), begun)
    return all(mark in (None, place) for mark, place in zip(marks, places, strict=True))


# --- Parts ----------------------------------------------------------------------------


def _changed(change: Change | None, value: Any) -> Any:
    return value if change is None else change(value)


def _results(jaxpr: Any, equation: Any, values: Mapping[Any, Any]) -> Any:
    """What an equation computes, variable by variable."""
    given = list({v: None for v in equation.invars if isinstance(v, core.Var)})
    # What is dropped is a DropVar, which jax 0.8 has elsewhere.
    outs = [v for v in equation.outvars if type(v) is core.Var]
    alone = jaxpr.replace(
        constvars=[],
        invars=given,
        outvars=outs,
        eqns=[equation],
        effects=equation.effects,
    )
    found = jax.core.eval_jaxpr(alone, (), *(values[v] for v in given))
    return zip(outs, found, strict=True)


def _sources(jaxpr: Any, outputs: Iterable[Any]) -> set[Any]:
    """The variables that outputs are computed from, themselves among them."""
    found = {out for out in outputs if isinstance(out, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if not found.isdisjoint(equation.outvars):
            found |= {v for v in equation.invars if isinstance(v, core.Var)}
    return found


def _reached(jaxpr: Any, given: Sequence[int | None], begun: Mapping[Any, int]) -> Any:
    """For each output the mark of where it may differ, `SPREAD` if anywhere."""
    known: dict[Any, int | None] = dict(zip(jaxpr.invars, given, strict=True))

    def of(atom: Any) -> int | None:
        return None if isinstance(atom, core.Literal) else known.get(atom)

    for equation in jaxpr.eqns:
        marks = [of(atom) for atom in equation.invars]
        inner = program_of(equation)
        if inner is not None:
            found = _reached(inner.jaxpr, marks, {})
        else:
            pointwise = equation.primitive.name in _ELEMENTWISE
            found = [_joint(marks, pointwise)] * len(equation.outvars)
        for out, mark in zip(equation.outvars, found, strict=True):
            known[out] = _joint([mark, begun.get(out)], True)
    return [of(atom) for atom in jaxpr.outvars]


def _joint(marks: Sequence[int | None], pointwise: bool) -> int | None:
    places = {mark for mark in marks if mark is not None}
    if not places:
        return None
    return places.pop() if pointwise and len(places) == 1 else SPREAD
