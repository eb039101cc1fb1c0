"""Networks of Haiku.

Functions are transformed by the user, and called as ``function(inputs, is_training)``.
"""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.libraries.named import lenient, unchanging
from sup_tickets.types import Params


def haiku_network(
    transformed: hk.Transformed | hk.TransformedWithState, example: Any
) -> PureNetwork:
    """The functions of a transformed Haiku function.

    Args:
      transformed: by ``hk.transform`` or ``hk.transform_with_state``, of a function
        that is called as ``function(inputs, is_training)``.
      example: inputs of any batch size, or their shape and dtype.
    """
    stateful = isinstance(transformed, hk.TransformedWithState)

    @lenient()
    def init(key: jax.Array) -> tuple[Params, Any]:
        inputs = jnp.zeros(example.shape, example.dtype)
        if not stateful:
            return _plain(transformed.init(key, inputs, True)), {}
        params, state = transformed.init(key, inputs, True)
        return _plain(params), _plain(state)

    @lenient()
    def run(
        params: Params, model_state: Any, inputs: jax.Array, train: bool, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        params = _joined(params)
        if not stateful:
            logits: Any = transformed.apply(params, key, inputs, train)
            return logits, model_state
        state = _joined(model_state)
        logits, state = transformed.apply(params, state, key, inputs, train)
        return logits, _plain(state)

    def statistics(
        params: Params, model_state: Any, inputs: jax.Array, key: jax.Array
    ) -> Any:
        # Averages here correct for their start: the first batch gives its own.
        del model_state
        return run(params, init(key)[1], inputs, True, key)[1]

    return unchanging(init, run, statistics)


def _plain(modules: Any) -> Any:
    """Module names with slashes as nested dicts, which files can hold.

    A module may have parameters of its own and modules within: both are entries of one
    dict.
    """
    tree: dict[str, Any] = {}
    for module, leaves in modules.items():
        place = tree
        for part in module.split("/"):
            place = place.setdefault(part, {})
        place.update(leaves)
    return tree


def _joined(tree: Any, prefix: str = "") -> dict[str, dict[str, Any]]:
    """The inverse of `_plain`."""
    found: dict[str, dict[str, Any]] = {}
    for name, part in tree.items():
        if isinstance(part, dict):
            found |= _joined(part, f"{prefix}/{name}" if prefix else name)
        else:
            found.setdefault(prefix, {})[name] = part
    return found
