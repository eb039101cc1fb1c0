"""Time of a layer of constant fan-in, condensed, beside the dense one.

    python -m experiments.benchmarks.condensed [--repeats 30]

One layer of 1,024 inputs and 4,096 outputs in float32, 90, 95 and 99% sparse; wall time
of a call in ms, medians, the two interleaved. The mark is 2.3 times the dense layer's
speed at 95% and one input; where the condensed layer does not win the table says so.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import sup_tickets as st
from experiments.command import check_devices, start
from experiments.config.flags import Parser
from sup_tickets.checks import check_whole

INPUTS, OUTPUTS = 1024, 4096
BATCHES = (1, 4, 16, 64, 256)
SPARSITIES = (0.9, 0.95, 0.99)
MARK = 2.3


def layer(sparsity: float) -> tuple[jax.Array, st.Condensed]:
    """A dense kernel with a constant fan-in, 0 where inactive, and it condensed."""
    kernel = {"kernel": jax.random.normal(jax.random.key(0), (INPUTS, OUTPUTS))}
    method = st.static(sparsity=sparsity).replace(structure=st.fan_in())
    masks = st.init_topology(method, jax.random.key(1), kernel).masks
    live = st.apply_masks(masks, kernel)
    condensed = st.condense_params(live, masks)["kernel"]
    return live["kernel"], condensed


def medians(
    calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], repeats: int
) -> list[float]:
    """Wall ms of each, called in turn; the first turns are not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 3):
        for (call, given), mine in zip(calls, times, strict=True):
            begun = time.perf_counter()
            jax.block_until_ready(call(*given))
            if repeat >= 3:
                mine.append(1e3 * (time.perf_counter() - begun))
    return [float(np.median(each)) for each in times]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.benchmarks.condensed", __doc__)
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each")
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    check_whole("--repeats", options.repeats, 1)
    check_devices()
    print(f"machine: {platform.machine()}, {jax.devices()[0].device_kind}")
    print(f"jax {jax.__version__}, {options.repeats} repeats, {INPUTS} to {OUTPUTS}\n")
    print("| batch | sparsity | dense ms | condensed ms | speed-up | |")
    print("| --- | --- | --- | --- | --- | --- |")
    multiply = jax.jit(st.condensed_matmul)
    at_mark = 0.0
    for sparsity in SPARSITIES:
        dense, condensed = layer(sparsity)
        for batch in BATCHES:
            x = jax.random.normal(jax.random.key(2), (batch, INPUTS))
            calls = [(multiply, (x, dense)), (multiply, (x, condensed))]
            np.testing.assert_allclose(*(c(*given) for c, given in calls), atol=1e-3)
            plain, ours = medians(calls, options.repeats)
            gain = plain / ours
            if (batch, sparsity) == (1, 0.95):
                at_mark = gain
            says = "" if gain > 1 else "does not win"
            row = f"{plain:.2f} | {ours:.2f} | {gain:.2f} | {says}"
            print(f"| {batch} | {100 * sparsity:g}% | {row} |", flush=True)
    print(f"\nworst: {MARK / at_mark:.2f} of its target: one input at 95%, over dense")


if __name__ == "__main__":
    main()
