"""What seeds cost together: five runs by one program over one run.

    python -m experiments.benchmarks.replicas [--repeats 1] [--data_dir DATA]

Whole runs, from the configuration to the report, with compiling and all that is
evaluated, in turns in one process. Ratios of medians of the process's own time, wall
time in the note. LeNet-300-100 is left out where Fashion-MNIST is not prepared, see
`experiments.prepare_data`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.table import Row, table_command
from experiments.benchmarks.timing import Time, clock, medians, say
from experiments.config.fields import Config
from experiments.config.reading import Pairs, read_source
from experiments.replicas import Member, run_together
from experiments.run import run

SEEDS = 5
_ROOT = Path(__file__).parents[2]
CASES = {
    "digits": ("digits.py", 1.5),
    "digits, perceptron": ("digits.py:model=mlp", 1.5),
    "LeNet-300-100": ("fashion_mnist.py", 2.0),
}
"""File and argument of the configuration, and the mark, by what the table says."""


def cases_of(source: str, fields: Pairs) -> dict[str, Callable[[Path], Any]]:
    """One run of a configuration, and five seeds of it together.

    Args:
      source: file and argument.
      fields: that are overridden.
    """
    read = read_source(f"{_ROOT / 'configs' / source}", fields)

    def config_of(seed: int) -> Config:
        return read.make([("seed", str(seed))])

    def one(out: Path) -> None:
        run(config_of(0), out / "run")

    def five(out: Path) -> None:
        seeds = range(SEEDS)
        failed = run_together(
            [Member(f"seed={s}", config_of(s), out / str(s)) for s in seeds]
        )
        for error in failed.values():
            raise error

    return {"five": five, "one": one}


def timed(case: Callable[[Path], Any]) -> Time:
    """A run in a folder of its own, which goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        wall, own = time.perf_counter(), time.process_time()
        case(Path(folder))
        own, wall = time.process_time() - own, time.perf_counter() - wall
    return Time(1e3 * own, 1e3 * wall)


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    fields = [] if options.data_dir is None else [("data.dir", options.data_dir)]
    for what, (source, target) in CASES.items():
        if options.only and options.only != what:
            continue
        cases = cases_of(source, fields)
        times: dict[str, list[Time]] = {name: [] for name in cases}
        try:
            for _ in range(options.repeats):
                for name, case in cases.items():
                    times[name].append(timed(case))
                    say(f"{what}, {name}: {times[name][-1].own / 1e3:.0f} s")
        except FileNotFoundError as error:
            say(f"{what} is left out: {error}")
            continue
        found = medians(times)
        five, one = found["five"], found["one"]
        note = (
            f"{five.own / 1e3:.0f} / {one.own / 1e3:.0f} s; wall "
            f"{five.wall / 1e3:.0f} / {one.wall / 1e3:.0f} s"
        )
        yield Row(f"{what}: 5 seeds / 1", clock(five) / clock(one), target, note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    flags = {
        "--data_dir": "where Fashion-MNIST is prepared",
        "--only": f"one of {', '.join(CASES)}",
    }
    table_command("replicas", __doc__, rows_of, repeats=1, flags=flags, argv=argv)


if __name__ == "__main__":
    main()
