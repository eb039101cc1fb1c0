"""What a run asks for while it runs, so that one loop serves one run or many at once.

A `Running` yields its calls of compiled steps and is sent their results. `alone` does
each as it comes; `sup_tickets.training.replicas` does those of many runs in one.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol

from sup_tickets.training.state import TrainState


class Held(Protocol):
    """A state that is kept elsewhere, together with others."""

    def whole(self) -> TrainState:
        """A copy of it as it is now."""
        ...


class Call(NamedTuple):
    """``function(state, *arguments)``, to be done."""

    function: Callable[..., Any]  # pure; gives a state, or a state and what it tells
    state: TrainState | Held
    arguments: tuple[Any, ...]
    step: int  # completed ones
    tells: bool = True  # whether it gives more than a state


Running = Generator[Call, tuple[Any, Any], Any]
"""Yields calls, is sent ``(state, told)`` of each, and returns what a run ends with."""


def begin(state: TrainState, programs: Any) -> TrainState:
    """The function of the first call of a run.

    Args:
      state: as it begins.
      programs: runs that are given the same make the same calls, step by step.
    """
    del programs
    return state


def alone(running: Running) -> Any:
    """What a run returns, each call being done as it comes."""
    try:
        call = next(running)
        while True:
            try:
                given = call.function(call.state, *call.arguments)
            except BaseException as error:  # the run's, as if it had called itself
                call = running.throw(error)
            else:
                call = running.send(given if call.tells else (given, None))
    except StopIteration as end:
        return end.value


def whole(state: TrainState | Held) -> TrainState:
    """The state, wherever it is kept."""
    return state if isinstance(state, TrainState) else state.whole()
