r"""Tasks one after the other on a frozen backbone: KSM, and what it is compared with.

    python -m experiments.ksm --config=configs/ksm.py --workdir=runs/ksm --seeds=0,1,2

A backbone is trained, by a run of its own in seed=S/backbone, or read from
--config.ksm.backbone=FILE. Every method then learns every task: a mask of the frozen
kernels, norms, a head, as `experiments.build.ksm.METHODS` says; and keeps what is the
task's own in one small file, seed=S/bundles/METHOD/task-I.safetensors. All accuracies
are of networks that were put together from these files. At the end the scores of every
task are computed again from its file, and compared bit for bit with what they were when
it was learned. The same command goes on wherever it was stopped, in the middle of a
task too. report/ has the tables and pictures of all seeds that are finished.

Yang et al., KSM: Fast Multiple Task Adaption via Kernel-wise Soft Mask Learning, 2021,
https://arxiv.org/abs/2009.05668
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import run
from experiments.build.ksm import Setup, build_ksm, is_head, read_backbone
from experiments.command import check_devices, start
from experiments.config.fields import KSM_FIELDS, Config, as_config, check_config
from experiments.config.flags import Parser
from experiments.ksm_tasks import Lab, Place
from experiments.reports.ksm import write_ksm_report
from experiments.runs.folder import locked
from experiments.runs.identity import named_fields
from experiments.runs.layout import FINAL, RESULTS, SUFFIX
from experiments.runs.made_by import made_by
from experiments.runs.ownership import check_no_run
from experiments.runs.phases import Phases
from experiments.runs.stopping import Signals
from experiments.runs.stored import read_run
from experiments.runs.written import claim
from sup_tickets.files import atomic_write
from sup_tickets.training.bundles import backbone_digest
from sup_tickets.training.processes import say
from sup_tickets.training.state import Network


def run_ksm(
    config: Config,
    workdir: Path,
    seeds: Sequence[int] = (),
    *,
    devices: Sequence[Any] | None = None,
) -> Path:
    """Trains everything that is not finished, and writes the report.

    Args:
      config: of `configs.ksm`.
      workdir: gets a folder for every seed.
      seeds: by default the configuration's.
      devices: of the backbone's run, by default all; tasks are small, and have one.

    Returns:
      The report as Markdown.

    Raises:
      ValueError: one line, if something is wrong with the arguments; before the folder
        is touched.
      Stopped: after a signal, once everything is saved.
    """
    seeds = tuple(seeds) or (config.seed,)
    setup = build_ksm(config)
    check_no_run(workdir)
    given = setup.given
    fields = {k: v for k, v in named_fields(config).items() if k != "config.seed"}
    fields["backbone"] = None if given is None else backbone_digest(given, is_head)
    fields.pop("config.ksm.backbone")  # wherever it is
    claim(workdir / "ksm.json", "KSM experiment", fields, workdir.glob("seed=*"))
    lock = locked(workdir)
    try:
        with Signals().caught() as signals:
            for seed in seeds:
                ours = as_config(config.to_dict())
                ours.seed = setup.base.seed = seed
                check_config(ours, KSM_FIELDS)
                _run_seed(ours, setup, workdir / f"seed={seed}", signals, devices)
                signals.check(f"{workdir}: stopped after seed {seed}, all saved")
        return write_ksm_report(workdir, config)
    finally:
        lock.release()


def _run_seed(
    config: Config, setup: Setup, folder: Path, signals: Signals, devices: Any
) -> None:
    if (folder / RESULTS).exists():
        say(f"{folder}: finished")
        return
    backbone, accuracy = _backbone(config, setup, folder, devices)
    often = config.checkpoint
    phases = Phases(
        folder / "phases", signals, 60 * often.every_minutes, often.every_steps
    )
    lab = Lab(config, setup, phases, backbone)
    rows: list[dict[str, Any]] = []
    same: dict[str, bool] = {}
    for method in config.ksm.methods:
        place = Place(folder / "bundles" / method, method)
        for number in range(len(setup.tasks)):
            rows.append(lab.learn(place, number))
            say(
                f"{folder}: {method}, {setup.tasks[number].name}: "
                f"{100 * rows[-1]['accuracy'][-1]:.1f}%"
            )
        same[method] = lab.unchanged(place)
    results = {
        "seed": config.seed,
        "evaluated_on": config.evaluate,
        "backbone_accuracy": accuracy,
        "rows": rows,
        "unchanged": same,
        "made_by": made_by(),
    }
    atomic_write(folder / RESULTS, json.dumps(results, indent=1) + "\n")


def _backbone(
    config: Config, setup: Setup, folder: Path, devices: Any
) -> tuple[Network, float | None]:
    """The backbone, and its accuracy on its own data where that was measured."""
    if setup.given is not None:
        return setup.given, None
    place = folder / "backbone"
    run.run(setup.base, place, devices=devices)
    row = read_run(place).main_row or {}
    network = read_backbone(
        place / f"{FINAL}{SUFFIX}", setup.model(2), config.model.name
    )
    return network, row.get("accuracy")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.ksm", __doc__)
    parser.add_config()
    parser.add_workdir()
    parser.add_seeds()
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    config = options.config.make()
    check_devices()
    print(f"\n{run_ksm(config, options.workdir, options.seeds)}")


if __name__ == "__main__":
    main()
