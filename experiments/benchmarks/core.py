"""Speed and memory of the core on the exact shapes of ImageNet ResNet-50.

    python -m experiments.benchmarks.core [--repeats 7] [--fast]

Everything is timed in one process, what is compared interleaved, as medians of the
process's own time (user + system, which other people's load disturbs least). A *pass*
is a donated, jitted ``x + c`` over the tree: one read and one write of every weight.
Optimizers step on one leaf of each shape: a step does to each weight what it does to
all, and to compile SET's or RigL's for 54 leaves takes a minute. The last line is the
worst ratio of a figure to its target.
"""

import argparse
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sup_tickets as st
from experiments.benchmarks.cases import Case, Figures, measure, temporary_bytes
from experiments.command import check_devices, start
from experiments.config.flags import Parser
from sup_tickets.checks import check_whole

SPARSITY = 0.9
SHARE = 10  # one weight in ten is kept


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


def random_masks(counts: dict[str, int], tree: dict[str, jax.Array]) -> Any:
    """Masks with so many places True, at random."""
    generator = np.random.default_rng(2)

    def draw(count: int, leaf: jax.Array) -> jax.Array:
        chosen = generator.permutation(np.arange(leaf.size) < count)
        return jnp.asarray(chosen.reshape(leaf.shape))

    return jax.tree.map(draw, counts, tree)


def copy(tree: Any) -> Any:
    """A copy that may be donated."""
    return jax.tree.map(jnp.copy, tree)


# --- What is measured -----------------------------------------------------------------


def one_pass(tree: Any) -> Case:
    """One read and one write of every weight."""
    add = jax.jit(lambda t: (jax.tree.map(lambda x: x + 1e-9, t),), donate_argnums=0)
    return Case(add, lambda: (copy(tree),), carries=True)


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

    def per_leaf(function: Callable[[jax.Array], jax.Array]) -> Case:
        call = jax.jit(lambda t: jax.tree.map(function, t))
        return Case(call, lambda: (tree,), once=True)

    cases = {
        "pass": one_pass(tree),
        "select per leaf": Case(
            jax.jit(lambda t, c: st.select(st.magnitude(t), c)), lambda: (tree, counts)
        ),
        "select globally": Case(
            jax.jit(lambda t, k: st.select_globally(st.magnitude(t), k)),
            lambda: (tree, total // SHARE),
        ),
    }
    if not fast:
        cases["argsort per leaf"] = per_leaf(by_argsort)
        cases["top_k per leaf"] = per_leaf(by_top_k)
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
    call = jax.jit(rewire_step, donate_argnums=(0, 2))

    def start() -> Any:
        return copy(params), copy(masks), copy(params), gradients

    def tied() -> Any:
        few = jax.tree.map(lambda g: jnp.where(jnp.abs(g) > 1.96, g, 0), gradients)
        return *start()[:3], few

    return {
        "rewire pass": one_pass(params),
        "rewire": Case(call, start, carries=True),
        "rewire, ties": Case(call, tied, carries=True),
    }


def one_of_each_shape(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The last leaf of each shape: 21 of the 54."""
    return {name: tree[name] for name in {x.shape: n for n, x in tree.items()}.values()}


def optimizer_cases(params: Any, gradients: Any) -> Iterator[dict[str, Case]]:
    """Steps of plain Optax beside the same under `sparse_training`, two at a time."""

    def case(tx: Any, method: Any) -> Case:
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, gradients

        def start() -> Any:
            state = tx.init(params)
            begun = params if method is None else st.keep_sparse(params, state)
            return copy(begun), copy(state), gradients

        return Case(jax.jit(step, donate_argnums=(0, 1)), start, carries=True)

    params, gradients = one_of_each_shape(params), one_of_each_shape(gradients)
    methods = {
        "static": st.static(sparsity=SPARSITY),
        "set": st.sparse_evolutionary(sparsity=SPARSITY, update_every=10**6),
        "rigl": st.rigl(sparsity=SPARSITY, update_every=10**6, drop_fraction=0.3),
    }
    optimizers = {"sgd": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(1e-3)}
    for name, plain in optimizers.items():
        for of, method in methods.items():
            sparse = st.sparse_training(plain, method)
            yield {
                f"{name} beside {of}": case(plain, None),
                f"{name} {of}": case(sparse, method),
            }


def superposition_cases(params: Any, masks: Any) -> dict[str, Case]:
    """One more ticket beside Optax's own moving average."""

    def average(mean: Any, ticket: Any) -> Any:
        return optax.incremental_update(ticket, mean, 0.1), ticket

    def case(prune_each: bool) -> Case:
        sup = st.superposition("cia", sparsity=SPARSITY, prune_each=prune_each)

        def add(state: Any, params: Any, masks: Any) -> Any:
            return sup.update(state, params, masks), params, masks

        return Case(
            jax.jit(add, donate_argnums=0),
            lambda: (copy(sup.init(params, masks)), params, masks),
            carries=True,
        )

    return {
        "superpose pass": one_pass(params),
        "incremental_update": Case(
            jax.jit(average, donate_argnums=0),
            lambda: (copy(params), params),
            carries=True,
        ),
        "superpose": case(False),
        "superpose and prune": case(True),
    }


# --- The table ------------------------------------------------------------------------


def memory_rows(params: Any, masks: Any, found: dict[str, Figures]) -> list[Row]:
    """Bytes beyond inputs and outputs, from the compiled programs."""
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    tree = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    prune = jax.jit(lambda p, m, k: st.prune_to_counts(p, m, k))
    pruning = temporary_bytes(prune.lower(params, masks, 10).compile())
    packed = sum(leaf.nbytes for leaf in jax.tree.leaves(st.pack(masks)))
    padding = sum(-leaf.size % 8 / 8 for leaf in jax.tree.leaves(masks))

    def row(what: str, temporary: int, unit: int) -> Row:
        return Row(what, temporary / unit, 1.0, f"{temporary / 1e6:.1f} MB")

    return [
        row(
            "memory of a rewire / the largest leaf", found["rewire"].temporary, largest
        ),
        row("memory of a global prune / the tree", pruning, tree),
        Row(
            "packed masks / (parameters / 32 + padding)",
            packed / (tree / 32 + padding),
            1.0,
            f"{packed:,} bytes",
        ),
    ]


def speed_rows(found: dict[str, Figures]) -> list[Row]:
    """Ratios of medians of the processor's time."""

    def row(what: str, name: str, unit: str, target: float) -> Row:
        own, of = found[name].own, found[unit].own
        return Row(what, own / of, target, f"{own:.1f} / {of:.1f} ms")

    rows = [
        row("select per leaf, passes", "select per leaf", "pass", 40),
        row("select globally, passes", "select globally", "pass", 40),
    ]
    for name, least in [("argsort per leaf", 30), ("top_k per leaf", 5)]:
        if name in found:
            what = f"select per leaf / {name} (1/{least} asked)"
            rows.append(row(what, "select per leaf", name, 1 / least))
    return [
        *rows,
        row("rewire, passes", "rewire", "rewire pass", 100),
        row("rewire with 95% ties / rewire", "rewire, ties", "rewire", 1.5),
        row("masked SGD momentum / plain", "sgd static", "sgd beside static", 1.15),
        row("masked Adam / plain", "adam static", "adam beside static", 1.15),
        row("SGD in a SET step / plain", "sgd set", "sgd beside set", 1.15),
        row("Adam in a SET step / plain", "adam set", "adam beside set", 1.15),
        row("superpose / incremental_update", "superpose", "incremental_update", 1.5),
    ]


def untargeted_rows(found: dict[str, Figures]) -> list[str]:
    """What has no target but should be known."""
    replaces = "(replaces weight steps)"
    pairs = [
        (f"SGD in a RigL step {replaces} / plain", "sgd rigl", "sgd beside rigl"),
        (f"Adam in a RigL step {replaces} / plain", "adam rigl", "adam beside rigl"),
        ("superpose and prune, passes", "superpose and prune", "superpose pass"),
    ]
    return [
        f"| {what} | {found[a].own / found[b].own:.2f} | | "
        f"{found[a].own:.1f} / {found[b].own:.1f} ms |"
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
    masks = random_masks(counts, params)
    sparse = st.apply_masks(masks, params)

    print(f"machine: {platform.machine()}, {jax.devices()[0].device_kind}")
    print(f"python {platform.python_version()}, jax {jax.__version__}, ", end="")
    print(f"optax {optax.__version__}, {options.repeats} repeats")
    found: dict[str, Figures] = {}
    for group in (
        selection_cases(params, counts, options.fast),
        rewire_cases(sparse, masks, gradients),
        superposition_cases(sparse, masks),
        *optimizer_cases(params, gradients),
    ):
        found |= measure(group, options.repeats)
        jax.clear_caches()
    rows = speed_rows(found) + memory_rows(sparse, masks, found)

    print("\n| what | figure | at most | from |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.what} | {row.figure:.3g} | {row.target:.3g} | {row.note} |")
    print("\n".join(untargeted_rows(found)))
    worst = max(rows, key=lambda row: row.figure / row.target)
    print(f"\nworst: {worst.figure / worst.target:.2f} of its target: {worst.what}")


if __name__ == "__main__":
    main()
