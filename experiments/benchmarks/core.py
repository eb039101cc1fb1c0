"""The core on ResNet-50's shapes.

    python -m experiments.benchmarks.core [--repeats 7] [--fast]

Speed and memory on the exact shapes of ImageNet ResNet-50, in ratios: of medians of the
process's own time (user + system, which other people's load disturbs least), what is
compared in turns, in one process. A *pass* is a donated, jitted ``x + c`` over the same
tree: one read and one write of every weight. Selections per leaf and of all leaves
together are measured on all 54, 25.5 million weights. What takes long to compile or to
run is measured on fewer: sorts (once each), rewires and superpositions on one leaf of
each of the 21 shapes, 11.4 million; steps of optimizers, which do to each weight what
they do to all, on the stem, one 3 x 3 kernel of each stage and the classifier, 5.2
million.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sup_tickets as st
from experiments.benchmarks.cases import Case, Figures, measure_cases
from experiments.benchmarks.resnet50 import (
    SHARE,
    SPARSITY,
    copy,
    normal_tree,
    one_of_each_shape,
    one_of_each_stage,
    random_masks,
)
from experiments.benchmarks.table import Row, table_command
from experiments.benchmarks.timing import compiled

Found = dict[str, Figures]


# --- What is measured -----------------------------------------------------------------


def one_pass(tree: Any) -> Case:
    """One read and one write of every weight."""
    add = jax.jit(lambda t: (jax.tree.map(lambda x: x + 1e-9, t),), donate_argnums=0)
    return Case(add, lambda: (copy(tree),), carries=True)


def selection_cases(tree: Any, counts: Any) -> dict[str, Case]:
    """Exact selection, of each leaf and of all together."""
    total = sum(leaf.size for leaf in jax.tree.leaves(tree))
    return {
        "pass": one_pass(tree),
        "select per leaf": Case(
            jax.jit(lambda t, c: st.select(st.magnitude(t), c)), lambda: (tree, counts)
        ),
        "select globally": Case(
            jax.jit(lambda t, k: st.select_globally(st.magnitude(t), k)),
            lambda: (tree, total // SHARE),
        ),
    }


def sorting_cases(tree: Any, counts: Any) -> dict[str, Case]:
    """Exact selection beside the ways that sort."""

    def by_argsort(leaf: jax.Array) -> jax.Array:
        order = jnp.argsort(-jnp.abs(leaf).reshape(-1), stable=True)
        return masked(leaf, order[: leaf.size // SHARE])

    def by_top_k(leaf: jax.Array) -> jax.Array:
        flat = jnp.abs(leaf).reshape(-1)
        return masked(leaf, jax.lax.top_k(flat, leaf.size // SHARE)[1])

    def masked(leaf: jax.Array, chosen: jax.Array) -> jax.Array:
        return jnp.zeros(leaf.size, bool).at[chosen].set(True).reshape(leaf.shape)

    def per_leaf(function: Callable[[jax.Array], jax.Array]) -> Case:
        return Case(jax.jit(lambda t: jax.tree.map(function, t)), lambda: (tree,))

    return {
        "select": selection_cases(tree, counts)["select per leaf"],
        "argsort": per_leaf(by_argsort),
        "top_k": per_leaf(by_top_k),
    }


def rewire_step(params: Any, masks: Any, slots: Any, gradients: Any) -> Any:
    """RigL's update without its gradient: drop, grow, reset the slots."""
    changed = st.rewire(
        params,
        masks,
        drop_scores=st.magnitude(params),
        grow_scores=st.gradient(gradients),
        fraction=0.3,
    )
    kept = st.difference(changed.masks, changed.grown)
    return changed.params, changed.masks, st.apply_masks(kept, slots), gradients


def rewire_cases(params: Any, masks: Any, gradients: Any) -> dict[str, Case]:
    """A rewire with all growth scores different, and with 95% of them zero.

    The old masks are not donated: donated, they were copied (temporary memory of 3.6 in
    place of 1.01 leaves).
    """
    call = jax.jit(rewire_step, donate_argnums=(0, 2))

    def start() -> Any:
        return copy(params), copy(masks), copy(params), gradients

    def tied() -> Any:
        few = jax.tree.map(lambda g: jnp.where(jnp.abs(g) > 1.96, g, 0), gradients)
        return *start()[:3], few

    return {
        "pass": one_pass(params),
        "rewire": Case(call, start, carries=True),
        "ties": Case(call, tied, carries=True),
    }


def superposition_cases(
    params: Any, masks: Any, sparsity: float = SPARSITY
) -> dict[str, Case]:
    """One more ticket beside Optax's own moving average."""

    def average(mean: Any, ticket: Any) -> Any:
        return optax.incremental_update(ticket, mean, 0.1), ticket

    def case(prune_each: bool) -> Case:
        sup = st.superposition("cia", sparsity=sparsity, prune_each=prune_each)

        def add(state: Any, params: Any, masks: Any) -> Any:
            return sup.update(state, params, masks), params, masks

        return Case(
            jax.jit(add, donate_argnums=0),
            lambda: (copy(sup.init(params, masks)), params, masks),
            carries=True,
        )

    return {
        "pass": one_pass(params),
        "incremental_update": Case(
            jax.jit(average, donate_argnums=0),
            lambda: (copy(params), params),
            carries=True,
        ),
        "superpose": case(False),
        "superpose and prune": case(True),
    }


def optimizer_cases(params: Any, gradients: Any, plain: Any) -> dict[str, Case]:
    """A step of plain Optax beside the same under `sparse_training`."""

    def case(tx: Any, method: Any) -> Case:
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, gradients

        def start() -> Any:
            state = tx.init(params)
            begun = params if method is None else st.keep_sparse(params, state)
            return copy(begun), copy(state), gradients

        return Case(jax.jit(step, donate_argnums=(0, 1)), start, carries=True)

    methods = {
        "masked": st.static(sparsity=SPARSITY),
        "set": st.sparse_evolutionary(sparsity=SPARSITY, update_every=10**6),
        "rigl": st.rigl(sparsity=SPARSITY, update_every=10**6, drop_fraction=0.3),
    }
    sparse = {
        name: case(st.sparse_training(plain, method), method)
        for name, method in methods.items()
    }
    return {"plain": case(plain, None), **sparse}


# --- The table ------------------------------------------------------------------------


def ratio(found: Found, what: str, name: str, unit: str, most: float | None) -> Row:
    """Of the processor's time."""
    own, of = found[name].own, found[unit].own
    return Row(what, own / of, most, f"{own:.1f} / {of:.1f} ms")


def memory(what: str, temporary: int, unit: int) -> Row:
    """Of bytes beyond inputs and outputs."""
    return Row(what, temporary / unit, 1.0, f"{temporary / 1e6:.1f} MB")


def selection_rows(
    params: Any, counts: Any, options: argparse.Namespace
) -> Iterator[Row]:
    """Of all leaves, then beside sorts."""
    row = partial(
        ratio, measure_cases(selection_cases(params, counts), options.repeats)
    )
    yield row("select per leaf, passes", "select per leaf", "pass", 40)
    yield row("select globally, passes", "select globally", "pass", 40)
    if not options.fast:
        few = one_of_each_shape(params)
        cases = sorting_cases(few, {name: counts[name] for name in few})
        row = partial(ratio, measure_cases(cases, 1))
        for name, least in [("argsort", 30), ("top_k", 5)]:
            what = f"select per leaf / {name} per leaf (1/{least} asked)"
            yield row(what, "select", name, 1 / least)


def rewire_rows(params: Any, masks: Any, gradients: Any, repeats: int) -> Iterator[Row]:
    """Time and memory."""
    found = measure_cases(rewire_cases(params, masks, gradients), repeats)
    yield ratio(found, "rewire, passes", "rewire", "pass", 100)
    yield ratio(found, "rewire with 95% ties / rewire", "ties", "rewire", 1.5)
    largest = max(leaf.nbytes for leaf in params.values())
    what = "memory of a rewire / the largest leaf"
    yield memory(what, found["rewire"].temporary, largest)


def superposition_rows(params: Any, masks: Any, repeats: int) -> Iterator[Row]:
    """Time; the memory of a global prune and of packed masks."""
    row = partial(ratio, measure_cases(superposition_cases(params, masks), repeats))
    what = "superpose / incremental_update"
    yield row(what, "superpose", "incremental_update", 1.5)
    yield row("superpose and prune, passes", "superpose and prune", "pass", None)
    tree = sum(leaf.nbytes for leaf in params.values())
    prune = jax.jit(lambda p, m, k: st.prune_to_counts(p, m, k))
    pruning = compiled("global prune", prune, params, masks, 10).temporary
    yield memory("memory of a global prune / the tree", pruning, tree)
    packed = sum(leaf.nbytes for leaf in jax.tree.leaves(st.pack(masks)))
    least = tree / 32 + sum(-leaf.size % 8 / 8 for leaf in masks.values())
    what = "packed masks / (parameters / 32 + padding)"
    yield Row(what, packed / least, 1.0, f"{packed:,} bytes")


def optimizer_rows(params: Any, gradients: Any, repeats: int) -> Iterator[Row]:
    """Steps without a topology update, but RigL's, whose program replaces one."""
    for name, plain in {
        "SGD with momentum": optax.sgd(0.1, momentum=0.9),
        "Adam": optax.adam(1e-3),
    }.items():
        cases = optimizer_cases(params, gradients, plain)
        row = partial(ratio, measure_cases(cases, repeats))
        yield row(f"masked {name} / plain", "masked", "plain", 1.15)
        yield row(f"{name} in a SET step / plain", "set", "plain", 1.15)
        what = f"{name} in a RigL step (replaces weight steps) / plain"
        yield row(what, "rigl", "plain", None)


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The table."""
    params, gradients = normal_tree(0), normal_tree(1)
    counts = {name: leaf.size // SHARE for name, leaf in params.items()}
    masks = random_masks(counts, params)
    sparse, repeats = st.apply_masks(masks, params), options.repeats
    each, few = one_of_each_shape, one_of_each_stage
    for rows in (
        selection_rows(params, counts, options),
        rewire_rows(each(sparse), each(masks), each(gradients), repeats),
        superposition_rows(each(sparse), each(masks), repeats),
        optimizer_rows(few(params), few(gradients), repeats),
    ):
        yield from rows
        jax.clear_caches()


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    table_command(
        "core",
        __doc__,
        rows_of,
        repeats=7,
        switches={"--fast": "leave the sorts out"},
        argv=argv,
    )


if __name__ == "__main__":
    main()
