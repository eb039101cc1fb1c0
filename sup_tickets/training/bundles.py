"""What a task adds to a frozen backbone, in one small file: masks, norms, a head.

The backbone is never written to, so that what a network says of an earlier task is, bit
for bit, what it said before. A bundle is a safetensors file like those of
`network_files`, with its checksum, and of a leaf with a mask it has

* "on/NAME": [ceil(places / 8)] uint8, one bit a place of the mask (a kernel, a weight);
* "codes/NAME": [places that are off] uint8, what those are scaled by, where they are;

and "params/..." and "batch_stats/..." of the leaves that are the task's own.

References:
  Yang et al., KSM: Fast Multiple Task Adaption via Kernel-wise Soft Mask Learning,
  2021, https://arxiv.org/abs/2009.05668
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from sup_tickets.training.network_files import (
    arrays_of,
    json_in,
    nested,
    shapes_in,
    unpacked,
)
from sup_tickets.training.partly import Rule, chosen
from sup_tickets.training.sealed_files import (
    VERSION,
    Path_,
    check_intact,
    parse,
    sealed,
    write,
    wrong,
)
from sup_tickets.training.state import Network, completed
from sup_tickets.trees import map_named, named_leaves
from sup_tickets.types import Params
from sup_tickets.views.leaves import masked
from sup_tickets.views.view import Extra, View

BUNDLE = "sup-tickets task bundle"
CODE_BITS = 8
_LARGEST = 2**CODE_BITS - 1


class Mask(NamedTuple):
    """Of one leaf; broadcast to it, [1, 1, I, O] where a kernel has one place."""

    on: np.ndarray  # bool: what is seen as it is stored
    codes: np.ndarray | None  # uint8, of the same shape, 0 where on; None: off is 0


class Bundle(NamedTuple):
    """What is a task's own, as it is stored: the scales are rounded already."""

    masks: dict[str, Mask]  # by the names of the leaves
    params: Params  # nested dicts of these leaves alone: norms, the head
    model_state: Any  # running statistics; {}: those of the backbone
    scale: float = 0.0  # of code 255; 0 without codes

    def network(self, backbone: Network) -> Network:
        """What the forward pass sees of a backbone.

        Args:
          backbone: the network that the bundle was made for; see `backbone_digest`.
        """
        factor = np.float32(self.scale / _LARGEST)

        def see(name: str, leaf: Any) -> Any:
            if name not in self.masks:
                return leaf
            on, codes = self.masks[name]
            off = 0 if codes is None else codes * factor
            mask = np.where(on, np.float32(1), np.float32(off))
            return masked(jnp.asarray(leaf), jnp.asarray(mask, leaf.dtype))

        weights = map_named(see, completed(self.params, backbone.params))
        state = self.model_state or backbone.model_state
        return Network(weights, state, jax.tree.map(lambda _: None, weights))


def bundle_of(
    view: View | None,
    params: Params,
    model_state: Any,
    *,
    own: Rule,
    statistics: bool = True,
    scale: float = 0.0,
) -> Bundle:
    """The bundle of a trained network.

    Args:
      view: of the network, whose masks are 1, 0 or within [0, scale].
      params: of `sup_tickets.training.partly.seen_through`, all of them.
      model_state: likewise.
      own: which leaves of the weights are the task's.
      statistics: whether the running statistics are.
      scale: of the largest scaled place; 0: whatever is off is 0.
    """
    weights = params["weights"]
    masks = {}
    if view is not None:
        extra = Extra(params["scores"], model_state["kept"])
        seen = view.apply(jax.tree.map(jnp.ones_like, weights), extra)
        shapes = _score_shapes(params)
        masks = {
            name: _mask(np.asarray(leaf), shapes[name], scale)
            for name, leaf in named_leaves(seen)
            if name in shapes
        }
    found = chosen(weights, own)
    state = model_state["statistics"] if statistics else {}
    found, state = jax.device_get((found, state))
    return Bundle(masks, found, state, scale)


def _score_shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Of the scores of each leaf that has some."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, leaf: Any, own: Any) -> Any:
        if own is not None:
            shapes[name] = own["score"].shape
        return leaf

    map_named(note, params["weights"], params["scores"])
    return shapes


def _mask(seen: np.ndarray, shape: tuple[int, ...], scale: float) -> Mask:
    values = seen[tuple(slice(0, side) for side in shape)]  # alike along the others
    on = values == 1
    if not scale:
        return Mask(on, None)
    codes = np.rint(values / np.float32(scale) * _LARGEST)
    return Mask(on, np.where(on, 0, codes).astype(np.uint8))


def storage_bits(bundle: Bundle, head: Rule) -> dict[str, int]:
    """The bits of what a bundle adds, without the header of its file.

    Args:
      bundle: of a task.
      head: which leaves are the head.

    Returns:
      "masks" (one bit a place), "scales" (`CODE_BITS` for each place that is off),
      "weights" (own leaves of two axes or more), "norms" (of fewer, and statistics) and
      "head".
    """
    bits: dict[str, int] = dict.fromkeys(
        ("masks", "scales", "weights", "norms", "head"), 0
    )
    for on, codes in bundle.masks.values():
        bits["masks"] += on.size
        bits["scales"] += 0 if codes is None else CODE_BITS * int((~on).sum())
    for name, leaf in named_leaves(bundle.params):
        part = "weights" if leaf.ndim > 1 else "norms"
        bits["head" if head(name) else part] += 8 * leaf.nbytes
    bits["norms"] += sum(
        8 * leaf.nbytes for leaf in jax.tree.leaves(bundle.model_state)
    )
    return bits


def backbone_digest(backbone: Network, head: Rule) -> str:
    """SHA-256 of all of a backbone that tasks share: not its head, which none uses."""
    found = hashlib.sha256()
    for name, array in sorted(arrays_of(backbone).items()):
        part, _, leaf = name.partition("/")
        if part != "params" or not head(leaf):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(array.tobytes())
    return found.hexdigest()


# --- Files ----------------------------------------------------------------------------


def save_bundle(
    path: Path_, bundle: Bundle, *, backbone: str, provenance: Mapping[str, Any]
) -> int:
    """Writes a bundle, whole or not at all.

    Args:
      path: of the file; one that is there is replaced, and its folder is made.
      bundle: of a task.
      backbone: `backbone_digest` of what it is for.
      provenance: where it is from, JSON.

    Returns:
      The bytes of the file.
    """
    own = Network(bundle.params, bundle.model_state, None)
    arrays = arrays_of(own)
    for name, (on, codes) in bundle.masks.items():
        arrays[f"on/{name}"] = np.packbits(on.reshape(-1))
        if codes is not None:
            arrays[f"codes/{name}"] = codes[~on]
    shapes = {name: mask.on.shape for name, mask in bundle.masks.items()}
    origin = {**provenance, "backbone": backbone, "scale": bundle.scale}
    metadata = {
        "format": BUNDLE,
        "version": VERSION,
        "shapes": json.dumps(shapes),
        "provenance": json.dumps(origin),
    }
    return write(path, sealed(save(arrays, metadata=metadata)))


def load_bundle(path: Path_, *, backbone: str) -> tuple[Bundle, dict[str, Any]]:
    """A bundle of `save_bundle`, bit by bit, and where it is from.

    Args:
      path: of the file.
      backbone: `backbone_digest` of the network that it is to be used with.

    Raises:
      ValueError: if the file is damaged, not such a file, of another version, or of
        another backbone.
      OSError: if it cannot be read.
    """
    arrays, metadata, intact = parse(path, Path(path).read_bytes())
    if metadata.get("format") != BUNDLE or metadata.get("version") != VERSION:
        raise wrong(path, f"it is not a {BUNDLE} of version {VERSION}")
    check_intact(path, intact)
    origin = json_in(path, metadata, "provenance")
    if origin["backbone"] != backbone:
        raise ValueError(
            f"{path} is a bundle of another backbone, {origin['backbone'][:12]}, and "
            f"this one is {backbone[:12]}"
        )
    values: dict[str, dict[str, np.ndarray]] = {
        part: {} for part in ("on", "codes", "params", "batch_stats")
    }
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        values[part][name] = array
    masks = {}
    for name, shape in shapes_in(path, metadata).items():
        on = unpacked(path, name, values["on"][name], shape)
        masks[name] = Mask(on, _spread(on, values["codes"].get(name)))
    params, state = (nested(path, values[part]) for part in ("params", "batch_stats"))
    return Bundle(masks, params, state, origin["scale"]), origin


def _spread(on: np.ndarray, codes: np.ndarray | None) -> np.ndarray | None:
    if codes is None:
        return None
    whole = np.zeros(on.shape, np.uint8)
    whole[~on] = codes
    return whole
