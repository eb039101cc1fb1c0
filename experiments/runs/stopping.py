"""How a run is asked to stop, and when it saves: signals, the clock, steps."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from experiments.config.fields import Config
from experiments.runs.folder import RunFolder
from experiments.runs.layout import CHECKPOINTS
from experiments.runs.progress import Progress
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.processes import gather
from sup_tickets.training.state import RunState

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGREE_EVERY = 20  # steps between looks at the signals of other processes


class Stopped(Exception):
    """The run was asked to stop by a signal; what it did is kept."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        # As a shell reports a signal; another process may be the one that had it.
        self.exit_code = 128 + (number or signal.SIGTERM)


class Signals:
    """Remembers the first signal; a second one ends the program at once."""

    def __init__(self):
        self.received = 0
        self._before: dict[int, Any] = {}

    @contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Catches SIGTERM and SIGINT; elsewhere than in the main thread, none.

        Raises:
          Stopped: instead of an error after a signal, so that nothing else is begun: a
            signal to the whole group ends what the program waits for, a compiler for
            example.
        """
        try:
            self._before = {s: signal.signal(s, self._remember) for s in _SIGNALS}
        except ValueError:  # not the main thread
            self._before = {}
        try:
            yield self
        except Stopped:
            raise
        except Exception as error:
            if not self.received:
                raise
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            text = (
                f"stopped, by an error after the signal; what was saved is kept: {what}"
            )
            raise Stopped(text, self.received) from error
        finally:
            self._restore()

    def _remember(self, number: int, frame: Any) -> None:
        del frame
        name = signal.Signals(number).name
        # Not through a stream, which may be in the middle of a line.
        if self.received:
            os.write(2, f"{name} again: stopped; what was saved is kept\n".encode())
            os._exit(128 + number)
        self.received = number
        os.write(2, f"{name}: saving, then stopping; again to stop at once\n".encode())

    def check(self, text: str) -> None:
        """Raises after a signal to any process; all must come here.

        Args:
          text: what is safe already, and how to go on.

        Raises:
          Stopped: with the text.
        """
        received = max(gather(self.received))
        if received:
            raise Stopped(text, received)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class RunCheckpointer:
    """Saves by the clock and by steps; see `sup_tickets.training.loop.Checkpointer`."""

    def __init__(
        self,
        config: Config,
        checkpoints: Checkpoints,
        progress: Progress,
        signals: Signals,
        folder: RunFolder,
        *,
        step: int,
    ):
        """A checkpointer.

        Args:
          config: its section ``checkpoint`` says when.
          checkpoints: where to.
          progress: whose notes go with a checkpoint.
          signals: that ask to stop.
          folder: of the run.
          step: at which the run goes on.
        """
        self._every_steps = config.checkpoint.every_steps
        self._every_seconds = 60 * config.checkpoint.every_minutes
        self._checkpoints, self._progress = checkpoints, progress
        self._signals, self._folder, self._step = signals, folder, step
        self._asked = step // _AGREE_EVERY
        self._time = time.monotonic()

    def due(self, step: int) -> bool:
        """By steps; by the clock too where there is one process."""
        if self._every_steps and step - self._step >= self._every_steps:
            return True
        # Processes must agree, and their clocks do not.
        alone = jax.process_count() == 1
        late = time.monotonic() - self._time >= self._every_seconds
        return bool(alone and self._every_seconds and late)

    def stopping(self, step: int) -> bool:
        """After a signal; several processes ask each other now and then."""
        received = self._signals.received
        if jax.process_count() == 1:
            return received != 0
        if step // _AGREE_EVERY == self._asked:
            return False
        self._asked = step // _AGREE_EVERY
        return max(self._folder.agree(received)) != 0

    def save(self, state: RunState) -> None:
        """Writes a checkpoint."""
        step, progress = int(state.train.step), self._progress
        # The best is known by the validation of this very network.
        rank = progress.rank if progress.validated_step == step else None
        notes = progress.notes()
        self._folder.agree()
        self._checkpoints.save(state, notes, rank=rank)
        self._folder.record(CHECKPOINTS)
        self._step, self._time = step, time.monotonic()
