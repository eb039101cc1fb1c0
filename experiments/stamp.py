r"""STAMP, a reconstruction: small networks, by gates made from a set of new data.

    python -m experiments.stamp --config=configs/stamp.py --workdir=runs/stamp \
        --seeds=0,1,2

A network is trained on reference classes. Episodes of some of these classes meta-learn
a generator that makes gates of channels from a set of images. Then every target gets
small networks by several ways (arms), all of the same operations: channels are chosen,
removed, and what is left is trained. The seeds have a folder each, phases/ in it has a
file for every phase, which the same command goes on with wherever it was stopped.
report/ in DIR has the tables, pictures and results.csv of all seeds that are finished.

What is the paper's and what is ours: `sup_tickets.stamp`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.build.stamp import Setup, build_stamp
from experiments.command import seeded, start
from experiments.config.fields import STAMP_FIELDS, Config
from experiments.reports.stamp import write_stamp_report
from experiments.runs.phases import Phases
from experiments.runs.seeds import Experiment, run_seeds
from experiments.systems.stamp.arms import Target, set_overlaps, train_arm, train_dense
from experiments.systems.stamp.gates import meta_learn, train_reference
from experiments.systems.stamp.lab import Lab
from experiments.systems.stamp.programs import Programs
from sup_tickets.training.processes import say


def run_stamp(config: Config, workdir: Path, seeds: Sequence[int] = ()) -> Path:
    """Trains everything that is not finished, and writes the report.

    Args:
      config: of `configs.stamp`.
      workdir, seeds: see `run_seeds`, which says what is returned and raised.
    """
    setup = build_stamp(config)
    experiment = Experiment(
        "STAMP",
        STAMP_FIELDS,
        {},
        (),
        partial(_one_seed, setup, Programs(config, setup)),
        lambda workdir: write_stamp_report(workdir, config.stamp.report_epochs),
    )
    return run_seeds(experiment, config, workdir, seeds)


def _one_seed(
    setup: Setup, programs: Programs, config: Config, folder: Path, phases: Phases
) -> dict[str, Any]:
    lab = Lab(config, setup, phases, programs)
    reference, of_reference = train_reference(lab)
    say(f"{folder}: reference {100 * of_reference['accuracy'][-1]:.1f}%")
    meta, of_meta = meta_learn(lab, reference)
    rows: list[dict[str, Any]] = []
    overlaps: dict[str, Any] = {}
    dense: dict[str, Any] = {}
    for target in setup.targets:
        place = Target(lab, target, reference, meta)
        for arm in config.stamp.arms:
            rows.append(train_arm(place, arm))
            last = 100 * rows[-1]["accuracy"][-1]
            say(f"{folder}: {target}, {arm}: {last:.1f}%")
        overlaps[target] = set_overlaps(place)
        if "dense-prune" in config.stamp.arms:
            dense[target] = train_dense(place)[1]
    domain, ours = setup.reference, config.stamp
    pretrain = lab.training_flops(domain, lab.flops(domain), ours.pretrain_epochs)
    return {
        "rows": rows,
        "layers": {group.name: group.size for group in lab.groups},
        "reference": of_reference,
        "dense": dense,
        "meta": of_meta,
        "overlaps": overlaps,
        "pretrain_flops": pretrain,
        "meta_flops": ours.episodes * lab.adapting_flops(domain, ours.inner_steps),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    start(*seeded("experiments.stamp", __doc__, run_stamp), argv)


if __name__ == "__main__":
    main()
