"""Phases of an experiment that is no single run: each one file, gone on with in it.

A phase is a number of steps, each a function of what was before it and of its index. So
whatever stops it, the rest is bit by bit what it would have been.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save

from experiments.runs.layout import read_object
from experiments.runs.made_by import command
from experiments.runs.stopping import Signals
from sup_tickets.files import atomic_write
from sup_tickets.training.processes import say
from sup_tickets.training.sealed_files import check_intact, parse, sealed, write

_TIMES = "seconds.json"

Notes = dict[str, Any]
"""What a phase tells, JSON."""

Step = Callable[[Any, Notes, int], tuple[Any, Notes]]
"""``(state, notes, index) -> (state, notes)``; neither is changed in place."""


class Phases(NamedTuple):
    """Where phases are kept, and when they are saved."""

    folder: Path
    signals: Signals
    every_seconds: float  # 0: not by the clock
    every_steps: int  # 0: not by steps

    def run(
        self, name: str, begin: Callable[[], Any], total: int, step: Step
    ) -> tuple[Any, Notes]:
        """The state and the notes after all steps of a phase.

        Args:
          name: of the phase, which is that of its file.
          begin: the state before the first step, a pytree of arrays.
          total: how many steps.
          step: one of them.

        Raises:
          Stopped: after a signal, once the phase is saved.
        """
        path = self.folder / f"{name}.safetensors"
        # Where a phase goes on its beginning is made all the same, for its structure:
        # it is what earlier phases gave.
        state, notes, done = begin(), {}, 0
        if path.exists():
            state, notes, done = _read(path, state)
            if done < total:
                say(f"{path}: going on after {done} of {total} steps")
        saved, saved_at = done, time.monotonic()
        began = saved_at - self._times().get(name, 0.0)
        while done < total:
            state, notes = step(state, notes, done)
            done += 1
            late = 0 < self.every_seconds <= time.monotonic() - saved_at
            due = 0 < self.every_steps <= done - saved
            if done == total or late or due or self.signals.received:
                saved, saved_at = done, time.monotonic()
                _write(path, state, notes, done)
                times = self._times() | {name: saved_at - began}
                atomic_write(self.folder.parent / _TIMES, json.dumps(times))
            self.signals.check(
                f"{self.folder.parent}: stopped after {done} of {total} steps of "
                f"{name!r}, all saved; the same command goes on: {command()}"
            )
        return state, notes

    def seconds(self) -> float:
        """How long the steps of all phases took, those of earlier processes too."""
        return sum(self._times().values())

    def _times(self) -> dict[str, float]:
        """By phase; beside what is computed, which is the same at any speed."""
        path = self.folder.parent / _TIMES
        return read_object(path) if path.exists() else {}


def _write(path: Path, state: Any, notes: Notes, done: int) -> None:
    leaves = jax.device_get(jax.tree.leaves(state))
    arrays = {f"{i:05}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    about = json.dumps({"done": done, "notes": notes})
    write(path, sealed(save(arrays, {"provenance": about})))


def _read(path: Path, like: Any) -> tuple[Any, Notes, int]:
    """Raises ValueError, naming the file, if it is not what was written."""
    arrays, metadata, intact = parse(path, path.read_bytes())
    check_intact(path, intact)
    leaves, structure = jax.tree.flatten(like)
    found = [arrays[name] for name in sorted(arrays)]
    shapes = [(leaf.shape, leaf.dtype) for leaf in found]
    if shapes != [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves]:
        raise ValueError(
            f"{path} holds arrays of other shapes; remove it to begin anew"
        )
    about = json.loads(metadata["provenance"])
    return jax.tree.unflatten(structure, found), about["notes"], about["done"]
