"""What all commands share: their flags, how errors end, and with which exit code.

Flags are ``--name=value`` or ``--name value``, booleans ``--name`` or ``--noname``; a
configuration is ``--config=FILE.py:name=value,...``, and its fields are overridden by
``--config.section.field=value``, as in ml_collections. An error is one line,
``error: ...``, on the standard error.

    0      all is well
    1      the machine failed, as a disk that is full, or some runs of many did; what
           was saved is kept, and the same command goes on
    2      what was asked for is wrong; the same command fails again
    128+n  ended by signal n
"""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import logging

from experiments import end_at_once
from experiments.config.fields import KNOWN
from experiments.config.reading import BrokenFile, read_source
from experiments.config.values import check_letters, expanded, read_bool
from experiments.runs.stopping import Stopped
from sup_tickets.checks import did_you_mean

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=?)(.*)", re.DOTALL)
_SINGLE = re.compile(r"-(?=[a-zA-Z]\w)")  # one dash does as well as two, as in absl

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


# --- Flags ----------------------------------------------------------------------------


def file_path(text: str) -> Path:
    """The type of a flag that is a path: ``~`` is expanded, nothing is no path.

    Raises:
      argparse.ArgumentTypeError: if it is empty, or names an unknown user.
    """
    try:
        if not text.strip():
            raise ValueError("it is empty; the current folder is .")
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def folder_path(text: str) -> Path:
    """The type of a flag that is a folder, there or to be made.

    Raises:
      argparse.ArgumentTypeError: as `file_path`; and if it is a file, or in one.
    """
    found = file_path(text)
    for place in (found, *found.parents):
        if place.exists():
            if not place.is_dir():
                raise argparse.ArgumentTypeError(f"{str(place)!r} is not a folder")
            break
    return found


def numbers(text: str) -> tuple[float, ...]:
    """The type of a flag that is numbers with commas between.

    Raises:
      argparse.ArgumentTypeError: naming the one that is no number.
    """
    found = []
    for word in text.split(","):
        try:
            found.append(float(word))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not a number") from None
    return tuple(found)


def seeds(text: str) -> tuple[int, ...]:
    """The type of a flag that is seeds with commas between, all different.

    Raises:
      argparse.ArgumentTypeError: naming what is no seed, or there twice.
    """
    found = tuple(int(number) for number in numbers(text) if number % 1 == 0)
    if len(set(found)) < len(text.split(",")) or min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be different whole numbers")
    return found


def _boolean(text: str) -> bool:
    try:
        return read_bool("it", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class Parser(argparse.ArgumentParser):
    """The flags of one command."""

    def __init__(self, module: str, description: str | None):
        super().__init__(
            f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._takes_config = self._takes_fields = False
        self._switches: list[str] = []

    def add_config(self, *, required: bool = True) -> None:
        """Adds ``--config``; the parsed value is a `Source`."""
        self._takes_config = True
        self.add_argument(
            "--config",
            required=required,
            metavar="FILE.py[:name=value,...]",
            help="and --config.section.field=value for any of its fields",
        )

    def add_fields(self) -> None:
        """Takes ``--config.FIELD=TEXT`` without ``--config``: pairs in "fields"."""
        self._takes_fields = True

    def add_switch(self, flag: str, text: str) -> None:
        """Adds a flag that is ``--name``, ``--noname`` or ``--name=true``."""
        self._switches.append(flag)
        self.add_argument(
            flag,
            type=_boolean,
            default=False,
            metavar="BOOL",
            help=text,
        )

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The flags of a command line.

        Raises:
          ValueError: one line, naming the flag that is wrong.
          BrokenFile: if the configuration raises anything.
        """
        words, overrides = self._without_overrides(list(words))
        options, unknown = self.parse_known_args(words)
        for word in unknown:
            self._refuse(word)
        if self._takes_fields:
            options.fields = tuple(overrides)
        elif self._takes_config and options.config is not None:
            options.config = read_source(options.config, overrides)
        elif overrides:
            self.error(f"--config.{overrides[0][0]} needs --config=FILE.py too")
        return options

    def error(self, message: str) -> NoReturn:
        """Raises in place of ending the program.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"{message}; see --help")

    def _without_overrides(
        self, words: list[str]
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Other flags as argparse takes them, and ``--config.FIELD=TEXT``."""
        kept: list[str] = []
        found: list[tuple[str, str]] = []
        while words:
            word = words.pop(0)
            if word == "--":
                return [*kept, word, *words], found
            match = _OVERRIDE.fullmatch(word)
            if match is None:
                kept.append(self._plain(word))
            elif not (self._takes_config or self._takes_fields):
                self.error(f"{word}: this command takes no configuration")
            else:
                _add(found, *_override(match, words))
        return kept, found

    def _plain(self, word: str) -> str:
        word = _SINGLE.sub("--", word, count=1) if _SINGLE.match(word) else word
        for flag in self._switches:
            if word == flag or word == flag.replace("--", "--no"):
                return f"{flag}={str(word == flag).lower()}"
        return word

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-") or word == "-":
            self.error(f"unexpected argument {word!r}")
        name = word.partition("=")[0]
        self.error(f"unknown flag {name!r}{did_you_mean(name, self._option_strings())}")

    def _option_strings(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]


def _override(match: re.Match[str], following: list[str]) -> tuple[str, str]:
    """The field and the text; without ``=`` it is a boolean, or the next word."""
    negative, field, equals, text = match.groups()
    boolean = field not in KNOWN or KNOWN[field].kind == "bool"
    if negative:
        if not boolean or equals:
            raise ValueError(f"--noconfig.{field}: only a boolean can be negated")
        return field, "false"
    if equals:
        return field, text
    if boolean:
        return field, "true"
    if not following:
        raise ValueError(f"--config.{field} has no value")
    return field, following.pop(0)


def _add(found: list[tuple[str, str]], field: str, text: str) -> None:
    """The last one counts; but a list may be given one by one."""
    before = [i for i, (name, _) in enumerate(found) if name == field]
    if before and field in KNOWN and KNOWN[field].kind in ("ints", "strs"):
        text = f"{found[before[0]][1]},{text}"
    for i in before:
        del found[i]
    found.append((field, text))


# --- Endings --------------------------------------------------------------------------


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
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
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


def _show_what_can_be_shown() -> None:
    """Of a locale that is not UTF-8, letters that it lacks become question marks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
