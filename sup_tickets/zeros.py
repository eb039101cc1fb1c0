"""Which outputs of a program are surely 0 wherever a weight is inactive.

Momentum of gradients that are 0 there is 0 there: what an optimizer itself keeps at 0
needs no clearing after its step, which would cost a pass over memory. The program is
read, not run: every value has the mark of the parameter at whose inactive weights it
is 0, `EVERYWHERE` if it is 0 in all places, or ``None`` if nothing is known.

Numbers are taken to be finite. Where a run diverges 0 times infinity is NaN in a slot
of an inactive weight too; the next step clears it before it is used.
"""

from typing import Any

import jax
import numpy as np
from jax.extend import core

EVERYWHERE = -1

_KEEPS_ZERO = {
    "abs", "convert_element_type", "copy", "neg", "optimization_barrier", "sign",
    "sqrt", "square", "tanh",
}  # fmt: skip
_JOINS = {"add", "add_any", "max", "min", "sub"}
_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call"}


def zeros_of(program: Any, given: list[int | None]) -> list[int | None]:
    """For each output of a closed jaxpr where it is 0, from where the inputs are."""
    jaxpr = program.jaxpr
    known: dict[Any, int | None] = dict(zip(jaxpr.invars, given, strict=True))

    def of(atom: Any) -> int | None:
        if isinstance(atom, core.Literal):
            return EVERYWHERE if not np.any(np.asarray(atom.val)) else None
        return known.get(atom)

    for equation in jaxpr.eqns:
        marks = [of(atom) for atom in equation.invars]
        for out, mark in zip(equation.outvars, _marks(equation, marks), strict=True):
            known[out] = mark
    return [of(atom) for atom in jaxpr.outvars]


def _marks(equation: Any, marks: list[int | None]) -> list[int | None]:
    inner = program_of(equation)
    if inner is not None:
        return zeros_of(inner, marks)
    return [_mark(equation.primitive.name, equation, marks)] * len(equation.outvars)


def program_of(equation: Any) -> Any:
    """The closed jaxpr that an equation calls; ``None`` if it is no call."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return inner if hasattr(inner, "jaxpr") else None


def _mark(name: str, equation: Any, marks: list[int | None]) -> int | None:
    if name in _KEEPS_ZERO and len(marks) == 1:
        return marks[0]
    if name == "integer_pow" and equation.params["y"] > 0:
        return marks[0]
    if name in _JOINS:
        return _common(marks)
    if name == "mul":
        return next((mark for mark in marks if mark is not None), None)
    if name == "select_n":
        return _common(marks[1:])
    if name == "broadcast_in_dim" and marks[0] == EVERYWHERE:
        return EVERYWHERE
    return None


def _common(marks: list[int | None]) -> int | None:
    """The one place where all are 0, if there is one."""
    if None in marks:
        return None
    places = {mark for mark in marks if mark != EVERYWHERE}
    return EVERYWHERE if not places else places.pop() if len(places) == 1 else None


def stays_zero(function: Any, arguments: Any, given: Any) -> list[int | None]:
    """`zeros_of` the leaves of ``function(*arguments)``.

    Args:
      function: of pytrees of arrays.
      arguments: tuple of pytrees of arrays, of which only the shapes are read.
      given: for each of their leaves, where it is 0.
    """
    program = jax.make_jaxpr(function)(*arguments)
    return zeros_of(program, list(given))
