"""The page of `experiments.benchmarks.train`."""

from typing import NamedTuple

import jax

from experiments.benchmarks.table import machine, markdown, wrapped
from experiments.benchmarks.timing import Program, Time


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
        wrapped(_ABOUT.format(command, "processor" if cpu else "wall")),
        "\n".join(f"- {line}" for line in machine()),
        markdown(
            ("model", "what", "figure", "at most", "from"),
            (
                (r.model, r.what, f"{r.figure:.3g}", _shown(r.target), r.note)
                for r in rows
            ),
        ),
        wrapped(_COMPUTED),
        markdown(
            ("model", "program", "processor ms", "wall ms"),
            (
                (model, name, f"{t.own:.4g}", f"{t.wall:.4g}")
                for model, each in results.items()
                for result in each
                for name, t in result.times.items()
            ),
        ),
        markdown(
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


def _shown(target: float | None) -> str:
    return "" if target is None else f"{target:g}"
