"""Reads the command line; what is wrong with it is said in one line."""

import ast
import contextlib
import functools
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from experiments.config.fields import OPEN, flat, nearest


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, or ends the program with one line; for ``absl.app.run``.

    Sections of the configuration that are open, as ``config.model.options``, may be
    given fields that its file does not have.
    """
    try:
        argv, added = _without_open_fields(argv)
        _check_overrides(argv)
        with _arguments(argv):
            rest = flags.FLAGS(argv)
        _check_flags(rest)
        for name, value in added.items():
            _add(flags.FLAGS["config"].value, name, value)
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return rest


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """``config_flags`` looks for overrides in ``sys.argv``."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _without_open_fields(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The command line without ``--config.model.options.NAME=VALUE``, and these."""
    kept, added = [], {}
    for word in argv:
        name, equals, text = word.lstrip("-").partition("=")
        name = name.removeprefix("config.")
        if word.startswith("-") and equals and name.startswith(OPEN):
            added[name] = _literal(text)
        else:
            kept.append(word)
    return kept, added


def _literal(text: str) -> Any:
    """A Python value, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _add(config: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    section = functools.reduce(lambda part, step: part[step], path, config)
    with section.unlocked(), section.ignore_type():
        section[last] = value


def _check_overrides(argv: list[str]) -> None:
    """Raises for an override of a field that the configuration lacks.

    ``config_flags`` would end in a traceback.
    """
    words = [word.lstrip("-") for word in argv[1:] if word.startswith("-")]
    names = [w.partition("=")[0] for w in words if w.startswith("config.")]
    files = [w.partition("=")[2] for w in words if w.startswith("config=")]
    files += [
        after
        for word, after in itertools.pairwise(argv)
        if word in ("--config", "-config")
    ]
    if not files:
        return  # reported as a missing flag
    config = load_config(files[-1])
    if "model.name" in (n.removeprefix("config.") for n in names) and flat(
        config.model.options
    ):
        raise ValueError(
            "--config.model.name: the options of the model depend on it; "
            f"give it as --config={files[-1].partition(':')[0]}:model=NAME"
        )
    known = flat(config)
    for name in (name.removeprefix("config.") for name in names):
        if name not in known and name.removeprefix("no") not in known:
            hint = nearest(name, known)
            raise ValueError(f"--config.{name}: there is no such field{hint}")


def load_config(file_and_argument: str) -> Any:
    """The configuration of ``FILE.py`` or ``FILE.py:ARGUMENT``."""
    name, _, argument = file_and_argument.partition(":")
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--config: there is no file {name!r}")
    spec = importlib.util.spec_from_file_location("_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config: {name!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([argument] if argument else []))


def _check_flags(rest: list[str]) -> None:
    for name in ("config", "workdir"):
        if flags.FLAGS[name].value is None:
            raise ValueError(f"--{name} is missing")
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}")
