"""The pace of a run: what happens once is no part of it, what comes regularly is."""

import numpy as np
import pytest

from experiments.runs.pace import Pace


def paces(seconds, steps=50):
    """The pace after each report, whose intervals take so many seconds."""
    pace, now, found = Pace(), 100.0, []
    pace.add(steps, now)
    for i, interval in enumerate(seconds):
        now += interval
        pace.add((i + 2) * steps, now)
        found.append(pace.steps_per_second)
    return found


def test_compilations_do_not_count_wherever_they_are():
    # Of an update of the topology, of the validation, and of the exploration.
    seconds = [70.0, 5.0, 42.0, 5.0, 5.0, 5.0, 180.0, 5.0]
    found = paces(seconds)
    assert found[:2] == [None, None]
    assert found[3:] == [pytest.approx(10.0)] * 5
    total, left = 4000, []
    for i, pace in enumerate(found[3:]):
        left.append((total - 50 * (i + 5)) / pace)
    assert np.diff(left) == pytest.approx(-5.0)


def test_what_comes_regularly_counts():
    assert paces([5.0, 10.0] * 20)[-1] == pytest.approx(100 / 15)


def test_long_stops_that_come_again_and_again_count():
    # 20 of them, of which four could be compilations.
    found = paces(([1.0] * 4 + [46.0]) * 20)[-1]
    assert found == pytest.approx(96 * 50 / (80 + 16 * 46))


def test_another_load_is_followed():
    assert paces([5.0] * 50 + [10.0] * 200)[-1] == pytest.approx(5.0)


def test_steps_told_twice_or_at_one_time_are_no_interval():
    pace = Pace()
    for done, now in [(10, 1.0), (10, 2.0), (20, 2.0), (30, 3.0), (40, 4.0)]:
        pace.add(done, now)
    assert pace.steps_per_second is None
    pace.add(50, 5.0)
    assert pace.steps_per_second == pytest.approx(10.0)
