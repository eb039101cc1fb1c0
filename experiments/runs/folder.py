"""What a run leaves behind: a folder of files, none of them ever half written.

A run removes only what its own record, ``written.json``, says it wrote, and never
results.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax

from experiments.config.fields import Config
from experiments.runs.events import read_events
from experiments.runs.identity import (
    CONTENTS,
    TEXT,
    identity_of,
)
from experiments.runs.layout import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    LOG,
    MADE_BY,
    RESULTS,
    SUFFIX,
    WRITTEN,
    read_object,
)
from experiments.runs.made_by import changed, made_by, maker
from experiments.runs.ownership import (
    check_ours,
    check_same,
    check_same_run,
    made_by_of,
)
from experiments.runs.written import record, recorded
from sup_tickets.files import atomic_write, leftovers, named, sync_file
from sup_tickets.training.network_files import parse_sparse, save_sparse
from sup_tickets.training.processes import (
    from_first,
    gather,
    is_first,
    on_first,
    on_host,
)
from sup_tickets.training.state import Network

_KEPT = (CONFIG, MADE_BY, RESULTS)  # whatever happens


class RunFolder:
    """The files of one run, held by one process at a time; see `layout`.

    Of several processes, as on a TPU pod, the first alone writes and reads; an error of
    it is raised in all.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Config,
        *,
        beside: Collection[str] = (),
    ):
        """Takes the folder for a configuration.

        Args:
          path: made if it is not there. Another run's folder is refused, and one with
            files that no run wrote.
          config: of the run.
          beside: of `outputs`, at the start: names of files that are in nobody's way.

        Raises:
          ValueError: naming the first field that differs from the run's in the folder,
            a file that is in the way, or saying that another process holds it.
          OSError: if it cannot be written to.
        """
        self.path = Path(path)
        self.writes = is_first()
        self.failure: OSError | None = None  # of the log, until all have learnt of it
        self._config = json.loads(json.dumps(config.to_dict()))
        if source := self._config.get("branch_from"):  # reports are made anywhere
            self._config["branch_from"] = os.path.abspath(source)
        self._provenance = {
            "data": config.data.name,
            "model": config.model.name,
            "method": config.method.name,
            "sparsity": config.method.sparsity,
            "seed": config.seed,
            "masks": config.masks or config.mask.name,
        }
        self._written: list[str] = []
        self.identity, self.begun = on_first(lambda: self._take(config, beside))
        if self.identity[TEXT] is not None:
            self._provenance["text"] = self.identity[TEXT]

    def _take(
        self, config: Config, beside: Collection[str]
    ) -> tuple[dict[str, Any], bool]:
        identity = identity_of(config)
        check_same_run(self.path, config)
        check_ours(self.path, beside)
        begun = (self.path / WRITTEN).exists()
        self._written = recorded(self.path / WRITTEN)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.path)
        for name in self._written:
            for path in leftovers(self.path / name):
                path.unlink()
        if not begun:
            self._write(CONFIG, json.dumps(self._config, indent=2) + "\n")
            contents = {name: identity[name] for name in (CONTENTS, TEXT)}
            contents["sessions"] = []
            self._write(MADE_BY, json.dumps(contents, indent=2) + "\n")
        return identity, begun

    def close(self) -> None:
        """Lets others have the folder."""
        if self.writes:
            self._lock.release()

    # --- What is there ----------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        """The folder of `sup_tickets.training.checkpoint.Checkpoints`."""
        return self.path / CHECKPOINTS

    @property
    def saved(self) -> bool:
        """Whether a checkpoint was ever written whole; known to the first process."""
        return CHECKPOINTS in self._written

    def results(self) -> dict[str, Any]:
        """The results."""
        return on_first(lambda: read_object(self.path / RESULTS))

    def metrics(self) -> list[dict[str, Any]]:
        """All events so far."""
        return read_events(self.path / LOG)

    def load_network(self, name: str) -> Network:
        """Reads what `save_network` wrote."""
        path, read = self.path / f"{name}{SUFFIX}", []
        on_first(lambda: read.append(path.read_bytes()))
        return parse_sparse(path, from_first(b"".join(read)))

    # --- Beginning and going on -------------------------------------------------------

    def check_notes(self, notes: Mapping[str, Any]) -> None:
        """Raises unless a checkpoint is of this very run.

        Raises:
          ValueError: naming the first field that differs.
        """
        if "identity" not in notes:
            raise ValueError(
                f"{self.path}: its checkpoints are of an earlier version; finish the "
                "run with that, or give another --workdir"
            )
        check_same(self.path, notes["identity"], self.identity)

    def start_over(self) -> None:
        """Removes what a run wrote that left no checkpoint to go on from.

        Raises:
          ValueError: if it cannot be known whose run that was.
        """
        on_first(self._start_over)

    def _start_over(self) -> None:
        if not (self.path / CONFIG).exists():
            raise ValueError(
                f"{self.path}: {CONFIG} is gone, and no checkpoint says which run this "
                "was; give another --workdir"
            )
        for name in self._written:
            path = self.path / name
            if name not in _KEPT and path.is_file():
                path.unlink()

    def go_on(self, step: int) -> list[str]:
        """Writes down who trains from a step on.

        Returns:
          In what that differs from who trained last; empty at the beginning.
        """
        return on_first(lambda: self._go_on(step))

    def _go_on(self, step: int) -> list[str]:
        if not (self.path / CONFIG).exists():
            self._write(CONFIG, json.dumps(self._config, indent=2) + "\n")
        known, now = made_by_of(self.path), made_by()
        for name in (CONTENTS, TEXT):
            known.setdefault(name, self.identity[name])
        sessions = known.setdefault("sessions", [])
        last = sessions[-1]["by"] if sessions else now
        sessions.append({"from_step": step, "by": now})
        self._write(MADE_BY, json.dumps(known, indent=2) + "\n")
        return changed(last, now)

    # --- Writing ----------------------------------------------------------------------

    def record(self, name: str) -> None:
        """Writes down, once, that the run writes a file; before it does."""
        if self.writes and name not in self._written:
            self._written.append(name)
            record(self.path / WRITTEN, self._written)

    def write(self, name: str, text: str | bytes) -> None:
        """Writes a file, whole or not at all."""
        on_first(lambda: self._write(name, text))

    def make(self, name: str, write: Callable[[Path], Any]) -> None:
        """Has a file written under another name, then renames it."""
        on_first(lambda: self._write(name, write))

    def _write(self, name: str, content: Any) -> None:
        self.record(name)
        atomic_write(self.path / name, content)

    def save_network(self, name: str, network: Network, **origin: Any) -> None:
        """Writes ``NAME.safetensors``, a compressed sparse network."""
        whole = on_host(network)
        where = self._provenance | {"network": name, "made_by": maker()} | origin

        def save() -> None:
            self.record(f"{name}{SUFFIX}")
            save_sparse(self.path / f"{name}{SUFFIX}", whole, provenance=where)

        on_first(save)

    # --- The log ----------------------------------------------------------------------

    def log(self, event: Mapping[str, Any]) -> None:
        """Appends one line to ``metrics.jsonl``.

        Raises:
          OSError: if it cannot; of several processes all raise it where they next agree
            on anything.
        """
        if not self.writes or self.failure:
            return
        try:
            self.record(LOG)
            with open(self.path / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            self.fail(error if error.filename else named(error, self.path / LOG))

    def fail(self, error: OSError) -> None:
        """Raises an error of this process; of several, where they next agree."""
        self.failure = error
        if jax.process_count() == 1:
            raise error

    def agree(self, word: Any = None) -> list[Any]:
        """Of several processes, raises in all what failed in one.

        Args:
          word: whatever JSON can hold.

        Returns:
          The words of all.
        """
        told = gather([None if self.failure is None else str(self.failure), word])
        failures = [failure for failure, _ in told]
        if any(failures):
            raise self.failure or OSError(next(filter(None, failures)))
        return [each for _, each in told]

    def logged_bytes(self) -> int:
        """The size of ``metrics.jsonl`` on the disk, to come back to."""
        path = self.path / LOG
        if not (self.writes and path.exists()):
            return 0
        try:
            sync_file(path)
        except OSError as error:
            self.fail(named(error, path))
        return path.stat().st_size

    def forget_after(self, size: int) -> bool:
        """Cuts ``metrics.jsonl`` to what it was when a checkpoint was made.

        Returns:
          Whether all that was in it then is still there.
        """
        return on_first(lambda: self._forget_after(size))

    def _forget_after(self, size: int) -> bool:
        path, found = self.path / LOG, self.logged_bytes()
        if found > size:
            os.truncate(path, size)
        if found and size:
            with open(path, "rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # cut in the middle of a line
                    file.write(b"\n")
        return found >= size


def locked(path: Path) -> filelock.BaseFileLock:
    """Takes a folder until the lock is released.

    Raises:
      ValueError: if another process has it.
    """
    lock = filelock.FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(
            f"{path} is in use by another process; wait for it or give another "
            "--workdir"
        ) from error
    return lock
