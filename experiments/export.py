"""Exports networks of a finished run, for use elsewhere.

    python -m experiments.export RUN --out=DIR [--format=both] [--network=final]

A dense file is what any reader of safetensors expects, zeros included; a sparse one is
small, see `sup_tickets.training.network_files`; a condensed one has the layers of a
constant fan-in without their zeros, for fast inference, see `..condensed_files`.
"""

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.command import start
from experiments.config.flags import Parser, folder_path
from experiments.reports.page import Table, aligned
from experiments.runs.networks import chosen_files
from experiments.runs.written import Outputs
from sup_tickets.condensed import condense_params
from sup_tickets.training.condensed_files import save_condensed
from sup_tickets.training.flops import active_counts
from sup_tickets.training.network_files import (
    load_sparse,
    provenance_of,
    save_dense,
    save_sparse,
)
from sup_tickets.training.state import Network
from sup_tickets.trees import named_leaves

FORMATS = ("dense", "sparse", "condensed")
BOTH = FORMATS[:2]


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    size: int  # bytes
    weights: int  # of the network
    active: int  # of them, those without a mask included
    ideal: float  # bits a weight, see `size_table`

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.size / self.weights


def export(
    run: Path,
    out: Path,
    *,
    formats: Sequence[str] = BOTH,
    networks: Sequence[str] = ("final",),
) -> list[Exported]:
    """Writes ``NAME.FORMAT.safetensors`` of every format.

    Args:
      run: its folder.
      out: the folder for the files, made if it is not there.
      formats: of `FORMATS`.
      networks: see `chosen_files`.

    Raises:
      ValueError: one line, if the run lacks something, a file is damaged, or one would
        be replaced that was not exported.
    """
    written, chosen = [], chosen_files(run, networks)
    stems = [name.rsplit("/", 1)[-1] for name in chosen]
    names = [f"{stem}.{kind}.safetensors" for stem in stems for kind in formats]
    files = Outputs(out, *map(glob.escape, names))
    for stem, source in zip(stems, chosen.values(), strict=True):
        network = load_sparse(source)
        origin = provenance_of(source) | {"exported_from": str(source)}
        for kind in formats:
            path = files.claim(f"{stem}.{kind}.safetensors")
            if kind == "dense":
                size = save_dense(path, network)
            elif kind == "condensed":
                size = save_condensed(path, network)
            else:
                size = save_sparse(path, network, provenance=origin)
            written.append(_described(path, size, network, kind))
    return written


def _described(path: Path, size: int, network: Network, kind: str) -> Exported:
    leaves = named_leaves(network.params)
    active = active_counts(network.masks, network.params)
    weights = sum(leaf.size for _, leaf in leaves)
    stored = {n: leaf.size for n, leaf in leaves} if kind == "dense" else active
    bits = sum(8 * leaf.dtype.itemsize * stored[name] for name, leaf in leaves)
    if kind == "condensed":
        parts = jax.tree.leaves(condense_params(network.params, network.masks))
        bits = sum(8 * part.nbytes for part in parts)
    masked = sum(mask.size for mask in jax.tree.leaves(network.masks))
    ideal = (bits + (masked if kind == "sparse" else 0)) / weights
    return Exported(path, size, weights, sum(active.values()), ideal)


def size_table(written: Sequence[Exported]) -> str:
    """The sizes as aligned text."""
    head = ["file", "bytes", "weights", "active", "bits a weight", "ideal", "above it"]
    rows = [
        [
            file.path.name,
            str(file.size),
            str(file.weights),
            str(file.active),
            f"{file.bits:.3f}",
            f"{file.ideal:.3f}",
            f"{100 * (file.bits / file.ideal - 1):+.1f}%",
        ]
        for file in written
    ]
    note = (
        "ideal: 32 * density, + 1 bit a weight if sparse; 32 if dense; if condensed 64 "
        "* density of such layers, 32 of all weights of others; and no names"
    )
    return f"{aligned(Table(head, rows))}\n\n{note}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.export", __doc__)
    parser.add_argument("run", metavar="RUN", type=folder_path, help="its folder")
    parser.add_argument(
        "--out", required=True, type=folder_path, metavar="DIR", help="for the files"
    )
    parser.add_argument(
        "--format",
        choices=(*FORMATS, "both"),
        default="both",
        help="both (the default) is dense and sparse",
    )
    parser.add_argument(
        "--network",
        action="append",
        metavar="NAME",
        help='"final" (the default), "tickets/ticket-1", ..., or "all"',
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    written = export(
        options.run,
        options.out,
        formats=BOTH if options.format == "both" else (options.format,),
        networks=options.network or ["final"],
    )
    print(size_table(written))


if __name__ == "__main__":
    main()
