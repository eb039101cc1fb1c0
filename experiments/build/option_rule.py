"""When a field of a configuration has an effect, as a value."""

from collections.abc import Callable
from typing import NamedTuple

from experiments.config.fields import Config

Condition = Callable[[Config], bool]


class Rule(NamedTuple):
    """Fields that something reads under a condition alone."""

    fields: tuple[str, ...]
    used: Condition
    why: str  # when they are used


class Conflict(NamedTuple):
    """Two settings of which a run can honour one."""

    fields: tuple[str, str]  # set as the condition says
    met: Condition
    why: str
