"""A layer of constant fan-in, condensed, beside the dense one.

    python -m experiments.benchmarks.condensed [--repeats 30]

One layer of 1,024 inputs and 4,096 outputs in float32, 90, 95 and 99% sparse; medians
of the wall time of a call, the two in turns. The mark is 2.3 times the dense layer's
speed at 95% and one input; above 1 the condensed layer does not win.
"""

import argparse
from collections.abc import Iterator, Sequence

import jax
import numpy as np

import sup_tickets as st
from experiments.benchmarks.cases import Case, measure_cases
from experiments.benchmarks.table import Row, table_command

INPUTS, OUTPUTS = 1024, 4096
BATCHES = (1, 4, 16, 64, 256)
SPARSITIES = (0.9, 0.95, 0.99)
MARKS = {(0.95, 1): 1 / 2.3}


def layer(sparsity: float) -> tuple[jax.Array, st.Condensed]:
    """A dense kernel with a constant fan-in, 0 where inactive, and it condensed."""
    kernel = {"kernel": jax.random.normal(jax.random.key(0), (INPUTS, OUTPUTS))}
    method = st.static(sparsity=sparsity).replace(structure=st.fan_in())
    masks = st.init_topology(method, jax.random.key(1), kernel).masks
    live = st.apply_masks(masks, kernel)
    condensed = st.condense_params(live, masks)["kernel"]
    return live["kernel"], condensed


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    multiply = jax.jit(st.condensed_matmul)
    for sparsity in SPARSITIES:
        kernels = dict(zip(("dense", "condensed"), layer(sparsity), strict=True))
        for batch in BATCHES:
            x = jax.random.normal(jax.random.key(2), (batch, INPUTS))
            results = (multiply(x, kernel) for kernel in kernels.values())
            np.testing.assert_allclose(*results, atol=1e-3)
            cases = {
                name: Case(multiply, lambda x=x, kernel=kernel: (x, kernel))
                for name, kernel in kernels.items()
            }
            found = measure_cases(cases, options.repeats)
            ours, plain = found["condensed"].wall, found["dense"].wall
            what = f"{100 * sparsity:g}%, batch of {batch}: condensed / dense"
            target, note = MARKS.get((sparsity, batch)), f"{ours:.2f} / {plain:.2f} ms"
            yield Row(what, ours / plain, target, note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    table_command("condensed", __doc__, rows_of, repeats=30, argv=argv)


if __name__ == "__main__":
    main()
