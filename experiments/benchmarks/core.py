"""Speed and memory of the core on the exact shapes of ImageNet ResNet-50.

    python -m experiments.benchmarks.core [--repeats 7] [--fast]

Everything is timed in one process, the variants interleaved, as medians of the
process's own time (user + system, which other people's load disturbs least) and of wall
time. A *pass* is a donated, jitted ``x + c`` over the tree: one read and one write of
every weight. The last line is the worst ratio of a figure to its target.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sup_tickets as st
from experiments.command import Parser, check_devices, start
from sup_tickets.checks import check_whole

SPARSITY = 0.9
SHARE = 10  # one weight in ten is kept


class Case(NamedTuple):
    """One thing to time: called again and again on what it returned itself."""

    call: Callable[..., Any]  # jitted; (*state) -> state
    state: Any
    carries: bool = False  # whether the result is the next call's (donated) input


class Row(NamedTuple):
    """One line of the table; the figure must not exceed the target."""

    what: str
    figure: float
    target: float
    note: str


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """Kernel shapes of ImageNet ResNet-50: 54 leaves, 25,502,912 weights."""
    shapes: dict[str, tuple[int, ...]] = {"stem": (7, 7, 3, 64)}
    channels = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            shapes[f"{name}_conv1"] = (1, 1, channels, width)
            shapes[f"{name}_conv2"] = (3, 3, width, width)
            shapes[f"{name}_conv3"] = (1, 1, width, 4 * width)
            if block == 0:
                shapes[f"{name}_shortcut"] = (1, 1, channels, 4 * width)
            channels = 4 * width
    return shapes | {"classifier": (2048, 1000)}


def normal_tree(seed: int) -> dict[str, jax.Array]:
    """Normal draws with the shapes of ResNet-50."""
    generator = np.random.default_rng(seed)
    return {
        name: jnp.asarray(generator.standard_normal(shape, np.float32))
        for name, shape in resnet50_shapes().items()
    }


def copy(tree: Any) -> Any:
    """A copy that may be donated."""
    return jax.tree.map(jnp.copy, tree)


def measure(cases: dict[str, Case], repeats: int) -> dict[str, tuple[float, float]]:
    """Median processor and wall time of each case in ms, all interleaved."""
    states = {name: case.state for name, case in cases.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            wall, own = time.perf_counter(), time.process_time()
            result = jax.block_until_ready(case.call(*states[name]))
            spent = (time.process_time() - own, time.perf_counter() - wall)
            if case.carries:
                states[name] = result
            if repeat:  # the first call compiles
                times[name].append((1e3 * spent[0], 1e3 * spent[1]))
            del result
    return {
        name: (
            float(np.median([t[0] for t in ts])),
            float(np.median([t[1] for t in ts])),
        )
        for name, ts in times.items()
    }


# --- What is measured -----------------------------------------------------------------


def selection_cases(tree: Any, counts: Any, fast: bool) -> dict[str, Case]:
    """Exact selection beside the ways that sort."""
    total = sum(leaf.size for leaf in jax.tree.leaves(tree))

    def by_argsort(leaf: jax.Array) -> jax.Array:
        order = jnp.argsort(-jnp.abs(leaf).reshape(-1), stable=True)
        mask = jnp.zeros(leaf.size, bool).at[order[: leaf.size // SHARE]].set(True)
        return mask.reshape(leaf.shape)

    def by_top_k(leaf: jax.Array) -> jax.Array:
        chosen = jax.lax.top_k(jnp.abs(leaf).reshape(-1), leaf.size // SHARE)[1]
        mask = jnp.zeros(leaf.size, bool).at[chosen].set(True)
        return mask.reshape(leaf.shape)

    cases = {
        "pass": Case(
            jax.jit(lambda t: (jax.tree.map(lambda x: x + 1e-9, t),), donate_argnums=0),
            (copy(tree),),
            carries=True,
        ),
        "select per leaf": Case(
            jax.jit(lambda t, c: st.select(st.magnitude(t), c)), (tree, counts)
        ),
        "select globally": Case(
            jax.jit(lambda t, k: st.select_globally(st.magnitude(t), k)),
            (tree, total // SHARE),
        ),
    }
    if not fast:
        cases["argsort per leaf"] = Case(
            jax.jit(lambda t: jax.tree.map(by_argsort, t)), (tree,)
        )
        cases["top_k per leaf"] = Case(
            jax.jit(lambda t: jax.tree.map(by_top_k, t)), (tree,)
        )
    return cases


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
    """A rewire with all growth scores different, and with 95% of them zero."""
    tied = jax.tree.map(lambda g: jnp.where(jnp.abs(g) > 1.96, g, 0), gradients)
    call = jax.jit(rewire_step, donate_argnums=(0, 2))
    return {
        name: Case(call, (copy(params), copy(masks), copy(params), g), carries=True)
        for name, g in [("rewire", gradients), ("rewire, ties", tied)]
    }


def optimizer_cases(params: Any, gradients: Any) -> dict[str, Case]:
    """Steps of plain Optax beside the same under `sparse_training`."""

    def step_of(tx: Any) -> Any:
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, gradients

        return jax.jit(step, donate_argnums=(0, 1))

    methods = {
        "": None,
        " static": st.static(sparsity=SPARSITY),
        " set": st.sparse_evolutionary(sparsity=SPARSITY, update_every=10**6),
        " rigl": st.rigl(sparsity=SPARSITY, update_every=10**6),
    }
    optimizers = {"sgd": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(1e-3)}
    cases = {}
    for name, plain in optimizers.items():
        for suffix, method in methods.items():
            tx = plain if method is None else st.sparse_training(plain, method)
            state = jax.jit(tx.init)(params)
            start = copy(params if method is None else st.keep_sparse(params, state))
            cases[name + suffix] = Case(
                step_of(tx), (start, state, gradients), carries=True
            )
    return cases


def superposition_cases(params: Any, masks: Any) -> dict[str, Case]:
    """One more ticket beside Optax's own moving average."""

    def average(mean: Any, ticket: Any) -> Any:
        return optax.incremental_update(ticket, mean, 0.1), ticket

    cases = {
        "incremental_update": Case(
            jax.jit(average, donate_argnums=0), (copy(params), params), carries=True
        )
    }
    for name, prune_each in [("superpose", False), ("superpose and prune", True)]:
        sup = st.superposition("cia", sparsity=SPARSITY, prune_each=prune_each)

        def add(state: Any, params: Any, masks: Any, update: Any = sup.update) -> Any:
            return update(state, params, masks), params, masks

        state = sup.init(params, masks)
        cases[name] = Case(
            jax.jit(add, donate_argnums=0), (state, params, masks), carries=True
        )
    return cases


# --- The table ------------------------------------------------------------------------


def memory_rows(params: Any, masks: Any, gradients: Any) -> list[Row]:
    """Bytes beyond inputs and outputs, from the compiled programs."""
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    tree = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    compiled = (
        jax.jit(rewire_step, donate_argnums=(0, 2))
        .lower(params, masks, params, gradients)
        .compile()
    )
    prune = jax.jit(lambda p, m, k: st.prune_to_counts(p, m, k))
    pruning = prune.lower(params, masks, 10).compile()
    packed = sum(leaf.nbytes for leaf in jax.tree.leaves(st.pack(masks)))
    padding = sum(-leaf.size % 8 / 8 for leaf in jax.tree.leaves(masks))

    def temporary(program: Any) -> int:
        return program.memory_analysis().temp_size_in_bytes

    return [
        Row(
            "memory of a rewire / the largest leaf",
            temporary(compiled) / largest,
            1.0,
            f"{temporary(compiled) / 1e6:.1f} MB",
        ),
        Row(
            "memory of a global prune / the tree",
            temporary(pruning) / tree,
            1.0,
            f"{temporary(pruning) / 1e6:.1f} MB",
        ),
        Row(
            "packed masks / (parameters / 32 + padding)",
            packed / (tree / 32 + padding),
            1.0,
            f"{packed:,} bytes",
        ),
    ]


def speed_rows(times: dict[str, tuple[float, float]]) -> list[Row]:
    """Ratios of medians of the processor's time."""
    own = {name: t[0] for name, t in times.items()}

    def row(what: str, name: str, unit: str, target: float) -> Row:
        note = f"{own[name]:.1f} / {own[unit]:.1f} ms"
        return Row(what, own[name] / own[unit], target, note)

    rows = [
        row("select per leaf, passes", "select per leaf", "pass", 40),
        row("select globally, passes", "select globally", "pass", 40),
    ]
    for name, least in [("argsort per leaf", 30), ("top_k per leaf", 5)]:
        if name in own:
            what = f"select per leaf / {name} (1/{least} asked)"
            rows.append(row(what, "select per leaf", name, 1 / least))
    return [
        *rows,
        row("rewire, passes", "rewire", "pass", 100),
        row("rewire with 95% ties / rewire", "rewire, ties", "rewire", 1.5),
        row("masked SGD momentum / plain", "sgd static", "sgd", 1.15),
        row("masked Adam / plain", "adam static", "adam", 1.15),
        row("SGD in a SET step / plain", "sgd set", "sgd", 1.15),
        row("Adam in a SET step / plain", "adam set", "adam", 1.15),
        row("superpose / incremental_update", "superpose", "incremental_update", 1.5),
    ]


def untargeted_rows(times: dict[str, tuple[float, float]]) -> list[str]:
    """What has no target but should be known."""
    pairs = [
        ("SGD in a RigL step (replaces weight steps) / plain", "sgd rigl", "sgd"),
        ("Adam in a RigL step / plain", "adam rigl", "adam"),
        ("superpose and prune, passes", "superpose and prune", "pass"),
    ]
    return [
        f"| {what} | {times[a][0] / times[b][0]:.2f} | | "
        f"{times[a][0]:.1f} / {times[b][0]:.1f} ms |"
        for what, a, b in pairs
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.benchmarks.core", __doc__)
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each")
    parser.add_switch("--fast", "leave the sorts out")
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    """Measures everything and prints the table."""
    check_whole("--repeats", options.repeats, 1)
    check_devices()
    params, gradients = normal_tree(0), normal_tree(1)
    counts = jax.tree.map(lambda leaf: leaf.size // SHARE, params)
    masks = st.random_masks(jax.random.key(0), params, counts)
    sparse = st.apply_masks(masks, params)

    print(f"machine: {platform.machine()}, {jax.devices()[0].device_kind}")
    print(f"python {platform.python_version()}, jax {jax.__version__}, ", end="")
    print(f"optax {optax.__version__}, {options.repeats} repeats")
    groups = [
        selection_cases(params, counts, options.fast)
        | rewire_cases(sparse, masks, gradients),
        optimizer_cases(params, gradients),
        superposition_cases(sparse, masks),
    ]
    times: dict[str, tuple[float, float]] = {}
    for group in groups:
        times |= measure(group, options.repeats)
    rows = speed_rows(times) + memory_rows(sparse, masks, gradients)

    print("\n| what | figure | at most | from |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.what} | {row.figure:.3g} | {row.target:.3g} | {row.note} |")
    print("\n".join(untargeted_rows(times)))
    worst = max(rows, key=lambda row: row.figure / row.target)
    print(f"\nworst: {worst.figure / worst.target:.2f} of its target: {worst.what}")


if __name__ == "__main__":
    main()
