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

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.build.softnet import Setup, build_softnet
from experiments.command import seeded, start
from experiments.config.fields import SOFTNET_FIELDS, Config
from experiments.reports.softnet import write_softnet_report
from experiments.runs.phases import Phases
from experiments.runs.seeds import Experiment, run_seeds
from experiments.systems.sessions import Lab
from sup_tickets.training.processes import say


def run_softnet(config: Config, workdir: Path, seeds: Sequence[int] = ()) -> Path:
    """Trains everything that is not finished, and writes the report.

    Args:
      config: of `configs.softnet`.
      workdir, seeds: see `run_seeds`, which says what is returned and raised.
    """
    setup = build_softnet(config)
    experiment = Experiment(
        "SoftNet",
        SOFTNET_FIELDS,
        {"shown": [[rows.tolist() for rows in draw] for draw in setup.draws]},
        ("softnet.rows",),  # wherever they are: what is in them
        partial(_one_seed, setup),
        lambda workdir: write_softnet_report(workdir, config),
    )
    return run_seeds(experiment, config, workdir, seeds)


def _one_seed(
    setup: Setup, config: Config, folder: Path, phases: Phases
) -> dict[str, Any]:
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
    return {"rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    start(*seeded("experiments.softnet", __doc__, run_softnet), argv)


if __name__ == "__main__":
    main()
