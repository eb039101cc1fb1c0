"""Speed of grouped selection and of SRigL's rewire on the shapes of ResNet-50.

    python -m experiments.benchmarks.groups [--repeats 5]

Ratios of medians of the process's own time, what is compared interleaved in one
process: selection per output neuron, in blocks of 2:4 and in four parts of the outputs
to selection per leaf, and a rewire with a structure to RigL's.
"""

import argparse
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import jax

import sup_tickets as st
from experiments.benchmarks.core import (
    SHARE,
    SPARSITY,
    Case,
    Row,
    copy,
    measure,
    normal_tree,
)
from experiments.command import check_devices, start
from experiments.config.flags import Parser
from sup_tickets.ablation import rewire_neurons
from sup_tickets.checks import check_whole
from sup_tickets.groups import split_of

AT_MOST = 1.5
_FEW = 4  # places of a block, and parts of the outputs


def selection_cases(tree: Any) -> dict[str, Case]:
    """One weight in ten of every leaf, or of every group; two in four."""

    def case(groups: Any, each: Any, leaves: Any) -> Case:
        def call(tree: Any, counts: Any) -> Any:
            return st.select(st.magnitude(tree), counts, groups=groups)

        counts = {name: each(name, leaf) for name, leaf in leaves.items()}
        return Case(jax.jit(call), lambda: (leaves, counts))

    def tenth(groups: st.Groups) -> Any:
        return lambda name, leaf: max(
            split_of(groups, name, leaf.shape).members // SHARE, 1
        )

    outputs, parts, blocks = st.per_output(), st.per_part(_FEW), st.per_block(_FEW)
    # The pixels' three channels have no blocks of four.
    wide = {name: leaf for name, leaf in tree.items() if not leaf.shape[-2] % _FEW}
    return {
        "per leaf": case(None, lambda _, leaf: leaf.size // SHARE, tree),
        "fan-in": case(outputs, tenth(outputs), tree),
        "2:4": case(blocks, lambda *_: _FEW // 2, wide),
        "gates": case(parts, tenth(parts), tree),
    }


def rewire_cases(params: Any, gradients: Any) -> dict[str, Case]:
    """RigL's update, of leaves and with a structure, and SRigL's with ablation."""

    def case(structure: st.Structure | None) -> Case:
        method = st.static(sparsity=SPARSITY, where=lambda *_: True)
        if structure is not None and structure.kept is not None:
            method = method.replace(sparsity=0.5, keep_dense="stem")
        method = method.replace(structure=structure)
        masks = st.init_topology(method, jax.random.key(0), params).masks
        budgets = st.layer_counts(masks)
        groups = None if structure is None else structure.groups

        def call(params: Any, masks: Any, slots: Any, gradients: Any) -> Any:
            scores: dict[str, Any] = {
                "drop_scores": st.magnitude(params),
                "grow_scores": st.gradient(gradients),
                "fraction": 0.3,
            }
            if structure is not None and structure.ablate_below is not None:
                new = rewire_neurons(params, masks, structure, budgets, **scores)
            else:
                new = st.rewire(params, masks, **scores, groups=groups)
            kept = st.difference(new.masks, new.grown)
            return new.params, new.masks, st.apply_masks(kept, slots), gradients

        def begin() -> Any:
            live = st.apply_masks(masks, params)
            return copy(live), copy(masks), copy(params), gradients

        return Case(jax.jit(call, donate_argnums=(0, 2)), begin, carries=True)

    return {
        "RigL": case(None),
        "RigL, constant fan-in": case(st.fan_in()),
        "SRigL": case(st.fan_in(ablate_below=0.3)),
        "RigL, 2:4": case(st.n_of_m(2, 4)),
    }


def rows_of(params: Any, gradients: Any, repeats: int) -> Iterator[Row]:
    """The table, each part as soon as it is measured."""
    for what, cases in {
        "select": selection_cases(params),
        "rewire": rewire_cases(params, gradients),
    }.items():
        found = measure(cases, repeats)
        plain, *others = found
        for name in others:
            own, of = found[name].own, found[plain].own
            note = f"{own:.1f} / {of:.1f} ms"
            yield Row(f"{what} {name} / {plain}", own / of, AT_MOST, note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.benchmarks.groups", __doc__)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    check_whole("--repeats", options.repeats, 1)
    check_devices()
    print(f"machine: {platform.machine()}, {jax.devices()[0].device_kind}")
    print(f"jax {jax.__version__}, {options.repeats} repeats")
    print("\n| what | figure | at most | from |\n| --- | --- | --- | --- |")
    rows = []
    for row in rows_of(normal_tree(0), normal_tree(1), options.repeats):
        rows.append(row)
        cells = (row.what, f"{row.figure:.3g}", f"{row.target:.3g}", row.note)
        print(f"| {' | '.join(cells)} |", flush=True)
    worst = max(rows, key=lambda row: row.figure / row.target)
    print(f"\nworst: {worst.figure / worst.target:.2f} of its target: {worst.what}")


if __name__ == "__main__":
    main()
