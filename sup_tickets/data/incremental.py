"""Tasks and sessions: which classes come when, and by which examples.

References:
  Tao et al., Few-Shot Class-Incremental Learning, 2020 (TOPIC),
  https://arxiv.org/abs/2004.10956
  Shi et al., Overcoming Catastrophic Forgetting in Incremental Few-Shot Learning by
  Finding Flat Minima, 2021 (F2M), https://arxiv.org/abs/2111.01549
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from sup_tickets.checks import check_whole

Classes = tuple[int, ...]
"""Labels of a data set, in the order in which a task counts them."""

# Coarse label of each of the 100 fine ones, which are in alphabetical order.
_COARSE = """
4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14
16 9 11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19
2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""

# Positions in the 50,000 training images, in their original order: five of each of the
# classes 60 to 99, in order.
_TOPIC = """
29774 33344 4815 6772 48317 29918 33262 5138 7342 47874 28864 32471 4316 6436 47498
29802 33159 3730 5093 47740 30548 34549 2845 4996 47866 28855 32834 4603 6914 48126
29932 33300 3860 5424 47055 29434 32604 4609 6380 47844 30456 34217 4361 6550 46896
29664 32857 4923 7502 47270 31267 34427 4799 6611 47404 28509 31687 3477 5563 48003
29545 33412 5114 6808 47692 29209 33265 4131 6401 48102 31290 34432 6060 8451 48279
32337 35646 6022 9048 48584 30768 34394 5091 6510 48023 30310 33230 5098 6671 48349
29690 33490 4260 5916 47371 31173 34943 4517 6494 47689 30281 33894 3768 6113 48095
28913 32821 6172 8276 48004 31249 34088 5257 6961 47534 30404 34101 4985 6899 48115
31823 35148 3922 6548 48127 30815 34450 3481 5089 47913 31683 34591 5251 7608 47984
29837 33823 4615 6448 47752 31222 34079 5686 7919 48675 28567 32964 5009 6201 47039
29355 33909 3982 5389 47166 31058 35180 5177 6890 48032 31176 35098 5235 7861 47830
30874 34639 5266 7489 47323 29960 34050 4988 7434 48208 30463 34580 5230 6813 48605
31702 35249 5854 7765 48444 30380 34028 5211 7433 47988 31348 34021 4929 7033 47904
30627 33728 4895 6299 47507
"""


# --- Classes --------------------------------------------------------------------------


def cifar100_coarse() -> np.ndarray:
    """The coarse label, 0 to 19, of each fine label of CIFAR-100: [100] int32."""
    return np.array(_COARSE.split(), np.int32)


def read_classes(text: str) -> Classes:
    """The classes of a text like "0-4" or "0+3+7-9", both ends included.

    Raises:
      ValueError: if it is not such a text, or has a class twice.

    Example:
      >>> read_classes("0+3+7-9")
      (0, 3, 7, 8, 9)
    """
    found: list[int] = []
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = match.groups() if match else ("1", "0")
        classes = range(int(first), int(last or first) + 1)
        if not classes:
            raise ValueError(f"classes must look like 0-4 or 0+3+7-9, got {text!r}")
        found += classes
    if len(set(found)) < len(found):
        raise ValueError(f"classes {text!r} have one twice")
    return tuple(found)


def superclasses() -> tuple[Classes, ...]:
    """The 20 tasks of CIFAR-100: the five classes of each coarse label, in order."""
    coarse = cifar100_coarse()
    return tuple(tuple(map(int, np.flatnonzero(coarse == c))) for c in range(20))


def check_disjoint(parts: Mapping[str, Classes], classes: int) -> None:
    """Raises if a part has a class that the set lacks, or that one before it has.

    Args:
      parts: classes by the name of the task or session, in order.
      classes: of the data set.

    Raises:
      ValueError: naming the class and both parts.
    """
    seen: dict[int, str] = {}
    for name, ours in parts.items():
        for label in ours:
            if label >= classes:
                raise ValueError(
                    f"{name} has class {label}, and the data set has 0-{classes - 1}"
                )
            if label in seen:
                raise ValueError(
                    f"{name} has class {label}, which {seen[label]} has seen"
                )
            seen[label] = name


# --- Few shots ------------------------------------------------------------------------


def topic_rows() -> np.ndarray:
    """The training images of the sessions of TOPIC's CIFAR-100: [40, 5] int64.

    Row c is of class 60 + c; positions are of the original order of the 50,000.
    """
    return np.array(_TOPIC.split(), np.int64).reshape(40, 5)


def drawn_rows(
    labels: np.ndarray, classes: Sequence[int], *, shots: int, seed: int, draw: int
) -> np.ndarray:
    """Examples of each class, at random but always the same: [classes, shots] int64.

    F2M's protocol takes ten draws after the seed 1997, and the mean of their results;
    the draws are ours, since those of its code hang on the state of its program.

    Args:
      labels: [N], of the training set.
      classes: to draw from.
      shots: of each.
      seed: of all draws.
      draw: which one; each is a function of (seed, draw, class).

    Raises:
      ValueError: naming the first class that has fewer examples.
    """
    check_whole("shots", shots, 1)
    rows = []
    for label in classes:
        found = np.flatnonzero(labels == label)
        if len(found) < shots:
            raise ValueError(
                f"shots={shots} is more than the {len(found)} examples of class {label}"
            )
        order = np.random.default_rng([seed, draw, label]).permutation(len(found))
        rows.append(np.sort(found[order[:shots]]))
    return np.array(rows, np.int64).reshape(len(rows), shots)


def read_rows(path: Path, labels: np.ndarray, sessions: Sequence[Classes]) -> list:
    """The examples of each session in a text file, one line of numbers a session.

    Args:
      path: of the file.
      labels: [N], of the training set in the order that the numbers count.
      sessions: classes that each session must have, as many of each.

    Returns:
      [ways, shots] int64 arrays in the order of the classes.

    Raises:
      ValueError: naming the line and what is wrong with it.
      OSError: if it cannot be read.
    """
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    if len(lines) != len(sessions):
        raise ValueError(f"{path} has {len(lines)} lines for {len(sessions)} sessions")
    found = []
    for number, (line, classes) in enumerate(zip(lines, sessions, strict=True), 1):
        words = line.replace(",", " ").split()
        if not all(word.isdecimal() and int(word) < len(labels) for word in words):
            raise ValueError(
                f"{path}: line {number} must have numbers below {len(labels)}"
            )
        rows = np.array(words, np.int64)
        if np.unique(rows).size < rows.size:
            raise ValueError(f"{path}: line {number} has a number twice")
        of_class = [rows[labels[rows] == label] for label in classes]
        sizes = {len(part) for part in of_class}
        if len(sizes) > 1 or not min(sizes) or sum(map(len, of_class)) < len(rows):
            raise ValueError(
                f"{path}: line {number} must have as many examples of each of the "
                f"classes {', '.join(map(str, classes))}, and of no other"
            )
        found.append(np.stack(of_class))
    return found


def in_turn(base: int, ways: int, classes: int) -> tuple[Classes, ...]:
    """Classes of sessions that follow a base of the first ones, ``ways`` in each.

    Raises:
      ValueError: if they do not come out even, or nothing is left of them.

    Example:
      >>> in_turn(4, 3, 10)
      ((4, 5, 6), (7, 8, 9))
    """
    check_whole("base_classes", base, 2, classes - 1)
    check_whole("ways", ways, 1)
    if (classes - base) % ways:
        raise ValueError(
            f"ways={ways} does not divide the {classes - base} classes after the base"
        )
    return tuple(
        tuple(range(first, first + ways)) for first in range(base, classes, ways)
    )


def joined(parts: Sequence[Classes]) -> Classes:
    """All classes, one part after the other."""
    return tuple(chain.from_iterable(parts))
