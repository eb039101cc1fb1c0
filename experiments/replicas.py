"""Several runs by one program, each with its own folder, as if it were alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.build.shared import builder, programs_of
from experiments.config.fields import Config
from experiments.run import Session, running, tell
from experiments.runs.stopping import Signals, Stopped
from sup_tickets.training.processes import say
from sup_tickets.training.replicas import together

_COMPARED = 3  # a run and what it is compared with


class Member(NamedTuple):
    """One of many runs."""

    name: str  # "method=set,seed=0", of its folder
    config: Config
    path: Path


def grouped(members: Sequence[Member], most: int) -> list[list[int]]:
    """The numbers of the members that go together, in the order of the first of each.

    Args:
      members: all there are, finished ones too: so a group is the same at any time.
      most: members of a group.
    """
    groups: list[list[int]] = []
    growing: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        programs = programs_of(member.config)
        group = None if programs is None else growing.get(programs)
        if group is None or len(group) >= most:
            groups.append(group := [])
            if programs is not None:
                growing[programs] = group
        group.append(i)
    return groups


def run_together(
    replicas: Sequence[Member | None], *, devices: Sequence[Any] | None = None
) -> dict[str, Exception]:
    """`experiments.run.run` of several runs at once; each goes on from its checkpoint.

    Args:
      replicas: for which `programs_of` is the same. ``None`` keeps the place of one
        that is finished: what is left is computed to the bit as with it.
      devices: by default all.

    Returns:
      What went wrong, by name; the others are finished.

    Raises:
      ValueError: if two cannot go together, or there are several processes.
      Stopped: after a signal, once each is saved.
    """
    there = [replica for replica in replicas if replica is not None]
    _check(there)
    build = builder(devices, keep=_COMPARED)
    with Signals().caught() as signals:
        runs = [
            None if r is None else _running(r, build, signals, r is there[0])
            for r in replicas
        ]
        failed: dict[str, Exception] = {}
        for replica, result in zip(replicas, together(runs), strict=True):
            if replica is not None and isinstance(result, Exception):
                failed[replica.name] = result
            elif replica is not None and result is not None:
                say(f"\n{replica.name}")
                tell(result, replica.path)
        stops = [error for error in failed.values() if isinstance(error, Stopped)]
        if stops:
            for name, error in failed.items():
                if not isinstance(error, Stopped):
                    say(f"{name} failed: {error}")
            raise stops[0]
        signals.check("replicas: finished, and stopped as asked")
    return failed


def _running(replica: Member, build: Any, signals: Signals, is_first: bool) -> Any:
    session = Session(build, signals, replica.name, tells_plan=is_first)
    name = replica.config.method.name
    return running(replica.config, replica.path, session, name)


def _check(replicas: Sequence[Member]) -> None:
    if jax.process_count() > 1:
        raise ValueError(
            "replicas are trained by one process; start each run by itself"
        )
    wanted = programs_of(replicas[0].config)
    for replica in replicas:
        programs = programs_of(replica.config)
        if programs is None:
            raise ValueError(
                f"{replica.name}: {replica.config.data.name!r} is decoded on its way, "
                "for one run at a time"
            )
        if programs != wanted:
            raise ValueError(
                f"{replicas[0].name} and {replica.name} cannot be trained by one "
                "program: they differ in more than their seed"
            )
