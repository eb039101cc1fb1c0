"""Time and memory of whole training steps, sparse beside dense.

    python -m experiments.benchmarks.train [--models=conv,vgg16,resnet18] [--quick]

RigL at 95% sparsity, with the settings of the paper on CIFAR, and the dense network
with the same optimizer, through the steps of a real run: the images, random ones, live
on the device and are augmented within the step. Everything is timed in one process, the
programs of a model in turns. Ratios are of medians: on a CPU of processor time (user +
system of the process, which other people's load disturbs least), else of wall time.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.table import page_file
from experiments.benchmarks.timing import Time, clock, measure, medians, say
from experiments.benchmarks.train_page import Result, Row, page
from experiments.benchmarks.trainer import Scale, Trainer, configuration, make_images
from experiments.build.experiment import comparisons
from experiments.build.inputs import Inputs
from experiments.build.parts import make_network, make_superposition
from experiments.command import check_devices, start
from experiments.config.fields import Config
from experiments.config.flags import Parser, file_path
from sup_tickets.checks import check_whole
from sup_tickets.data.resident import Shardings
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.training.state import as_trees, network_of

OUT = "docs/results/bench_train.md"
MODELS = ("conv", "vgg16", "resnet18")
_COLOUR, _GREY = (32, 32, 3), (28, 28, 1)
_MLP = "lenet300"
_EXAMPLES = 50_000  # 391 steps of 128
_BLOCK_STEPS = 10
_LEAST_S = 0.5  # of wall time, what is measured at once


# --- Steps, sparse beside dense -------------------------------------------------------


def compare(model: str, scale: Scale, inputs: Inputs, place: Shardings) -> Result:
    """Times all programs of a run with Sup-tickets, and the dense step."""
    config = configuration(model, scale)
    sparse = Trainer("sparse", config, inputs, place).begin()
    dense = Trainer("dense", comparisons(config)["dense"], inputs, place).begin()
    cases = {"dense": dense.case("train"), "sparse": sparse.case("train")}
    cases["topology"] = sparse.case("topology")
    cases["explore"] = sparse.case("explore", sparse.fraction)
    cases["superpose"], average = _superpose(sparse, config)
    cases["prepare"] = _prepare(sparse)
    cases["batches"] = _epoch_of_batches(inputs)
    say(f"{model}: measuring")
    each = measure(
        cases, (*cases, "sparse", "dense"), repeats=scale.repeats, least_s=scale.least_s
    )
    sparse.check()
    dense.check()
    times = medians(each)
    times["batch"] = Time(*(t / inputs.epoch_steps for t in times.pop("batches")))
    rows = [
        *_time_rows(model, times, sparse, _quartiles(each["sparse"], each["dense"])),
        *_memory_rows(model, sparse, dense, average()),
    ]
    return Result(rows, times, sparse.programs | dense.programs)


def _superpose(
    trainer: Trainer, config: Config
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Adding the live network as a ticket, and the state of the average."""
    ours = make_superposition(config, trainer.method)
    assert ours is not None

    def network() -> tuple[Any, Any]:
        """As the loop hands it over."""
        return as_trees(network_of(trainer.state))

    average = ours.init(*network())
    update = jax.jit(ours.update, donate_argnums=0)
    program = trainer.compile("superpose", update, average, *network())

    def call() -> Any:
        nonlocal average
        average = program.call(average, *network())
        return average

    return call, lambda: average


def _prepare(trainer: Trainer) -> Callable[[], Any]:
    batch, key = trainer.batch, jax.random.key(2)
    # A function of its own, that is not yet compiled for another model.
    prepare = jax.jit(lambda batch, key: trainer.inputs.prepare(batch, key))
    program = trainer.compile("prepare", prepare, batch, key)
    return lambda: program.call(batch, key)


def _epoch_of_batches(inputs: Inputs) -> Callable[[], Any]:
    """All of an epoch at once, so that its permutation is shared out."""
    epochs = iter(range(1, 10**9))

    def call() -> Any:
        first = next(epochs) * inputs.epoch_steps
        steps = range(first, first + inputs.epoch_steps)
        return [inputs.batches(step).rows for step in steps]

    return call


def _quartiles(above: list[Time], below: list[Time]) -> tuple[float, float]:
    """Of the ratios of neighbours in time."""
    ratios = [clock(a) / clock(b) for a, b in zip(above, below, strict=True)]
    low, high = np.quantile(ratios, (0.25, 0.75))
    return float(low), float(high)


def _time_rows(
    model: str, times: dict[str, Time], trainer: Trainer, spread: tuple[float, float]
) -> list[Row]:
    spent = {name: clock(each) for name, each in times.items()}
    dense, sparse = spent["dense"], spent["sparse"]
    run, note = _run(trainer, spent)
    fed = spent["prepare"] + spent["batch"]
    return [
        Row(
            model,
            "sparse step / dense step",
            sparse / dense,
            1.03,
            f"{sparse:.4g} / {dense:.4g} ms; middle half {spread[0]:.3f} to "
            f"{spread[1]:.3f}",
        ),
        Row(
            model,
            "run with Sup-tickets / dense run (computed)",
            run / (trainer.plan.total_steps * dense),
            1.05,
            note,
        ),
        Row(
            model,
            "input pipeline / sparse step",
            fed / sparse,
            0.05,
            f"({spent['prepare']:.3g} + {spent['batch']:.3g}) / {sparse:.4g} ms",
        ),
    ]


def _run(trainer: Trainer, spent: dict[str, float]) -> tuple[float, str]:
    """Of a whole run, from its plan, and what it is made of."""
    plan = trainer.plan
    updates = len(plan.updates)
    weights = plan.total_steps - updates * trainer.method.consumes_step
    explored, collected = len(plan.explorations), len(plan.collections) + 1
    total = (
        weights * spent["sparse"]
        + updates * spent["topology"]
        + explored * spent["explore"]
        + collected * spent["superpose"]  # more than the end of phase 1 costs
    )
    epochs = plan.total_steps // plan.epoch_steps
    note = (
        f"{epochs} epochs: {weights} steps, {updates} updates of "
        f"{spent['topology']:.4g} ms, {explored} explorations of "
        f"{spent['explore']:.4g} ms, {collected} collections of "
        f"{spent['superpose']:.3g} ms"
    )
    return total, note


def _memory_rows(
    model: str, sparse: Trainer, dense: Trainer, average: Any
) -> list[Row]:
    state = sparse.state
    params, slots = nbytes(state.params), nbytes(state.opt_state)
    beyond = [
        ("masks", nbytes(state.method.masks)),
        (
            "ever-active masks (tracked for the report)",
            nbytes(state.method.ever_active),
        ),
        ("superposition state (phase of tickets)", nbytes(average)),
    ]
    above = sparse.programs["sparse train"].temporary
    below = dense.programs["dense train"].temporary
    return [
        *(
            Row(
                model,
                f"{what} / parameters and slots",
                size / (params + slots),
                None,
                f"{size:,} / ({params:,} + {slots:,}) bytes",
            )
            for what, size in beyond
        ),
        Row(
            model,
            "temporary memory, sparse step / dense step",
            above / below,
            None,
            f"{above / 1e6:.1f} / {below / 1e6:.1f} MB",
        ),
    ]


def nbytes(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


# --- Several steps a call -------------------------------------------------------------


def compare_blocks(
    model: str, scale: Scale, inputs: Inputs, place: Shardings
) -> Result:
    """Times several steps in a call beside as many calls, batches included."""
    config = configuration(model, scale)
    count = config.train.block_steps = scale.block_steps
    trainer = Trainer("block's", config, inputs, place).begin()
    batches, steps = inputs.batches, trainer.steps
    single = trainer.compile("train", steps.train, trainer.state, batches(0))
    block = trainer.compile(
        "block", steps.block, trainer.state, batches.block(0, count)
    )

    def singles() -> Any:
        for step in range(count):
            trainer.state, trainer.told = single.call(trainer.state, batches(step))
        return trainer.state

    def together() -> Any:
        rows = batches.block(0, count)
        trainer.state, trainer.told = block.call(trainer.state, rows)
        return trainer.state

    say(f"{model}: measuring blocks")
    cases = {"singles": singles, "block": together}
    times = medians(
        measure(
            cases,
            ("singles", "block", "block", "singles"),
            repeats=scale.repeats,
            least_s=scale.least_s,
        )
    )
    trainer.check()
    spent = {name: clock(each) / count for name, each in times.items()}
    row = Row(
        model,
        f"step of a block of {count} / single step, with batches",
        spent["block"] / spent["singles"],
        None,
        f"{spent['block']:.4g} / {spent['singles']:.4g} ms a step",
    )
    names = {"singles": f"{count} single steps", "block": f"block of {count}"}
    named = {names[name]: each for name, each in times.items()}
    return Result([row], named, {names["block"]: block})


# --- The command ----------------------------------------------------------------------


def bench(models: Sequence[str], scale: Scale) -> dict[str, list[Result]]:
    """Measures everything.

    Args:
      models: short names.
      scale: how much.

    Returns:
      Results by model.

    Raises:
      ValueError: for an unknown model, or sizes that do not fit; before computing.
    """
    for name, value in scale._asdict().items():
        if isinstance(value, int) and name != "quick":
            check_whole(name, value, 1)
    for model in models:
        make_network(configuration(model, scale), classes=10)
    place = data_shardings(data_mesh(), batch_size=scale.batch_size)
    colour, grey = (make_images(s, scale, place) for s in (_COLOUR, _GREY))
    results = {model: [compare(model, scale, colour, place)] for model in models}
    blocks = {_MLP: grey} | ({"conv": colour} if "conv" in models else {})
    for model, inputs in blocks.items():
        result = compare_blocks(model, scale, inputs, place)
        results.setdefault(model, []).append(result)
    return results


def _scale(options: argparse.Namespace) -> Scale:
    quick = options.quick
    size, repeats = options.batch_size, options.repeats
    return Scale(
        batch_size=(8 if quick else 128) if size is None else size,
        repeats=(1 if quick else 5) if repeats is None else repeats,
        examples=64 if quick else _EXAMPLES,
        block_steps=2 if quick else _BLOCK_STEPS,
        least_s=0.0 if quick else _LEAST_S,
        quick=quick,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.benchmarks.train", __doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="with commas")
    parser.add_argument("--batch_size", type=int, help="128, or 8 if quick")
    parser.add_argument("--repeats", type=int, help="5, or 1 if quick")
    parser.add_switch("--quick", "tiny widths, a test")
    parser.add_argument("--out", type=file_path, help=f"{OUT}; if quick, none")
    words = sys.argv[1:] if argv is None else argv
    command = " ".join(["python -m experiments.benchmarks.train", *words])
    start(parser, lambda options: _main(options, command), argv)


def _main(options: argparse.Namespace, command: str) -> None:
    check_devices()
    out = page_file(options, OUT)
    text = page(command, bench(options.models.split(","), _scale(options)))
    if out is not None:
        out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
