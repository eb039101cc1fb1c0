"""A weight step that is left out: what tells the time for a schedule goes on alone.

To choose after the step between its results and what was there makes XLA on a CPU copy
every slot, at each step: the updates are computed from the new slot, so from the old
one once more, which cannot be overwritten then. So the choice is made within the
optimizer's own program, where it has computed the slot; what follows reads what was
chosen. At a step that is not left out that is the same to the bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def tells_time(opt_state: Any) -> list[bool]:
    """For each leaf of an Optax state whether it counts steps for a schedule."""

    def marked(node: Any) -> Any:
        if not _is_clock(node):
            return False
        marks = jax.tree.map(lambda _: True, node)
        if not hasattr(node, "inner_state"):
            return marks
        inner = jax.tree.map(marked, node.inner_state, is_leaf=_is_clock)
        return marks._replace(inner_state=inner)

    return jax.tree.leaves(jax.tree.map(marked, opt_state, is_leaf=_is_clock))


def run_unless(
    left_out: jax.Array, program: Any, arguments: Sequence[Any], instead: Sequence[Any]
) -> list[Any]:
    """The outputs of a program or, where ``left_out``, what there is ``instead``.

    Args:
      left_out: bool scalar.
      program: a closed jaxpr.
      arguments: its inputs.
      instead: for each output an array, or ``None`` if it is what it always is.
    """
    jaxpr = program.jaxpr
    always = _sources(
        jaxpr,
        [out for out, other in zip(jaxpr.outvars, instead, strict=True) if other is None],
    )
    chosen = {
        out: i
        for i, out in enumerate(jaxpr.outvars)
        if isinstance(out, core.Var) and out not in always
    }
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)
    done: set[int] = set()
    for equation in jaxpr.eqns:
        for out, value in _results(jaxpr, equation, values):
            if out in chosen:
                done.add(chosen[out])
                value = jnp.where(left_out, instead[chosen[out]], value)
            values[out] = value

    def output(i: int, out: Any) -> Any:
        value = _value(out, values)
        if instead[i] is None or i in done:
            return value
        return jnp.where(left_out, instead[i], value)

    return [output(i, out) for i, out in enumerate(jaxpr.outvars)]


# --- Parts ----------------------------------------------------------------------------


def _results(jaxpr: Any, equation: Any, values: Mapping[Any, Any]) -> Any:
    """What an equation computes, variable by variable."""
    given = list({v: None for v in equation.invars if isinstance(v, core.Var)})
    outs = [v for v in equation.outvars if not isinstance(v, core.DropVar)]
    alone = jaxpr.replace(
        constvars=[], invars=given, outvars=outs, eqns=[equation], effects=equation.effects
    )
    found = jax.core.eval_jaxpr(alone, (), *(values[v] for v in given))
    return zip(outs, found, strict=True)


def _value(atom: Any, values: Mapping[Any, Any]) -> Any:
    return atom.val if isinstance(atom, core.Literal) else values[atom]


def _sources(jaxpr: Any, outputs: Iterable[Any]) -> set[Any]:
    """The variables that outputs are computed from, themselves among them."""
    found = {out for out in outputs if isinstance(out, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if not found.isdisjoint(equation.outvars):
            found |= {v for v in equation.invars if isinstance(v, core.Var)}
    return found


def _is_clock(node: Any) -> bool:
    """Whether the node counts steps for a schedule; apart from an ``inner_state``."""
    return type(node).__name__ in _CLOCKS


_CLOCKS = {  # by name: Optax does not export all of them
    "ScaleByScheduleState",
    "WeightDecaySchedule",
    "WrappedScheduleState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "ConditionallyTransformState",
    "ConditionallyMaskState",
}
