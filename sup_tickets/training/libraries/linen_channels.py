"""Linen networks whose layers have as many channels as their parameters say.

A Linen module is made for the widths in its fields; once channels are removed from its
parameters, its convolutions and dense layers must follow them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sup_tickets.channels import ChannelGroup
from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.flops import Uses
from sup_tickets.training.libraries.linen import kernel_uses
from sup_tickets.trees import named_leaves
from sup_tickets.wiring import Wiring, channel_groups

PARAMS, STATE = "params", "batch_stats"


def whole_tree(params: Any, model_state: Any) -> dict[str, Any]:
    """Linen's variables, whose names those of channels are."""
    return {PARAMS: params, STATE: model_state}


def linen_channels(module: nn.Module, example: Any) -> Wiring:
    """The channels of a Linen module, see `sup_tickets.wiring.channel_groups`.

    Args:
      module: called as ``module(inputs, train=False)``, with no variables but
        parameters and "batch_stats".
      example: inputs [B, ...], or their shape and dtype.

    Returns:
      Groups whose leaves are "params/..." and "batch_stats/...".
    """
    example = jax.ShapeDtypeStruct(example.shape, example.dtype)

    def apply(tree: Any, inputs: Any) -> Any:
        return module.apply(tree, inputs, train=False)

    return channel_groups(apply, _shapes(module, example), example)


def channel_uses(module: nn.Module, example: Any) -> Uses:
    """`kernel_uses` by the names that channels have for the kernels."""
    return {f"{PARAMS}/{k}": n for k, n in kernel_uses(module, example).items()}


@contextmanager
def following(params: Any) -> Iterator[None]:
    """Within it convolutions and dense layers are as wide as their parameters.

    Args:
      params: of the Linen module that is applied; layers without parameters in it are
        as they were.
    """

    def follow(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module: Any = context.module
        kernel = _kernel(params, module.path)
        if kernel is None or not isinstance(module, (nn.Conv, nn.Dense)):
            return call(*args, **kwargs)
        wanted = {"features": kernel.shape[-1]}
        if getattr(module, "feature_group_count", 1) == module.features > 1:
            wanted["feature_group_count"] = kernel.shape[-1]
        before = {name: getattr(module, name) for name in wanted}
        # The module is a copy that is bound to this call; it is frozen all the same.
        _set(module, wanted)
        try:
            return call(*args, **kwargs)
        finally:
            _set(module, before)

    with nn.intercept_methods(follow):
        yield


def following_network(network: PureNetwork) -> PureNetwork:
    """A network of `linen_network` that takes parameters with fewer channels."""

    def apply(params: Any, *rest: Any) -> Any:
        with following(params):
            return network.apply(params, *rest)

    return PureNetwork(network.init, apply)


def check_follows(module: nn.Module, params: Any, example: Any) -> None:
    """Raises unless a module uses just these parameters at their widths.

    Raises:
      ValueError: naming the first leaf that it lacks or has no use for: the module
        chooses its layers by their widths, as a shortcut between unequal ones.
    """
    try:
        with following(params):
            made = _shapes(module, example)
    except (TypeError, ValueError) as error:  # of shapes that do not fit
        what = str(error).splitlines()[0]
        raise ValueError(f"the model cannot have these channels: {what}") from error
    wanted = {name: leaf.shape for name, leaf in named_leaves(made[PARAMS])}
    given = {name: jnp.shape(leaf) for name, leaf in named_leaves(params)}
    for name in sorted({*wanted, *given}):
        if wanted.get(name) != given.get(name):
            raise ValueError(
                f"the model cannot have these channels: its leaf {name!r} would be "
                f"{wanted.get(name)}, and is {given.get(name)}"
            )


def channel_means(
    network: PureNetwork,
    groups: Sequence[ChannelGroup],
    params: Any,
    model_state: Any,
    inputs: jax.Array,
) -> dict[str, jax.Array]:
    """Mean activation of every channel over the pixels, where it is first read.

    Args:
      network: of `linen_network`; evaluated.
      groups: of its channels.
      params: of the network.
      model_state: likewise.
      inputs: [K, ...].

    Returns:
      [K, C] float32 arrays by the names of groups.
    """
    readers = {group.read[0].leaf.rpartition("/")[0]: group for group in groups}
    found: dict[str, jax.Array] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        group = readers.get("/".join([PARAMS, *context.module.path]))
        if group is not None and context.method_name == "__call__":
            part, read = group.read[0], args[0].astype(jnp.float32)
            shape = (len(read), -1, part.outer, group.size, part.inner)
            found.setdefault(group.name, read.reshape(shape).mean((1, 2, 4)))
        return call(*args, **kwargs)

    with following(params), nn.intercept_methods(watch):
        network.apply(params, model_state, inputs, False, jax.random.key(0), 0)
    return found


def _shapes(module: nn.Module, example: Any) -> dict[str, Any]:
    key = jax.eval_shape(lambda: jax.random.key(0))
    made = jax.eval_shape(lambda k, x: module.init(k, x, train=False), key, example)
    return {PARAMS: {}, STATE: {}} | dict(made)


def _kernel(params: Any, path: Sequence[str]) -> Any:
    node = params
    for step in (*path, "kernel"):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def _set(module: Any, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        object.__setattr__(module, name, value)
