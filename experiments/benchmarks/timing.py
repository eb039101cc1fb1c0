"""Times of compiled programs, in turns; processor and wall."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

_MOST_CALLS = 500  # measured at once


class Program(NamedTuple):
    """A compiled program."""

    call: Any  # as the jitted function
    compile_s: float  # of wall time; with tracing, unless compiled beside others
    temporary: int  # bytes beyond arguments and results
    compile_own_s: float  # of the processor, all threads; not known beside others


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
    return Program(program, spent, _temporary(program), own)


def compiled_together(
    waves: Sequence[Mapping[str, Callable[[], Any]]], begin_s: float
) -> dict[str, Program | BaseException]:
    """Compiles in threads, one a core: the compiler holds no lock of Python's.

    Args:
      waves: tracings by name, the most wanted first, each as
        ``lambda: jax.jit(f).trace(...)``; called one after the other, while those
        before are compiled. A wave begins when the one before is compiled.
      begin_s: seconds from now after which nothing more is begun.

    Returns:
      By name, the program, or why there is none.
    """
    begun = time.perf_counter()

    def check_time() -> None:
        if time.perf_counter() - begun >= begin_s:
            raise TimeoutError(f"not compiled: {begin_s:g} s were over")

    def lower_one(trace: Callable[[], Any]) -> Any:
        check_time()
        return trace().lower()

    def compile_one(name: str, lowering: Future[Any]) -> Program:
        lowered = lowering.result()
        check_time()
        start = time.perf_counter()
        program, spent = lowered.compile(), time.perf_counter() - start
        say(f"{name} compiled in {spent:.1f} s, beside others")
        return Program(program, spent, _temporary(program), float("nan"))

    found: dict[str, Program | BaseException] = {}
    for tracings in waves:
        # Traced one after the other, which Python's lock would make of it anyhow.
        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(os.cpu_count()) as pool:
            each = {
                name: pool.submit(compile_one, name, first.submit(lower_one, trace))
                for name, trace in tracings.items()
            }
        found |= {name: one.exception() or one.result() for name, one in each.items()}
    return found


def _temporary(program: Any) -> int:
    return program.memory_analysis().temp_size_in_bytes


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
