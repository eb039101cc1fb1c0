"""Grouped selection and SRigL's rewire on ResNet-50's shapes.

    python -m experiments.benchmarks.groups [--repeats 5]

Ratios of medians of the process's own time, what is compared in turns, in one process:
selection per output neuron, in blocks of 2:4 and in four parts of the outputs to
selection per leaf, and a rewire with a structure to RigL's.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import jax

import sup_tickets as st
from experiments.benchmarks.cases import Case, measure_cases
from experiments.benchmarks.core import ratio
from experiments.benchmarks.resnet50 import SHARE, SPARSITY, copy, normal_tree
from experiments.benchmarks.table import Row, table_command
from sup_tickets.ablation import rewire_neurons
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


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    params, gradients = normal_tree(0), normal_tree(1)
    for what, cases in {
        "select": selection_cases(params),
        "rewire": rewire_cases(params, gradients),
    }.items():
        found = measure_cases(cases, options.repeats)
        plain, *others = found
        for name in others:
            yield ratio(found, f"{what} {name} / {plain}", name, plain, AT_MOST)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    table_command("groups", __doc__, rows_of, repeats=5, argv=argv)


if __name__ == "__main__":
    main()
