"""Several runs by one program, each with its own folder, as if it were alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.build.experiment import Run, comparisons
from experiments.build.shared import OWN, builder, kind_of, programs_of
from experiments.config.fields import Config, flat
from experiments.run import Session, running, tell
from experiments.runs.stopping import Signals, Stopped
from sup_tickets.training.alike import Unlike
from sup_tickets.training.processes import say
from sup_tickets.training.replicas import together

_COMPARED = 3  # a run and what it is compared with


class Member(NamedTuple):
    """One of many runs."""

    name: str  # "method=set,seed=0", of its folder
    config: Config
    path: Path


def run_together(
    replicas: Sequence[Member], *, devices: Sequence[Any] | None = None
) -> dict[str, Exception]:
    """`experiments.run.run` of several runs at once; each goes on from its checkpoint.

    Args:
      replicas: which differ in numbers that are no shapes. One that is finished keeps
        its place: what is left is computed to the bit as with it.
      devices: by default all.

    Returns:
      What went wrong, by name; the others are finished.

    Raises:
      ValueError: if two cannot go together, or there are several processes.
      Stopped: after a signal, once each is saved.
    """
    _check(replicas)
    configs = [replica.config for replica in replicas]
    build = builder(devices, keep=_COMPARED, beside=configs)
    _build_first(replicas, build)
    with Signals().caught() as signals:
        runs = [_running(r, build, signals, r is replicas[0]) for r in replicas]
        failed: dict[str, Exception] = {}
        for replica, result in zip(replicas, together(runs), strict=True):
            if isinstance(result, Exception):
                failed[replica.name] = result
            elif result is not None:
                say(f"\n{replica.name}")
                tell(result, replica.path)
        stops = [error for error in failed.values() if isinstance(error, Stopped)]
        if signals.received:
            for name, error in failed.items():
                if not isinstance(error, Stopped):
                    say(f"{name} failed: {error}")
        if stops:
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
    first = replicas[0]
    for replica in replicas:
        kind = kind_of(replica.config)
        if kind is None:
            raise ValueError(
                f"{replica.name}: {replica.config.data.name!r} is decoded on its way, "
                "for one run at a time"
            )
        if kind != kind_of(first.config):
            raise _cannot(first, replica, "they differ in more than numbers")


def _build_first(replicas: Sequence[Member], build: Callable[[Config], Run]) -> None:
    """Finds out whether all programs are one but for constants, where they differ."""
    first = replicas[0].config
    others = [r for r in replicas if programs_of(r.config) != programs_of(first)]
    if not others:
        return
    try:
        for config in (first, *comparisons(first).values()):
            build(config).inputs.close()
    except Unlike as error:
        raise _cannot(replicas[0], others[0], str(error)) from error


def _cannot(one: Member, other: Member, why: str) -> ValueError:
    ours, theirs = flat(one.config), flat(other.config)
    names = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
    fields = ", ".join(f"config.{name}" for name in sorted({*names} - {*OWN}))
    return ValueError(
        f"{one.name} and {other.name} cannot be trained by one program, because of "
        f"{fields}: {why}"
    )
