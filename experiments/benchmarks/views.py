"""What a view costs: the training step with it over the masked step without.

    python -m experiments.benchmarks.views [--model resnet20] [--batch_size 64]

The masks of a view are chosen anew at every step, per leaf, or per block of SR-STE.
Ratios of medians of the process's own time, all steps interleaved in one process, of
the same network with the same static masks, of which half of the weights are active.
"""

import argparse
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from experiments.benchmarks.core import Row
from experiments.benchmarks.timing import Scale, clock, compiled, measure, medians
from experiments.benchmarks.trainer import configuration, make_images
from experiments.build.experiment import make_steps
from experiments.build.inputs import Inputs
from experiments.build.parts import make_network, make_parts
from experiments.command import Parser, check_devices, start
from sup_tickets.checks import check_one_of, check_whole
from sup_tickets.data.resident import Shardings
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.views import make_view

AT_MOST = 1.05
PLAIN = "masked step"
VIEWS: dict[str, tuple[str, dict[str, Any]]] = {
    "edge-popup, frozen weights": ("edge-popup", {"density": 0.5}),
    "HardNet": ("edge-popup", {"density": 0.5, "train_weights": True}),
    "SoftNet, one draw": ("softnet", {"density": 0.5}),
    "SoftNet, drawn anew": ("softnet", {"density": 0.5, "redraw_every": 1}),
    "Piggyback": ("piggyback", {}),
    "KSM": ("ksm", {}),
    "SR-STE 2:4": ("sr-ste", {"keep_dense": "conv1/kernel"}),
    "Top-KAST": ("top-kast", {"density": 0.2, "backward_density": 0.4}),
    "Top-KAST, every 10 steps": (
        "top-kast",
        {"density": 0.2, "backward_density": 0.4, "refresh_every": 10},
    ),
    "powerpropagation": ("powerpropagation", {}),
    "Spartan": ("spartan", {"density": 0.2, "total_steps": 10**6}),
}
"""Short name of the registry and options, by what the table says."""


def step_cases(
    model: str, inputs: Inputs, scale: Scale, place: Shardings, chosen: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """A training step of each view, and of none, at always the same batch."""
    config = configuration(model, scale)
    config.method.name, config.method.sparsity = "static", 0.5
    _, method, rate = make_parts(config, epoch_steps=inputs.epoch_steps)
    network = make_network(config, classes=inputs.classes)
    batch = inputs.batches(0)

    def case(name: str, view: Any) -> Callable[[], Any]:
        steps = make_steps(
            *(config, inputs, method, rate, network),
            sharding=place.replicated,
            view=view,
        )
        state = steps.init(jax.random.key(0))
        program = compiled(name, steps.train, state, batch)

        def call() -> Any:
            nonlocal state
            state, told = program.call(state, batch)
            return told

        return call

    views = {
        what: make_view(name, **own)
        for what, (name, own) in VIEWS.items()
        if name in chosen
    }
    return {PLAIN: case(PLAIN, None)} | {w: case(w, view) for w, view in views.items()}


def rows_of(
    model: str, inputs: Inputs, scale: Scale, place: Shardings, chosen: Sequence[str]
) -> Iterator[Row]:
    """The table."""
    cases = step_cases(model, inputs, scale, place, chosen)
    found = medians(measure(cases, list(cases), scale))
    plain = clock(found.pop(PLAIN))
    for what, spent in found.items():
        own = clock(spent)
        note = f"{own:.1f} / {plain:.1f} ms"
        yield Row(f"step with {what} / {PLAIN}", own / plain, AT_MOST, note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.benchmarks.views", __doc__)
    parser.add_argument("--model", default="resnet20", metavar="NAME")
    parser.add_argument("--batch_size", type=int, default=64, help="examples")
    parser.add_argument("--side", type=int, default=32, help="pixels of an image")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    parser.add_argument(
        "--view", action="append", metavar="NAME", help="measured; by default all"
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    for name in ("batch_size", "side", "repeats"):
        check_whole(f"--{name}", getattr(options, name), 1)
    check_devices()
    scale = Scale(
        options.batch_size, options.repeats, 2 * options.batch_size, 1, 0, False
    )
    known = {name for name, _ in VIEWS.values()}
    chosen = options.view or sorted(known)
    for name in chosen:
        check_one_of("--view", name, sorted(known))
    place = data_shardings(data_mesh(), batch_size=options.batch_size)
    inputs = make_images((options.side, options.side, 3), scale, place)
    print(f"machine: {platform.machine()}, {jax.devices()[0].device_kind}")
    print(
        f"jax {jax.__version__}, {options.model}, {options.side} pixels, batches of "
        f"{options.batch_size}, {options.repeats} repeats"
    )
    print("\n| what | figure | at most | from |\n| --- | --- | --- | --- |")
    for row in rows_of(options.model, inputs, scale, place, chosen):
        cells = (row.what, f"{row.figure:.3f}", f"{row.target:.3g}", row.note)
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
