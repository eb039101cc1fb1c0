"""The marks of scale, each with what was measured.

    python -m experiments.benchmarks.scale [--repeats 3] [--only PART]

What another benchmark measures is read from its page. The rest is measured here, on a
CPU, of which eight devices are made, with the exact shapes of ImageNet ResNet-50 (54
leaves, 25.5 million weights): what a program exchanges, as each device executed it,
with all leaves fully sharded; the processor time of tracing and compiling a rewire for
one device; what a device keeps of the state of training with SGD and momentum and a
superposed ticket; and the processor time of a run of the digits until its first step
is done, by a process of its own, the first with an empty folder for compiled programs,
the second with what the first left there.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import sup_tickets as st
from experiments.benchmarks.core import rewire_step
from experiments.benchmarks.exchanges import executed
from experiments.benchmarks.resnet50 import (
    SHARE,
    SPARSITY,
    normal_tree,
    one_of_each_shape,
    random_masks,
)
from experiments.benchmarks.table import Row, figure_of, table_command
from experiments.benchmarks.timing import Time, compiled, medians, say
from sup_tickets.checks import check_one_of
from sup_tickets.models import make_model
from sup_tickets.training.classification import image_classification
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.mesh import data_mesh
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.sharding import Layout
from sup_tickets.training.steps import Spec, init_state

DEVICES = 8
COUNTS = 1e-3
"""Bytes exchanged over those of the weights: counts alone are far less than this."""

_ROOT = Path(__file__).parents[2]
_OURS = ("NPROC", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION", "JAX_PERSISTENT_CACHE")

CITED = (
    ("core", "select per leaf, passes", 8.0),
    ("core", "select globally, passes", 16.0),
    ("core", "rewire, passes", 25.0),
    ("core", "superpose and prune, passes", 25.0),
    ("core", "SGD with momentum in a RigL step (replaces weight steps) / plain", 1.1),
    ("core", "Adam in a RigL step (replaces weight steps) / plain", 1.1),
    ("replicas", "digits, perceptron: 5 seeds / 1", 1.5),
    ("replicas", "digits, convolutions: 5 seeds / 1", 1.5),
    ("replicas", "LeNet-300-100: 5 seeds / 1", 2.0),
)
"""Page, row and mark of what others measure."""

_DROP_IN = (
    "; as SET's step there: masks are read beside the weights; quiet runs differ by a "
    "third"
)
WHY = {
    "select per leaf, passes": "; a run differs from the next by a quarter",
    "SGD with momentum in a RigL step (replaces weight steps) / plain": _DROP_IN,
    "Adam in a RigL step (replaces weight steps) / plain": _DROP_IN,
    "digits, convolutions: 5 seeds / 1": (
        "; on a CPU convolutions are written out side by side, and only matrix "
        "products gain from being stacked"
    ),
    "LeNet-300-100: 5 seeds / 1": "; its arithmetic is that of five runs",
    "bytes between devices of a pack / those of the weights": (
        "; every device gets all bits of the leaves that are split; runs on a mesh "
        "keep bools and pack on the host"
    ),
    "compile of a ResNet-50 rewire, s": (
        "; some 20 fusions a leaf of 14 ms each in LLVM, which neither less "
        "optimization nor XLA's older emitters make cheaper; a second run reads them "
        "from the cache"
    ),
}
"""What the note says where a mark is not met."""


# --- What is measured -----------------------------------------------------------------


def cited_rows() -> Iterator[Row]:
    """Of the pages that are there."""
    for page, what, mark in CITED:
        figure = figure_of(page, what)
        if figure is None:
            say(f"{what} is left out: it is on no page bench_{page}.md")
        else:
            yield Row(what, figure, mark, f"[its page](bench_{page}.md)")


def mesh_cases(tree: Any) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Functions that change the topology, and what they get, over all devices."""
    layout = Layout(data_mesh(), fsdp=True)
    counts = {name: leaf.size // SHARE for name, leaf in tree.items()}
    masks = random_masks(counts, tree)
    params = st.apply_masks(masks, tree)
    gradients = jax.tree.map(lambda leaf: jnp.flip(leaf), tree)
    sup = st.superposition("cia", sparsity=SPARSITY, packed=False)

    def superpose(state: Any, params: Any, masks: Any) -> Any:
        return sup.result(sup.update(state, params, masks))

    def placed(*trees: Any) -> tuple[Any, ...]:
        return jax.device_put(trees, layout.of(trees, params))

    return {
        "rewire": (rewire_step, placed(params, masks, params, gradients)),
        "superposition": (superpose, placed(sup.init(params, masks), params, masks)),
        "pack": (st.pack, placed(masks)),
    }


def mesh_rows(tree: Any) -> Iterator[Row]:
    """How often devices exchange data, and how much."""
    weights = sum(leaf.nbytes for leaf in tree.values())
    cases = mesh_cases(tree)
    for name in list(cases):
        function, given = cases.pop(name)
        program = compiled(f"{name} on a mesh", jax.jit(function), *given).call
        found = executed(program, *given)
        note = f"{DEVICES} devices"
        if name == "rewire":
            number = sum(each.operation.startswith("all-reduce") for each in found)
            yield Row("all-reduces of a whole rewire", number, 40, note)
        moved = sum(each.size for each in found)
        kinds = ", ".join(sorted({each.operation for each in found})) or "nothing"
        what = f"bytes between devices of a {name} / those of the weights"
        note = f"{moved:,} / {weights:,} bytes; {kinds}"
        yield Row(what, moved / weights, COUNTS, note)


def compile_rows(tree: Any) -> Iterator[Row]:
    """In seconds, not a ratio: the mark is one."""
    for what, leaves in {
        "compile of a ResNet-50 rewire, s": tree,
        "compile of a rewire of its 21 shapes, s": one_of_each_shape(tree),
    }.items():
        masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), leaves)
        program = compiled(what, jax.jit(rewire_step), leaves, masks, leaves, leaves)
        note = f"wall {program.compile_s:.1f} s"
        yield Row(what, program.compile_own_s, 5 if leaves is tree else None, note)


def memory_row(model: str = "resnet50") -> Row:
    """The state that a device has of one that is spread over all, over a copy."""
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    network = linen_network(make_model(model, classes=1000), images)
    tx = make_optimizer("sgd", momentum=0.9)
    task = image_classification(network, prepare=lambda batch, key: batch)
    method = st.rigl(sparsity=SPARSITY, update_every=100, total_steps=1000)

    def shapes(packed: bool) -> Any:
        sup = st.superposition("cia", sparsity=SPARSITY, packed=packed)

        def start(key: jax.Array) -> Any:
            state = init_state(Spec(task, method, tx, lambda _: 0.1), key)
            return state, sup.init(state.params, state.method.masks)

        return jax.eval_shape(start, jax.random.key(0))

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    # Masks of the ticket are kept as bits where every device has them.
    copied, spread = shapes(True), shapes(False)
    whole, layout = size(copied), Layout(data_mesh(), fsdp=True)
    own = layout.share(spread, spread[0].params) * size(spread)
    what = "state of a device under FSDP / replicated"
    return Row(what, own / whole, 0.14, f"{own / 1e6:.1f} / {whole / 1e6:.1f} MB")


def first_step(words: Sequence[str], folder: Path, cache: Path) -> Time:
    """A run in a process of its own until its first step is done, in ms.

    Args:
      words: flags of `experiments.main`.
      folder: of the run.
      cache: of compiled programs.

    Raises:
      RuntimeError: if it ends before.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    flags = (*words, f"--workdir={folder}", "--config.train.check_every_steps=1")
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.main", *flags],
        **{"cwd": _ROOT, "env": env, "text": True, "stdout": subprocess.PIPE},
    ) as process:
        done = any(", step 1, " in line for line in process.stdout or ())
        wall = time.perf_counter() - wall
        process.kill()
    if not done:
        raise RuntimeError(f"{' '.join(flags)} ended before its first step")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Time(1e3 * own, 1e3 * wall)


def start_row(words: Sequence[str], repeats: int) -> Row:
    """Of a second run, which finds the programs that the first compiled."""
    times: dict[str, list[Time]] = {"first": [], "second": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for which, found in times.items():
                found.append(first_step(words, folder / which, folder / "cache"))
                say(f"{which} run: {found[-1].own / 1e3:.1f} s until its first step")
    spent = medians(times)
    first, second = spent["first"], spent["second"]
    note = (
        f"{second.own / 1e3:.1f} / {first.own / 1e3:.1f} s; wall "
        f"{second.wall / 1e3:.1f} / {first.wall / 1e3:.1f} s"
    )
    what = "start to first step of a second run / of a first"
    return Row(what, second.own / first.own, 1 / 3, note)


# --- The table ------------------------------------------------------------------------

PARTS: dict[str, Callable[[int], Iterable[Row]]] = {
    "pages": lambda repeats: cited_rows(),
    "mesh": lambda repeats: mesh_rows(normal_tree(0)),
    "compile": lambda repeats: compile_rows(normal_tree(0)),
    "memory": lambda repeats: [memory_row()],
    "start": lambda repeats: [start_row(["--config=configs/digits.py"], repeats)],
}
"""What ``--only`` chooses; from the number of repeats."""


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    if jax.config.jax_compilation_cache_dir:
        raise ValueError("JAX_COMPILATION_CACHE_DIR is set; unset it to see compiling")
    if jax.device_count() != DEVICES:
        raise ValueError(f"there must be {DEVICES} devices, got {jax.device_count()}")
    if options.only is not None:
        check_one_of("--only", options.only, PARTS)
    for part in PARTS if options.only is None else [options.only]:
        for row in PARTS[part](options.repeats):
            missed = row.target is not None and row.figure > row.target
            why = WHY.get(row.what, "") if missed else ""
            yield row._replace(note=row.note + why)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    jax.config.update("jax_platforms", "cpu")
    # By default XLA has one thread for each core, and each waits in a collective.
    os.environ.setdefault("NPROC", "32")
    with contextlib.suppress(RuntimeError):  # where JAX computes already, as in tests
        jax.config.update("jax_num_cpu_devices", DEVICES)
    flags = {"--only": f"one of {', '.join(PARTS)}"}
    table_command("scale", __doc__, rows_of, repeats=3, flags=flags, argv=argv)


if __name__ == "__main__":
    main()
