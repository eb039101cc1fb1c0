"""What many runs cost together: five runs by one program over one run.

    python -m experiments.benchmarks.replicas [--repeats 1] [--data_dir DATA] [--only X]

Commands as they are typed, each in a process of its own: `experiments.main` for one
run, `experiments.sweep` for five that differ in seeds or in rates, from the start of
Python to the report, with compiling and all that is evaluated. Ratios of medians of
the processes' own time, wall time in the note. LeNet-300-100 is left out where
Fashion-MNIST is not prepared, see `experiments.prepare_data`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.benchmarks.table import Row, table_command
from experiments.benchmarks.timing import Time, clock, medians, say
from sup_tickets.data.image_sets import load_dataset

_ROOT = Path(__file__).parents[2]
_SEEDS = "seed=0..4"
_RATES = "train.learning_rate=0.1,0.08,0.06,0.04,0.02"
CASES = {
    "digits, perceptron: 5 seeds / 1": ("digits.py:model=mlp", _SEEDS, 1.5),
    "LeNet-300-100: 5 seeds / 1": ("fashion_mnist.py", _SEEDS, 2.0),
    "digits, perceptron: 5 rates / 1": ("digits.py:model=mlp", _RATES, None),
    "digits, convolutions: 5 seeds / 1": ("digits.py", _SEEDS, 1.5),
}
"""File and argument of the configuration, the grid, and the mark of the issue."""


def commands_of(source: str, grid: str, out: str) -> dict[str, list[str]]:
    """The words of one run, and of five of a grid together.

    Args:
      source: file and argument of the configuration.
      grid: of the five.
      out: a folder that is not there yet.
    """
    config = f"--config={_ROOT / 'configs' / source}"
    return {
        "five": [
            *("experiments.sweep", config, f"--out={out}"),
            *(f"--grid={grid}", "--replicas=5"),
        ],
        "one": ["experiments.main", config, f"--workdir={out}"],
    }


def timed(words: Sequence[str]) -> Time:
    """A command in a process of its own.

    Raises:
      RuntimeError: with its last line, if it fails.
    """
    # Nothing that another process has compiled.
    hidden = {"JAX_COMPILATION_CACHE_DIR"}
    known = {name: value for name, value in os.environ.items() if name not in hidden}
    wall, own = time.perf_counter(), _of_children()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=_ROOT,
        env=known,
        capture_output=True,
        text=True,
        check=False,
    )
    own, wall = _of_children() - own, time.perf_counter() - wall
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(words)}: {''.join(last)}")
    return Time(1e3 * own, 1e3 * wall)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    for what, (source, grid, target) in CASES.items():
        if options.only and not what.startswith(options.only):
            continue
        if source == "fashion_mnist.py":
            try:
                load_dataset("fashion_mnist", data_dir=options.data_dir)
            except FileNotFoundError as error:
                say(f"{what} is left out: {error}")
                continue
        times: dict[str, list[Time]] = {"five": [], "one": []}
        for _ in range(options.repeats):
            for name, spent in times.items():
                with tempfile.TemporaryDirectory() as folder:
                    words = commands_of(source, grid, f"{folder}/out")[name]
                    if options.data_dir is not None:
                        folder_of_data = Path(options.data_dir).resolve()
                        words.append(f"--config.data.dir={folder_of_data}")
                    spent.append(timed(words))
                say(f"{what}, {name}: {spent[-1].own / 1e3:.0f} s")
        found = medians(times)
        five, one = found["five"], found["one"]
        note = (
            f"{five.own / 1e3:.0f} / {one.own / 1e3:.0f} s; wall "
            f"{five.wall / 1e3:.0f} / {one.wall / 1e3:.0f} s"
        )
        yield Row(what, clock(five) / clock(one), target, note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    flags = {
        "--data_dir": "where Fashion-MNIST is prepared",
        "--only": "what the cases that are measured begin with, as 'digits, perc'",
    }
    table_command("replicas", __doc__, rows_of, repeats=1, flags=flags, argv=argv)


if __name__ == "__main__":
    main()
