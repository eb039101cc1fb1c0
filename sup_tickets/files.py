"""Files that are whole or not there, and on the disk before anything relies on them."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PREFIX = ".tmp-"


def atomic_write(
    path: str | os.PathLike[str], content: str | bytes | Callable[[Path], Any]
) -> bool:
    """Writes a file under another name, flushes it to the disk, and renames it.

    Args:
      path: of the file; its folder is made.
      content: text, written as UTF-8; bytes; or what writes to the path it is given,
        which has the same suffix: False says that there is nothing to write, and an
        older file goes.

    Returns:
      Whether the file is there now.

    Raises:
      OSError: naming the file; an older one is as it was.
    """
    target = Path(path)
    temporary = target.with_name(f"{_PREFIX}{secrets.token_hex(4)}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if _fill(temporary, content) is False:
            target.unlink(missing_ok=True)
            return False
        sync_file(temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise named(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _fill(path: Path, content: str | bytes | Callable[[Path], Any]) -> Any:
    if callable(content):
        return content(path)
    return path.write_bytes(content.encode() if isinstance(content, str) else content)


def leftovers(path: Path) -> list[Path]:
    """What killed processes left of `atomic_write` to a path."""
    end = f".{path.name}"
    return [
        other
        for other in (path.parent.iterdir() if path.parent.is_dir() else ())
        if other.name.startswith(_PREFIX)
        and other.name.removeprefix(_PREFIX)[8:] == end
    ]


def sync_file(path: Path) -> None:
    """Waits until the contents of a file are on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows does not open folders.
        return
    try:
        os.fsync(handle)
    except OSError:  # nor do all file systems flush them
        pass
    finally:
        os.close(handle)


def named(error: OSError, path: Path) -> OSError:
    """The same error with the name of the file at fault, in one line."""
    if error.errno is None:
        return OSError(f"{path}: {' '.join(str(error).split())}")
    return OSError(error.errno, error.strerror, str(path))
