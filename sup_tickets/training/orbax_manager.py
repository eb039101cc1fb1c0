"""Orbax's manager of a folder of checkpoints, as runs want it, and its silence."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

_KEPT = 2  # the newest, and the one to go back to
_CLOSED = "Event loop is closed"  # what Tensorstore's threads say after an error


def open_manager(
    path: Path, keep: Sequence[int] = (), *, read_only: bool = False
) -> ocp.CheckpointManager:
    """A manager of the first process alone, that writes in the foreground.

    An error comes at once then, and a step that has returned is safe.

    Args:
      path: of the folder.
      keep: steps whose checkpoints stay, beside the newest two and the best.
      read_only: whether nothing is to be changed.
    """
    options: dict[str, Any] = {"create": False}
    if jax.process_count() > 1:
        options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        )
    if read_only:
        options["read_only"] = True
    else:
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: next(iter(metrics.values())),
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        latest = checkpoint_managers.LatestN(_KEPT)
        kept = checkpoint_managers.CustomSteps(keep)
        policy = checkpoint_managers.AnyPreservationPolicy([latest, best, kept])
        options |= {"preservation_policy": policy, "enable_async_checkpointing": False}
    with in_silence() if read_only else contextlib.nullcontext():
        return ocp.CheckpointManager(
            path, options=ocp.CheckpointManagerOptions(**options)
        )


@contextlib.contextmanager
def in_silence() -> Iterator[None]:
    """Without the 100 lines that threads print of an error that is raised as well."""
    verbosity = logging.get_verbosity()
    hook, dropped = sys.excepthook, sys.unraisablehook

    def said(kind: Any, error: Any, trace: Any) -> None:
        if str(error) != _CLOSED:
            hook(kind, error, trace)

    def unraisable(one: Any) -> None:
        if str(one.exc_value) != _CLOSED:
            dropped(one)

    logging.set_verbosity(logging.FATAL)
    sys.excepthook, sys.unraisablehook = said, unraisable
    try:
        yield
        # After an error Tensorstore's threads call them yet.
        sys.excepthook, sys.unraisablehook = hook, dropped
    finally:
        logging.set_verbosity(verbosity)


def one_line(error: BaseException) -> str:
    """What went wrong, cut off where Tensorstore goes on and on."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
