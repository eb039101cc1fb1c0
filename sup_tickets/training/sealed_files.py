"""Safetensors files with a checksum, SHA-256, of all that is in them.

The library's own reader knows no bfloat16 in NumPy, and its writer orders the metadata
otherwise from process to process.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from sup_tickets.files import atomic_write

SPARSE = "sup-tickets sparse network"
VERSION = "1"
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
STORED = {np.dtype(dtype) for dtype in _DTYPES.values()}
"""The dtypes that can be stored."""

Path_ = str | os.PathLike[str]


def sealed(data: bytes) -> bytes:
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


def digest_with(data: bytes, metadata: Mapping[str, str]) -> str:
    """SHA-256 of a file as if it had other metadata."""
    header, body = _header(data)
    return _digest(header | {"__metadata__": metadata}, body)


def write(path: Path_, data: bytes) -> int:
    """Writes a file, whole or not at all, and gives its size."""
    atomic_write(path, data)
    return len(data)


def parse(
    path: Path_, data: bytes
) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    """Arrays, metadata without the checksum, and whether that is right."""
    try:
        stored = safetensors.deserialize(data)
        header, body = _header(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise wrong(path, f"it is damaged or cut short ({error})") from error
    arrays = {}
    for name, view in stored:
        if view["dtype"] not in _DTYPES:
            raise wrong(path, f"array {name!r} is of the type {view['dtype']}")
        flat = np.frombuffer(view["data"], _DTYPES[view["dtype"]])
        arrays[name] = flat.reshape(view["shape"]).copy()
    metadata = header.get("__metadata__", {})
    wanted = metadata.pop(_CHECKSUM, None)
    # Files of others, and of earlier versions, have none; ours have no other names.
    intact = metadata.keys() <= _METADATA or SPARSE not in metadata.values()
    if wanted is not None:
        intact = wanted == _digest(header | {"__metadata__": metadata}, body)
    return arrays, metadata, intact


def check_intact(path: Path_, intact: bool) -> None:
    """Raises if the checksum of a file was wrong."""
    if not intact:
        raise wrong(path, "its checksum is wrong; it was damaged after it was written")


def wrong(path: Path_, what: str) -> ValueError:
    """The error that names a file and what is wrong with it."""
    return ValueError(f"{path} cannot be loaded as a network: {what}")
