"""Which members of a sweep are trained together, and in what order."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.build.branch import Course, course_of, difference_before, words_of
from experiments.build.shared import classes, kind_of, programs_of
from experiments.replicas import Member
from experiments.runs.layout import CHECKPOINTS

_TOGETHER, _SMALL = 8, 2**20
"""Members that go together by default, and weights of a network up to which they do."""


class Checked(NamedTuple):
    """What is known of a member that can run."""

    epoch_steps: int
    weights: int


def is_begun(member: Member) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any((member.path / CHECKPOINTS).glob("*"))


def in_turn(
    found: Sequence[Member],
    checked: Sequence[Checked | None],
    replicas: int | None,
    devices: Sequence[Any] | None = None,
) -> list[list[int]]:
    """The numbers of those that are run together, one turn after the other.

    Members that can branch from others follow them, together too. A group of which any
    is begun keeps its finished members, so that the others go on to the bit.

    Args:
      found: all members.
      checked: what is known of each; ``None`` if it is finished.
      replicas: see `experiments.sweep.sweep`.
      devices: by default all.
    """
    names = _classes(found, checked, replicas, devices)
    follow = _following(found, checked, names)
    named = [
        name and (is_later, name) for name, is_later in zip(names, follow, strict=True)
    ]
    turns: list[list[int]] = []
    for rows in sorted(
        grouped(named, replicas or _TOGETHER), key=lambda r: follow[r[0]]
    ):
        left = [i for i in rows if checked[i] is not None]
        if len(left) > 1 and not any(is_begun(found[i]) for i in left):
            turns.append(left)
        elif left and len(rows) > 1 and any(is_begun(found[i]) for i in left):
            turns.append(rows)
        else:
            turns += [[i] for i in rows]
    return turns


def grouped(names: Sequence[Any], most: int) -> list[list[int]]:
    """The numbers of the members that go together, in the order of the first of each.

    Args:
      names: of all members, finished ones too: so a group is the same at any time.
        Members with one name go together; ``None`` goes alone.
      most: members of a group.
    """
    groups: list[list[int]] = []
    growing: dict[Any, list[int]] = {}
    for i, name in enumerate(names):
        group = None if name is None else growing.get(name)
        if group is None or len(group) >= most:
            groups.append(group := [])
            if name is not None:
                growing[name] = group
        group.append(i)
    return groups


def _classes(
    found: Sequence[Member],
    checked: Sequence[Checked | None],
    replicas: int | None,
    devices: Sequence[Any] | None,
) -> list[str | None]:
    """Of each member with which others it can go; ``None`` for those that are alone.

    Whether a network is small does not depend on which members are finished: those of
    one class have the same shapes. Nothing is traced for what is finished altogether.
    """
    kinds = [kind_of(member.config) for member in found]
    settings: dict[str | None, set[str | None]] = defaultdict(set)
    weights: dict[str | None, int] = {}
    for member, kind, known in zip(found, kinds, checked, strict=True):
        settings[kind].add(programs_of(member.config))
        if known is not None:
            weights[kind] = known.weights
    limit = None if replicas else _SMALL
    traced = classes(devices, limit=limit)

    def class_of(member: Member, kind: str | None) -> str | None:
        if replicas == 1 or kind not in weights:
            return None
        if len(settings[kind]) > 1:
            return traced(member.config)
        is_small = limit is None or weights[kind] <= limit
        return programs_of(member.config) if is_small else None

    return [class_of(*each) for each in zip(found, kinds, strict=True)]


def _following(
    found: Sequence[Member],
    checked: Sequence[Checked | None],
    names: Sequence[str | None],
) -> list[bool]:
    """Whether each member begins as an earlier one of its class, to branch from it."""
    epochs = {
        kind_of(member.config): known.epoch_steps
        for member, known in zip(found, checked, strict=True)
        if known is not None
    }
    first: dict[str, list[Course]] = defaultdict(list)
    follow = []
    for member, name in zip(found, names, strict=True):
        if name is None or member.config.branch_from is not None:
            follow.append(False)
            continue
        alike = first[json.dumps([name, words_of(member.config)])]
        steps = epochs[kind_of(member.config)]
        course = course_of(member.config, epoch_steps=steps)
        follow.append(any(difference_before(c, course) is None for c in alike))
        if not follow[-1]:
            alike.append(course)
    return follow
