"""Ghost skip connections: extra branches around layers, for the start of training.

The branches are layers of their own, next to the one that they bridge and named after
it: "conv1_ghost" and "conv1_ghost_bn" beside "conv1". Taking their parameters out of
the tree takes them out of the network, see `without_ghosts`.

Jaiswal et al., Training Your Sparse Neural Network Better with Any Mask, 2022,
https://arxiv.org/abs/2206.12755. Its release bridges the two 3 x 3 convolutions of a
basic block, always by a 1 x 1 convolution, and never takes the branches out.
"""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sup_tickets.models.layers import Layers

_GHOST = re.compile(r"_ghost(_bn)?$")

_SMALL = 1e-4  # every weight of a projection at the start [release]


@dataclasses.dataclass(frozen=True)
class GhostSkips:
    """A `sup_tickets.models.layers.Bridge`: the output plus some of the input.

    Where the shapes agree the branch is the input itself. Else it is a projection of
    the channels without a bias (of the pixels that the strides of the layer leave, of
    the middle ones if it has no padding), followed by batch norm, all its weights 1e-4
    at the start.
    """

    strength: Any  # alpha, in [0, 1]; may be traced
    project: bool = False  # also where the shapes agree, as in the release

    def __call__(
        self, layers: Layers, x: jax.Array, y: jax.Array, name: str
    ) -> jax.Array:
        """``y`` and the branch; [B, ..., C] of the shape and dtype of ``y``."""
        if self.project or x.shape != y.shape:
            x = _projection(layers, x, y, name.rsplit("/", 1)[-1])
        strength = jnp.asarray(self.strength, jnp.float32)
        return y + (strength * x.astype(jnp.float32)).astype(y.dtype)


def is_ghost(name: str) -> bool:
    """Whether a name in a parameter tree is that of a ghost's layer."""
    return bool(_GHOST.search(name))


def without_ghosts(tree: Any) -> Any:
    """A tree without the ghosts: parameters, masks, statistics, optimizer states.

    Args:
      tree: any pytree; entries of dicts in it that are named as ghosts are left out,
        and dicts that had nothing else.
    """
    return _filtered(tree, keep=lambda name: not is_ghost(name))


def _projection(layers: Layers, x: jax.Array, y: jax.Array, name: str) -> jax.Array:
    project = nn.Dense(
        y.shape[-1],
        use_bias=False,
        dtype=layers.dtype,
        kernel_init=nn.initializers.constant(_SMALL),
        name=f"{name}_ghost",
    )
    return layers.norm(project(_pixels_of(x, y.shape)), f"{name}_ghost_bn")


def _filtered(tree: Any, keep: Any) -> Any:
    def within(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        kept = {}
        for name, part in node.items():
            new = _filtered(part, keep) if keep(name) else {}
            if keep(name) and not (_is_empty(new) and not _is_empty(part)):
                kept[name] = new
        return kept

    return jax.tree.map(within, tree, is_leaf=lambda node: isinstance(node, dict))


def _is_empty(node: Any) -> bool:
    return isinstance(node, dict) and not node


def _pixels_of(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Of [B, H, W, C] those pixels that an output of another size stands for."""
    if x.ndim < 4 or x.shape[1:3] == shape[1:3]:
        return x
    slices: list[Any] = [slice(None)]
    for size, wanted in zip(x.shape[1:3], shape[1:3], strict=True):
        stride = -(-size // wanted) if -(-size // 2) >= wanted else 1
        if -(-size // stride) == wanted:  # half the kernel is padded on each side
            slices.append(slice(None, None, stride))
        else:  # no padding: the edges are lost
            start = (size - wanted) // 2
            slices.append(slice(start, start + wanted))
    return x[tuple(slices)]
