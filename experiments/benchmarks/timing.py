"""Times of compiled programs, in turns; processor and wall."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

_MOST_CALLS = 500  # measured at once


class Program(NamedTuple):
    """A compiled program."""

    call: Any  # as the jitted function
    compile_s: float  # of wall time, tracing included
    temporary: int  # bytes beyond arguments and results
    compile_own_s: float  # of the processor, all threads


class Time(NamedTuple):
    """Of one call, in ms."""

    own: float  # of the processor, all threads
    wall: float


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def compiled(name: str, function: Any, *arguments: Any) -> Program:
    """Compiles a jitted function for these arguments."""
    begun, own = time.perf_counter(), time.process_time()
    program = function.lower(*arguments).compile()
    spent, own = time.perf_counter() - begun, time.process_time() - own
    say(f"{name} compiled in {spent:.1f} s ({own:.1f} s of processor time)")
    return Program(program, spent, program.memory_analysis().temp_size_in_bytes, own)


def measure(
    cases: Mapping[str, Callable[[], Any]],
    order: Sequence[str],
    repeats: int,
    least_s: float = 0.0,
) -> dict[str, list[Time]]:
    """Times of a call of each case, in turns, once each was called in vain.

    Args:
      cases: functions that return what is to be waited for.
      order: which are measured, one after the other, in every repeat.
      repeats: how often.
      least_s: wall time of the calls that are measured at once.
    """
    calls = {name: _calls(case, least_s) for name, case in cases.items()}
    times: dict[str, list[Time]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name in order:
            times[name].append(_time(cases[name], calls[name]))
    return times


def _calls(case: Callable[[], Any], least_s: float) -> int:
    _time(case, 1)
    if not least_s:
        return 1
    once = _time(case, 1).wall / 1e3
    return min(max(round(least_s / once), 1), _MOST_CALLS)


def _time(case: Callable[[], Any], calls: int) -> Time:
    wall, own = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = case()
    jax.block_until_ready(result)  # pyright: ignore[reportPossiblyUnbound]
    own, wall = time.process_time() - own, time.perf_counter() - wall
    return Time(1e3 * own / calls, 1e3 * wall / calls)


def medians(times: dict[str, list[Time]]) -> dict[str, Time]:
    """The median of each clock by itself."""
    return {
        name: Time(*(float(np.median(clock)) for clock in zip(*each, strict=True)))
        for name, each in times.items()
    }


def clock(spent: Time) -> float:
    """What ratios are made of: elsewhere than on a CPU the processor only waits."""
    return spent.own if jax.default_backend() == "cpu" else spent.wall
