"""Images per second, and changes of the topology, against what the device can do.

    python -m experiments.benchmarks.rates [--models=resnet18,vgg16] [--quick]

On one device, first measured itself: the rate of a large matrix product and the memory
bandwidth. Then the training steps of real runs with RigL at 95% and dense, with a batch
that fills a large GPU and that of the paper, and between them a rewire and a
superposition alone. All programs are compiled together first; a network that fails,
as for want of memory, is left out, with the reason.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.cases import Case, measure_cases
from experiments.benchmarks.core import one_pass
from experiments.benchmarks.rates_page import Ceilings, Change, Found, Rate, page
from experiments.benchmarks.rates_programs import (
    BATCH_SIZES,
    CHANGES,
    KINDS,
    Pair,
    Plan,
    Programs,
    change_cases,
    make_pairs,
    tracings,
)
from experiments.benchmarks.table import page_file
from experiments.benchmarks.timing import compiled_together, measure, medians, say
from experiments.benchmarks.train import nbytes
from experiments.benchmarks.trainer import Scale
from experiments.command import check_devices, start
from experiments.config.flags import Parser, file_path
from sup_tickets.checks import check_one_of, check_whole
from sup_tickets.training.flops import dense_flops
from sup_tickets.training.libraries.linen import kernel_uses
from sup_tickets.training.mesh import data_mesh, data_shardings

OUT = "docs/results/bench_rates.md"


# --- What the device can do -----------------------------------------------------------


def measure_ceilings(dtype: str, scale: Scale) -> Ceilings:
    """Of a product of large matrices, and of ``x + c`` over a large array."""
    large = jax.default_backend() != "cpu"
    size, elements = (8192, 2**28) if large else (2048, 2**25)
    if scale.quick:
        size, elements = 256, 2**20
    draw = np.random.default_rng(0)

    def normal() -> jax.Array:
        values = draw.standard_normal((size, size), np.float32)
        return jnp.asarray(values.astype(jnp.dtype(dtype)))

    values = jnp.asarray(draw.random(elements, np.float32))
    product = jax.jit(lambda a, b: (jnp.matmul(a, b),))
    cases = {
        "matrix product": Case(product, lambda: (normal(), normal())),
        "pass": one_pass(values),
    }
    found = measure_cases(cases, scale.repeats, scale.least_s)
    wall = {name: figures.wall / 1e3 for name, figures in found.items()}
    moved = 2 * values.nbytes
    return Ceilings(size, 2 * size**3 / wall["matrix product"], moved / wall["pass"])


# --- Training steps -------------------------------------------------------------------


def measure_rate(pair: Pair, programs: Programs, scale: Scale) -> Rate:
    """Times blocks of steps, dense and sparse in turns."""
    blocks = {kind: programs[pair.name(kind)] for kind in KINDS}
    cases = {}
    for kind, trainer in pair.trainers.items():
        trainer.begin(programs[f"{pair.model}: init {kind}"])
        cases[kind] = trainer.calling(blocks[kind], pair.rows)
    say(f"{pair.model}, batch {pair.batch_size}: measuring")
    found = medians(measure(cases, KINDS, scale.repeats, scale.least_s))
    sparse = pair.trainers["sparse"]
    uses = kernel_uses(sparse.network, sparse.inputs.example)
    return Rate(
        pair.model,
        pair.batch_size,
        dense_flops(uses, sparse.shapes.params),
        {kind: found[kind].wall / scale.block_steps for kind in KINDS},
        {kind: blocks[kind].temporary for kind in KINDS},
    )


# --- Changes of the topology ----------------------------------------------------------


def measure_changes(pair: Pair, programs: Programs, scale: Scale) -> list[Change]:
    """Of the sparse network as it begins, with gradients that are noise."""
    model, trainer = pair.model, pair.trainers["sparse"]
    own = {name: programs[f"{model}: {name}"] for name in CHANGES}
    trainer.begin(programs[f"{model}: init sparse"])
    params, masks = trainer.state.params, trainer.state.method.masks
    draw = np.random.default_rng(1)
    gradients = jax.device_put(
        jax.tree.map(lambda p: draw.standard_normal(p.shape, np.float32), params),
        trainer.place.replicated,
    )
    states = programs[f"{model}: begin changes"].call(params, masks, gradients)
    moved = {
        name: nbytes(states[name]) + sum(nbytes(states[name][i]) for i in written)
        for name, written in CHANGES.items()
    }
    cases = {
        name: case._replace(start=partial(states.pop, name))
        for name, case in change_cases(params, masks, gradients).items()
    }
    say(f"{model}: measuring changes")
    found = measure_cases(cases, scale.repeats, scale.least_s / 2, own)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    once = found["pass"].wall
    return [
        Change(model, what, weights, each.wall, each.wall / once, moved[what])
        for what, each in found.items()
    ]


# --- The command ----------------------------------------------------------------------


@contextmanager
def _noting(failed: dict[str, str], what: str) -> Iterator[None]:
    """Notes what went wrong within, so that the rest is not lost."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        failed[what] = f"{type(error).__name__}: {lines[0][:300]}"
        say(f"{what} is left out: {failed[what]}")


def bench(plan: Plan, begin_s: float, tell: Callable[[Found], Any]) -> Found:
    """Measures everything.

    Args:
      plan: what.
      begin_s: seconds after which no more is compiled.
      tell: of what was found so far, whenever there is more.

    Raises:
      ValueError: for an unknown model, or sizes that do not fit; before computing.
    """
    place = data_shardings(data_mesh(jax.devices()[:1]), batch_size=1)
    pairs = make_pairs(plan, place)
    found = Found(measure_ceilings(plan.dtype, plan.scale), [], [], {})
    programs = Programs(compiled_together(tracings(pairs), begin_s))
    for model in plan.models:
        each = pairs.pop(model)  # whose states go with it
        for pair in each:
            with _noting(found.failed, f"{model}, batch {pair.batch_size}"):
                found.rates.append(measure_rate(pair, programs, plan.scale))
                for trainer in pair.trainers.values():
                    trainer.check()
        with _noting(found.failed, f"{model}, changes"):
            found.changes.extend(measure_changes(each[0], programs, plan.scale))
        tell(found)
    return found


def _plan(options: argparse.Namespace) -> Plan:
    quick = options.quick
    check_one_of("--dtype", options.dtype, ("bfloat16", "float32"))
    check_whole("--repeats", options.repeats, 1)
    if options.batch_size is not None:
        check_whole("--batch_size", options.batch_size, 1)
    if not options.compile_s >= 0:
        raise ValueError(f"--compile_s must be at least 0, got {options.compile_s}")
    scale = Scale(
        batch_size=0,
        repeats=1 if quick else options.repeats,
        examples=0,
        block_steps=2 if quick else 10,
        least_s=0.0 if quick else 0.3,
        quick=quick,
    )
    models = tuple(dict.fromkeys(options.models.split(",")))
    return Plan(models, options.dtype, options.batch_size, scale)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.benchmarks.rates", __doc__)
    parser.add_argument("--models", default=",".join(BATCH_SIZES), help="with commas")
    parser.add_argument("--dtype", default="bfloat16", help="of compute, or float32")
    parser.add_argument("--batch_size", type=int, help="instead of one or two a model")
    parser.add_argument("--repeats", type=int, default=5, help="1 if quick")
    parser.add_argument(
        "--compile_s",
        type=float,
        default=math.inf,
        help="seconds after which no more programs are compiled",
    )
    parser.add_switch("--quick", "tiny widths, a test")
    parser.add_argument("--out", type=file_path, help=f"{OUT}; if quick, none")
    words = sys.argv[1:] if argv is None else argv
    command = " ".join(["python -m experiments.benchmarks.rates", *words])
    start(parser, lambda options: _main(options, command), argv)


def _main(options: argparse.Namespace, command: str) -> None:
    check_devices()
    plan, out = _plan(options), page_file(options, OUT)

    def write(found: Found) -> str:
        text = page(command, plan.dtype, plan.scale.block_steps, found)
        if out is not None:
            out.write_text(text, encoding="utf-8")
        return text

    print(write(bench(plan, options.compile_s, write)))


if __name__ == "__main__":
    main()
