r"""Finds lottery tickets: train, prune, rewind, repeat; then trains them.

    python -m experiments.lottery --config=configs/fashion_mnist.py:sparsity=0.95 \
        --workdir=runs/lottery

Every round is a run in a folder of its own, so that the command goes on where it was
stopped. It trains the masks of the round before from the weights that the network had
after ``--rewind_epoch`` epochs, for the epochs that are left; then the smallest of its
active weights are pruned, over all layers together. The ticket is pruned to the exact
sparsity, and trained as it is, or by the method that the argument of FILE.py names.
``ticket-SPARSITY.safetensors`` has its masks and the weights to start from:

    python -m experiments.main --workdir=RUN \
        --config=configs/fashion_mnist.py:sparsity=0.95,masks=FILE,tost=true \
        --config.mask.weights=file

Frankle and Carbin, The Lottery Ticket Hypothesis, 2019,
https://arxiv.org/abs/1803.03635; rewinding to a later epoch: Frankle et al., Linear
Mode Connectivity and the Lottery Ticket Hypothesis, 2020,
https://arxiv.org/abs/1912.05671
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import run
from experiments.build.experiment import build
from experiments.build.option_rules import without_unused
from experiments.build.start import check_takes_masks, is_plain
from experiments.command import check_devices, start
from experiments.config.fields import Config, as_config, check_config
from experiments.config.flags import Parser, numbers
from experiments.runs.layout import FINAL, RESULTS, SUFFIX, epoch_file
from experiments.runs.made_by import maker
from experiments.runs.ownership import check_no_run, check_same_run
from experiments.runs.stored import read_run
from experiments.runs.written import claim
from sup_tickets.checks import check_one_of, check_sparsity
from sup_tickets.counting import active_count, exact
from sup_tickets.masks import apply_masks, full_masks, size
from sup_tickets.pruning import merged, prune_to_total
from sup_tickets.training.network_files import load_sparse, provenance_of, save_sparse
from sup_tickets.training.processes import say
from sup_tickets.trees import default_rule

VARIANTS = ("iterative", "one-shot", "gradual")
"""Prune a share a round; all at once; or while the first network is trained (GMP)."""

_IDENTITY = ("variant", "prune_fraction", "rewind_epoch")


class Options(NamedTuple):
    """What the rounds are like."""

    variant: str = "iterative"
    prune_fraction: float = 0.2  # of the active weights, each round
    rewind_epoch: int = 0
    targets: tuple[float, ...] = ()  # sparsities; by default the configuration's


def lottery(
    config: Config,
    workdir: Path,
    options: Options = Options(),  # noqa: B008  (immutable)
    *,
    devices: Sequence[Any] | None = None,
) -> dict[float, Path]:
    """Finds and trains the tickets of a network.

    Args:
      config: of the run; the rounds train without ToST and without Sup-tickets, the
        tickets as it says.
      workdir: gets a folder for every round and for every ticket.
      options: of the rounds.
      devices: by default all.

    Returns:
      The files of the tickets by their sparsities.

    Raises:
      ValueError: one line, if something is wrong with the arguments.
      Stopped: after a signal, once everything is saved.
    """
    for target in options.targets or (config.method.sparsity,):
        last = _ticket(config, target, _ticket_file(workdir, target))
        check_same_run(workdir / f"ticket-{target:g}", last)
    found = find_tickets(config, workdir, options, devices=devices)
    for target, file in found.items():
        say(f"ticket of sparsity {target:g}: {file}")
        last = _ticket(config, target, file)
        run.run(last, workdir / f"ticket-{target:g}", devices=devices)
    return found


def find_tickets(
    config: Config,
    workdir: Path,
    options: Options = Options(),  # noqa: B008  (immutable)
    *,
    devices: Sequence[Any] | None = None,
) -> dict[float, Path]:
    """The rounds of `lottery`, whose arguments and errors it has.

    Returns:
      The files of the tickets by their sparsities, ascending.
    """
    targets = _checked(config, options)
    check_no_run(workdir)
    one_round = options.variant != "iterative"
    ladder = [] if one_round else levels(max(targets), options.prune_fraction)
    found: dict[float, Path] = {}
    for target in targets:
        _check_ticket(_ticket(config, target), options, devices)
    # Targets are not of it: a ticket has a folder of its own, after whatever rounds.
    claim(
        workdir / "lottery.json",
        "lottery",
        {name: getattr(options, name) for name in _IDENTITY},
        [*workdir.glob("round-*"), *workdir.glob("ticket-*")],
    )
    for number, sparsity in enumerate([0.0, *ladder]):
        masks = _masks_file(workdir, number) if number else None
        say(f"round {number}: sparsity {sparsity:.4g}")
        ours = _round(config, options, sparsity, masks, final=max(targets))
        run.run(ours, _round_folder(workdir, number), devices=devices)
        following = [*ladder, 1.0][number]
        for target in targets:
            if sparsity < target <= following:
                found[target] = _ticket_file(workdir, target)
                _write(found[target], config, workdir, target, options, number)
        if number < len(ladder):
            path = _masks_file(workdir, number + 1)
            _write(path, config, workdir, following, options, number)
    return found


def levels(sparsity: float, prune_fraction: float) -> list[float]:
    """The sparsities of the rounds before the last.

    Args:
      sparsity: of the ticket.
      prune_fraction: of the active weights that a round prunes.

    Example:
      >>> levels(0.5, 0.2)
      [0.2, 0.36, 0.488]
    """
    found: list[float] = []
    kept = density = 1 - exact(prune_fraction)
    while density > 1 - exact(sparsity):
        found.append(round(float(1 - density), 12))
        density *= kept
    return found


def table(workdir: Path) -> str:
    """Sparsity and accuracy of every round and ticket."""
    lines = []
    found = [*workdir.glob("round-*"), *workdir.glob("ticket-*")]
    # One for another target may have been stopped.
    for folder in sorted(p for p in found if (p / RESULTS).is_file()):
        results = read_run(folder).results
        row = results["rows"][-1]
        sparsity = 1 - row["active"] / row["total"] if row["total"] else 0.0
        accuracy = f"{100 * row['accuracy']:.2f}%"
        split = results["evaluated_on"]
        lines.append(f"{folder.name}: sparsity {sparsity:.4f}, {split} {accuracy}")
    return "\n".join(lines)


# --- Rounds ---------------------------------------------------------------------------


def _checked(config: Config, options: Options) -> tuple[float, ...]:
    check_config(config)
    check_one_of("variant", options.variant, VARIANTS)
    if not 0 < options.prune_fraction < 1:
        raise ValueError(
            f"prune_fraction must be in (0, 1), got {options.prune_fraction}"
        )
    if not 0 <= options.rewind_epoch < config.train.epochs:
        raise ValueError(
            f"rewind_epoch must be at least 0 and below the {config.train.epochs} "
            f"epochs of the run, got {options.rewind_epoch}"
        )
    targets = options.targets or (config.method.sparsity,)
    for target in targets:
        check_sparsity(target, "targets")
        if not target:
            raise ValueError("a ticket of sparsity 0 is the dense network")
    if options.variant == "gradual" and len(set(targets)) > 1:
        raise ValueError(f"variant 'gradual' has one sparsity, got {targets}")
    check_takes_masks(config)
    if config.method.structure:
        raise ValueError(
            "a lottery prunes weights one by one; config.method.structure must be '', "
            f"got {config.method.structure!r}"
        )
    if config.view.name:
        raise ValueError(
            "a lottery prunes and rewinds the weights themselves; config.view.name "
            f"must be '', got {config.view.name!r}"
        )
    if config.branch_from is not None:
        raise ValueError(
            f"config.branch_from={config.branch_from!r}: every round of a lottery "
            "trains its own phase 1; leave it out"
        )
    if not is_plain(config):
        raise ValueError(
            "a lottery finds masks and weights itself; config.mask and config.masks "
            "must be left out"
        )
    return tuple(sorted(set(targets)))


def _check_ticket(config: Config, options: Options, devices: Any) -> None:
    """Of a ticket that cannot be trained nothing is found."""
    built = build(config, devices=devices)
    built.inputs.close()
    first = options.rewind_epoch * built.plan.epoch_steps
    if first >= built.plan.phase1_steps:
        raise ValueError(
            f"rewind_epoch={options.rewind_epoch} is beyond phase 1 of the run"
        )
    if 0 < built.ghost_steps <= first:
        raise ValueError(
            f"rewind_epoch={options.rewind_epoch} is after the ghosts of the run are "
            f"gone, epoch {built.ghost_steps // built.plan.epoch_steps}"
        )


def _round(
    config: Config, options: Options, sparsity: float, masks: Any, final: float
) -> Config:
    """A round that trains masks; without any, the first, which gradual prunes."""
    ours = as_config(config.to_dict())
    ours.compare = ours.sup.enabled = False
    ours.tost.parts = ""
    ours.method.initial_sparsity = None
    ours.method.options = _where(config)
    if masks is not None:
        ours.method.name, ours.method.sparsity = "static", sparsity
        ours.masks, ours.mask.weights = str(masks), "file"
        return without_unused(ours)
    if options.variant == "gradual":
        ours.method.name, ours.method.sparsity = "gmp", final
    else:
        ours.method.name, ours.method.options = "dense", as_config({})
    ours.checkpoint.keep_epochs = (options.rewind_epoch,)
    return without_unused(ours)


def _where(config: Config) -> Config:
    """Of the method's own options the one that says which leaves are sparse."""
    options = config.method.options
    return as_config({name: options[name] for name in options if name == "where"})


def _ticket(config: Config, sparsity: float, masks: Path | None = None) -> Config:
    ours = as_config(config.to_dict())
    ours.method.sparsity = sparsity
    if masks is not None:
        ours.masks, ours.mask.weights = str(masks), "file"
        ours = without_unused(ours)  # the file says how many weights a layer has
    return ours


def _ticket_file(workdir: Path, target: float) -> Path:
    return workdir / f"ticket-{target:g}{SUFFIX}"


def _round_folder(workdir: Path, number: int) -> Path:
    return workdir / f"round-{number:02}"


def _masks_file(workdir: Path, number: int) -> Path:
    return workdir / f"round-{number:02}{SUFFIX}"


def _write(
    path: Path,
    config: Config,
    workdir: Path,
    sparsity: float,
    options: Options,
    number: int,
) -> None:
    """The largest active weights of the network of a round, rewound."""
    network = load_sparse(_round_folder(workdir, number) / f"{FINAL}{SUFFIX}")
    first = f"{epoch_file(options.rewind_epoch)}{SUFFIX}"
    early = _round_folder(workdir, 0) / first
    start = load_sparse(early)
    where = config.method.options.get("where", default_rule)
    masks = full_masks(network.params, where=where)
    masks = merged(network.params, masks, network.masks)
    if options.variant != "gradual":
        total = active_count(size(masks), sparsity)
        held = tuple(config.method.keep_dense)
        masks = prune_to_total(network.params, masks, total, held=held)
    params = apply_masks(masks, start.params)
    save_sparse(
        path,
        start.replace(params=params, masks=masks),
        provenance={
            "data": config.data.name,
            "model": config.model.name,
            "method": f"lottery, {options.variant}, after round {number}",
            "sparsity": sparsity,
            "seed": config.seed,
            "rewind_step": provenance_of(early)["step"],
            "made_by": maker(),
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.lottery", __doc__)
    parser.add_config()
    parser.add_workdir()
    ways = "in rounds (the default), all at once, or while training"
    parser.add_argument("--variant", choices=VARIANTS, default="iterative", help=ways)
    parser.add_argument(
        "--prune_fraction", type=float, default=0.2, help="of each round (0.2)"
    )
    parser.add_argument("--rewind_epoch", type=int, default=0, help="0: the beginning")
    parser.add_argument(
        "--targets",
        type=numbers,
        default=(),
        metavar="SPARSITY,...",
        help="of the tickets; by default the configuration's",
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    # Masks are fixed, unless a method is named too.
    config = options.config.make(implied=["mask.name"])
    check_devices()
    chosen = Options(
        options.variant, options.prune_fraction, options.rewind_epoch, options.targets
    )
    lottery(config, options.workdir, chosen)
    print(table(options.workdir))


if __name__ == "__main__":
    main()
