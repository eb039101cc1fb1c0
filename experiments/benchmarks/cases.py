"""Programs that are timed beside each other."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.benchmarks.timing import Program, compiled, measure, medians


class Case(NamedTuple):
    """One thing to time: called again and again on what it returned itself."""

    call: Any  # jitted; (*state) -> state
    start: Callable[[], Any]  # makes the first state, when its turn comes
    carries: bool = False  # whether the result is the next call's (donated) input


class Figures(NamedTuple):
    """What was measured of one case; medians."""

    own: float  # ms of the processor, all threads
    wall: float  # ms
    temporary: int  # bytes beyond arguments and results, as compiled


def measure_cases(
    cases: dict[str, Case],
    repeats: int,
    least_s: float = 0.0,
    programs: Mapping[str, Program] = {},
) -> dict[str, Figures]:
    """Of one group, in turns; their states live here alone.

    Args:
      cases: by name.
      repeats: how often.
      least_s: wall time of the calls that are measured at once.
      programs: of the cases that are compiled already.
    """
    programs, calls = dict(programs), {}
    for name, case in cases.items():
        state = case.start()
        if name not in programs:
            programs[name] = compiled(name, case.call, *state)
        calls[name] = _repeatable(programs[name].call, state, case.carries)
    times = medians(measure(calls, tuple(cases), repeats, least_s))
    return {
        name: Figures(*spent, programs[name].temporary) for name, spent in times.items()
    }


def _repeatable(program: Any, state: Any, carries: bool) -> Callable[[], Any]:
    def call() -> Any:
        nonlocal state
        result = program(*state)
        if carries:
            state = result
        return result

    return call
