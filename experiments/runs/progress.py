"""Prints how a run gets on, and writes it down."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.runs.board import Board
from experiments.runs.folder import RunFolder
from experiments.runs.layout import LAST, LOG, epoch_file, ticket_file
from experiments.runs.lines import Lines
from experiments.runs.pace import Pace, span
from sup_tickets.masks import layer_table
from sup_tickets.training.plan import Plan
from sup_tickets.training.processes import say
from sup_tickets.training.state import Network
from sup_tickets.training.steps import Turnover
from sup_tickets.training.task import Metrics, Task
from sup_tickets.types import Schedule

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Listens to a run, see `sup_tickets.training.loop.Callbacks`."""

    def __init__(
        self,
        run: str,
        plan: Plan,
        folder: RunFolder,
        evaluate: Callable[[Network], Metrics],
        *,
        task: Task,
        learning_rate: Schedule,
        line_steps: int = 50,
        notes: dict[str, Any] | None = None,
        step: int = 0,
        label: str = "",
    ):
        """A listener.

        Args:
          run: what this training is called in files.
          plan: of the run.
          folder: to write to.
          evaluate: the metrics for the table.
          task: of the networks, which says how good their metrics are.
          learning_rate: schedule, to be written down.
          line_steps: steps whose mean loss is one line of the log.
          notes: of the checkpoint that the run goes on from.
          step: at which it goes on.
          label: in front of its lines on the screen.
        """
        self.run, self._plan, self._folder = run, plan, folder
        self._label = f"{label}: {run}" if label else run
        self._evaluate, self._task, self._rate = evaluate, task, learning_rate
        self._validation, self._printed = "", 0.0
        self._pace = Pace()
        self._begun = time.perf_counter()
        notes = notes or {}
        self._seconds_before: float = notes.get("seconds", 0.0)
        self.rank: float | None = notes.get("rank")  # by the last validation
        self.validated_step = -1
        self.rows: list[dict[str, Any]] = notes.get("rows", [])
        self.layers: dict[str, list[dict[str, Any]]] = notes.get("layers", {})
        # Of the topology, with the active weights of each layer where those changed.
        self.changes: list[dict[str, Any]] = notes.get("changes", [])
        known = [change["layers"] for change in self.changes if "layers" in change]
        self._counts: list[int] | None = known[-1] if known else None
        if not folder.forget_after(notes.get("logged_bytes", 0)):
            say(
                f"{folder.path}: lines of {LOG} are gone; the report will lack them, "
                "and nothing else"
            )
        self._board = Board(folder, step=step)
        self._lines = Lines(self._write, line_steps, step, notes.get("lines", {}))

    def notes(self) -> dict[str, Any]:
        """What a run needs to go on as if it had not been stopped."""
        self._try(self._board.flush)
        return {
            "identity": self._folder.identity,
            "changes": self.changes,
            "lines": self._lines.notes(),
            "seconds": self.seconds,
            "rank": self.rank,
            "rows": self.rows,
            "layers": self.layers,
            "logged_bytes": self._folder.logged_bytes(),
        }

    @property
    def seconds(self) -> float:
        """Spent on the run, by all processes that went on with it."""
        return self._seconds_before + time.perf_counter() - self._begun

    def close(self) -> None:
        """Writes out what is buffered, as far as that is possible."""
        with contextlib.suppress(OSError):  # the disk is full, which was said
            self._lines.flush()
        self._board.close()

    def reported(
        self, phase: str, steps: Sequence[int], report: Mapping[str, np.ndarray]
    ) -> None:
        """Writes down the means; prints a line now and then."""
        means = {name: float(np.mean(values)) for name, values in report.items()}
        done, loss = steps[-1] + 1, means["loss"]
        self._lines.reports(phase, steps, report)
        now = time.perf_counter()
        self._pace.add(done, now)
        at_end = done == self._plan.total_steps
        if now - self._printed >= _SECONDS_BETWEEN_LINES or at_end:
            self._printed = now
            say(self._line(phase, done, loss))

    def validated(
        self, phase: str, step: int, metrics: Metrics, network: Network
    ) -> None:
        """Writes down the metrics of the live network."""
        del network
        self.rank, self.validated_step = self._task.rank(metrics), step
        self._validation = f", validation {self._task.leading(metrics)}"
        self._lines.flush()
        self._log("validation", phase, step, **metrics)

    def changed(
        self, kind: str, step: int, network: Network, turnover: Turnover
    ) -> None:
        """Writes down how much of the topology changed."""
        shares = {}
        if size := int(turnover.size):  # of what is stored, which a view may narrow
            shares["overlap"] = int(turnover.kept) / int(turnover.active)
            shares["ever_active"] = int(turnover.ever_active) / size
        self._topology(kind, step, network, **shares)

    def began(self, network: Network, step: int) -> None:
        """Writes down what training starts with, after steps of another run or none."""
        self._topology("start", step, network)

    def _topology(
        self, event: str, step: int, network: Network, **shares: float
    ) -> None:
        *layers, total = layer_table(network.masks)
        counts = [layer.active for layer in layers]
        change = {"event": event, "step": step}
        if counts != self._counts:
            change["layers"] = self._counts = counts
        self.changes.append(change)
        phase = self._plan.phase_of(step)
        self._log(event, phase, step, active=total.active, **shares, layers=counts)

    def collected(self, name: str, step: int, network: Network) -> None:
        """Adds a row to the table, and keeps the network."""
        if not self._plan.collections:
            name = LAST
        else:
            self._folder.save_network(ticket_file(name), network)
        self.add_row(name, step, network)

    def kept(self, step: int, network: Network) -> None:
        """Keeps the network, with how far it was trained."""
        epoch = step // self._plan.epoch_steps
        self._folder.save_network(epoch_file(epoch), network, step=step)

    def add_row(self, name: str, step: int, network: Network) -> None:
        """Evaluates a network for the table."""
        metrics = self._evaluate(network)
        *layers, total = layer_table(network.masks)
        row = {
            "network": name,
            **metrics,
            "active": total.active,
            "total": total.size,
        }
        self.rows.append(row)
        self.layers[name] = [
            {"layer": layer.name, "active": layer.active, "size": layer.size}
            for layer in layers
        ]
        self._lines.flush()
        self._log("network", self._plan.phase_of(step - 1), step, **row)

    def _log(self, event: str, phase: str, step: int, **values: Any) -> None:
        self._lines.event({"event": event, "phase": phase, "step": step, **values})

    def _write(self, event: dict[str, Any]) -> None:
        kind, step = event["event"], event["step"]
        if kind == "loss":
            event["learning_rate"] = float(self._rate(step - 1))
        self._folder.log({"run": self.run, **event})
        for name, value in event.items():
            if isinstance(value, float):
                self._try(self._board.add, f"{kind}/{name}", value, step)

    def _try(self, action: Callable[..., Any], *values: Any) -> None:
        try:
            action(*values)
        except OSError as error:
            self._folder.fail(error)

    def _line(self, phase: str, done: int, loss: float) -> str:
        rate = "compiling"
        if per_second := self._pace.steps_per_second:
            left = (self._plan.total_steps - done) / per_second
            rate = f"{per_second:.3g} steps/s, {span(left)} left"
        epochs = self._plan.total_steps // self._plan.epoch_steps
        epoch = -(-done // self._plan.epoch_steps)
        return (
            f"{self._label}: {phase}, epoch {epoch}/{epochs}, step {done}, {rate}, "
            f"loss {loss:.4f}{self._validation}"
        )
