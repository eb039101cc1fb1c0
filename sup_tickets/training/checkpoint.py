"""Checkpoints of whole runs, by Orbax: written whole, checked when read.

A checkpoint holds a `RunState`, its masks packed to one bit a weight, and notes that
the caller wants back with it. The newest two are kept, and the best besides, and those
of steps that others may start from. Last of all the checksums of its files are written,
once the files are on the disk: what was killed in between, and files that were cut,
lost or altered since, are noticed and said; such a checkpoint is set aside, and the one
before it is taken.

Of several processes the first alone reads and writes; the others get the state from
its memory, and its errors.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from sup_tickets.training.checkpoint_files import check_files, is_sealed, seal
from sup_tickets.training.orbax_manager import in_silence, one_line, open_manager
from sup_tickets.training.packed_state import pack_state, packed_shapes, unpack_state
from sup_tickets.training.processes import on_first, share
from sup_tickets.training.state import RunState

_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")


Placing = jax.sharding.Sharding | Callable[[RunState], Any]
"""Where the arrays of a state go: all alike, or to the shardings for its shapes."""


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

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: Sequence[int] = (),
        read_only: bool = False,
    ):
        """Opens the folder; what a killed process left unfinished is removed.

        Args:
          path: of the folder, made if it is not there.
          keep: completed steps whose checkpoints stay.
          read_only: whether it is another run's, of which nothing is changed; for `at`.

        Raises:
          OSError: if it cannot be made.
        """
        self._path, self._keep = Path(path).absolute(), tuple(keep)
        self._read_only = read_only
        self._manager: Any = None  # of the first process
        self._read: Any = None  # a state, until it is handed out
        on_first(self._open)

    def save(
        self, state: RunState, notes: dict[str, Any], *, rank: float | None = None
    ) -> None:
        """Writes a checkpoint, whole or not at all, unless there is one of this step.

        Args:
          state: any time between two steps.
          notes: whatever JSON can hold.
          rank: of its network, by which the best is known: the highest.

        Raises:
          OSError: if it cannot be written; those before are untouched.
        """
        step, packed = int(state.train.step), pack_state(state)
        on_first(lambda: self._save(step, packed, notes, rank))

    def restore(
        self,
        like: Callable[[int], RunState],
        sharding: Placing,
        *,
        saved: bool = False,
        check: Callable[[dict[str, Any]], Any] = lambda notes: None,
    ) -> Restored | None:
        """The newest checkpoint that can be read, or ``None`` if there are none.

        Args:
          like: from completed steps to a state of shapes (`jax.eval_shape`).
          sharding: of every array, or the function from such a state to shardings.
          saved: whether it is known that one was written whole, some time ago.
          check: raises if the notes of a whole checkpoint are not those of this run;
            called before its arrays are looked at.

        Raises:
          BrokenCheckpoints: if there were some and none can be read; nothing is
            removed.
        """
        found = on_first(lambda: self._newest(like, saved, check))
        if found is None:
            return None
        step, notes, broken = found
        return Restored(step, self._handed(like(step), sharding), notes, tuple(broken))

    def at(self, step: int, like: RunState, sharding: Placing) -> Restored:
        """The checkpoint of a step.

        Args:
          step: completed steps.
          like: the state in it as shapes.
          sharding: as of `restore`.

        Raises:
          ValueError: if it is not there or cannot be read, naming the folder.
        """

        def read() -> dict[str, Any]:
            folder = self._path / str(step)
            try:
                check_files(folder)
                self._read = self._arrays(step, like)
                return self._restored(step, notes=ocp.args.JsonRestore()).notes
            except Exception as error:  # Whatever broken bytes lead to.
                raise ValueError(
                    f"{folder} cannot be read: {one_line(error)}"
                ) from error

        notes = on_first(read)
        return Restored(step, self._handed(like, sharding), notes, ())

    def _handed(self, shapes: RunState, sharding: Placing) -> RunState:
        """What the first process read, on the devices of all."""
        packed = share(self._read, packed_shapes(shapes))
        self._read = None
        shardings = sharding(shapes) if callable(sharding) else sharding
        return unpack_state(packed, shapes, shardings)

    def close(self) -> None:
        """Ends the threads of the manager."""
        if self._manager is not None:
            self._manager.close()

    # --- The first process ------------------------------------------------------------

    def _open(self) -> None:
        if not self._read_only:
            self._path.mkdir(parents=True, exist_ok=True)
            for folder in self._path.iterdir():
                if _UNFINISHED.fullmatch(folder.name) and folder.is_dir():
                    shutil.rmtree(folder)
        self._manager = open_manager(self._path, self._keep, read_only=self._read_only)

    def _save(
        self, step: int, packed: Any, notes: dict[str, Any], rank: float | None
    ) -> None:
        if step in self._manager.all_steps():
            return
        try:
            with in_silence():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(packed),
                        notes=ocp.args.JsonSave(notes),
                    ),
                    metrics=None if rank is None else {"rank": rank},
                    force=True,
                )
            seal(self._path / str(step))
        except Exception as error:  # Tensorstore's errors are of many types.
            shutil.rmtree(self._path / str(step), ignore_errors=True)
            sealed = [s for s in self._manager.all_steps() if self._is_sealed(s)]
            raise OSError(
                f"{self._path}: the checkpoint of step {step} could not be written "
                f"({one_line(error)}); the last good one is of step "
                f"{max(sealed, default=None)}"
            ) from error

    def _newest(
        self, like: Callable[[int], RunState], saved: bool, check: Callable[[Any], Any]
    ) -> tuple[int, dict[str, Any], list[str]] | None:
        broken: list[str] = []
        steps = sorted(self._manager.all_steps(), reverse=True)
        # A process was killed while it wrote the first, at most.
        if not saved and len(steps) < 2 and not any(map(self._is_sealed, steps)):
            self._set_aside(steps)
            return None
        for step in steps:
            try:
                check_files(self._path / str(step))
                notes = self._restored(step, notes=ocp.args.JsonRestore()).notes
            except Exception as error:  # Whatever broken bytes lead to.
                broken.append(f"step {step}: {one_line(error)}")
                continue
            check(notes)
            try:
                self._read = self._arrays(step, like(step))
            except Exception as error:
                broken.append(f"step {step}: {one_line(error)}")
            else:
                self._set_aside([s for s in steps if s > step])
                return step, notes, broken
        what = "; ".join(broken) or "all that were saved are gone"
        raise BrokenCheckpoints(
            f"{self._path}: no checkpoint can be read ({what}); remove the whole run "
            "to start from the beginning, or give another folder"
        )

    def _is_sealed(self, step: int) -> bool:
        return is_sealed(self._path / str(step))

    def _restored(self, step: int, **args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _arrays(self, step: int, like: RunState) -> Any:
        target = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), packed_shapes(like))
        read = self._restored(step, state=ocp.args.StandardRestore(target)).state
        if int(read.train.step) != step:
            raise ValueError(f"it is of step {int(read.train.step)}")
        return read

    def _set_aside(self, steps: list[int]) -> None:
        """Renames broken checkpoints, so that their steps can be written again."""
        if not steps:
            return
        self._manager.close()
        for step in steps:
            folder = self._path / str(step)
            number = len(list(self._path.parent.glob(f"broken-{step}-*")))
            folder.rename(self._path.parent / f"broken-{step}-{number}")
        self._open()
