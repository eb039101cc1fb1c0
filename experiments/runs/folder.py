"""What a run leaves behind: a folder of files, none of them ever half written."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
from jax.experimental import multihost_utils

from experiments.config.fields import Config, flat
from sup_tickets.training.network_files import load_sparse, save_sparse
from sup_tickets.training.state import Network

_WRITTEN = ("plan.txt", "metrics.jsonl", "results.json", "tensorboard")
_WRITTEN += ("tickets", "final", "networks", "report")

# Fields that may change while a run goes on: they do not change what it computes.
_FREE = ("checkpoint.", "report.", "data.dir", "data.workers")


class RunFolder:
    """The files of one run, held by one process at a time.

    ``config.json``, ``plan.txt``, ``metrics.jsonl`` (one line an event),
    ``checkpoints/``, ``tickets/`` and ``final/`` (networks, see `save_sparse`),
    ``results.json`` (the last file that a run writes before its report), ``report/``.

    Of several processes, as on a TPU pod, the first alone writes.
    """

    def __init__(self, path: str | os.PathLike[str], config: Config):
        """Takes the folder for a configuration.

        Args:
          path: made if it is not there. Another run's folder is refused.
          config: of the run.

        Raises:
          ValueError: naming the first field that differs from the run's in the folder,
            or saying that another process holds it.
        """
        self.path = Path(path)
        self.writes = jax.process_index() == 0
        self._provenance = {
            "data": config.data.name,
            "model": config.model.name,
            "method": config.method.name,
            "sparsity": config.method.sparsity,
            "seed": config.seed,
            "masks": config.masks or config.mask.name,
        }
        check_same_run(self.path, config)
        self.begun = (self.path / "config.json").exists()
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)
        if not self.begun:
            text = json.dumps(_plain(config), indent=2)
            self.write("config.json", text + "\n")

    def close(self) -> None:
        """Lets others have the folder."""
        if self.writes:
            self._lock.release()

    @property
    def checkpoints(self) -> Path:
        """The folder of `sup_tickets.training.checkpoint.Checkpoints`."""
        return self.path / "checkpoints"

    def empty(self) -> None:
        """Removes what a run wrote that left no checkpoint to go on from."""
        for name in _WRITTEN if self.writes else ():
            _remove(self.path / name)

    def write(self, name: str, text: str | bytes) -> None:
        """Writes a file, whole or not at all."""
        data = text.encode() if isinstance(text, str) else text
        self.make(name, lambda path: path.write_bytes(data))

    def make(self, name: str, write: Callable[[Path], Any]) -> None:
        """Has a file written under another name, then renames it."""
        if not self.writes:
            return
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept: it tells Matplotlib the format.
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            write(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def log(self, event: Mapping[str, Any]) -> None:
        """Appends one line to ``metrics.jsonl``."""
        if self.writes:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps(event) + "\n")

    def logged_bytes(self) -> int:
        """The size of ``metrics.jsonl``, to come back to by `forget_after`."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def forget_after(self, size: int) -> None:
        """Cuts ``metrics.jsonl`` to what it was when a checkpoint was made."""
        if self.writes and self.logged_bytes() > size:
            os.truncate(self.path / "metrics.jsonl", size)

    def metrics(self) -> list[dict[str, Any]]:
        """All events so far."""
        text = (self.path / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def save_network(self, name: str, network: Network, **origin: Any) -> None:
        """Writes ``NAME.safetensors``, a compressed sparse network; all may read it."""
        if self.writes:
            save_sparse(
                self.path / f"{name}.safetensors",
                jax.device_get(network),
                provenance=self._provenance | {"network": name} | origin,
            )
        self.sync()

    def sync(self) -> None:
        """Of several processes, waits until all have come here: files are written."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(str(self.path))

    def size_of(self, name: str) -> int:
        """Bytes of a file."""
        return (self.path / name).stat().st_size

    def load_network(self, name: str) -> Network:
        """Reads what `save_network` wrote."""
        return load_sparse(self.path / f"{name}.safetensors")


def is_finished(path: str | os.PathLike[str], config: Config) -> bool:
    """Whether the folder holds the report of this very run.

    Raises:
      ValueError: naming the first field that differs from the run's in the folder.
    """
    check_same_run(Path(path), config)
    return (Path(path) / "report" / "summary.md").exists()


def check_same_run(path: Path, config: Config) -> None:
    """Raises if the folder holds a run of another configuration.

    Raises:
      ValueError: naming the first field that differs.
    """
    if not (path / "config.json").exists():
        return
    old, new = flat(read_config(path)), flat(_plain(config))
    for name in (n for n in [*new, *old] if not n.startswith(_FREE)):
        if old.get(name, "nothing") != new.get(name, "nothing"):
            raise ValueError(
                f"{path} holds another run: config.{name} is "
                f"{old.get(name, 'nothing')!r} there and {new.get(name, 'nothing')!r} "
                "here; give another --workdir"
            )


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a folder.

    Raises:
      ValueError: if there is none, or it cannot be read.
    """
    file = path / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not the folder of a run: no config.json"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is not a configuration: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a configuration: it holds no object")
    return found


def _plain(config: Config) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def _locked(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(
            f"{path} is in use by another process; wait for it or give another "
            "--workdir"
        ) from error
    return lock


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
