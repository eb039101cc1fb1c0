"""What was written where, so that no other file is ever replaced or removed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.runs.layout import RECORD, read_object
from sup_tickets.files import atomic_write


def recorded(file: Path) -> list[str]:
    """The names of files in a record; none if it is not there.

    Raises:
      ValueError: if it cannot be read, or names a file outside its folder.
    """
    if not file.exists():
        return []
    names = read_object(file).get("written")
    if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError(f"{file} cannot be read: it lacks a list of names")
    inside = file.parent.resolve()
    for name in names:
        if not (file.parent / name).resolve().is_relative_to(inside):
            raise ValueError(f"{file} names {name!r}, which is elsewhere")
    return names


def record(file: Path, names: list[str]) -> None:
    """Writes down the names of files."""
    atomic_write(file, json.dumps({"written": names}, indent=2) + "\n")


def claim(
    file: Path, what: str, values: Mapping[str, Any], inside: Iterable[Path]
) -> None:
    """Says in a file what is made in its folder.

    Args:
      file: of JSON; its folder is made.
      what: is made, in a word.
      values: that tell it from others of its kind, by name.
      inside: what such a thing has in the folder, for an error.

    Raises:
      ValueError: if another one is there, naming what differs.
    """
    if not file.exists():
        for path in sorted(inside):
            raise ValueError(
                f"{file.parent} holds {path.name}, and no {file.name} says of what "
                f"{what}; give another --workdir"
            )
        atomic_write(file, json.dumps(values, indent=2) + "\n")
        return
    there = read_object(file)
    for name, value in values.items():
        if there.get(name) != value:
            raise ValueError(
                f"{file.parent} holds another {what}: {name} is {there.get(name)!r} "
                f"there and {value!r} here; give another --workdir"
            )


class Outputs:
    """Files that a command writes into a folder where a user may have others.

    Their names are in ``.written.json`` there.
    """

    def __init__(self, folder: Path, *patterns: str):
        """Looks at what is there, and writes nothing.

        Args:
          folder: made when something is written.
          patterns: of all names that will be, as of `Path.glob`.

        Raises:
          ValueError: naming a file that is in the way: no command of ours wrote it.
        """
        self.folder = folder
        self._names = recorded(folder / RECORD)
        for path in sorted({p for pattern in patterns for p in folder.glob(pattern)}):
            if path.name not in self._names:
                raise ValueError(
                    f"{path} is in the way: it would be replaced, and no such command "
                    "wrote it; move it or give another --out"
                )

    def claim(self, name: str) -> Path:
        """The path of a file, which is written down before it is written."""
        if name not in self._names:
            self._names.append(name)
            record(self.folder / RECORD, self._names)
        return self.folder / name

    def write(self, name: str, content: Any) -> bool:
        """Writes a file, see `sup_tickets.files.atomic_write`."""
        return atomic_write(self.claim(name), content)
