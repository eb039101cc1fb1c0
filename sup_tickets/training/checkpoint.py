"""Checkpoints of whole runs, by Orbax: written whole, checked when read.

A checkpoint holds a `RunState`, its masks packed to one bit a weight, and notes that
the caller wants back with it. The newest two are kept, and the best besides. Last of
all the checksums of its files are written: what was killed in between, and files that
were cut, lost or altered since, are noticed and said; such a checkpoint is set aside,
and the one before it is taken.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sup_tickets.masks import pack, unpack
from sup_tickets.training.state import RunState

_KEPT = 2  # the newest, and the one to go back to
_CHECKSUMS = "checksums.json"


class BrokenCheckpoints(ValueError):
    """There are checkpoints, and none of them can be read."""


class Restored(NamedTuple):
    """A checkpoint that was read."""

    step: int
    state: RunState
    notes: dict[str, Any]
    broken: tuple[str, ...]  # newer ones that could not be read, one line each


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the folder; what a killed process left unfinished is removed.

        Args:
          path: of the folder, made if it is not there.
        """
        self._path = Path(path).absolute()
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics["accuracy"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        latest = checkpoint_managers.LatestN(_KEPT)
        policy = checkpoint_managers.AnyPreservationPolicy([latest, best])
        # Not in the background: an error comes at once, and a step that has returned
        # is safe.
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self._path, options=self._options)
        self._pack = jax.jit(_packed)

    def save(
        self, state: RunState, notes: dict[str, Any], *, accuracy: float | None = None
    ) -> None:
        """Writes a checkpoint, whole or not at all, unless there is one of this step.

        Args:
          state: any time between two steps.
          notes: whatever JSON can hold.
          accuracy: by which the best is known.

        Raises:
          OSError: if it cannot be written; those before are untouched.
        """
        step = int(state.train.step)
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(self._pack(state)),
                    notes=ocp.args.JsonSave(notes),
                ),
                metrics=None if accuracy is None else {"accuracy": accuracy},
                force=True,
            )
            if jax.process_index() == 0:
                _write_checksums(self._path / str(step))
        except Exception as error:  # Tensorstore's errors are of many types.
            shutil.rmtree(self._path / str(step), ignore_errors=True)
            sealed = [s for s in self._manager.all_steps() if self._is_sealed(s)]
            raise OSError(
                f"{self._path}: the checkpoint of step {step} could not be written "
                f"({_one_line(error)}); the last good one is of step "
                f"{max(sealed, default=None)}"
            ) from error

    def restore(
        self, like: Callable[[int], RunState], sharding: jax.sharding.Sharding
    ) -> Restored | None:
        """The newest checkpoint that can be read, or ``None`` if there are none.

        Args:
          like: from completed steps to a state of shapes (`jax.eval_shape`).
          sharding: of every array.

        Raises:
          BrokenCheckpoints: if there are some and all are broken; nothing is removed.
        """
        broken: list[str] = []
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not any(map(self._is_sealed, steps)):  # killed while the first was written
            self._set_aside(steps)
            return None
        for step in steps:
            try:
                state, notes = self._read(step, like(step), sharding)
            except Exception as error:  # Whatever broken bytes lead to.
                broken.append(f"step {step}: {_one_line(error)}")
            else:
                self._set_aside([s for s in steps if s > step])
                return Restored(step, state, notes, tuple(broken))
        if broken:
            raise BrokenCheckpoints(
                f"{self._path}: no checkpoint can be read ({'; '.join(broken)}); "
                "remove that folder to start from the beginning"
            )
        return None

    def close(self) -> None:
        """Ends the threads of the manager."""
        self._manager.close()

    def _is_sealed(self, step: int) -> bool:
        return (self._path / str(step) / _CHECKSUMS).exists()

    def _read(
        self, step: int, like: RunState, sharding: jax.sharding.Sharding
    ) -> tuple[RunState, dict[str, Any]]:
        _check_files(self._path / str(step))
        shapes = jax.eval_shape(_packed, like)
        target = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes
        )
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), notes=ocp.args.JsonRestore()
            ),
        )
        if int(read.state.train.step) != step:
            raise ValueError(f"it is of step {int(read.state.train.step)}")
        unpacked = jax.jit(_unpacked, out_shardings=sharding)(read.state)
        return unpacked, read.notes

    def _set_aside(self, steps: list[int]) -> None:
        """Renames broken checkpoints, so that their steps can be written again."""
        if not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                folder = self._path / str(step)
                number = len(list(self._path.parent.glob(f"broken-{step}-*")))
                folder.rename(self._path.parent / f"broken-{step}-{number}")
        self._manager = ocp.CheckpointManager(self._path, options=self._options)


def _packed(state: RunState) -> RunState:
    return _with_masks(state, pack)


def _unpacked(state: RunState) -> RunState:
    return _with_masks(state, lambda masks: unpack(masks, state.train.params))


def _with_masks(state: RunState, change: Callable[[Any], Any]) -> RunState:
    """The masks of the average are packed all the time."""
    method = state.train.method
    ever = method.ever_active
    method = method._replace(
        masks=change(method.masks), ever_active=None if ever is None else change(ever)
    )
    return state.replace(train=state.train.replace(method=method))


def _write_checksums(folder: Path) -> None:
    temporary = folder / f".{_CHECKSUMS}"
    temporary.write_text(json.dumps(_checksums(folder)))
    temporary.replace(folder / _CHECKSUMS)


def _check_files(folder: Path) -> None:
    """Raises unless the files of a checkpoint are those that were written."""
    try:
        wanted = json.loads((folder / _CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{_CHECKSUMS} is missing or broken") from error
    found = _checksums(folder)
    for name in wanted:
        if found.get(name) != wanted[name]:
            state = "missing" if name not in found else "not as it was written"
            raise ValueError(f"its file {name} is {state}")


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): zlib.crc32(path.read_bytes())
        for path in files
        if path.name not in (_CHECKSUMS, f".{_CHECKSUMS}")
    }


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
