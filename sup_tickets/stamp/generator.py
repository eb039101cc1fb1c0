"""From a set of examples to raw numbers for the gates of every layer.

    code_l  = mean over the set of tanh(u_l W_l + b_l)      its layer alone
    hidden_l = relu([code_l, mean over layers of code] W + b)   shared by layers
    raw_l   = hidden_l V_l + v_l

where u_l [K, C_l] are the mean activations of the layer for each example. Nothing but
the mean looks at the set, so its order does not matter, nor, but for noise, its size.
The form is that of Deep Sets: Zaheer et al., 2017, https://arxiv.org/abs/1703.06114

Shapes: K examples of a set, C channels of a layer, H hidden units, P numbers a gate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_whole
from sup_tickets.trees import map_named, uniform_draws


def init_generator(
    key: jax.Array, sizes: Mapping[str, int], *, hidden: int, start: Sequence[float]
) -> dict[str, Any]:
    """Parameters of a generator, whose gates all begin near one another.

    Args:
      key: a random key, consumed.
      sizes: C of every layer by its name.
      hidden: H.
      start: [P], the raw numbers of every gate at first, nearly.

    Raises:
      ValueError: if H is not positive, or there is no layer.
    """
    check_whole("hidden", hidden, 1)
    if not sizes:
        raise ValueError("a generator needs a layer whose channels can be gated")
    wide, outputs = 2 * hidden, len(start)
    shapes = {
        "encode": {name: {"kernel": (c, hidden)} for name, c in sizes.items()},
        "shared": {"kernel": (wide, hidden)},
        "decode": {
            name: {"kernel": (hidden, c * outputs)} for name, c in sizes.items()
        },
    }
    like = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )

    def drawn(name: str, u: jax.Array) -> jax.Array:
        limit = (3 / u.shape[0]) ** 0.5  # a variance of 1 / inputs
        return (2 * u - 1) * limit * (0.1 if name.startswith("decode") else 1.0)

    params = map_named(drawn, uniform_draws(key, like))
    params["shared"]["bias"] = jnp.zeros(hidden)
    for name, size in sizes.items():
        params["encode"][name]["bias"] = jnp.zeros(hidden)
        bias = jnp.tile(jnp.asarray(start, jnp.float32), size)
        params["decode"][name]["bias"] = bias
    return params


def generate(
    params: Mapping[str, Any], means: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Raw numbers of the gates of every layer.

    Args:
      params: of `init_generator`.
      means: [K, C] float32, mean activations of the layers for every example of the
        set; see `sup_tickets.training.libraries.linen_channels.channel_means`.

    Returns:
      [C, P] float32 arrays by layer.

    Raises:
      ValueError: for a set without an example.
    """
    codes = {name: _code(params["encode"][name], u) for name, u in means.items()}
    shared = jnp.stack(list(codes.values())).mean(0)
    raw = {}
    for name, code in codes.items():
        hidden = jax.nn.relu(_dense(params["shared"], jnp.concatenate([code, shared])))
        flat = _dense(params["decode"][name], hidden)
        raw[name] = flat.reshape(means[name].shape[1], -1)
    return raw


def _code(layer: Mapping[str, Any], u: jax.Array) -> jax.Array:
    if not u.shape[0]:
        raise ValueError("a set must have at least 1 example, got 0")
    return jnp.tanh(u @ layer["kernel"] + layer["bias"][None]).mean(0)


def _dense(layer: Mapping[str, Any], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]
