"""Linen modules whose dense layers are condensed, for inference."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.linen.dtypes import promote_dtype

from sup_tickets.condensed import Condensed, condensed_matmul

_DENSE = (nn.Dense, nn.DenseGeneral)


def condensed_apply(model: nn.Module) -> Callable[..., Any]:
    """``model.apply`` for variables in which kernels of `nn.Dense` may be condensed.

    Args:
      model: a Linen module. Its other layers run as they are; of `nn.DenseGeneral`
        kernels from one axis to one may be condensed.

    Raises:
      ValueError: when called, if another layer has a condensed leaf.
    """

    def dense(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        own = layer.variables.get("params", {}) if layer.scope else {}
        found = [n for n in own if isinstance(own[n], Condensed)]
        if not found:
            return call(*args, **kwargs)
        if not isinstance(layer, _DENSE) or context.method_name != "__call__":
            raise ValueError(
                f"leaf {'/'.join([*layer.path, found[0]])!r} is condensed, but "
                f"{type(layer).__name__} is no nn.Dense; leave it out by where= of "
                "condense_params"
            )
        kernel = own["kernel"]
        bias = layer.get_variable("params", "bias") if layer.use_bias else None
        x, bias, values = promote_dtype(*args, bias, kernel.values, dtype=layer.dtype)
        y = condensed_matmul(x, dataclasses.replace(kernel, values=values))
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(dense):
            return model.apply(variables, *args, **kwargs)

    return apply
