"""What a process says that has lost another one: one line, whoever notices first.

Python may notice, when it next exchanges numbers; or a thread of JAX's own service,
which says so in 15 lines, none of them how to go on, and aborts the process. So the
standard error of one of several processes goes through a filter, a small process that
outlives it.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax

from experiments.runs.made_by import command

_LOST = "has lost another one"
_SAID_BY_JAX = "JAX distributed service detected fatal errors"

# What JAX says of it before, or of less; it ends nothing.
_NOISE = "coordination service|CoordinationService|grpc_status"

# All lines pass but noise and those after the first that says it.
_FILTER = """
import os, re, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):  # of a scheduler, to all processes
    signal.signal(number, signal.SIG_IGN)
ours, theirs, noise, line = map(os.fsencode, sys.argv[1:])
for text in sys.stdin.buffer:
    if theirs in text or ours in text:
        os.write(2, line if theirs in text else text)
        break
    if not re.search(noise, text):
        os.write(2, text)
for text in sys.stdin.buffer:
    pass
"""


def lost_text(workdir: Path, what: str) -> str:
    """The line, with how to go on.

    Args:
      workdir: of the run.
      what: was noticed.
    """
    return (
        f"error: {workdir}: process {jax.process_index()} of {jax.process_count()} "
        f"{_LOST} ({what}); stop those that are left and start all of them again to go "
        f"on from the last checkpoint: {command()}"
    )


def filter_errors(workdir: Path) -> None:
    """From now on the standard error has one line of a lost process, and no others."""
    line = lost_text(workdir, "JAX noticed it") + "\n"
    marks = [_LOST, _SAID_BY_JAX, _NOISE]
    words = [sys.executable, "-S", "-c", _FILTER, *marks, line]
    # In a session of its own: Ctrl-C is not for it.
    through = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
    assert through.stdin is not None
    sys.stderr.flush()
    os.dup2(through.stdin.fileno(), 2)
    through.stdin.close()
    through.returncode = 0  # nobody waits for it
