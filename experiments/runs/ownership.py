"""Which run a folder holds, and whether it may be taken for another."""

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from experiments.build.data_checks import text_digest
from experiments.config.fields import Config
from experiments.runs.identity import (
    CONTENTS,
    TEXT,
    difference,
    identity_of,
    named_fields,
)
from experiments.runs.layout import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    MADE_BY,
    RESULTS,
    SUMMARY,
    WRITTEN,
    read_config,
    read_object,
)

_STREAMS = (1, 2)  # that this process prints to


def is_finished(
    path: str | os.PathLike[str], config: Config, *, beside: Collection[str] = ()
) -> bool:
    """Whether the folder holds the report of this very run.

    Args:
      path: of the folder.
      config: of the run.
      beside: as in `RunFolder`.

    Raises:
      ValueError: naming the first field that differs from the run's in the folder, or
        a file that no run wrote; or if nothing says which run its results are of.
    """
    place = Path(path)
    check_same_run(place, config)
    check_ours(place, beside)
    known = (place / CONFIG).exists()
    # The checkpoints say it too, where they are still there.
    lost = not known and not any((place / CHECKPOINTS).glob("*"))
    if lost and (place / RESULTS).exists():
        raise ValueError(
            f"{place}: {CONFIG} is gone, and nothing says which run the results are "
            "of; give another --workdir"
        )
    return known and (place / SUMMARY).exists()


def is_trained(path: str | os.PathLike[str], config: Config) -> bool:
    """Whether the folder holds the results of this very run; raises likewise."""
    check_same_run(Path(path), config)
    known = (Path(path) / CONFIG).exists()
    return known and (Path(path) / RESULTS).exists()


def check_same_run(path: Path, config: Config) -> None:
    """Raises if the folder holds a run of another configuration.

    Raises:
      ValueError: naming the first field that differs.
    """
    if not (path / CONFIG).exists():
        return
    known = made_by_of(path)
    there = {name: known.get(name) for name in (CONTENTS, TEXT)}
    check_same(path, named_fields(read_config(path)) | there, identity_of(config))


def check_same_text(path: Path, config: Config) -> None:
    """Raises if the text that a run has read is another now.

    Raises:
      ValueError: one line.
    """
    there, here = made_by_of(path).get(TEXT), text_digest(config)
    if None not in (there, here) and there != here:
        raise ValueError(
            f"{path}: {TEXT} ({config.data.name}) are others than those that it was "
            "trained on"
        )


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises if two identities differ, see `identity_of`.

    Raises:
      ValueError: naming the first field that differs.
    """
    found = difference(old, new)
    if found:
        raise ValueError(f"{path} holds another run: {found}; give another --workdir")


def check_no_run(path: Path) -> None:
    """Raises if a folder for many runs is that of a single one.

    Raises:
      ValueError: naming the folder.
    """
    if (path / CONFIG).exists() or (path / WRITTEN).exists():
        raise ValueError(
            f"{path} is the folder of a single run, whose report would be lost; give "
            "another one"
        )


def outputs(path: Path) -> list[str]:
    """The files right in a folder that what this process prints goes to.

    A shell opens them before there is a run: by ``> DIR/log.txt``, or an empty one at
    the other end of a pipe, as of ``| tee DIR/log.txt``.
    """
    try:
        ours = [os.fstat(number) for number in _STREAMS]
    except OSError:  # closed
        return []
    piped = any(stat.S_ISFIFO(one.st_mode) for one in ours)
    return [
        inside.name
        for inside in (path.iterdir() if path.is_dir() else ())
        if inside.is_file()
        and (
            any(os.path.samestat(inside.stat(), one) for one in ours)
            or (piped and not inside.stat().st_size)
        )
    ]


def check_ours(path: Path, beside: Collection[str] = ()) -> None:
    """Raises if the folder has files, and they are not a run's.

    Raises:
      ValueError: naming one of them.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is no folder; give another --workdir")
    if (path / WRITTEN).exists() or (
        (path / SUMMARY).exists() and (path / CONFIG).exists()
    ):
        return
    for inside in sorted(path.rglob("*")) if path.is_dir() else ():
        if inside.is_dir() or str(inside.relative_to(path)) in (LOCK, *beside):
            continue
        raise ValueError(
            f"{path} is not empty, and no run wrote what is in it "
            f"({inside.relative_to(path)}); give another --workdir"
        )


def made_by_of(path: Path) -> dict[str, Any]:
    """Who made the run in a folder; empty if it says nothing."""
    return read_object(path / MADE_BY) if (path / MADE_BY).exists() else {}
