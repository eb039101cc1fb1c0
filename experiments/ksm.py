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

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import run
from experiments.build.ksm import Setup, build_ksm, is_head, read_backbone
from experiments.command import seeded, start
from experiments.config.fields import KSM_FIELDS, Config, as_config
from experiments.reports.ksm import write_ksm_report
from experiments.runs.layout import FINAL, SUFFIX
from experiments.runs.phases import Phases
from experiments.runs.seeds import Experiment, run_seeds
from experiments.runs.stored import read_run
from experiments.systems.tasks import Lab, Place
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
      workdir, seeds: see `run_seeds`, which says what is returned and raised.
      devices: of the backbone's run, by default all; tasks are small, and have one.
    """
    setup = build_ksm(config)
    given = setup.given
    experiment = Experiment(
        "KSM",
        KSM_FIELDS,
        {"backbone": None if given is None else backbone_digest(given, is_head)},
        ("ksm.backbone",),
        partial(_one_seed, setup, devices),
        lambda workdir: write_ksm_report(workdir, config),
    )
    return run_seeds(experiment, config, workdir, seeds)


def _one_seed(
    setup: Setup, devices: Any, config: Config, folder: Path, phases: Phases
) -> dict[str, Any]:
    backbone, accuracy = _backbone(config, setup, folder, devices)
    lab = Lab(config, setup, phases, backbone)
    rows: list[dict[str, Any]] = []
    same: dict[str, bool] = {}
    for method in config.ksm.methods:
        place = Place(folder / "bundles" / method, method)
        for number, task in enumerate(setup.tasks):
            rows.append(lab.learn(place, number))
            last = 100 * rows[-1]["accuracy"][-1]
            say(f"{folder}: {method}, {task.name}: {last:.1f}%")
        same[method] = lab.unchanged(place)
    return {"backbone_accuracy": accuracy, "rows": rows, "unchanged": same}


def _backbone(
    config: Config, setup: Setup, folder: Path, devices: Any
) -> tuple[Network, float | None]:
    """The backbone, and its accuracy on its own data where that was measured."""
    if setup.given is not None:
        return setup.given, None
    place, base = folder / "backbone", as_config(setup.base.to_dict())
    base.seed = config.seed
    run.run(base, place, devices=devices)
    row = read_run(place).main_row or {}
    network = read_backbone(
        place / f"{FINAL}{SUFFIX}", setup.model(2), config.model.name
    )
    return network, row.get("accuracy")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    start(*seeded("experiments.ksm", __doc__, run_ksm), argv)


if __name__ == "__main__":
    main()
