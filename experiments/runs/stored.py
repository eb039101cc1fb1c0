"""Reads finished runs from their folders.

A run's folder has ``config.json`` and ``results.json``; folders within it that have
both are runs to compare it with. Whatever else is missing is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.fields import flat
from experiments.runs.events import read_events
from experiments.runs.layout import (
    CONFIG,
    LOG,
    MAIN_NETWORKS,
    RESULTS,
    read_object,
    run_folders,
)


class StoredRun(NamedTuple):
    """A run as its folder tells it."""

    path: Path
    name: str  # what it is called in its own files
    config: dict[str, Any]  # by dotted names
    results: dict[str, Any]
    events: list[dict[str, Any]]  # of metrics.jsonl
    others: tuple["StoredRun", ...]  # runs to compare it with, in its folder

    @property
    def seed(self) -> Any:
        """Of the run; ``None`` if the configuration has none."""
        return self.config.get("seed")

    @property
    def superposes(self) -> bool:
        """Whether the run makes tickets."""
        return bool(self.config.get("sup.enabled", False))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each network, with those of the runs to compare it with."""
        return with_others(self.results, self.others)["rows"]

    def row(self, network: str) -> dict[str, Any] | None:
        """The row of a network of this very run."""
        for row in self.results.get("rows", ()):
            if row.get("network") == network:
                return row
        return None

    @property
    def main_row(self) -> dict[str, Any] | None:
        """The network that the run is judged by."""
        found = [row for name in MAIN_NETWORKS if (row := self.row(name))]
        rows = self.results.get("rows", [])
        return found[0] if found else (rows[-1] if rows else None)


def read_run(path: Path) -> StoredRun:
    """The run in a folder.

    Raises:
      ValueError: if ``config.json`` or ``results.json`` cannot be read, or the latter
        lacks what a report needs.
      OSError: if one is not there.
    """
    config, results = read_object(path / CONFIG), read_object(path / RESULTS)
    check_results(path / RESULTS, results)
    inner = [folder for folder in run_folders([path]) if folder != path]
    return StoredRun(
        path=path,
        name=str(results.get("name") or path.name),
        config=flat(config),
        results=results,
        events=read_events(path / LOG),
        others=tuple(read_run(folder) for folder in _outermost(inner)),
    )


def read_runs(paths: Sequence[Path]) -> list[StoredRun]:
    """All finished runs at or under some paths.

    Raises:
      ValueError: if there is none, or a file of one cannot be read.
    """
    folders = _outermost(run_folders(paths))
    if not folders:
        raise ValueError(f"no finished run in {', '.join(map(str, paths))}")
    return [read_run(folder) for folder in folders]


def _outermost(folders: Sequence[Path]) -> list[Path]:
    """Without folders that are within another."""
    known = set(folders)
    return [folder for folder in folders if not known & set(folder.parents)]


def with_others(
    results: Mapping[str, Any], others: Iterable[StoredRun]
) -> dict[str, Any]:
    """Results with the networks of runs to compare with, and the seconds of all."""
    rows, others = list(results.get("rows", ())), list(others)
    seconds = [each.get("seconds") for each in (results, *(o.results for o in others))]
    for other in others:
        known = {row.get("network") for row in rows}
        for row in other.results.get("rows", ()):
            network = row.get("network")
            alone = network in (*MAIN_NETWORKS, other.name)
            name = other.name if alone else f"{other.name}, {network}"
            if name not in known:
                rows.append({**row, "network": name})
    known = [s for s in seconds if isinstance(s, (int, float))]
    return {**results, "rows": rows, "seconds_of_all": sum(known)}


# --- What results must be -------------------------------------------------------------

_NUMBERS = (
    *("perplexity", "accuracy", "nll", "ece", "brier"),
    *("examples", "active", "total"),
)


def check_results(path: Path, results: Mapping[str, Any]) -> None:
    """Raises unless a report can be made of results.

    Args:
      path: of the file, for the error.
      results: what is in it.

    Raises:
      ValueError: one line, naming what is wrong.
    """
    wrong = _wrong_rows(results.get("rows", [])) or _wrong_sections(results)
    if wrong:
        raise ValueError(f"{path} cannot be read: {wrong}")


def _wrong_rows(rows: Any) -> str | None:
    if not isinstance(rows, list):
        return f"rows must be a list, got {rows!r:.60}"
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"rows[{i}] must be an object, got {row!r:.60}"
        if not isinstance(row.get("network"), str):
            return f"rows[{i}] lacks a name, 'network'"
        for name in _NUMBERS:
            value = row.get(name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float))
            ):
                return f"rows[{i}].{name} must be a number or null, got {value!r:.60}"
    return None


def _wrong_sections(results: Mapping[str, Any]) -> str | None:
    for name in ("layers", "cost", "analysis", "made_by"):
        if not isinstance(results.get(name) or {}, dict):
            return f"{name} must be an object, got {results[name]!r:.60}"
    for network, layers in (results.get("layers") or {}).items():
        for i, layer in enumerate(layers if isinstance(layers, list) else [None]):
            counts = (
                [layer.get(k) for k in ("active", "size")]
                if isinstance(layer, dict)
                else [None]
            )
            if not all(type(count) is int for count in counts):
                return f"layers[{network!r}][{i}] lacks the counts 'active' and 'size'"
            if not isinstance(layer.get("layer"), str):
                return f"layers[{network!r}][{i}] lacks a name, 'layer'"
    return None
