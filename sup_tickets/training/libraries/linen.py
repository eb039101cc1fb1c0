"""Networks of Flax Linen.

Modules are called as ``module(inputs, train=...)``; layers with running statistics have
a field ``momentum``, as Flax's batch norm.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.flops import Uses
from sup_tickets.training.language import LanguageNetwork
from sup_tickets.training.libraries.named import said_specs
from sup_tickets.types import Number, Params

Form = Callable[[Number], nn.Module]
"""``step -> module``: a network that changes on its way, with the same parameters."""

_STATS = "batch_stats"


def linen_network(module: nn.Module | Form, example: Any) -> PureNetwork:
    """The functions of a Linen module, or of the form of one.

    Args:
      module: called as ``module(inputs, train=...)``.
      example: inputs of any batch size, or their shape and dtype.

    Returns:
      A network whose model state is the collection "batch_stats"; if the module has
      others, a dict of all collections by name.
    """
    form = (lambda step: module) if isinstance(module, nn.Module) else module
    dummy = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda k, x: _boxed(form, k, x), dummy, example)
    names, specs = set(shapes), nn.get_partition_spec(shapes).get("params", {})
    alone = names <= {"params", _STATS}

    def split(variables: Any) -> Any:
        state = {name: part for name, part in variables.items() if name != "params"}
        return state.get(_STATS, {}) if alone else state

    def init(key: jax.Array) -> tuple[Params, Any]:
        variables = _variables(form, key, jax.numpy.zeros(example.shape, example.dtype))
        return variables["params"], split(variables)

    def apply(
        params: Params,
        model_state: Any,
        inputs: jax.Array,
        train: bool,
        key: jax.Array,
        step: Number,
    ) -> tuple[jax.Array, Any]:
        state = {_STATS: model_state} if alone else model_state
        variables = {"params": params, **state}
        if not train:
            logits: Any = form(step).apply(variables, inputs, train=False)
            return logits, model_state
        logits, changed = form(step).apply(
            variables,
            inputs,
            train=True,
            mutable=[_STATS] if alone else list(state),
            rngs={"dropout": key},
        )
        return logits, split({**state, **changed}) if names - {"params"} else {}

    def statistics(
        params: Params, model_state: Any, inputs: jax.Array, key: jax.Array
    ) -> Any:
        with _without_memory():
            return apply(params, model_state, inputs, True, key, 0)[1]

    return PureNetwork(init, apply, statistics, said_specs(specs))


def linen_features(
    module: nn.Module, head: str = "classifier"
) -> Callable[[Params, Any, jax.Array], jax.Array]:
    """What the head of a Linen module is given, in evaluation mode.

    Args:
      module: called as ``module(inputs, train=False)``, with a layer ``head`` whose
        output it returns.
      head: its name.

    Returns:
      ``(params, model_state, inputs) -> [B, D]``, with the model state of
      `linen_network` where "batch_stats" is its only collection.
    """

    def skip(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        at_head = context.module.name == head and context.method_name == "__call__"
        return args[0] if at_head else call(*args, **kwargs)

    def features(params: Params, model_state: Any, inputs: jax.Array) -> jax.Array:
        with nn.intercept_methods(skip):
            variables = {"params": params, _STATS: model_state}
            found: Any = module.apply(variables, inputs, train=False)
            return found

    return features


def linen_language(module: Any, *, length: int) -> LanguageNetwork:
    """The functions of a Linen module that predicts the next token.

    Args:
      module: called as ``module(tokens, carry, train=...)``, with a method ``start``;
        see `sup_tickets.models.language`.
      length: tokens of a row of a batch.
    """

    def init(key: jax.Array) -> Params:
        zeros = jax.numpy.zeros((1, length), np.int32)
        return nn.meta.unbox(module.init(key, zeros, train=False)["params"])

    def apply(
        params: Params, tokens: jax.Array, carry: Any, train: bool, key: jax.Array
    ) -> Any:
        return module.apply(
            {"params": params}, tokens, carry, train=train, rngs={"dropout": key}
        )

    carries = module.start(1) is not None
    return LanguageNetwork(init, apply, module.start if carries else None)


def _boxed(form: Form, key: jax.Array, inputs: Any) -> Any:
    return form(0).init(key, inputs, train=False)


def _variables(form: Form, key: jax.Array, inputs: Any) -> Any:
    """Arrays, out of the boxes in which annotations are."""
    return nn.meta.unbox(_boxed(form, key, inputs))


@contextmanager
def _without_memory() -> Iterator[None]:
    """Within it running statistics become those of the batch: momentum is 0."""

    def forget(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module: Any = context.module
        momentum = getattr(module, "momentum", None)
        if momentum is None or context.method_name != "__call__":
            return call(*args, **kwargs)
        # The module is a copy that is bound to this call; it is frozen all the same.
        object.__setattr__(module, "momentum", 0.0)
        try:
            return call(*args, **kwargs)
        finally:
            object.__setattr__(module, "momentum", momentum)

    with nn.intercept_methods(forget):
        yield


# --- Operations -----------------------------------------------------------------------


def kernel_uses(model: nn.Module, example: Any) -> Uses:
    """The uses of every kernel: output positions of a convolution, 1 of a dense layer.

    Nothing is computed; the model is applied to shapes. Padding counts as input. A
    layer that is applied several times has the sum. Tables of `nn.Embed` are looked up,
    which costs nothing, but where they are decoders (``attend``). A module of another
    kind may tell of its own kernels by a method ``kernel_uses(inputs)``, names to uses.

    Args:
      model: Linen module, called as ``model(inputs, train=False)``, made of Flax's
        `Conv`, `ConvTranspose`, `Dense`, `DenseGeneral` and `Embed`. (Not within
        `nn.scan`, which looks at its body twice.)
      example: inputs [B, ...], or their shape and dtype; B is not read.

    Returns:
      Names as of `sup_tickets.trees.named_leaves` of the parameters.
    """
    found: Uses = {}

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name in ("__call__", "attend"):
            for leaf, uses in _uses_in(module, args, output, context).items():
                name = "/".join([*module.path, leaf])
                found[name] = found.get(name, 0) + uses
        return output

    one = jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda k, x: model.init(k, x, train=False), key, one)
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, one)
    return found


_LAYERS = (nn.Conv, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Embed)


def _uses_in(module: Any, args: Any, output: Any, context: Any) -> Uses:
    """The uses of a module's own kernels in one call."""
    if isinstance(module, nn.Embed):
        decodes = context.method_name == "attend"
        return {"embedding": output.size // module.num_embeddings if decodes else 0}
    if isinstance(module, _LAYERS):
        return {"kernel": _uses(module, args[0].shape, output)}
    own = getattr(module, "kernel_uses", None)
    return own(*args[:1]) if own else {}


def _uses(module: Any, inputs: tuple[int, ...], output: Any) -> int:
    if isinstance(module, nn.ConvTranspose):
        return int(np.prod(inputs[:-1]))  # every input goes through the whole kernel
    outputs = int(np.prod(module.features))
    if isinstance(module, nn.DenseGeneral):
        # Each entry of the batch dimensions has a kernel of its own.
        outputs *= int(np.prod([inputs[axis] for axis in module.batch_dims]))
    return output.size // outputs
