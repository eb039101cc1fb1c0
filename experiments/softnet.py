r"""Few-shot class-incremental learning: SoftNet, HardNet, and four rules of sessions.

    python -m experiments.softnet --config=configs/softnet.py --workdir=runs/softnet \
        --seeds=0,1,2

Base networks learn the first classes: dense, with the minor weights of learned masks at
0 (hard-C, C the share of major ones) or scaled by U(0, 1) (soft-C). Then the masks stay
as they are, and sessions bring a few examples of new classes. A rule says which weights
they train: none ("frozen"), minor ones of one block ("minor-block", SoftNet's), all
minor ones ("minor"), or all ("all"). Classes are told by the nearest mean of features;
means of old classes and statistics of batch norm stay. The same command goes on
wherever it was stopped, in the middle of a session too. report/ has the tables and
pictures of all seeds that are finished.

Kang et al., On the Soft-Subnetwork for Few-Shot Class Incremental Learning, 2023,
https://arxiv.org/abs/2209.07529. The rule is the paper's: what its release does in a
session moves no weight of a convolution but by weight decay.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.build.softnet import Setup, build_softnet
from experiments.command import check_devices, start
from experiments.config.fields import SOFTNET_FIELDS, Config, as_config, check_config
from experiments.config.flags import Parser
from experiments.reports.softnet import write_softnet_report
from experiments.runs.folder import locked
from experiments.runs.identity import named_fields
from experiments.runs.layout import RESULTS
from experiments.runs.made_by import made_by
from experiments.runs.ownership import check_no_run
from experiments.runs.phases import Phases
from experiments.runs.stopping import Signals
from experiments.runs.written import claim
from experiments.softnet_sessions import Lab
from sup_tickets.files import atomic_write
from sup_tickets.training.processes import say


def run_softnet(config: Config, workdir: Path, seeds: Sequence[int] = ()) -> Path:
    """Trains everything that is not finished, and writes the report.

    Args:
      config: of `configs.softnet`.
      workdir: gets a folder for every seed.
      seeds: by default the configuration's.

    Returns:
      The report as Markdown.

    Raises:
      ValueError: one line, if something is wrong with the arguments; before the folder
        is touched.
      Stopped: after a signal, once everything is saved.
    """
    seeds = tuple(seeds) or (config.seed,)
    setup = build_softnet(config)
    check_no_run(workdir)
    fields = {k: v for k, v in named_fields(config).items() if k != "config.seed"}
    fields.pop("config.softnet.rows")  # wherever they are: what is in them
    fields["shown"] = [[rows.tolist() for rows in draw] for draw in setup.draws]
    inside = workdir.glob("seed=*")
    claim(workdir / "softnet.json", "SoftNet experiment", fields, inside)
    lock = locked(workdir)
    try:
        with Signals().caught() as signals:
            for seed in seeds:
                ours = as_config(config.to_dict())
                ours.seed = seed
                check_config(ours, SOFTNET_FIELDS)
                _run_seed(ours, setup, workdir / f"seed={seed}", signals)
                signals.check(f"{workdir}: stopped after seed {seed}, all saved")
        return write_softnet_report(workdir, config)
    finally:
        lock.release()


def _run_seed(config: Config, setup: Setup, folder: Path, signals: Signals) -> None:
    if (folder / RESULTS).exists():
        say(f"{folder}: finished")
        return
    often = config.checkpoint
    phases = Phases(
        folder / "phases", signals, 60 * often.every_minutes, often.every_steps
    )
    lab, ours = Lab(config, setup, phases), config.softnet
    rows: list[dict[str, Any]] = []
    for name in ours.bases:
        base = lab.base(name)
        for rule in ours.rules:
            found = [
                lab.sessions(name, base, rule, draw) for draw in range(len(setup.draws))
            ]
            # Of all classes seen; of the base's and each session's: means over draws.
            means = [
                np.mean([one[i] for one in found], axis=0).tolist()
                for i in range(1 + len(setup.sessions))
            ]
            rows.append(
                {
                    "base": name,
                    "rule": rule,
                    "accuracy": [row[0] for row in means],
                    "parts": [row[1:] for row in means],
                }
            )
            first, last = (100 * rows[-1]["accuracy"][i] for i in (0, -1))
            say(f"{folder}: {name}, {rule}: {first:.1f}% to {last:.1f}%")
    results = {
        "seed": config.seed,
        "evaluated_on": config.evaluate,
        "rows": rows,
        "made_by": made_by(),
    }
    atomic_write(folder / RESULTS, json.dumps(results, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.softnet", __doc__)
    parser.add_config()
    parser.add_workdir()
    parser.add_seeds()
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    config = options.config.make()
    check_devices()
    print(f"\n{run_softnet(config, options.workdir, options.seeds)}")


if __name__ == "__main__":
    main()
