"""Which lines the log has, whenever the reports come in and wherever the run stopped.

Reports are fetched from the device now and then, and at every checkpoint. The lines
must not depend on that: a mean is over a fixed number of steps since the line before
it, and an event comes before the reports of the steps that follow it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


class Lines:
    """Puts reports and events in the order of their steps."""

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
          step: steps whose reports have come in already.
          notes: of `notes`, when the run stopped.
        """
        self._write, self._line_steps, self._done = write, line_steps, step
        self._phase: str = notes.get("phase", "")
        # float32, which JSON keeps.
        self._values: dict[str, list[float]] = dict(notes.get("values", {}))
        self._events: list[dict[str, Any]] = list(notes.get("events", []))

    def notes(self) -> dict[str, Any]:
        """What has come in and is not written yet."""
        return {"phase": self._phase, "values": self._values, "events": self._events}

    def reports(
        self, phase: str, steps: Sequence[int], report: Mapping[str, np.ndarray]
    ) -> None:
        """Takes the reports of the steps that follow; "loss" is among them."""
        for i, step in enumerate(steps):
            self._write_events(step)
            if self._values and phase != self._phase:
                self.flush()
            self._phase, self._done = phase, step + 1
            for name, values in report.items():
                self._values.setdefault(name, []).append(float(values[i]))
            if len(self._values["loss"]) >= self._line_steps:
                self.flush()
        self._write_events(self._done)

    def event(self, event: dict[str, Any]) -> None:
        """Takes an event after so many steps, "step", in their order."""
        self._events.append(event)
        self._write_events(self._done)

    def flush(self) -> None:
        """Ends a line here: the means of the reports since the one before."""
        if not self._values:
            return
        means = {
            name: float(np.mean(np.array(values, np.float32)))
            for name, values in self._values.items()
        }
        self._values = {}
        place = {"event": "loss", "phase": self._phase, "step": self._done}
        self._write({**place, **means})

    def _write_events(self, step: int) -> None:
        while self._events and self._events[0]["step"] <= step:
            self._write(self._events.pop(0))
