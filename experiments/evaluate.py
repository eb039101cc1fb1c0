"""Evaluates networks of a finished run again.

    python -m experiments.evaluate RUN [--split=test] [--network=final]

A network is "final", "tickets/ticket-1" and so on, or "all"; --network may be given
several times.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.build import experiment as build
from experiments.build.mesh import to_read
from experiments.command import check_devices, start
from experiments.config.fields import as_config
from experiments.config.flags import Parser, folder_path
from experiments.reports.columns import score_cells, score_titles, scores_in
from experiments.reports.page import Table, aligned
from experiments.runs.layout import read_config
from experiments.runs.networks import chosen_files
from experiments.runs.ownership import check_same_text
from sup_tickets.masks import layer_table
from sup_tickets.training.network_files import load_sparse
from sup_tickets.training.state import Network
from sup_tickets.training.task import Metrics
from sup_tickets.tree_checks import check_same_leaves


def evaluate(
    run: Path,
    *,
    split: str | None = None,
    networks: Sequence[str] = ("final",),
    devices: Sequence[Any] | None = None,
) -> dict[str, tuple[Metrics, Network]]:
    """The scores of networks of a run, by their names.

    Args:
      run: its folder.
      split: "test" or "validation"; by default the one that the run was evaluated on.
      networks: see `chosen_files`.
      devices: by default all.

    Raises:
      ValueError: one line, if the folder lacks something or a file is damaged.
    """
    config = to_read(as_config(read_config(run)))
    check_same_text(run, config)
    files = chosen_files(run, networks)
    loaded = {name: load_sparse(path) for name, path in files.items()}
    ours = build.build(config, devices=devices)
    try:
        like = ours.like(ours.plan.total_steps).train
        found = {}
        for name, network in loaded.items():
            check_same_leaves(
                str(files[name]), network.params, "the model", like.params
            )
            where = ours.layout.of(network, network.params)
            placed = jax.device_put(network, where)
            found[name] = ours.score(placed, split or config.evaluate), network
    finally:
        ours.inputs.close()
    return found


def scores_table(found: dict[str, tuple[Metrics, Network]], split: str) -> str:
    """The scores as aligned text.

    Args:
      found: of `evaluate`.
      split: its name, for the head.
    """
    scores = scores_in(metrics for metrics, _ in found.values())
    head = ["network", *score_titles(split, scores), "examples"]
    rows = []
    for name, (metrics, network) in found.items():
        total = layer_table(network.masks)[-1]
        rows.append(
            [
                name,
                *score_cells(metrics, scores),
                str(metrics["examples"]),
                f"{total.active} / {total.size}" if total.size else "all",
            ]
        )
    return aligned(Table([*head, "active / total"], rows))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.evaluate", __doc__)
    parser.add_argument("run", metavar="RUN", type=folder_path, help="its folder")
    parser.add_argument(
        "--split", choices=("test", "validation"), help="by default the run's own"
    )
    parser.add_argument(
        "--network",
        action="append",
        metavar="NAME",
        help='"final" (the default), "tickets/ticket-1", ..., or "all"',
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    check_devices()
    found = evaluate(
        options.run, split=options.split, networks=options.network or ["final"]
    )
    split = options.split or read_config(options.run).get("evaluate", "test")
    print(scores_table(found, split))


if __name__ == "__main__":
    main()
