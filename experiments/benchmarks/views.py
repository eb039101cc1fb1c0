"""What a view costs: the training step with it over the masked step without.

    python -m experiments.benchmarks.views [--repeats 5]

The masks of a view are chosen anew at every step, per leaf, or per block of SR-STE.
Ratios of medians of the process's own time, all steps interleaved in one process, of
the small CNN on batches of 128 images, with the same static masks, of which half of the
weights are active.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from experiments.benchmarks.table import Row, table_command
from experiments.benchmarks.timing import clock, compiled, measure, medians
from experiments.benchmarks.trainer import Scale, configuration, make_images
from experiments.build.experiment import make_steps
from experiments.build.inputs import Inputs
from experiments.build.parts import make_network, make_parts
from sup_tickets.data.resident import Shardings
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.views import make_view

AT_MOST = 1.05
PLAIN = "masked step"
MODEL = "conv"
SCALE = Scale(128, 1, 256, 1, 0.0, False)
_SIDE = 32  # pixels of an image
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


def step_cases(inputs: Inputs, place: Shardings) -> dict[str, Callable[[], Any]]:
    """A training step of each view, and of none, at always the same batch."""
    config = configuration(MODEL, SCALE)
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

    views = {what: make_view(name, **own) for what, (name, own) in VIEWS.items()}
    return {PLAIN: case(PLAIN, None)} | {w: case(w, view) for w, view in views.items()}


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    place = data_shardings(data_mesh(), batch_size=SCALE.batch_size)
    cases = step_cases(make_images((_SIDE, _SIDE, 3), SCALE, place), place)
    found = medians(measure(cases, list(cases), options.repeats))
    plain = clock(found.pop(PLAIN))
    for what, spent in found.items():
        own = clock(spent)
        note = f"{own:.1f} / {plain:.1f} ms"
        yield Row(f"step with {what} / {PLAIN}", own / plain, AT_MOST, note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    table_command("views", __doc__, rows_of, repeats=5, argv=argv)


if __name__ == "__main__":
    main()
