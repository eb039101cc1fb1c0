"""Several processes that train as one: what one does, says or reads, all learn.

The first process alone reads and writes files; the rest travels in memory, so that
hosts need no file system in common. An error of the first is raised in all, so that
none waits for another that has left.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sup_tickets.files import named

_CHUNK = 2**26  # bytes sent at a time
_WORD, _SIZE = 256, 8  # bytes of what is told at once, and of these of its length


def is_first() -> bool:
    """Whether this process reads and writes the files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line at once, to a file too; of several processes the first does.

    Raises:
      OSError: naming the standard output.
    """
    if is_first():
        try:
            print(text, flush=True)
        except OSError as error:
            raise named(error, Path("standard output")) from None


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; each whatever JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    data = json.dumps(value).encode()
    # Short ones in one exchange, which waits for all that the devices have to do.
    words = _rows_of_all(
        len(data).to_bytes(_SIZE, "big") + data[: _WORD - _SIZE], _WORD
    )
    longest = max(int.from_bytes(word[:_SIZE], "big") for word in words)
    if longest > _WORD - _SIZE:
        words = [bytes(_SIZE) + row for row in _rows_of_all(data, longest)]
    return [json.loads(word[_SIZE:]) for word in words]


def _rows_of_all(data: bytes, size: int) -> list[bytes]:
    """The bytes of all, each with white space up to a size, which changes no JSON."""
    padded = np.frombuffer(data.ljust(size), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes() for row in rows.reshape(-1, size)]


def from_first(data: bytes) -> bytes:
    """The bytes that the first process gives; those of the others are dropped."""
    if jax.process_count() == 1:
        return data
    size = np.array(divmod(len(data), _CHUNK), np.int32)
    chunks, rest = map(int, multihost_utils.broadcast_one_to_all(size))
    mine = np.zeros(chunks * _CHUNK + rest, np.uint8)
    if is_first():
        mine[:] = np.frombuffer(data, np.uint8)
    parts = [mine[i : i + _CHUNK] for i in range(0, len(mine), _CHUNK)]
    # As bytes: a sum over processes would make +0 of -0.
    return b"".join(
        np.asarray(multihost_utils.broadcast_one_to_all(part)).tobytes()
        for part in parts
    )


def on_first(action: Callable[[], Any]) -> Any:
    """Has the first process act, and gives all what it returned.

    Args:
      action: returns what JSON can hold.

    Raises:
      ValueError: in all processes, if the first raised one.
      OSError: likewise, for any other error.
    """
    if jax.process_count() == 1:
        return action()
    error: Exception | None = None
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": action()}
        except Exception as caught:  # Whatever it is, the others must not wait.
            error = caught
            kind = "value" if isinstance(caught, ValueError) else "other"
            told = {"error": " ".join(str(caught).split()), "kind": kind}
    told = json.loads(from_first(json.dumps(told).encode()))
    if error is not None:
        raise error
    if "error" in told:
        kinds = {"value": ValueError, "other": OSError}
        raise kinds[told["kind"]](told["error"])
    return told["value"]


def check_agreement(mine: Mapping[str, Any]) -> None:
    """Raises in all processes unless all were given the same.

    Args:
      mine: by names; whatever JSON can hold.

    Raises:
      ValueError: naming the first name that differs, and the process.
    """
    disagreement = difference_of(gather(dict(mine)))
    if disagreement:
        raise ValueError(disagreement)


def difference_of(given: list[Mapping[str, Any]]) -> str | None:
    """In what the first process and another differ, in one line; or ``None``."""
    first = given[0]
    for number, other in enumerate(given[1:], start=1):
        for name in (*first, *other):
            ours, theirs = first.get(name), other.get(name)
            if repr(ours) != repr(theirs):  # NaN is not equal to itself
                return (
                    f"the processes do not agree: {name} is {ours!r} in process 0 and "
                    f"{theirs!r} in process {number}; start all with the same command "
                    "and the same versions"
                )
    return None


def share(tree: Any, like: Any) -> Any:
    """The arrays of the first process, on all hosts.

    Args:
      tree: NumPy arrays; looked at in the first process alone.
      like: the same tree of shapes.
    """
    if jax.process_count() == 1:
        return tree
    leaves = jax.tree.leaves(tree) if is_first() else []
    data = from_first(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
    shapes, structure = jax.tree.flatten(like)
    found, place = [], 0
    for leaf in shapes:
        dtype, count = np.dtype(leaf.dtype), int(np.prod(leaf.shape))
        array = np.frombuffer(data, dtype, count, place).reshape(leaf.shape)
        place += array.nbytes
        found.append(array)
    return jax.tree.unflatten(structure, found)


def on_host(tree: Any) -> Any:
    """All arrays whole, as NumPy arrays."""

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def agreed(tree: Any, like: Any) -> Any:
    """Arrays as the first device of the first process has them, where others lie.

    For what every device computed for itself: where kernels are not deterministic,
    copies may differ, and nothing would ever make them the same again.

    Args:
      tree: of arrays, or ``None`` at some leaves.
      like: arrays that lie where the result is to lie, NumPy's on the host.
    """

    def put(leaf: Any, array: Any) -> Any:
        on_device = array is not None and isinstance(leaf, jax.Array)
        return placed(array, leaf.sharding) if on_device else array

    return jax.tree.map(put, like, share(on_host(tree), tree))


def placed(tree: Any, sharding: Any) -> Any:
    """NumPy arrays that all processes have, on the devices.

    Args:
      tree: of arrays.
      sharding: of all of them, or a tree of shardings.
    """
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def put(leaf: Any, place: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, place, lambda i: leaf[i])

    return jax.tree.map(put, tree, sharding)
