"""The grid of a sweep: names of fields, each with some values, as a text."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from configs.common import ALIASES
from experiments.config.fields import FIELDS
from experiments.config.values import split, unquoted
from experiments.runs.layout import folder_name

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 10_000  # combinations; more are a mistake


def parse_grid(text: str) -> dict[str, list[str]]:
    """The values of each name, as texts.

    Args:
      text: "name=value,value name=first..last", parted by spaces.

    Raises:
      ValueError: naming the part that is wrong.

    Example:
      >>> parse_grid("method=set,rigl seed=0..2")
      {'method': ['set', 'rigl'], 'seed': ['0', '1', '2']}
    """
    grid: dict[str, list[str]] = {}
    for part in filter(None, split(re.sub(r"\s", " ", text), " ")):
        part = part.strip()
        name, equals, values = part.partition("=")
        if not (name and equals and values):
            raise ValueError(f"--grid has {part!r}; it must look like seed=0..4")
        if name in grid:
            raise ValueError(f"--grid has {name!r} twice")
        grid[name] = [v for word in split(values) for v in _values(part, word)]
        if len(set(grid[name])) < len(grid[name]):
            raise ValueError(f"--grid has a value twice in {part!r}")
    if not grid:
        raise ValueError(
            "--grid is empty; it must look like 'method=set,rigl seed=0..4'"
        )
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > _MOST:
        raise ValueError(f"--grid has {count} combinations, more than {_MOST}")
    return grid


def _values(part: str, word: str) -> list[str]:
    match = _RANGE.fullmatch(word)
    if match is None:
        name = part.partition("=")[0]
        field = FIELDS.get(ALIASES.get(name, name))
        is_path = field is not None and field.kind.startswith("path")
        if not word or (not is_path and (".." in word or "/" in word)):
            raise ValueError(f"--grid has {word!r} in {part!r}, which is no value")
        return [unquoted(word)]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= _MOST:
        raise ValueError(f"--grid has {word!r}, which must go upwards")
    return [str(number) for number in range(first, last + 1)]


def combinations(grid: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of all combinations, the last name of the grid fastest.

    Example:
      >>> combinations({"method": ["set", "rigl"], "seed": ["0"]})
      ['method=set,seed=0', 'method=rigl,seed=0']
    """
    return [folder_name(pairs) for pairs in pairs_of(grid)]


def pairs_of(grid: Mapping[str, Sequence[str]]) -> list[list[tuple[str, str]]]:
    """Names and values of all combinations."""
    return [
        list(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]


def check_names(grid: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Raises unless all names are known, and of different fields.

    Args:
      grid: by names.
      fields: dotted names of the configuration's fields.

    Raises:
      ValueError: naming the first that is unknown, and the nearest known one.
    """
    known, seen = [*ALIASES, *fields], {}
    for name in grid:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise ValueError(
                f"--grid has an unknown name {name!r}; did you mean {near[0]!r}?"
            )
        field = ALIASES.get(name, name)
        if field in seen:
            raise ValueError(f"--grid has {name!r} and {seen[field]!r}, one field")
        seen[field] = name
