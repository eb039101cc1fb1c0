"""Networks of Flax NNX.

Modules are called as ``module(inputs)``, switched by ``train()`` and ``eval()``; batch
norm is NNX's own.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.libraries.named import Named, said_specs, unchanging
from sup_tickets.types import Params

_PARTS = (nnx.Param, nnx.RngState, ...)


def nnx_network(build: Callable[[nnx.Rngs], nnx.Module]) -> PureNetwork:
    """The functions of an NNX module, of its graph, parameters and state.

    Args:
      build: ``(rngs) -> module``. Its streams of random numbers, for dropout, are drawn
        anew at every step and not kept.
    """

    def split(rngs: nnx.Rngs, **attributes: Any) -> Any:
        module = _built(build, rngs)
        module.eval() if attributes.pop("evaluated", False) else module.train()
        if attributes:
            module.set_attributes(nnx.BatchNorm, **attributes)
        return nnx.split(module, *_PARTS)

    def abstract(**attributes: Any) -> Any:
        return nnx.eval_shape(lambda: split(nnx.Rngs(0), **attributes))

    graph, *shapes = abstract()
    graphs = {True: graph, False: abstract(evaluated=True)[0]}
    # With momentum 0 running statistics become those of the batch.
    forgetful = abstract(momentum=0.0)[0] if _has_batch_norm(build) else graph
    weights, streams, states = map(Named, shapes)

    def init(key: jax.Array) -> tuple[Params, Any]:
        _, params, _, state = split(nnx.Rngs(key))
        return weights.to_dict(params), states.to_dict(state)

    def run(
        graph: Any, params: Params, model_state: Any, inputs: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        rng = streams.from_dict(_streams(streams, shapes[1], key))
        module = nnx.merge(
            graph, weights.from_dict(params), rng, states.from_dict(model_state)
        )
        logits = module(inputs)
        return logits, states.to_dict(nnx.split(module, *_PARTS)[3])

    network = unchanging(
        init,
        lambda params, state, inputs, train, key: run(
            graphs[train], params, state, inputs, key
        ),
        lambda *arguments: run(forgetful, *arguments)[1],
    )
    return network._replace(annotated=said_specs(nnx.get_partition_spec(shapes[0])))


def _built(build: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    # Annotations say where parameters lie; NNX would ask for the mesh already here.
    with nnx.use_eager_sharding(False):
        return build(rngs)


def _has_batch_norm(build: Callable[[nnx.Rngs], nnx.Module]) -> bool:
    module = nnx.eval_shape(lambda: _built(build, nnx.Rngs(0)))
    return any(isinstance(part, nnx.BatchNorm) for _, part in nnx.iter_graph(module))


def _streams(named: Named, shapes: Any, key: jax.Array) -> Any:
    """Fresh streams: a key of its own for each, and counts of 0."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(key, max(len(leaves), 1))
    fresh = [
        keys[i]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jax.numpy.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return named.to_dict(jax.tree.unflatten(structure, fresh))
