"""Prints how a run gets on, and writes it down."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.run_folder import RunFolder
from sup_tickets.masks import layer_table
from sup_tickets.training.evaluation import Scores
from sup_tickets.training.plan import Plan
from sup_tickets.training.state import Network

_SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """Prints a line at once, also where the output is a file."""
    print(text, file=sys.stdout, flush=True)


class Progress:
    """Listens to a run, see `sup_tickets.training.loop.Listener`."""

    def __init__(
        self,
        run: str,
        plan: Plan,
        folder: RunFolder,
        evaluate: Callable[[Network], Scores],
        *,
        is_main: bool,
    ):
        """A listener.

        Args:
          run: what this training is called in files.
          plan: of the run.
          folder: to write to.
          evaluate: the scores for the table.
          is_main: whether phase 1 and each ticket have a row of their own.
        """
        self._run, self._plan, self._folder = run, plan, folder
        self._evaluate, self._is_main = evaluate, is_main
        self._validation, self._printed = "", 0.0
        self._rated: tuple[int, float] | None = None  # after the first compilations
        self.rows: list[dict[str, Any]] = []
        self.layers: dict[str, list[dict[str, Any]]] = {}

    def losses(self, phase: str, steps: Sequence[int], losses: np.ndarray) -> None:
        """Writes them down; prints a line now and then."""
        for step, loss in zip(steps, losses, strict=True):
            self._log("loss", phase, step, loss=float(loss))
        now = time.perf_counter()
        done = steps[-1] + 1
        if self._rated is None:
            self._rated = (done, now)
        at_end = done == self._plan.total_steps
        if now - self._printed >= _SECONDS_BETWEEN_LINES or at_end:
            self._printed = now
            say(self._line(phase, done, now, float(np.mean(losses))))

    def validated(self, phase: str, step: int, scores: Scores, net: Network) -> None:
        """Keeps the network as the last good one."""
        self._validation = f", validation {100 * scores.accuracy:.1f}%"
        self._log("validation", phase, step, accuracy=scores.accuracy, nll=scores.nll)
        self._folder.save_network("last_good", net)

    def changed(self, kind: str, step: int, network: Network) -> None:
        """Writes it down."""
        self._log(kind, self._plan.phase_of(step), step)

    def collected(self, name: str, step: int, network: Network) -> None:
        """Adds a row to the table."""
        if self._is_main:
            self.add_row(name, network)

    def add_row(self, name: str, network: Network) -> dict[str, Any]:
        """Evaluates a network for the table."""
        scores = self._evaluate(network)
        *layers, total = layer_table(network.masks)
        row = {
            "network": name,
            "accuracy": scores.accuracy,
            "nll": scores.nll,
            "examples": scores.examples,
            "active": total.active,
            "total": total.size,
        }
        self.rows.append(row)
        self.layers[name] = [
            {"layer": layer.name, "active": layer.active, "size": layer.size}
            for layer in layers
        ]
        self._folder.log({"run": self._run, "event": "network", **row})
        return row

    def _log(self, event: str, phase: str, step: int, **values: Any) -> None:
        place = {"run": self._run, "event": event, "phase": phase, "step": step}
        self._folder.log({**place, **values})

    def _line(self, phase: str, done: int, now: float, loss: float) -> str:
        assert self._rated is not None
        first, since = self._rated
        rate, left = "compiling", ""
        if done > first:
            per_second = (done - first) / (now - since)
            seconds = (self._plan.total_steps - done) / per_second
            rate, left = f"{per_second:.0f} steps/s", f", {seconds:.0f} s left"
        epochs = self._plan.total_steps // self._plan.epoch_steps
        epoch = -(-done // self._plan.epoch_steps)
        return (
            f"{self._run}: {phase}, epoch {epoch}/{epochs}, step {done}, {rate}{left}, "
            f"loss {loss:.4f}{self._validation}"
        )
