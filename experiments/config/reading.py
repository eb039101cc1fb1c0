"""Reads configurations: a file that is executed once, and what is given beside it."""

import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict, FrozenConfigDict

from configs.common import ALIASES, settle
from experiments.config.fields import KNOWN, OPEN, Config, flat, nearest
from experiments.config.values import (
    expanded,
    has_field,
    joined,
    read_value,
    set_field,
    split_argument,
)

Pairs = Sequence[tuple[str, str]]
"""Names and texts."""

# Where what the user gave is checked: errors from there are one line.
_CHECKS = (Path(__file__).parent, Path(inspect.getfile(settle)))
_SETTLED = ("method.name", "sup.enabled", "masks", "tost.parts", "tost.released")
_STANDARD = sysconfig.get_path("stdlib")
_LIBRARIES = ("site-packages", "dist-packages", _STANDARD, "<frozen")


class BrokenFile(Exception):
    """A configuration file raised something; the text has its own lines alone."""


class Source(NamedTuple):
    """A configuration as the command line names it; its file has been executed."""

    file: str
    get_config: Callable[..., Any]
    argument: str  # of ``FILE.py:ARGUMENT``
    overrides: Pairs  # dotted fields, of ``--config.FIELD=TEXT``

    def make(self, given: Pairs = (), *, implied: Collection[str] = ()) -> Config:
        """A configuration.

        Args:
          given: further short or dotted names and their texts, as a sweep has them.
          implied: fields that count as given, for what follows from them.

        Raises:
          ValueError: one line, naming the field that is wrong.
          BrokenFile: if the file raises anything else than our own errors.
        """
        given = [(ALIASES.get(name, name), text) for name, text in given]
        for field, _ in [*given, *self.overrides]:
            _check_name(field)
        overridden = {field for field, _ in self.overrides}
        for field, text in given:
            if field in overridden:
                raise ValueError(f"--config.{field} is given beside {field}={text}")
        argument, fields = self._argument(given, overridden)
        takes_argument = bool(inspect.signature(self.get_config).parameters)
        config = self._called(argument if takes_argument else self.argument)
        later = [*([] if takes_argument else given), *self.overrides]
        if "model.name" in overridden and any(
            field.startswith("model.options.") for field in flat(config)
        ):
            raise ValueError(
                "--config.model.name: the options of the model depend on it; "
                f"give it as --config={self.file}:model=NAME"
            )
        for field, text in later:
            if not has_field(config, field):
                raise ValueError(f"the configuration has no field config.{field}")
            set_field(config, field, read_value(f"config.{field}", field, text))
        if all(has_field(config, field) for field in _SETTLED):  # else it is refused
            settle(config, {*fields, *overridden, *(f for f, _ in given), *implied})
        config.lock()
        return config

    def _argument(
        self, given: Pairs, overridden: Collection[str]
    ) -> tuple[str, list[str]]:
        """The argument without what is overruled, and the fields that it sets."""
        try:
            pairs = split_argument(self.argument, ALIASES)
        except ValueError:  # get_config may have a syntax of its own, or will say so
            pairs = []
        fields = [ALIASES.get(name, name) for name, _ in pairs]
        if not all(field in KNOWN or field.startswith(OPEN) for field in fields):
            pairs, fields = [], []
        if not pairs:
            return ",".join(filter(None, [self.argument, joined(given)])), []
        overruled = {*overridden, *(field for field, _ in given)}
        kept = [
            pair
            for pair, field in zip(pairs, fields, strict=True)
            if field not in overruled
        ]
        return joined([*kept, *given]), fields

    def _called(self, argument: str) -> Any:
        words = [argument] if argument else []
        try:
            inspect.signature(self.get_config).bind(*words)
        except TypeError:
            raise ValueError(f"--config: {self._wrong_call(argument)}") from None
        try:
            config = self.get_config(*words)
        except Exception as error:
            if isinstance(error, ValueError) and _is_ours(error):
                raise
            _raise_shortened(error, self.file)
        if not isinstance(config, ConfigDict):
            kind = "nothing" if config is None else f"a {type(config).__name__}"
            raise ValueError(
                f"--config: get_config of {self.file!r} must return an "
                f"ml_collections.ConfigDict, and returned {kind}"
            )
        frozen = isinstance(config, FrozenConfigDict)
        return config.as_configdict() if frozen else config

    def _wrong_call(self, argument: str) -> str:
        parameters = inspect.signature(self.get_config).parameters
        names = ", ".join(parameters) or "nothing"
        if argument and not parameters:
            return f"get_config of {self.file!r} takes no argument, got {argument!r}"
        if not argument and len(parameters) == 1:
            return (
                f"get_config of {self.file!r} needs an argument, {self.file}:ARGUMENT"
            )
        return f"get_config of {self.file!r} must take one argument, it takes {names}"


def read_source(file_and_argument: str, overrides: Pairs = ()) -> Source:
    """Executes the file of ``FILE.py`` or ``FILE.py:ARGUMENT``.

    Raises:
      ValueError: if there is no such file, or it has no ``get_config``.
      BrokenFile: if it raises anything.
    """
    name, argument = _parted(file_and_argument)
    if not name:
        raise ValueError("--config is empty; it must be FILE.py:name=value,...")
    path = Path(expanded(name))
    if not path.is_file():
        raise ValueError(f"--config: there is no file {name!r}")
    spec = importlib.util.spec_from_file_location("_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config: {name!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        _raise_shortened(error, name)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"--config: {name!r} has no function get_config")
    return Source(name, module.get_config, argument, tuple(overrides))


def _parted(text: str) -> tuple[str, str]:
    """The file and the argument; the path of the file may have colons."""
    parts = text.split(":")
    for i in range(1, len(parts) + 1):
        name = ":".join(parts[:i])
        if Path(os.path.expanduser(name)).is_file():
            return name, ":".join(parts[i:])
    return parts[0], ":".join(parts[1:])


def as_source(config: Source | str) -> Source:
    """A file that is read already, or `read_source` of its name and argument."""
    return read_source(config) if isinstance(config, str) else config


def _check_name(field: str) -> None:
    if field in KNOWN or field.startswith(OPEN):
        return
    *section, last = field.split(".")
    positive = ".".join([*section, last.removeprefix("no")])
    hint = nearest(field, KNOWN)
    within = [name for name in KNOWN if name.startswith(f"{field}.")]
    if within:
        hint = f"; it is a section, with config.{within[0]} in it"
    if last.startswith("no") and KNOWN.get(positive, KNOWN["seed"]).kind == "bool":
        hint = f"; did you mean --noconfig.{positive}?"
    raise ValueError(f"--config.{field}: there is no such field{hint}")


# --- Errors of a configuration's own --------------------------------------------------


def _is_ours(error: Exception) -> bool:
    """Whether it was raised where we check what the user gave."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frames[-1].filename).is_relative_to(place) for place in _CHECKS)


def _raise_shortened(error: Exception, name: str) -> NoReturn:
    """Raises the error with the lines that are not ours nor a library's."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in _LIBRARIES)
        and not Path(frame.filename).is_relative_to(_CHECKS[0])
    ]
    lines = ["Traceback (of the configuration):\n", *traceback.format_list(frames)]
    lines += traceback.format_exception_only(error)
    text = "".join(lines if frames else lines[1:])
    raise BrokenFile(f"error: --config: {name!r} failed\n{text.rstrip()}") from None
