"""What all commands share: how they begin, how errors end, and with which exit code.

An error is one line, ``error: ...``, on the standard error.

    0      all is well
    1      the machine failed, as a disk that is full, or some runs of many did; what
           was saved is kept, and the same command goes on
    2      what was asked for is wrong; the same command fails again
    128+n  ended by signal n
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import logging

from experiments import end_at_once
from experiments.config.flags import Parser
from experiments.config.reading import BrokenFile
from experiments.config.values import check_letters
from experiments.runs.stopping import Stopped

# The user named it wrongly; other errors of the system are the machine's.
_PATHS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


class Ended(SystemExit):
    """The end of a command, whose line is printed; the exception reads as that line."""

    def __init__(self, text: str, code: int):
        super().__init__(code)
        self.text = text

    def __str__(self) -> str:
        return self.text


def start(
    parser: Parser,
    body: Callable[[argparse.Namespace], Any],
    argv: Sequence[str] | None = None,
) -> None:
    """Runs a command, from its flags to its exit code.

    Args:
      parser: of its flags.
      body: gets them; its result is not looked at.
      argv: the words after the command; by default those of the process.

    Raises:
      Ended: if anything is wrong, once its line is printed.
    """
    logging.set_verbosity(logging.WARNING)
    _keep_all_programs()
    _show_what_can_be_shown()
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _dropped
    try:
        words = sys.argv[1:] if argv is None else argv
        for text in (*words, os.getcwd()):
            check_letters(text)
        body(parser.read(words))
        _hear_no_more()
        sys.stdout.flush()
    except Stopped as stop:
        _end(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        _end("SIGINT: stopped; what was saved is kept", 128 + signal.SIGINT)
    except BrokenPipeError:  # of "| head"; nobody is there to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Ended("the reader of the output is gone", 128 + signal.SIGPIPE) from None
    except BrokenFile as error:
        _end(str(error), 2)
    except (ValueError, ModuleNotFoundError, *_PATHS) as error:
        _end(f"error: {_one_line(error)}", 2)
    except OSError as error:
        _end(f"error: {_one_line(error)}", 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _end(f"error: out of memory: {str(error).splitlines()[0]}", 1)


def seeded(
    name: str, what: str | None, run: Callable[[Any, Path, Sequence[int]], Path]
) -> tuple[Parser, Callable[[argparse.Namespace], None]]:
    """The flags and the body of an experiment of several seeds, see `start`.

    Args:
      name: of the command.
      what: it does.
      run: ``(config, workdir, seeds) -> report``, which is printed.
    """
    parser = Parser(name, what)
    parser.add_config()
    parser.add_workdir()
    parser.add_seeds()

    def body(options: argparse.Namespace) -> None:
        config = options.config.make()
        check_devices()
        report = run(config, options.workdir, options.seeds)
        print(f"\n{report.read_text(encoding='utf-8')}\n{report}")

    return parser, body


def end_with_failures(failed: dict[str, str]) -> None:
    """Ends a command of many runs of which some failed.

    Args:
      failed: the errors by the names of the runs.

    Raises:
      Ended: with exit code 1, if there are any.
    """
    if failed:
        lines = [f"  {name}: {error}" for name, error in failed.items()]
        _end("\n".join(["", f"{len(failed)} failed:", *lines]), 1)


def check_devices() -> None:
    """Raises unless there are devices to compute on.

    Raises:
      ValueError: one line, with what JAX says.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that there is one
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"JAX finds no device, with JAX_PLATFORMS={wanted}: {_one_line(error)}"
        ) from None


def _interrupt(number: int, frame: Any) -> NoReturn:
    """Handles Ctrl-C as Python does, but the next one ends at once."""
    signal.signal(number, end_at_once)
    raise KeyboardInterrupt


def _dropped(unraisable: Any) -> None:
    """Ctrl-C in a callback that drops exceptions, as JAX has one, comes once more."""
    if unraisable.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGINT, _interrupt)
        # To the main thread, which only then wakes from what it waits for.
        again = (threading.main_thread().ident, signal.SIGINT)
        threading.Timer(0.05, signal.pthread_kill, again).start()
    else:
        sys.__unraisablehook__(unraisable)


def _hear_no_more() -> None:
    """From here on Ctrl-C ends the process, without a traceback of its shutdown."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, end_at_once)


def _end(text: str, code: int) -> NoReturn:
    _hear_no_more()
    print(text, file=sys.stderr, flush=True)
    raise Ended(text, code) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _keep_all_programs() -> None:
    """Where $JAX_COMPILATION_CACHE_DIR is given it has those quick to compile too.

    A run has dozens, of which JAX keeps by default only those of more than a second.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _show_what_can_be_shown() -> None:
    """Of a locale that is not UTF-8, letters that it lacks become question marks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
