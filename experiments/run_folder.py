"""What a run leaves behind: a folder of files, none of them ever half written."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from experiments.check import Config, flat
from sup_tickets.masks import pack
from sup_tickets.training.state import Network
from sup_tickets.trees import named_leaves

_OURS = ("plan.txt", "metrics.jsonl", "results.json", "last_good", "final", "report")


class RunFolder:
    """The files of one run.

    ``config.json``, ``plan.txt``, ``metrics.jsonl`` (one line an event),
    ``last_good/`` (the network at the last look that found all finite), ``final/``,
    ``results.json`` (the last file that a run writes before its report), ``report/``.
    """

    def __init__(self, path: str | os.PathLike[str], config: Config):
        """Takes the folder for a configuration.

        Args:
          path: made if it is not there. Another run's folder is refused. One of the
            same configuration is emptied of a run that did not finish.
          config: of the run.

        Raises:
          ValueError: naming the first field that differs from the run's in the folder.
        """
        self.path = Path(path)
        wanted = json.loads(json.dumps(config.to_dict()))
        stored = self.path / "config.json"
        self.restarts = stored.exists()  # there was a run of the same configuration
        if self.restarts:
            _check_same(self.path, _read(stored), wanted)
        self.finished = (self.path / "report" / "summary.md").exists()
        if self.finished:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for name in _OURS if self.restarts else ():
            _remove(self.path / name)
        self.write("config.json", json.dumps(wanted, indent=2) + "\n")

    def write(self, name: str, text: str | bytes) -> Path:
        """Writes a file, whole or not at all."""
        data = text.encode() if isinstance(text, str) else text
        return self.make(name, lambda path: path.write_bytes(data))

    def make(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Has a file written under another name, then renames it."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept: it tells Matplotlib the format.
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            write(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def log(self, event: Mapping[str, Any]) -> None:
        """Appends one line to ``metrics.jsonl``."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All events so far."""
        text = (self.path / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def save_network(self, folder: str, network: Network) -> None:
        """Writes ``params.safetensors`` and ``masks.safetensors`` into a sub-folder.

        The first holds weights ("params/...") and batch-norm statistics
        ("batch_stats/..."), the second the masks, 8 places a byte as by `pack`, with
        their shapes in its metadata.
        """
        host = jax.device_get(network)
        values = {"params": host.params, "batch_stats": host.batch_stats}
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(values)}
        self.write(f"{folder}/params.safetensors", save(arrays))
        masks = {"params": host.masks}
        bits = {name: np.asarray(leaf) for name, leaf in named_leaves(pack(masks))}
        shapes = {name: json.dumps(leaf.shape) for name, leaf in named_leaves(masks)}
        self.write(f"{folder}/masks.safetensors", save(bits, metadata=shapes))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a configuration: {error}") from error


def _check_same(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = flat(stored), flat(wanted)
    for name in [*new, *old]:
        if old.get(name, "nothing") != new.get(name, "nothing"):
            raise ValueError(
                f"{path} holds another run: config.{name} is "
                f"{old.get(name, 'nothing')!r} there and {new.get(name, 'nothing')!r} "
                "here; give another --workdir"
            )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
