"""What makes a result: versions, device, commit and command."""

import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "sup-tickets")
# Where a result is written is not part of what makes it.
_PLACES = ("--workdir", "--out")


def made_by() -> dict[str, Any]:
    """What would make a result now; what is not known is ``None``."""
    device = jax.devices()[0]
    return versions() | {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "commit": commit_of(Path(__file__).parents[2]),
        "command": command(),
    }


def versions() -> dict[str, Any]:
    """Of the language and of the libraries that compute."""
    return {"python": platform.python_version()} | dict(
        zip(_PACKAGES, map(_version, _PACKAGES), strict=True)
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its source
        return None


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what the makers of two results differ, but for the command."""
    names = [name for name in dict.fromkeys([*old, *new]) if name != "command"]
    return [
        f"{name} {old.get(name)} then, {new.get(name)} now"
        for name in names
        if old.get(name) != new.get(name)
    ]


def command() -> str:
    """What was typed; of ``python -m MODULE`` the interpreter shows the file alone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["-m", spec.name] if spec else [sys.argv[0]]
    return shlex.join(["python", *words, *sys.argv[1:]])


def without_places(text: str) -> str:
    """A command without the folders that it writes to.

    Example:
      >>> without_places("python -m x --config=a --workdir=b --out c d")
      'python -m x --config=a d'
    """
    kept, skip = [], False
    for word in shlex.split(text):
        if not skip and not word.startswith(tuple(f"{p}=" for p in _PLACES)):
            skip = word in _PLACES
            if not skip:
                kept.append(word)
        else:
            skip = False
    return shlex.join(kept)


def commit_of(root: Path) -> str | None:
    """The commit of a working copy, read from its files; ``None`` if it is none."""
    try:
        git = root / ".git"
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = root / git.read_text().split(":", 1)[1].strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        return _of_reference(git, head.removeprefix("ref: "))
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def _of_reference(git: Path, name: str) -> str | None:
    shared = git / "commondir"
    places = [git, git / shared.read_text().strip()] if shared.is_file() else [git]
    for place in places:
        if (place / name).is_file():
            return (place / name).read_text().strip()
    for place in places:
        packed = place / "packed-refs"
        for line in packed.read_text().splitlines() if packed.is_file() else ():
            if line.endswith(f" {name}"):
                return line.split()[0]
    return None
