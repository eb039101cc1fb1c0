"""The files of a checkpoint, and their checksums, which are written last of all.

What was killed in between, and files that were cut, lost or altered since, are noticed.
"""

import json
import zlib
from pathlib import Path

from sup_tickets.files import atomic_write, sync_file, sync_folder

_CHECKSUMS = "checksums.json"


def seal(folder: Path) -> None:
    """Writes the checksums, once all files of a checkpoint are on the disk."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        (sync_folder if path.is_dir() else sync_file)(path)
    atomic_write(folder / _CHECKSUMS, json.dumps(_checksums(folder)))


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (folder / _CHECKSUMS).exists()


def check_files(folder: Path) -> None:
    """Raises a ValueError unless the files are those that were written."""
    try:
        wanted = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{_CHECKSUMS} is missing or broken") from error
    found = _checksums(folder)
    for name in wanted:
        if found.get(name) != wanted[name]:
            state = "missing" if name not in found else "not as it was written"
            raise ValueError(f"its file {name} is {state}")


def check_checkpoint(path: Path, step: int) -> None:
    """Raises unless the files of a checkpoint are those that were written.

    Args:
      path: the folder of the checkpoints.
      step: completed steps.

    Raises:
      FileNotFoundError: if there is none of that step.
      ValueError: naming the folder and what is wrong.
    """
    folder = path / str(step)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}")
    try:
        check_files(folder)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): zlib.crc32(path.read_bytes())
        for path in files
        if not path.name.endswith(_CHECKSUMS)
    }
