"""Texts as numbers: words or characters, split once and for all.

A text is cut where it is long, never shuffled: what is trained on comes first, what is
tested on last. Nothing is ever downloaded.
"""

import functools
import hashlib
import importlib
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sup_tickets.checks import check_one_of, check_whole

TOPICS = "pydoc_topics"
"""The help texts of Python's language reference, which every Python has: 460 kB."""

UNITS = ("words", "spaced", "characters")
"""What a text is made of: words and marks; what white space parts; characters."""

UNKNOWN, END = "<unk>", "<eos>"
"""The tokens of all that the vocabulary lacks, and of the end of a line of words."""

_FILE = "text:"
_PARTS = ("train", "valid", "test")  # names of the files of a folder
_SUFFIXES = (".txt", ".txt.xz")
# "<unk>" and WikiText's "@-@" are words.
_WORD = re.compile(r"<\w+>|@\S@|\w+|[^\w\s]|\n")
_SPACED = re.compile(r"[^\s]+|\n")


class Text(NamedTuple):
    """The three splits of a text as numbers of the vocabulary. N tokens each."""

    name: str
    vocabulary: tuple[str, ...]  # V tokens; the first is `UNKNOWN`
    train: np.ndarray  # [N] int32
    validation: np.ndarray  # [N] int32, may be empty
    test: np.ndarray  # [N] int32


class Raw(NamedTuple):
    """A text as it is read."""

    parts: tuple[str, ...]  # the whole of it, or those of `_PARTS`

    @property
    def digest(self) -> str:
        """What tells it from another text."""
        whole = b"\0".join(part.encode() for part in self.parts)
        return hashlib.sha256(whole).hexdigest()


def is_text(name: str) -> bool:
    """Whether a data set of this name is a text."""
    return name == TOPICS or name.startswith(_FILE)


def read_text(name: str) -> Raw:
    """A text of this machine.

    Args:
      name: `TOPICS`; "text:FILE" for one file, plain or ``.xz``, UTF-8; or
        "text:FOLDER" for a folder with train.txt, valid.txt and test.txt, or the same
        with ``.xz``, as WikiText-2.

    Raises:
      FileNotFoundError: one line, for what is not there.
      ValueError: one line, for a file that is empty or no text, or for no name.
    """
    if name == TOPICS:
        return Raw((_topics(),))
    if name == _FILE:
        raise ValueError(f"{name!r} must name a file or a folder after the colon")
    path = Path(os.path.expanduser(name.removeprefix(_FILE)))
    if path.is_dir():
        return Raw(tuple(_read(_part(path, part)) for part in _PARTS))
    return Raw((_read(path),))


def load_text(
    name: str,
    *,
    unit: str = "words",
    vocabulary: int = 0,
    validation_examples: int | None = None,
    training_examples: int = 0,
) -> Text:
    """A text in three splits.

    The last tenth of one file is the test split, and what comes before it is the
    validation split.

    Args:
      name: see `read_text`.
      unit: of `UNITS`. "words" and marks are tokens, each by itself; "spaced" is for
        texts that are tokenized already, as WikiText. Lines of both end in `END`.
      vocabulary: largest number of different tokens, `UNKNOWN` included: the most
        frequent ones of the training split, of equals the first; 0 keeps all.
      validation_examples: tokens of the validation split, of a folder those at the
        start of its file. By default a tenth of a file, and the whole of a folder's.
      training_examples: keep as many tokens from the start; 0 keeps all.

    Raises:
      FileNotFoundError, ValueError: as `read_text`; and if a number is out of its
        range or a split too short for it.
    """
    check_one_of("unit", unit, UNITS)
    check_whole("vocabulary", vocabulary, 0)
    check_whole("training_examples", training_examples, 0)
    parts = [_tokens(part, unit) for part in read_text(name).parts]
    train, validation, test = _split(parts, validation_examples)
    if training_examples > len(train):
        raise ValueError(
            f"training_examples={training_examples} is more than the {len(train)} of "
            f"{name!r} to train on"
        )
    train = train[: training_examples or None]
    known = _vocabulary(train, vocabulary)
    numbers = {token: i for i, token in enumerate(known)}
    return Text(
        name, known, *(_numbered(part, numbers) for part in (train, validation, test))
    )


# --- Reading --------------------------------------------------------------------------


@functools.cache
def _topics() -> str:
    topics = importlib.import_module("pydoc_data.topics").topics
    # In an order that has nothing to do with what they are about.
    return "\n".join(
        topics[name] for name in sorted(topics, key=lambda n: zlib.crc32(n.encode()))
    )


def _part(folder: Path, part: str) -> Path:
    for suffix in _SUFFIXES:
        if (folder / (part + suffix)).is_file():
            return folder / (part + suffix)
    wanted = " or ".join(part + suffix for suffix in _SUFFIXES)
    raise FileNotFoundError(f"{str(folder)!r} has no {wanted}")


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no text {str(path)!r}")
    read = lzma.open if path.suffix == ".xz" else open
    try:
        with read(path, "rt", encoding="utf-8") as file:
            text = str(file.read())
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is no UTF-8 text: {error}") from None
    if not text.strip():
        raise ValueError(f"{str(path)!r} is empty")
    return text


# --- Tokens ---------------------------------------------------------------------------


def _tokens(text: str, unit: str) -> list[str]:
    if unit == "characters":
        return list(text)
    found = (_WORD if unit == "words" else _SPACED).findall(text)
    return [END if token == "\n" else token for token in found]


def _split(parts: Sequence[list[str]], validation: int | None) -> list[list[str]]:
    """Training, validation and test tokens."""
    if validation is not None:
        check_whole("validation_examples", validation, 0)
    if len(parts) > 1:
        train, held, test = parts
        wanted = len(held) if validation is None else validation
        if wanted > len(held):
            raise ValueError(
                f"validation_examples={wanted} is more than the {len(held)} of the "
                "validation text"
            )
        return [train, held[:wanted], test]
    (whole,) = parts
    tenth = len(whole) // 10
    wanted = tenth if validation is None else validation
    end = len(whole) - tenth
    if wanted >= end:
        raise ValueError(
            f"validation_examples={wanted} leaves nothing to train on of the {end} "
            "tokens before the test split"
        )
    return [whole[: end - wanted], whole[end - wanted : end], whole[end:]]


def _vocabulary(train: Sequence[str], most: int) -> tuple[str, ...]:
    counts = Counter(train)
    counts.pop(UNKNOWN, None)
    chosen = counts.most_common(max(most - 1, 0) if most else None)
    return (UNKNOWN, *(token for token, _ in chosen))


def _numbered(tokens: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    return np.fromiter((numbers.get(t, 0) for t in tokens), np.int32, len(tokens))
