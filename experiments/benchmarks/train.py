"""Time and memory of whole training steps, sparse beside dense.

    python -m experiments.benchmarks.train [--models=conv,vgg16,resnet18] [--quick]

RigL at 95% sparsity, with the settings of the paper on CIFAR, and the dense network
with the same optimizer, through the steps of a real run: the images, random ones, live
on the device and are augmented within the step. Everything is timed in one process, the
programs of a model in turns. Ratios are of medians: on a CPU of processor time (user +
system of the process, which other people's load disturbs least), else of wall time.
"""

import argparse
import math
import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import common
from experiments.build.experiment import comparisons, make_steps
from experiments.build.inputs import Inputs, resident_inputs
from experiments.build.parts import (
    make_network,
    make_parts,
    make_superposition,
)
from experiments.command import Parser, check_devices, file_path, start
from experiments.config.fields import Config
from sup_tickets.checks import check_whole
from sup_tickets.data.datasets import Dataset, Split
from sup_tickets.data.resident import Rows, Shardings
from sup_tickets.dynamic import Method
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.training.plan import Plan
from sup_tickets.training.state import TrainState, as_trees, network_of
from sup_tickets.training.steps import Steps

OUT = "docs/results/bench_train.md"
MODELS = ("conv", "vgg16", "resnet18")
_COLOUR, _GREY = (32, 32, 3), (28, 28, 1)
_MLP = "lenet300"
_EXAMPLES = 50_000  # 391 steps of 128
_BLOCK_STEPS = 10
_LEAST_S = 0.5  # of wall time, what is measured at once
_MOST_CALLS = 500  # measured at once
_TINY: dict[str, dict[str, Any]] = {
    "conv": {"features": (4, 4)},
    "vgg16": {"stages": ((4,),) * 5, "hidden": ()},
    "resnet18": {"widths": (4, 8), "blocks": (1, 1)},
}


class Scale(NamedTuple):
    """How much is measured."""

    batch_size: int
    repeats: int
    examples: int
    block_steps: int
    least_s: float
    quick: bool  # tiny widths


class Program(NamedTuple):
    """A compiled program."""

    call: Any  # as the jitted function
    compile_s: float  # of wall time, tracing included
    temporary: int  # bytes beyond arguments and results


class Time(NamedTuple):
    """Of one call, in ms."""

    own: float  # of the processor, all threads
    wall: float


class Row(NamedTuple):
    """One line of the table."""

    model: str
    what: str
    figure: float
    target: float | None  # the figure should not exceed it
    note: str


class Result(NamedTuple):
    """What came out for a model."""

    rows: list[Row]
    times: dict[str, Time]  # by program
    programs: dict[str, Program]


# --- Timing ---------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def compiled(name: str, function: Any, *arguments: Any) -> Program:
    """Compiles a jitted function for these arguments."""
    begun = time.perf_counter()
    program = function.lower(*arguments).compile()
    spent = time.perf_counter() - begun
    say(f"{name} compiled in {spent:.1f} s")
    return Program(program, spent, program.memory_analysis().temp_size_in_bytes)


def measure(
    cases: dict[str, Callable[[], Any]], order: Sequence[str], scale: Scale
) -> dict[str, list[Time]]:
    """Times of a call of each case, in turns.

    Args:
      cases: functions that return what is to be waited for.
      order: which are measured, one after the other, in every repeat.
      scale: how often.
    """
    calls = {name: _calls(case, scale.least_s) for name, case in cases.items()}
    times: dict[str, list[Time]] = {name: [] for name in cases}
    for _ in range(scale.repeats):
        for name in order:
            times[name].append(_time(cases[name], calls[name]))
    return times


def _calls(case: Callable[[], Any], least_s: float) -> int:
    _time(case, 1)
    once = _time(case, 1).wall / 1e3
    return min(max(round(least_s / once), 1), _MOST_CALLS)


def _time(case: Callable[[], Any], calls: int) -> Time:
    wall, own = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = case()
    jax.block_until_ready(result)  # pyright: ignore[reportPossiblyUnbound]
    own, wall = time.process_time() - own, time.perf_counter() - wall
    return Time(1e3 * own / calls, 1e3 * wall / calls)


def medians(times: dict[str, list[Time]]) -> dict[str, Time]:
    """The median of each clock by itself."""
    return {
        name: Time(*(float(np.median(clock)) for clock in zip(*each, strict=True)))
        for name, each in times.items()
    }


def clock(spent: Time) -> float:
    """What ratios are made of: elsewhere than on a CPU the processor only waits."""
    return spent.own if jax.default_backend() == "cpu" else spent.wall


# --- What is trained ------------------------------------------------------------------


class Trainer:
    """A state that the programs of a run take turns to advance."""

    def __init__(self, name: str, config: Config, inputs: Inputs, place: Shardings):
        self.name, self.inputs = name, inputs
        self.plan, self.method, self.steps = _parts(config, inputs, place)
        self.fraction = config.sup.explore_fraction
        self.batch: Rows = inputs.batches(0)
        self.programs: dict[str, Program] = {}
        init = self.compile("init", self.steps.init, jax.random.key(0))
        self.state: TrainState = init.call(jax.random.key(0))
        self.told: Any = None

    def compile(self, name: str, function: Any, *arguments: Any) -> Program:
        """Compiles a program, and notes what that took."""
        name = f"{self.name} {name}"
        self.programs[name] = compiled(name, function, *arguments)
        return self.programs[name]

    def case(self, name: str, *more: Any) -> Callable[[], Any]:
        """A call of one of the steps at always the same batch."""
        arguments = (self.batch, *more)
        program = self.compile(name, getattr(self.steps, name), self.state, *arguments)

        def call() -> Any:
            self.state, self.told = program.call(self.state, *arguments)
            return self.state, self.told

        return call

    def check(self) -> None:
        """Raises a ValueError if the loss is not finite: times could be others."""
        told = getattr(self.told, "report", self.told)
        loss = float(np.ravel(told["loss"])[-1])
        if not math.isfinite(loss):
            raise ValueError(f"the loss of the {self.name} network became {loss}")


def _parts(
    config: Config, inputs: Inputs, place: Shardings
) -> tuple[Plan, Method, Steps]:
    plan, method, rate = make_parts(config, epoch_steps=inputs.epoch_steps)
    network = make_network(config, classes=inputs.classes)
    steps = make_steps(config, inputs, method, rate, network, sharding=place.replicated)
    return plan, method, steps


def configuration(model: str, scale: Scale) -> Config:
    """The paper's on CIFAR, from which `comparisons` makes the dense one."""
    config: Any = common.default()
    config.compare = True
    config.data.batch_size = scale.batch_size
    config.data.validation_examples = 0
    config.model.name = model
    if scale.quick:
        for name, value in _TINY.get(model, {}).items():
            config.model.options[name] = value
    return config


def random_images(shape: tuple[int, ...], examples: int) -> Dataset:
    """A set of noise."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (examples, *shape), np.uint8)
    train = Split(images, draw.integers(0, 10, examples, np.int32))
    none = Split(images[:0], train.labels[:0])
    half = (0.5,) * shape[-1]
    return Dataset("noise", 10, train, none, none, 255.0, half, half)


def make_images(shape: tuple[int, ...], scale: Scale, place: Shardings) -> Inputs:
    """Inputs of a run on random images."""
    dataset = random_images(shape, scale.examples)
    config = configuration("conv", scale)
    return resident_inputs(config, dataset, key=jax.random.key(1), shardings=place)


# --- Steps, sparse beside dense -------------------------------------------------------


def compare(model: str, scale: Scale, inputs: Inputs, place: Shardings) -> Result:
    """Times all programs of a run with Sup-tickets, and the dense step."""
    config = configuration(model, scale)
    sparse = Trainer("sparse", config, inputs, place)
    dense = Trainer("dense", comparisons(config)["dense"], inputs, place)
    cases = {"dense": dense.case("train"), "sparse": sparse.case("train")}
    cases["topology"] = sparse.case("topology")
    cases["explore"] = sparse.case("explore", sparse.fraction)
    cases["superpose"], average = _superpose(sparse, config)
    cases["prepare"] = _prepare(sparse)
    cases["batches"] = _epoch_of_batches(inputs)
    say(f"{model}: measuring")
    each = measure(cases, (*cases, "sparse", "dense"), scale)
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
    trainer = Trainer("block's", config, inputs, place)
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
    times = medians(measure(cases, ("singles", "block", "block", "singles"), scale))
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


# --- The page -------------------------------------------------------------------------

_ABOUT = """`{}`: RigL at 95% (ERK) and the dense network, SGD with momentum 0.9 and
weight decay 5e-4, random images that live on the device and are cropped and flipped
within the step. Ratios of medians of {} time, the programs in turns; "middle half" is
of the ratios of single turns, and shows the noise."""
_COMPUTED = """The run is computed: steps as planned times the medians. The input
pipeline is gathering, cropping, flipping and normalizing, compiled alone, and handing
over row numbers, an epoch's permutation shared out."""


def page(command: str, results: dict[str, list[Result]]) -> str:
    """The tables as Markdown."""
    cpu = jax.default_backend() == "cpu"
    rows = [row for each in results.values() for result in each for row in result.rows]
    missed = [row for row in rows if row.target and row.figure > row.target]
    lines = [
        "# Training steps, sparse beside dense",
        _wrapped(_ABOUT.format(command, "processor" if cpu else "wall")),
        "\n".join(f"- {line}" for line in machine()),
        _table(
            ("model", "what", "figure", "at most", "from"),
            (
                (r.model, r.what, f"{r.figure:.3g}", _shown(r.target), r.note)
                for r in rows
            ),
        ),
        _wrapped(_COMPUTED),
        _table(
            ("model", "program", "processor ms", "wall ms"),
            (
                (model, name, f"{t.own:.4g}", f"{t.wall:.4g}")
                for model, each in results.items()
                for result in each
                for name, t in result.times.items()
            ),
        ),
        _table(
            ("model", "program", "compile s", "temporary MB"),
            (
                (model, name, f"{p.compile_s:.1f}", f"{p.temporary / 1e6:.1f}")
                for model, each in results.items()
                for result in each
                for name, p in result.programs.items()
            ),
        ),
        *(
            f"Missed: {row.model}, {row.what}: {row.figure:.3g}, asked {row.target:g}."
            for row in missed
        ),
    ]
    return "\n\n".join(lines) + "\n"


def machine() -> list[str]:
    """Where and when this is."""
    cores = f"{os.cpu_count()} cores"
    if hasattr(os, "getloadavg"):
        cores += f", load {os.getloadavg()[0]:.1f} at the end"
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return [
        f"machine: {_processor()}, {cores}; device: {devices}",
        f"python {platform.python_version()}, jax {jax.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}",
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 88, break_long_words=False, break_on_hyphens=False)


def _shown(target: float | None) -> str:
    return "" if target is None else f"{target:g}"


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
    out = options.out or (None if options.quick else Path(OUT))
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out={out}: there is no such folder")
    text = page(command, bench(options.models.split(","), _scale(options)))
    if out is not None:
        out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
