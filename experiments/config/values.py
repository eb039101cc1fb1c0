"""Texts of a command line, of an argument or of a grid, to the values of fields.

A field is read in the same way wherever its text comes from:

    bool     true, t, 1, false, f or 0 in any case, as absl reads them
    int      Python's digits, 1_000 included
    float    1e-3, .5, 90, 1_000.5
    path     ~ and ~user are expanded; relative to where the command is started
    none     "none" in any case or nothing at all, for a field that may be unset
    lists    (1, 2), [1, 2], 1,2, 1 or nothing; of texts too: a,b or ("a", "b")

Fields of ``options``, of model, method and view, are Python's literals, else texts.
"""

import ast
import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.config.fields import KNOWN, OPEN

_NAME = re.compile(r"\s*[\w.]+=\s*")
_CLOSING = {"(": ")", "[": "]"}
_BETWEEN = re.compile(r",(?![^{(\[]*[})\]])")  # commas that are in no brackets

# --- Splitting ------------------------------------------------------------------------


def split(text: str, at: str = ",") -> list[str]:
    """The parts of a text, which may be ``name=value``.

    A value that begins with a quote or a bracket goes on to where that is closed.

    Example:
      >>> split("a=1,b=(2, 3),c='x,y'")
      ['a=1', 'b=(2, 3)', "c='x,y'"]
    """
    parts, begin = [], 0
    while begin <= len(text):
        name = _NAME.match(text, begin)
        end = text.find(at, _closed(text, name.end() if name else begin))
        end = len(text) if end < 0 else end
        parts.append(text[begin:end])
        begin = end + 1
    return parts


def _closed(text: str, start: int) -> int:
    """Where the quote or bracket that begins at ``start`` ends; ``start`` if none."""
    first = text[start : start + 1]
    if first in ("'", '"'):
        return max(text.find(first, start + 1) + 1, start)
    open_brackets, i = [], start
    while first in _CLOSING and i < len(text):
        letter = text[i]
        if letter in ("'", '"'):
            i = max(_closed(text, i) - 1, i)
        elif letter in _CLOSING:
            open_brackets.append(_CLOSING[letter])
        elif open_brackets and letter == open_brackets[-1]:
            open_brackets.pop()
        i += 1
        if not open_brackets:
            return i
    return start


def split_argument(
    text: str, short_names: dict[str, str] | None = None
) -> list[tuple[str, str]]:
    """The names and the texts of ``name=value,name=value``, quotes taken off.

    Commas before the last slash of a path are its own, since the folders of sweeps have
    such names; so are those of a list before the next ``name=``. Other texts with
    commas are put into quotes.

    Args:
      text: of the argument.
      short_names: further names of fields.

    Raises:
      ValueError: naming a part that is not ``name=value``.

    Example:
      >>> split_argument("masks=runs/sparsity=0.9,seed=0/a.safetensors,seed=3")
      [('masks', 'runs/sparsity=0.9,seed=0/a.safetensors'), ('seed', '3')]
    """
    names = short_names or {}
    parts = [part for part in split(text) if part.strip()]
    found: list[tuple[str, str]] = []
    while parts:
        name, equals, value = parts.pop(0).partition("=")
        name = name.strip()
        if not (name and equals):
            raise ValueError(
                f"the argument of the configuration has {name or '='!r}; it must look "
                "like model=vgg16,method=rigl,sparsity=0.95"
            )
        more = 0
        if value[:1] not in ("'", '"', *_CLOSING):
            more = _further_parts(names.get(name, name), parts, names)
        value = ",".join([value, *parts[:more]])
        del parts[:more]
        found.append((name, unquoted(value)))
    return found


def _further_parts(field: str, parts: Sequence[str], names: dict[str, str]) -> int:
    """How many of the parts belong to the value of the field before them."""
    more = 0
    if _is_list(field):
        return sum(1 for _ in itertools.takewhile(lambda part: "=" not in part, parts))
    if not _is_path(field):
        return 0
    for i, part in enumerate(parts):
        name, _, value = part.partition("=")
        if _is_path(names.get(name.strip(), name.strip())):
            break
        if "/" in part and value[:1] not in ("'", '"', *_CLOSING):
            more = i + 1
    return more


def _is_list(field: str) -> bool:
    return field in KNOWN and KNOWN[field].kind in ("ints", "strs")


def _is_path(field: str) -> bool:
    return field in KNOWN and KNOWN[field].kind.startswith("path")


def unquoted(text: str) -> str:
    """The text without the quotes around it."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in ("'", '"'):
        return text[1:-1]
    return text


def joined(pairs: Iterable[tuple[str, str]]) -> str:
    """What `split_argument` reads as these names and texts."""
    return ",".join(f"{name}={_quoted(text)}" for name, text in pairs)


def _quoted(text: str) -> str:
    if not re.search(r"[,'\"/(\[]|^\s|\s$", text):
        return text
    quote = '"' if '"' not in text else "'"
    if quote in text:
        raise ValueError(f"{text!r} has both kinds of quotes, and cannot be passed on")
    return f"{quote}{text}{quote}"


# --- Values ---------------------------------------------------------------------------


def read_value(name: str, field: str, text: str) -> Any:
    """The value that a text stands for.

    Args:
      name: as the user wrote it, for the error.
      field: its dotted name.
      text: of the value.

    Raises:
      ValueError: if it is not of the type that the field has.
    """
    if field.startswith(OPEN):
        return _literal(text)
    kind = KNOWN[field].kind
    if kind.endswith(" or none") and text.strip().lower() in ("", "none"):
        return None
    kind = kind.removesuffix(" or none")
    if kind == "str":
        return text
    if kind == "path":
        return expanded(text)
    if kind == "bool":
        return read_bool(name, text)
    if kind in ("ints", "strs"):
        return _list(name, kind, text)
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise ValueError(f"{name} must be of type {kind}, got {text!r}") from None


def read_bool(name: str, text: str) -> bool:
    """True for true, t or 1, False for false, f or 0, in any case.

    Raises:
      ValueError: for another text.
    """
    try:
        return bool(flags.BooleanParser().parse(text))
    except ValueError:
        raise ValueError(f"{name} must be true or false, got {text!r}") from None


def expanded(path: str) -> str:
    """A path with ``~`` or ``~user`` in front expanded.

    Raises:
      ValueError: if there is no such user, or as `check_letters`.
    """
    full = os.path.expanduser(path)
    check_letters(full)
    if full.startswith("~"):
        user = full.split("/")[0]
        raise ValueError(f"{path!r}: there is no user {user[1:]!r}; or write ./{path}")
    return full


def check_letters(text: str) -> None:
    """Raises if a text of the command line has bytes that are not of the locale.

    Raises:
      ValueError: one line.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{os.fsencode(text).decode(errors='replace')!r} has letters that are not "
            f"of the locale's encoding, {sys.getfilesystemencoding()}; set "
            "LC_ALL=C.UTF-8 or PYTHONUTF8=1, or give it another name"
        ) from None


def _list(name: str, kind: str, text: str) -> tuple[Any, ...]:
    value = _literal(text) if text.strip() else ()
    found = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if kind == "strs" and not all(
        isinstance(one, str) and one != text for one in found
    ):
        return _words(text.strip())
    if kind == "ints" and not all(type(one) is int for one in found):
        raise ValueError(f"{name} must be of type ints, as (1, 2), got {text!r}")
    return found


def _words(text: str) -> tuple[str, ...]:
    """Texts without quotes: ``a,b`` or ``(a, b)``; an expression's commas stay."""
    inner = text[1:-1] if (text[0], text[-1]) in _CLOSING.items() else text
    words = _BETWEEN.split(inner)
    if len(words) == 1:
        return (unquoted(text),)
    if not words[-1].strip():  # (a,)
        words.pop()
    return tuple(map(unquoted, words))


def _literal(text: str) -> Any:
    """A Python value, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


# --- Fields ---------------------------------------------------------------------------


def has_field(config: Any, field: str) -> bool:
    """Whether a configuration has a field, or its section takes any."""
    *path, last = field.split(".")
    for step in path:
        config = config.get(step) if isinstance(config, ConfigDict) else None
    if not isinstance(config, ConfigDict):
        return False
    return field.startswith(OPEN) or (field in KNOWN and last in config)


def set_field(config: Any, field: str, value: Any) -> None:
    """Sets a field that `has_field`, whatever it was before."""
    *path, last = field.split(".")
    for step in path:
        config = config[step]
    with config.unlocked(), config.ignore_type():
        config[last] = value
