"""A network in one file: dense, which anyone can load, or sparse, which is small.

Both are safetensors files, written whole or not at all, and hold no code. A *dense*
file has the arrays "params/..." and "batch_stats/...", zeros included. A *sparse* file
has the same for leaves without a mask; for a leaf with one

* "mask/NAME": [ceil(size / 8)] uint8, one bit a weight as of `sup_tickets.masks.pack`;
* "active/NAME": [active] of the dtype of the weights, in the order of their index,

so that a network of 32-bit weights takes about ``32 * density + 1`` bits a weight. Its
metadata have a version, the shapes of the leaves with masks, and where the network is
from. Both have a checksum, SHA-256, of all that is in them.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from sup_tickets.masks import check_masks
from sup_tickets.training.sealed_files import (
    SPARSE,
    STORED,
    VERSION,
    Path_,
    check_intact,
    digest_with,
    parse,
    sealed,
    write,
    wrong,
)
from sup_tickets.training.state import Network
from sup_tickets.trees import named_leaves

# --- Dense ----------------------------------------------------------------------------


def save_dense(path: Path_, network: Network) -> int:
    """Writes weights and batch-norm statistics as they are; the masks are left out.

    Args:
      path: of the file; a whole file there is replaced, and its folder is made.
      network: whose trees are nested dicts.

    Returns:
      The bytes of the file.

    Raises:
      ValueError: if a tree is not made of dicts, or has a dtype that cannot be stored.
    """
    return write(path, sealed(save(arrays_of(network))))


def load_dense(path: Path_) -> Network:
    """A network of `save_dense`, bit by bit; its masks are ``None`` at every leaf.

    Args:
      path: of the file.

    Returns:
      A network of NumPy arrays.

    Raises:
      ValueError: if the file is damaged, or not such a file.
      OSError: if it cannot be read.
    """
    arrays, metadata, intact = parse(path, Path(path).read_bytes())
    if metadata.get("format") == SPARSE:
        raise ValueError(f"{path} is a sparse network; load it with load_sparse")
    values: dict[str, dict[str, np.ndarray]] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        part, slash, leaf = name.partition("/")
        if part not in values or not slash:
            raise wrong(path, f"it has an array {name!r}")
        values[part][leaf] = array
    network = _network(path, values["params"], values["batch_stats"], {})
    check_intact(path, intact)
    return network


# --- Sparse ---------------------------------------------------------------------------


def save_sparse(
    path: Path_, network: Network, *, provenance: Mapping[str, Any] | None = None
) -> int:
    """Writes the active weights, where they are, and everything without a mask.

    Args:
      path: of the file; a whole file there is replaced, and its folder is made.
      network: whose trees are nested dicts, and whose weights are exactly +0 where they
        are inactive, as `sup_tickets.masks.apply_masks` leaves them.
      provenance: where the network is from, JSON; to be read by `provenance_of`.

    Returns:
      The bytes of the file.

    Raises:
      ValueError: if an inactive weight is not +0, a tree is not made of dicts, or a
        dtype cannot be stored.
    """
    return write(path, _sparse(network, provenance or {}))


def sparse_size(network: Network) -> int:
    """The bytes of a sparse file that does not say where the network is from.

    Args:
      network: see `save_sparse`, whose errors it has.
    """
    return len(_sparse(network, {}))


def load_sparse(path: Path_) -> Network:
    """A network of `save_sparse`, bit by bit.

    Args:
      path: of the file.

    Returns:
      A network of NumPy arrays, nested dicts; masks are ``None`` at dense leaves.

    Raises:
      ValueError: if the file is damaged, not such a file, or of another version.
      OSError: if it cannot be read.
    """
    return parse_sparse(path, Path(path).read_bytes())


def parse_sparse(path: Path_, data: bytes) -> Network:
    """`load_sparse` of a file that was read already; ``path`` is for its errors."""
    arrays, metadata, intact = _parse_sparse(path, data)
    shapes = shapes_in(path, metadata)
    values: dict[str, dict[str, np.ndarray]] = {
        part: {} for part in ("params", "batch_stats", "mask", "active")
    }
    for key, array in arrays.items():
        part, slash, name = key.partition("/")
        if part not in values or not slash:
            raise wrong(path, f"it has an array {key!r}")
        values[part][name] = array
    if not values["mask"].keys() == values["active"].keys() == shapes.keys():
        raise wrong(path, "its masks, weights and shapes are not of the same leaves")
    masks = {}
    for name, shape in shapes.items():
        mask = unpacked(path, name, values["mask"][name], shape)
        values["params"][name] = _spread(path, name, mask, values["active"][name])
        masks[name] = mask
    network = _network(path, values["params"], values["batch_stats"], masks)
    check_intact(path, intact)
    return network


def provenance_of(path: Path_) -> dict[str, Any]:
    """Where the network of a sparse file is from, as `save_sparse` was told.

    Raises:
      ValueError: if the file is damaged, not such a file, or of another version.
      OSError: if it cannot be read.
    """
    _, metadata, intact = _parse_sparse(path, Path(path).read_bytes())
    check_intact(path, intact)
    return json_in(path, metadata, "provenance")


def contents_digest(path: Path_) -> str:
    """SHA-256 of a network file, but for what wrote it: equal digests train alike.

    Raises:
      ValueError: if the file is damaged, or not such a file.
      OSError: if it cannot be read.
    """
    data = Path(path).read_bytes()
    _, metadata, intact = parse(path, data)
    check_intact(path, intact)
    if "provenance" in metadata:
        origin = json_in(path, metadata, "provenance")
        origin.pop("made_by", None)
        metadata["provenance"] = json.dumps(origin, sort_keys=True)
    return digest_with(data, metadata)


def _sparse(network: Network, provenance: Mapping[str, Any]) -> bytes:
    check_masks(network.params, network.masks)
    masks = {name: np.asarray(mask) for name, mask in named_leaves(network.masks)}
    arrays: dict[str, np.ndarray] = {}
    for key, array in arrays_of(network).items():
        part, _, name = key.partition("/")
        if part != "params" or name not in masks:
            arrays[key] = array
            continue
        mask = masks[name]
        if array[~mask].tobytes().strip(b"\0"):
            raise ValueError(f"leaf {name!r} has an inactive weight that is not +0")
        arrays[f"mask/{name}"] = np.packbits(mask.reshape(-1))
        arrays[f"active/{name}"] = array[mask]
    metadata = {
        "format": SPARSE,
        "version": VERSION,
        "shapes": json.dumps({name: mask.shape for name, mask in masks.items()}),
        "provenance": json.dumps(dict(provenance)),
    }
    return sealed(save(arrays, metadata=metadata))


def _parse_sparse(
    path: Path_, data: bytes
) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    arrays, metadata, intact = parse(path, data)
    if metadata.get("format") != SPARSE:
        raise wrong(path, f"it is not a {SPARSE}")
    if metadata.get("version") != VERSION:
        raise wrong(
            path,
            f"it is of version {metadata.get('version')!r}, "
            f"and this program knows version {VERSION!r}",
        )
    return arrays, metadata, intact


def json_in(path: Path_, metadata: dict[str, str], key: str) -> dict[str, Any]:
    """The object that the metadata of a file have under a key."""
    try:
        value = json.loads(metadata.get(key, ""))
    except ValueError as error:
        raise wrong(path, f"its {key} cannot be read") from error
    if not isinstance(value, dict):
        raise wrong(path, f"its {key} cannot be read")
    return value


def shapes_in(path: Path_, metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves with masks, by their names."""
    shapes = json_in(path, metadata, "shapes")
    for name, shape in shapes.items():
        whole = isinstance(shape, list) and all(
            isinstance(side, int) and side >= 0 for side in shape
        )
        if not whole:
            raise wrong(path, f"the shape of leaf {name!r} is {shape!r}")
    return {name: tuple(shape) for name, shape in shapes.items()}


def unpacked(
    path: Path_, name: str, bits: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """A mask of a shape from its bits."""
    size = prod(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise wrong(
            path,
            f"the mask of leaf {name!r} has {bits.size} bytes, where shape {shape} "
            f"needs {-(-size // 8)}",
        )
    flat = np.unpackbits(bits)
    if flat[size:].any():
        raise wrong(path, f"the mask of leaf {name!r} has bits beyond its end")
    return flat[:size].astype(bool).reshape(shape)


def _spread(path: Path_, name: str, mask: np.ndarray, active: np.ndarray) -> np.ndarray:
    if active.shape != (int(mask.sum()),):
        raise wrong(
            path,
            f"leaf {name!r} has weights of shape {active.shape}, where its mask has "
            f"{int(mask.sum())} active",
        )
    leaf = np.zeros(mask.shape, active.dtype)
    leaf[mask] = active
    return leaf


# --- Both -----------------------------------------------------------------------------


def arrays_of(network: Network) -> dict[str, np.ndarray]:
    """All leaves as contiguous arrays on the host, by their names in a file."""
    found = {}
    # The name in files is older than that of the field.
    parts = {"params": network.params, "batch_stats": network.model_state}
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            keys = [str(getattr(step, "key", "/")) for step in path]
            if any("/" in key for key in keys):
                raise ValueError(
                    f"{part} must be nested dicts whose keys are texts without a "
                    f"slash, got {jax.tree_util.keystr(path)}"
                )
            array = np.asarray(jax.device_get(leaf))
            if array.dtype not in STORED:
                raise ValueError(
                    f"leaf {'/'.join(keys)!r} has dtype {array.dtype}, which cannot "
                    "be stored"
                )
            # ascontiguousarray would give a scalar a rank.
            found["/".join([part, *keys])] = array.copy(order="C")
    return found


def _network(path: Path_, params: Any, batch_stats: Any, masks: Any) -> Network:
    if not params:
        raise wrong(path, "it has no weights")
    masks = {name: masks.get(name) for name in params}
    return Network(
        params=nested(path, params),
        model_state=nested(path, batch_stats),
        masks=nested(path, masks),
    )


def nested(path: Path_, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by names with slashes."""
    tree: dict[str, Any] = {}
    for name in sorted(flat):
        *sections, last = name.split("/")
        place: Any = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise wrong(path, f"leaf {name!r} is within another")
        if last in place:
            raise wrong(path, f"leaf {name!r} is there twice")
        place[last] = flat[name]
    return tree
