"""Time of a training step of networks of texts, sparse beside dense.

    python -m experiments.benchmarks.texts [--repeats 9]

The networks of `configs/text.py` on its text, through the steps of real runs; the dense
one has the same optimizer. Ratios of medians, on a CPU of processor time, the programs
in turns in one process.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from configs import text
from experiments.benchmarks.timing import Scale, clock, compiled, measure, medians
from experiments.build.experiment import build, comparisons
from experiments.command import Parser, check_devices, start
from experiments.config.fields import Config
from sup_tickets.checks import check_whole

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


def row_of(name: str, scale: Scale) -> tuple[float, str]:
    """Sparse over dense of one of `RUNS`, and the line of the table."""
    configs = compared(RUNS[name])
    cases = {kind: stepping(f"{name}, {kind}", each) for kind, each in configs.items()}
    times = measure(cases, ("dense", "sparse", "sparse", "dense"), scale)
    spent = {kind: clock(each) for kind, each in medians(times).items()}
    each = zip(times["sparse"], times["dense"], strict=True)
    low, high = np.quantile([clock(a) / clock(b) for a, b in each], (0.25, 0.75))
    ratio = spent["sparse"] / spent["dense"]
    note = f"{spent['sparse']:.4g} / {spent['dense']:.4g} ms; middle half "
    note += f"{low:.3f} to {high:.3f}"
    return ratio, f"| {name}: sparse / dense | {ratio:.3g} | {AT_MOST} | {note} |"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.benchmarks.texts", __doc__)
    parser.add_argument("--repeats", type=int, default=9, help="timed turns of each")
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    check_whole("--repeats", options.repeats, 1)
    check_devices()
    scale = Scale(0, options.repeats, 0, 1, _LEAST_S, False)
    print(f"machine: {platform.machine()}, {jax.devices()[0].device_kind}")
    print(f"jax {jax.__version__}, {options.repeats} repeats")
    print("\n| what | figure | at most | from |\n| --- | --- | --- | --- |")
    ratios = {}
    for name in RUNS:
        ratios[name], line = row_of(name, scale)
        print(line, flush=True)
    worst = max(ratios, key=lambda name: ratios[name])
    print(f"\nworst: {ratios[worst] / AT_MOST:.2f} of its target: {worst}")


if __name__ == "__main__":
    main()
