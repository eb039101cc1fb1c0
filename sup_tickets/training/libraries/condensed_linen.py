"""Linen modules whose dense layers are condensed, for inference."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.linen.dtypes import promote_dtype

from sup_tickets.condensed import Condensed, condensed_matmul


def condensed_apply(model: nn.Module) -> Callable[..., Any]:
    """``model.apply`` for variables in which kernels of `nn.Dense` may be condensed.

    Args:
      model: a Linen module. Its layers that are no `nn.Dense` run as they are.
    """

    def dense(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if not isinstance(layer, nn.Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        kernel = layer.get_variable("params", "kernel")
        if not isinstance(kernel, Condensed):
            return call(*args, **kwargs)
        bias = layer.get_variable("params", "bias") if layer.use_bias else None
        x, bias, values = promote_dtype(*args, bias, kernel.values, dtype=layer.dtype)
        y = condensed_matmul(x, kernel._replace(values=values))
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(dense):
            return model.apply(variables, *args, **kwargs)

    return apply
