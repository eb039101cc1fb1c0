"""Networks of Equinox.

Modules are called on one example, ``module(x)``, or ``module(x, state)`` if they are
stateful; with ``key=`` if they take one. They run under ``jax.vmap`` with the axis name
"batch", of which batch norm needs to know.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.libraries.named import Named, lenient, unchanging
from sup_tickets.types import Params

AXIS = "batch"
"""The name of the axis of examples, for ``eqx.nn.BatchNorm``."""


def equinox_network(build: Callable[[jax.Array], Any]) -> PureNetwork:
    """The functions of an Equinox module.

    Args:
      build: ``(key) -> module``, or ``(key) -> (module, state)`` as of
        ``eqx.nn.make_with_state``. Arrays that are not floating point are part of the
        module and never change.
    """
    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    stateful = _is_stateful(shapes)
    shape, state_shape = shapes if stateful else (shapes, None)
    params_shape, _ = eqx.partition(shape, _is_weight)
    weights, states = Named(params_shape), Named(state_shape)
    takes_key = "key" in inspect.signature(type(shape).__call__).parameters
    # Integers and functions; built once, at a key that nothing depends on.
    built = build(jax.random.key(0))
    _, static = eqx.partition(built[0] if stateful else built, _is_weight)
    modes = {
        train: eqx.nn.inference_mode(static, value=not train) for train in (True, False)
    }

    @lenient()
    def init(key: jax.Array) -> tuple[Params, Any]:
        model = build(key)
        model, state = model if stateful else (model, None)
        params, _ = eqx.partition(model, _is_weight)
        # Counters begin weakly typed, which would be traced once more.
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)
        return weights.to_dict(params), states.to_dict(state)

    @lenient()
    def call(
        model: Any, model_state: Any, inputs: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        def one(x: jax.Array, key: jax.Array, state: Any) -> Any:
            options = {"key": key} if takes_key else {}
            if not stateful:
                return model(x, **options), None
            return model(x, state, **options)

        keys = jax.random.split(key, inputs.shape[0])
        return jax.vmap(one, axis_name=AXIS, in_axes=(0, 0, None), out_axes=(0, None))(
            inputs, keys, states.from_dict(model_state)
        )

    def run(
        params: Params, model_state: Any, inputs: jax.Array, train: bool, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        model = eqx.combine(weights.from_dict(params), modes[train])
        logits, state = call(model, model_state, inputs, key)
        return logits, states.to_dict(state)

    def statistics(
        params: Params, model_state: Any, inputs: jax.Array, key: jax.Array
    ) -> Any:
        model = eqx.combine(weights.from_dict(params), modes[True])
        _, state = call(_forgetful(model), model_state, inputs, key)
        for norm in _norms(model):
            if norm.batch_counter is not None:
                state = state.set(norm.batch_counter, jnp.int32(_LONG))
        return states.to_dict(state)

    return unchanging(init, run, statistics)


_LONG = 2**30  # batches after which the start of an average counts for nothing


def _is_norm(node: Any) -> bool:
    return isinstance(node, eqx.nn.BatchNorm)


def _norms(model: Any) -> list[Any]:
    return [n for n in jax.tree.leaves(model, is_leaf=_is_norm) if _is_norm(n)]


def _forgetful(model: Any) -> Any:
    """With momentum 0 running statistics become those of the batch."""

    def forget(node: Any) -> Any:
        if not _is_norm(node):
            return node
        node = copy.copy(node)
        object.__setattr__(node, "momentum", 0.0)
        return node

    return jax.tree.map(forget, model, is_leaf=_is_norm)


def _is_weight(leaf: Any) -> bool:
    return eqx.is_inexact_array(leaf) or (
        isinstance(leaf, jax.ShapeDtypeStruct)
        and jnp.issubdtype(leaf.dtype, jnp.inexact)
    )


def _is_stateful(built: Any) -> bool:
    return isinstance(built, tuple) and isinstance(built[-1], eqx.nn.State)
