"""Which lines the log has, whenever the losses come in and wherever the run stopped.

Losses are fetched from the device now and then, and at every checkpoint. The lines must
not depend on that: a mean is over a fixed number of steps since the line before it, and
an event comes before the losses of the steps that follow it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


class Lines:
    """Puts losses and events in the order of their steps."""

    def __init__(
        self,
        write: Callable[[dict[str, Any]], Any],
        line_steps: int,
        step: int,
        notes: Mapping[str, Any],
    ):
        """Lines.

        Args:
          write: of one event, "loss" ones with the mean.
          line_steps: steps of a mean.
          step: steps whose losses have come in already.
          notes: of `notes`, when the run stopped.
        """
        self._write, self._line_steps, self._done = write, line_steps, step
        self._phase: str = notes.get("phase", "")
        # float32, which JSON keeps.
        self._losses: list[float] = list(notes.get("losses", []))
        self._events: list[dict[str, Any]] = list(notes.get("events", []))

    def notes(self) -> dict[str, Any]:
        """What has come in and is not written yet."""
        return {"phase": self._phase, "losses": self._losses, "events": self._events}

    def losses(self, phase: str, steps: Sequence[int], losses: np.ndarray) -> None:
        """Takes the losses of the steps that follow."""
        for step, loss in zip(steps, losses, strict=True):
            self._write_events(step)
            if self._losses and phase != self._phase:
                self.flush()
            self._phase, self._done = phase, step + 1
            self._losses.append(float(loss))
            if len(self._losses) >= self._line_steps:
                self.flush()
        self._write_events(self._done)

    def event(self, event: dict[str, Any]) -> None:
        """Takes an event after so many steps, "step", in their order."""
        self._events.append(event)
        self._write_events(self._done)

    def flush(self) -> None:
        """Ends a line here: the mean of the losses since the one before."""
        if not self._losses:
            return
        mean = float(np.mean(np.array(self._losses, np.float32)))
        self._losses = []
        place = {"event": "loss", "phase": self._phase, "step": self._done}
        self._write({**place, "loss": mean})

    def _write_events(self, step: int) -> None:
        while self._events and self._events[0]["step"] <= step:
            self._write(self._events.pop(0))
