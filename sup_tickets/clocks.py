"""Those parts of an Optax state that tell the time for a schedule."""

from typing import Any

import jax
import jax.numpy as jnp


def only_time_goes_on(replaced: jax.Array, new: Any, old: Any) -> Any:
    """The old state but for the time if the weight step was replaced, else the new."""

    def pick(n: Any, o: Any) -> Any:
        if not _tells_time(n):
            return jnp.where(replaced, o, n)
        if not hasattr(n, "inner_state"):
            return n
        return n._replace(
            inner_state=only_time_goes_on(replaced, n.inner_state, o.inner_state)
        )

    return jax.tree.map(pick, new, old, is_leaf=_tells_time)


def _tells_time(node: Any) -> bool:
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
