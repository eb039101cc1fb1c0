"""Experiments: the only readers of configurations."""

import os
import signal
import sys
from importlib.util import find_spec
from typing import Any


def end_at_once(number: int, frame: Any = None) -> None:
    """Handles a signal by one line and the exit code of a shell."""
    del frame
    # Not through a stream, which may be in the middle of a line, nor by an exception,
    # which somebody's callback may drop.
    os.write(2, f"{signal.Signals(number).name}: stopped\n".encode())
    os._exit(128 + number)


# A command is being imported: Python calls it "-m" until it has found its module. For
# seconds there is nothing to save yet; `experiments.command.start` takes over.
if sys.argv[:1] == ["-m"] and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, end_at_once)

if sys.argv[:1] == ["-m"]:
    _missing = [n for n in ("absl", "flax", "ml_collections") if find_spec(n) is None]
    if _missing:
        print(
            f"error: the commands need {', '.join(_missing)}; install the extra "
            '"train": pip install -e ".[train]"',
            file=sys.stderr,
        )
        sys.exit(2)
