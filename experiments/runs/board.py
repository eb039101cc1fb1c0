"""Scalars for TensorBoard, written where an error can be told."""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from experiments.runs.folder import RunFolder
from experiments.runs.layout import BOARD
from sup_tickets.files import named


class Board:
    """Writes one file of events, in the thread of the caller.

    `tensorboardX.SummaryWriter` writes in another thread, which on a full disk ends
    with a traceback and no word to the caller.
    """

    def __init__(self, folder: RunFolder, *, step: int):
        """Opens a file; of several processes in the first.

        Args:
          folder: of the run.
          step: at which it goes on: events that a killed run wrote from there on are
            hidden.

        Raises:
          OSError: naming the file.
        """
        self._writer = None
        if not folder.writes:
            return
        place = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{step}"
        name = f"{BOARD}/events.out.tfevents.{place}"
        folder.record(name)
        self._path: Path = folder.path / name
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._writer = RecordWriter(str(self._path))
        except OSError as error:
            raise named(error, self._path) from error
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
            self._write(Event(wall_time=time.time(), step=step, session_log=start))

    def add(self, name: str, value: float, step: int) -> None:
        """Writes a scalar, into the buffer of the file.

        Raises:
          OSError: naming the file.
        """
        summary = scalar(name, value)
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Writes out what is buffered; raises likewise."""
        self._try(lambda writer: writer.flush())

    def close(self) -> None:
        """Writes out what is buffered, as far as that is possible."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):  # the disk is full, which was said
                writer.close()

    def _write(self, event: Event) -> None:
        self._try(lambda writer: writer.write(event.SerializeToString()))

    def _try(self, action: Callable[[RecordWriter], Any]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except OSError as error:
            raise named(error, self._path) from error
