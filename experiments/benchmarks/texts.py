"""Time of a training step of networks of texts, sparse beside dense.

    python -m experiments.benchmarks.texts [--repeats 9]

The networks of `configs/text.py` on its text, through the steps of real runs; the dense
one has the same optimizer. Ratios of medians, on a CPU of processor time, the programs
in turns in one process.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from configs import text
from experiments.benchmarks.table import Row, table_command
from experiments.benchmarks.timing import clock, compiled, measure, medians
from experiments.build.experiment import build, comparisons
from experiments.config.fields import Config

AT_MOST = 1.03
RUNS = {
    "LSTM, RigL": "",
    "LSTM, Selfish-RNN with SNT-ASGD": "method=selfish-rnn,train.averaging=restart",
    "Transformer, RigL": "model=transformer",
}
_LEAST_S = 0.3  # of wall time, what is measured at once


def stepping(name: str, config: Config) -> Callable[[], Any]:
    """A call of the training step of a run, on and on at its first batch."""
    run = build(config)
    state, batch = run.init().train, run.inputs.batches(0)
    program = compiled(name, run.steps.train, state, batch)

    def call() -> Any:
        nonlocal state
        state, report = program.call(state, batch)
        return state, report

    return call


def compared(argument: str) -> dict[str, Config]:
    """The sparse run of an argument of the configuration, and the dense one."""
    config: Any = text.get_config(argument)
    config.compare = True
    return {"dense": comparisons(config)["dense"], "sparse": config}


def row_of(name: str, repeats: int) -> Row:
    """Sparse over dense of one of `RUNS`."""
    configs = compared(RUNS[name])
    cases = {kind: stepping(f"{name}, {kind}", each) for kind, each in configs.items()}
    order = ("dense", "sparse", "sparse", "dense")
    times = measure(cases, order, repeats, _LEAST_S)
    spent = {kind: clock(each) for kind, each in medians(times).items()}
    each = zip(times["sparse"], times["dense"], strict=True)
    low, high = np.quantile([clock(a) / clock(b) for a, b in each], (0.25, 0.75))
    note = f"{spent['sparse']:.4g} / {spent['dense']:.4g} ms; middle half "
    note += f"{low:.3f} to {high:.3f}"
    ratio = spent["sparse"] / spent["dense"]
    return Row(f"{name}: sparse / dense", ratio, AT_MOST, note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""

    def rows_of(options: argparse.Namespace) -> Iterator[Row]:
        return (row_of(name, options.repeats) for name in RUNS)

    table_command("texts", __doc__, rows_of, repeats=9, argv=argv)


if __name__ == "__main__":
    main()
