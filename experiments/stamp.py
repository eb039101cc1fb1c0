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

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.build.stamp import Setup, build_stamp
from experiments.command import check_devices, start
from experiments.config.fields import STAMP_FIELDS, Config, as_config, check_config
from experiments.config.flags import Parser
from experiments.reports.stamp import write_stamp_report
from experiments.runs.folder import locked
from experiments.runs.identity import named_fields
from experiments.runs.layout import RESULTS
from experiments.runs.made_by import made_by
from experiments.runs.ownership import check_no_run
from experiments.runs.phases import Phases
from experiments.runs.stopping import Signals
from experiments.runs.written import claim
from experiments.stamp_arms import Target, set_overlaps, train_arm, train_dense
from experiments.stamp_gates import meta_learn, train_reference
from experiments.stamp_lab import Lab
from experiments.stamp_programs import Programs
from sup_tickets.files import atomic_write
from sup_tickets.training.processes import say


def run_stamp(config: Config, workdir: Path, seeds: Sequence[int] = ()) -> str:
    """Trains everything that is not finished, and writes the report.

    Args:
      config: of `configs.stamp`.
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
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be all different, got {seeds}")
    setup = build_stamp(config)
    check_no_run(workdir)
    fields = {k: v for k, v in named_fields(config).items() if k != "config.seed"}
    inside = workdir.glob("seed=*")
    claim(workdir / "stamp.json", "STAMP experiment", fields, inside)
    lock, programs = locked(workdir), Programs(config, setup)
    try:
        with Signals().caught() as signals:
            for seed in seeds:
                ours = as_config(config.to_dict())
                ours.seed = seed
                check_config(ours, STAMP_FIELDS)
                folder = workdir / f"seed={seed}"
                _run_seed(ours, setup, programs, folder, signals)
                signals.check(f"{workdir}: stopped after seed {seed}, all saved")
        return write_stamp_report(workdir, config.stamp.report_epochs)
    finally:
        lock.release()


def _run_seed(
    config: Config, setup: Setup, programs: Programs, folder: Path, signals: Signals
) -> None:
    if (folder / RESULTS).exists():
        say(f"{folder}: finished")
        return
    often = config.checkpoint
    phases = Phases(
        folder / "phases", signals, 60 * often.every_minutes, often.every_steps
    )
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
    whole = lab.flops(setup.reference)
    ours = config.stamp
    pretrain = lab.training_flops(setup.reference, whole, ours.pretrain_epochs)
    episode = ours.set_size + 3 * ours.inner_steps * lab.size
    results = {
        "seed": config.seed,
        "evaluated_on": config.evaluate,
        "rows": rows,
        "layers": {group.name: group.size for group in lab.groups},
        "reference": of_reference,
        "dense": dense,
        "meta": of_meta,
        "overlaps": overlaps,
        "pretrain_flops": pretrain,
        "meta_flops": ours.episodes * episode * whole,
        "made_by": made_by(),
    }
    atomic_write(folder / RESULTS, json.dumps(results, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.stamp", __doc__)
    parser.add_config()
    parser.add_workdir()
    parser.add_seeds()
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    config = options.config.make()
    check_devices()
    print(f"\n{run_stamp(config, options.workdir, options.seeds)}")


if __name__ == "__main__":
    main()
