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

import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save

from sup_tickets.files import atomic_write
from sup_tickets.masks import check_masks
from sup_tickets.training.state import Network
from sup_tickets.trees import named_leaves

_FORMAT = "sup-tickets sparse network"
_VERSION = "1"
_CHECKSUM = "sha256"
_METADATA = {"format", "version", "shapes", "provenance"}
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype) for dtype in _DTYPES.values()}

Path_ = str | os.PathLike[str]


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
    return _write(path, _sealed(save(_arrays(network))))


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
    arrays, metadata, intact = _parse(path, Path(path).read_bytes())
    if metadata.get("format") == _FORMAT:
        raise ValueError(f"{path} is a sparse network; load it with load_sparse")
    values: dict[str, dict[str, np.ndarray]] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        part, slash, leaf = name.partition("/")
        if part not in values or not slash:
            raise _wrong(path, f"it has an array {name!r}")
        values[part][leaf] = array
    network = _network(path, values["params"], values["batch_stats"], {})
    _check_intact(path, intact)
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
    return _write(path, _sparse(network, provenance or {}))


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
    shapes = _shapes(path, metadata)
    values: dict[str, dict[str, np.ndarray]] = {
        part: {} for part in ("params", "batch_stats", "mask", "active")
    }
    for key, array in arrays.items():
        part, slash, name = key.partition("/")
        if part not in values or not slash:
            raise _wrong(path, f"it has an array {key!r}")
        values[part][name] = array
    if not values["mask"].keys() == values["active"].keys() == shapes.keys():
        raise _wrong(path, "its masks, weights and shapes are not of the same leaves")
    masks = {}
    for name, shape in shapes.items():
        mask = _unpack(path, name, values["mask"][name], shape)
        values["params"][name] = _spread(path, name, mask, values["active"][name])
        masks[name] = mask
    network = _network(path, values["params"], values["batch_stats"], masks)
    _check_intact(path, intact)
    return network


def provenance_of(path: Path_) -> dict[str, Any]:
    """Where the network of a sparse file is from, as `save_sparse` was told.

    Raises:
      ValueError: if the file is damaged, not such a file, or of another version.
      OSError: if it cannot be read.
    """
    _, metadata, intact = _parse_sparse(path, Path(path).read_bytes())
    _check_intact(path, intact)
    return _json(path, metadata, "provenance")


def contents_digest(path: Path_) -> str:
    """SHA-256 of a network file, but for what wrote it: equal digests train alike.

    Raises:
      ValueError: if the file is damaged, or not such a file.
      OSError: if it cannot be read.
    """
    data = Path(path).read_bytes()
    _, metadata, intact = _parse(path, data)
    _check_intact(path, intact)
    if "provenance" in metadata:
        origin = _json(path, metadata, "provenance")
        origin.pop("made_by", None)
        metadata["provenance"] = json.dumps(origin, sort_keys=True)
    return _digest(_header(data)[0] | {"__metadata__": metadata}, _header(data)[1])


def _sparse(network: Network, provenance: Mapping[str, Any]) -> bytes:
    check_masks(network.params, network.masks)
    masks = {name: np.asarray(mask) for name, mask in named_leaves(network.masks)}
    arrays: dict[str, np.ndarray] = {}
    for key, array in _arrays(network).items():
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
        "format": _FORMAT,
        "version": _VERSION,
        "shapes": json.dumps({name: mask.shape for name, mask in masks.items()}),
        "provenance": json.dumps(dict(provenance)),
    }
    return _sealed(save(arrays, metadata=metadata))


def _parse_sparse(
    path: Path_, data: bytes
) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    arrays, metadata, intact = _parse(path, data)
    if metadata.get("format") != _FORMAT:
        raise _wrong(path, f"it is not a {_FORMAT}")
    if metadata.get("version") != _VERSION:
        raise _wrong(
            path,
            f"it is of version {metadata.get('version')!r}, "
            f"and this program knows version {_VERSION!r}",
        )
    return arrays, metadata, intact


def _json(path: Path_, metadata: dict[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, ""))
    except ValueError as error:
        raise _wrong(path, f"its {key} cannot be read") from error
    if not isinstance(value, dict):
        raise _wrong(path, f"its {key} cannot be read")
    return value


def _shapes(path: Path_, metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    shapes = _json(path, metadata, "shapes")
    for name, shape in shapes.items():
        whole = isinstance(shape, list) and all(
            isinstance(side, int) and side >= 0 for side in shape
        )
        if not whole:
            raise _wrong(path, f"the shape of leaf {name!r} is {shape!r}")
    return {name: tuple(shape) for name, shape in shapes.items()}


def _unpack(
    path: Path_, name: str, bits: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    size = prod(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise _wrong(
            path,
            f"the mask of leaf {name!r} has {bits.size} bytes, where shape {shape} "
            f"needs {-(-size // 8)}",
        )
    flat = np.unpackbits(bits)
    if flat[size:].any():
        raise _wrong(path, f"the mask of leaf {name!r} has bits beyond its end")
    return flat[:size].astype(bool).reshape(shape)


def _spread(path: Path_, name: str, mask: np.ndarray, active: np.ndarray) -> np.ndarray:
    if active.shape != (int(mask.sum()),):
        raise _wrong(
            path,
            f"leaf {name!r} has weights of shape {active.shape}, where its mask has "
            f"{int(mask.sum())} active",
        )
    leaf = np.zeros(mask.shape, active.dtype)
    leaf[mask] = active
    return leaf


# --- Both -----------------------------------------------------------------------------


def _arrays(network: Network) -> dict[str, np.ndarray]:
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
            if array.dtype not in _NAMES:
                raise ValueError(
                    f"leaf {'/'.join(keys)!r} has dtype {array.dtype}, which cannot "
                    "be stored"
                )
            # ascontiguousarray would give a scalar a rank.
            found["/".join([part, *keys])] = array.copy(order="C")
    return found


def _sealed(data: bytes) -> bytes:
    """The same file with its metadata in order, and a checksum among them."""
    header, body = _header(data)
    metadata = header.get("__metadata__", {})
    metadata[_CHECKSUM] = _digest(header | {"__metadata__": metadata}, body)
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _digest(header: Mapping[str, Any], body: bytes) -> str:
    """SHA-256 of a file, whatever the order and the spacing of its header."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(text + body).hexdigest()


def _write(path: Path_, data: bytes) -> int:
    atomic_write(path, data)
    return len(data)


def _parse(
    path: Path_, data: bytes
) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    """Arrays, metadata without the checksum, and whether that is right."""
    try:
        stored = safetensors.deserialize(data)
        header, body = _header(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise _wrong(path, f"it is damaged or cut short ({error})") from error
    arrays = {}
    for name, view in stored:
        if view["dtype"] not in _DTYPES:
            raise _wrong(path, f"array {name!r} is of the type {view['dtype']}")
        flat = np.frombuffer(view["data"], _DTYPES[view["dtype"]])
        arrays[name] = flat.reshape(view["shape"]).copy()
    metadata = header.get("__metadata__", {})
    wanted = metadata.pop(_CHECKSUM, None)
    # Files of others, and of earlier versions, have none; ours have no other names.
    intact = metadata.keys() <= _METADATA or _FORMAT not in metadata.values()
    if wanted is not None:
        intact = wanted == _digest(header | {"__metadata__": metadata}, body)
    return arrays, metadata, intact


def _check_intact(path: Path_, intact: bool) -> None:
    if not intact:
        raise _wrong(path, "its checksum is wrong; it was damaged after it was written")


def _network(path: Path_, params: Any, batch_stats: Any, masks: Any) -> Network:
    if not params:
        raise _wrong(path, "it has no weights")
    masks = {name: masks.get(name) for name in params}
    return Network(
        params=_nested(path, params),
        model_state=_nested(path, batch_stats),
        masks=_nested(path, masks),
    )


def _nested(path: Path_, flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in sorted(flat):
        *sections, last = name.split("/")
        place: Any = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise _wrong(path, f"leaf {name!r} is within another")
        if last in place:
            raise _wrong(path, f"leaf {name!r} is there twice")
        place[last] = flat[name]
    return tree


def _wrong(path: Path_, what: str) -> ValueError:
    return ValueError(f"{path} cannot be loaded as a network: {what}")
