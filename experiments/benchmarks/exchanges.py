"""What a compiled program exchanges between devices."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

_OPERATION = re.compile(r"%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_COLLECTIVES = re.compile(r"all-|reduce-scatter|collective-|ragged-")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")  # "f32[64,3]", "pred[]"


class Exchange(NamedTuple):
    """An instruction by which devices exchange data."""

    name: str  # in the program
    operation: str  # of HLO, as "all-reduce"
    shape: str  # of its result on each device, likewise

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(_array_bytes(*found) for found in _ARRAY.findall(self.shape))


def operations(compiled: Any) -> list[tuple[str, str]]:
    """``(operation, result shape)`` of every instruction of a compiled program."""
    return [(operation, shape) for _, operation, shape in _instructions(compiled)]


def exchanges(compiled: Any) -> list[Exchange]:
    """The instructions that exchange data between devices, each once."""
    found = _instructions(compiled)
    return [Exchange(*each) for each in found if _COLLECTIVES.match(each[1])]


def executed(compiled: Any, *arguments: Any) -> list[Exchange]:
    """Those of one call, in no order, each as often as every device executed it.

    Counted by the profiler, on devices that a CPU pretends to have: how often a loop
    goes round the program does not say.

    Args:
      compiled: the program.
      *arguments: of the call; donated if it donates them.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(*arguments))
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = ProfileData.from_file(str(file))
        events = (e for p in profile.planes for line in p.lines for e in line.events)
        seen = Counter(event.name for event in events)
    devices = len(jax.tree.leaves(compiled.input_shardings)[0].device_set)
    found = exchanges(compiled)
    return [each for each in found for _ in range(seen[each.name] // devices)]


def _instructions(compiled: Any) -> Iterator[tuple[str, str, str]]:
    for match in map(_OPERATION.search, compiled.as_text().splitlines()):
        if match:
            yield match[1], match[3], match[2]


def _array_bytes(kind: str, bits: str, dims: str) -> int:
    del kind
    places = prod(int(n) for n in dims.split(",") if n)
    return places * (int(bits) // 8 if bits else 1)  # a truth value has a byte
