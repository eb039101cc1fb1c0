"""Those parts of an Optax state that tell the time for a schedule."""

from typing import Any

import jax


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
