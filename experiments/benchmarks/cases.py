"""Programs that are timed beside each other."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.timing import say


class Case(NamedTuple):
    """One thing to time: called again and again on what it returned itself."""

    call: Callable[..., Any]  # jitted; (*state) -> state
    start: Callable[[], Any]  # makes the first state, when its turn comes
    carries: bool = False  # whether the result is the next call's (donated) input
    once: bool = False  # for what takes long: called once, and that is timed


class Figures(NamedTuple):
    """What was measured of one case."""

    own: float  # ms of the processor, all threads; the median
    temporary: int  # bytes beyond arguments and results, as compiled


def measure(cases: dict[str, Case], repeats: int) -> dict[str, Figures]:
    """Medians of the cases of one group, interleaved; their states live here alone."""
    programs, states = {}, {}
    for name, case in cases.items():
        begun, states[name] = time.perf_counter(), case.start()
        programs[name] = case.call.lower(*states[name]).compile()  # pyright: ignore
        say(f"{name}: compiled in {time.perf_counter() - begun:.1f} s")
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):  # the first is not counted
        for name, case in cases.items():
            if case.once and repeat != 1:
                continue
            begun = time.process_time()
            result = jax.block_until_ready(programs[name](*states[name]))
            spent = time.process_time() - begun
            if case.carries:
                states[name] = result
            if repeat:
                times[name].append(1e3 * spent)
            del result
    return {
        name: Figures(float(np.median(each)), temporary_bytes(programs[name]))
        for name, each in times.items()
    }


def temporary_bytes(program: Any) -> int:
    """Bytes beyond arguments and results of a compiled program."""
    return program.memory_analysis().temp_size_in_bytes
