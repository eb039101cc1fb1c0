"""Networks whose dense layers are condensed, each in one file.

A file is a dense one, see `network_files`, with the parts of a `Condensed` under the
name of its leaf: "params/NAME/values", ".../inputs", ".../places", ".../n_in".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.condensed import Condensed, condense_params
from sup_tickets.training.network_files import Path_, load_dense, save_dense
from sup_tickets.training.state import Network

_PARTS = {field.name for field in dataclasses.fields(Condensed)}


def save_condensed(path: Path_, network: Network) -> int:
    """Writes a network with all its dense layers of constant fan-in condensed.

    Args:
      path: of the file; a whole file there is replaced, and its folder is made.
      network: whose trees are nested dicts; the other leaves are written as they are,
        zeros included.

    Returns:
      The bytes of the file.

    Raises:
      ValueError: if no layer has a constant fan-in, if a tree is not made of dicts, or
        has a dtype that cannot be stored.
    """
    found = condense_params(network.params, network.masks)
    leaves = jax.tree.leaves(found, is_leaf=_is_condensed)
    if not any(map(_is_condensed, leaves)):
        raise ValueError(
            "no dense layer of the network has a constant fan-in; train it with the "
            "structure 'fan-in', or with SRigL"
        )
    params = jax.tree.map(
        lambda leaf: _parts(leaf) if _is_condensed(leaf) else leaf,
        found,
        is_leaf=_is_condensed,
    )
    return save_dense(path, network.replace(params=params))


def load_condensed(path: Path_) -> Network:
    """A network of `save_condensed`, with a `Condensed` for every condensed kernel.

    Its masks are ``None`` at every leaf.

    Raises:
      ValueError: if the file is damaged, or holds no condensed layer.
      OSError: if it cannot be read.
    """
    network = load_dense(path)
    params = _condensed(network.params)
    if not any(map(_is_condensed, jax.tree.leaves(params, is_leaf=_is_condensed))):
        raise ValueError(f"{path} holds no condensed layer")
    masks = jax.tree.map(lambda _: None, params, is_leaf=_is_condensed)
    return network.replace(params=params, masks=masks)


def _condensed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == _PARTS:
        arrays = {name: jnp.asarray(tree[name]) for name in _PARTS - {"n_in"}}
        return Condensed(**arrays, n_in=int(tree["n_in"]))
    return {name: _condensed(part) for name, part in tree.items()}


def _parts(layer: Condensed) -> dict[str, Any]:
    return {**vars(layer), "n_in": np.int32(layer.n_in)}


def _is_condensed(leaf: Any) -> bool:
    return isinstance(leaf, Condensed)
