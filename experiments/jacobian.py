"""Singular values of how the scores of a finished run's network depend on its inputs.

    python -m experiments.jacobian RUN [--network=final] [--examples=8] [--out=FILE.png]

All near 1, and signals pass through the network neither fading nor growing; spread over
many powers of ten, and it is hard to train. A network is "final", "tickets/ticket-1"
and so on, "all", or "initial", which is made again; --network may be given several
times. Writes the picture and, next to it, all values as FILE.csv.
"""

import argparse
import csv
import functools
import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.build import experiment as build
from experiments.build.mesh import to_read
from experiments.command import check_devices, start
from experiments.config.fields import as_config, flat
from experiments.config.flags import Parser, file_path, folder_path
from experiments.reports.figures import panels, shown_name
from experiments.reports.page import Table, aligned
from experiments.runs.layout import read_config
from experiments.runs.networks import chosen_files
from experiments.runs.written import Outputs
from sup_tickets.checks import check_whole
from sup_tickets.data.text import is_text
from sup_tickets.training.network_files import load_sparse
from sup_tickets.training.state import Network
from sup_tickets.tree_checks import check_same_leaves

INITIAL = "initial"
"""The network before its first step; it is not stored, but made again by its seed."""

Values = Mapping[str, np.ndarray]
"""Singular values [examples, k] of networks by name, the largest first."""


# --- Singular values ------------------------------------------------------------------


def singular_values(
    apply: Callable[[Any, jax.Array], jax.Array], params: Any, inputs: Any
) -> np.ndarray:
    """The singular values of the Jacobian of the outputs by the inputs, by example.

    Takes as much memory as one backward pass of a batch of as many examples as there
    are outputs.

    Args:
      apply: ``(params, inputs [B, ...]) -> outputs [B, ...]``, each example by itself.
      params: handed to ``apply``.
      inputs: [examples, ...] float array.

    Returns:
      [examples, k] float64 array, k the smaller of the sizes of an input and an output,
      the largest first. (Those below 1e-7 of the first are rounding, if the network
      computes in float32.)

    Example:
      >>> values = singular_values(lambda w, x: x @ w, 2 * np.eye(3), np.ones((4, 3)))
      >>> values.shape, bool((values == 2).all())
      ((4, 3), True)
    """

    def outputs(one: jax.Array, params: Any) -> jax.Array:
        return apply(params, one[None])[0].reshape(-1)

    jacobian = jax.jit(jax.jacrev(outputs))
    found = []
    for one in inputs:
        with jax.default_matmul_precision("highest"):
            matrix = jacobian(one, params)
        # [outputs, inputs]; on the host, in float64, the SVD itself is exact enough.
        matrix = np.asarray(matrix, np.float64)
        matrix = matrix.reshape(len(matrix), -1)
        if not np.isfinite(matrix).all():
            raise ValueError("the Jacobian is not finite")
        found.append(np.linalg.svd(matrix, compute_uv=False))
    return np.stack(found)


def jacobian_values(
    run: Path, *, networks: Sequence[str] = ("final",), examples: int = 8
) -> dict[str, np.ndarray]:
    """The singular values of networks of a run, on the split it was evaluated on.

    Args:
      run: its folder.
      networks: see `chosen_files`, and "initial".
      examples: the first of the split.

    Raises:
      ValueError: one line, if the folder lacks something or a file is damaged, if the
        split has too few examples, or if a network's numbers are not finite.
    """
    check_whole("examples", examples, 1)
    config = to_read(as_config(read_config(run)))
    if is_text(str(flat(config).get("data.name"))):
        raise ValueError(f"{run} is of a text; Jacobians are those by pixels of images")
    loaded = _loaded(run, networks)
    ours = build.build(config, devices=jax.devices()[:1])
    try:
        like = ours.like(ours.plan.total_steps).train.params
        inputs = _inputs(ours, config.evaluate, examples)
        found = {}
        for name, network in loaded.items():
            if network is None:
                start = ours.init().train
                network = ours.experiment.final_form(start, int(start.step))
            check_same_leaves(f"network {name!r}", network.params, "the model", like)
            found[name] = _of_network(name, ours.model, network, inputs)
    finally:
        ours.inputs.close()
    return found


def _loaded(run: Path, names: Sequence[str]) -> dict[str, Network | None]:
    """The stored networks in the order of their names; the initial one is ``None``."""
    loaded: dict[str, Network | None] = {}
    for name in names:
        if name == INITIAL:
            loaded[name] = None
            continue
        files = chosen_files(run, [name])
        loaded |= {full: load_sparse(path) for full, path in files.items()}
    return loaded


def _inputs(ours: build.Run, split: str, examples: int) -> jax.Array:
    """The first examples of a split, as the network sees them."""
    found: list[np.ndarray] = []
    missing = examples
    for batch in ours.inputs.splits[split]():
        counted = np.asarray(batch.weights) > 0
        found.append(np.asarray(batch.inputs)[counted][:missing])
        missing -= len(found[-1])
        if not missing:
            return ours.inputs.normalize(jax.numpy.asarray(np.concatenate(found)))
    raise ValueError(
        f"examples must be at most the {examples - missing} of the {split} split, "
        f"got {examples}"
    )


def _of_network(name: str, model: Any, network: Network, inputs: Any) -> np.ndarray:
    def apply(network: Network, inputs: jax.Array) -> jax.Array:
        variables = {"params": network.params, "batch_stats": network.model_state}
        return model.apply(variables, inputs, train=False)

    try:
        return singular_values(apply, network, inputs)
    except ValueError as error:
        raise ValueError(f"network {name!r}: {error}") from None


# --- Files ----------------------------------------------------------------------------


def draw_values(path: Path, found: Values) -> None:
    """The means over the examples, by rank, on a logarithmic axis.

    Args:
      path: of the picture.
      found: of `jacobian_values`.
    """
    with panels(path, 1, 3.6) as (figure, (place,)):
        for name, values in found.items():
            means = values.mean(axis=0)
            means = np.where(means > 0, means, np.nan)  # a logarithm shows no 0
            place.plot(np.arange(1, len(means) + 1), means, label=shown_name(name))
        place.set_yscale("log")
        place.xaxis.get_major_locator().set_params(integer=True)
        examples = len(next(iter(found.values())))
        place.set(xlabel="rank", ylabel=f"singular value, mean of {examples} examples")
        place.grid()
        figure.legend(loc="outside upper left", ncols=3)


def write_values(path: Path, found: Values) -> None:
    """All values as CSV: network, example and rank from 1, singular value."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["network", "example", "rank", "singular_value"])
        for name, values in found.items():
            for (example, rank), value in np.ndenumerate(values):
                lines.writerow([name, example + 1, rank + 1, repr(float(value))])


def values_table(found: Values) -> str:
    """Smallest, median, largest and condition as aligned text.

    The condition is the median over the examples of the largest over the smallest.
    """
    head = ["network", "min", "median", "max", "condition", "examples", "values"]
    rows = []
    for name, values in found.items():
        low, high = values[:, -1], values[:, 0]
        ratios = np.divide(high, low, out=np.full(len(low), np.inf), where=low > 0)
        numbers = values.min(), np.median(values), values.max(), np.median(ratios)
        shape = (str(side) for side in values.shape)
        rows.append([name, *(f"{number:.4g}" for number in numbers), *shape])
    return aligned(Table(head, rows))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.jacobian", __doc__)
    parser.add_argument("run", metavar="RUN", type=folder_path, help="its folder")
    parser.add_argument(
        "--network",
        action="append",
        metavar="NAME",
        help='"final" (the default), "tickets/ticket-1", ..., "all", or "initial"',
    )
    parser.add_argument(
        "--examples", type=int, default=8, metavar="N", help="inputs looked at (8)"
    )
    parser.add_argument(
        "--out", type=file_path, metavar="FILE.png", help="by default RUN/jacobian.png"
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    check_devices()
    out = _picture_path(options.out or options.run / "jacobian.png")
    table = out.with_suffix(".csv")
    files = Outputs(out.parent, glob.escape(out.name), glob.escape(table.name))
    found = jacobian_values(
        options.run,
        networks=options.network or ["final"],
        examples=options.examples,
    )
    files.write(out.name, functools.partial(draw_values, found=found))
    files.write(table.name, lambda place: write_values(place, found))
    print(values_table(found))
    print(f"\n{out} and {table.name}")


def _picture_path(place: Path) -> Path:
    if place.suffix != ".png":
        raise ValueError(f"--out must be a name that ends in .png, got {str(place)!r}")
    return place


if __name__ == "__main__":
    main()
