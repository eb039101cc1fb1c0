"""How fast a run is, from when its steps were reported."""

import statistics
from collections import deque

_KNOWN_FROM = 3  # intervals between reports
_RECENT = 100
_STOP = 3.0  # times the median
_MOST_STOPS = 4  # as many programs may be compiled; what comes more often is regular


class Pace:
    """Steps a second over the last reports, without what happens only once.

    Programs are compiled when they are first needed: the training step before the first
    report, updates of the topology and the validation some reports later. Intervals
    with such a stop are left out, so that the time left does not begin with them.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._intervals: deque[tuple[int, float]] = deque(maxlen=_RECENT)

    def add(self, done: int, now: float) -> None:
        """After ``done`` steps it is ``now``, in seconds."""
        if self._last is not None and done > self._last[0] and now > self._last[1]:
            self._intervals.append((done - self._last[0], now - self._last[1]))
        self._last = (done, now)

    @property
    def steps_per_second(self) -> float | None:
        """``None`` before there are enough reports.

        Example:
          >>> pace = Pace()
          >>> for done, now in [(0, 0.0), (10, 60.0), (20, 61.0), (30, 62.0)]:
          ...     pace.add(done, now)
          >>> pace.steps_per_second
          10.0
        """
        if len(self._intervals) < _KNOWN_FROM:
            return None
        usual = statistics.median_low(s / n for n, s in self._intervals)
        slowest = sorted(self._intervals, key=lambda each: each[1] / each[0])
        stops = [(n, s) for n, s in slowest[-_MOST_STOPS:] if s / n > _STOP * usual]
        kept = slowest[: len(slowest) - len(stops)]
        return sum(n for n, _ in kept) / sum(s for _, s in kept)


def span(seconds: float) -> str:
    """A time in words.

    Example:
      >>> span(119.4), span(7199), span(7200)
      ('119 s', '2 h 0 min', '2 h 0 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return (
        f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
    )
