"""Prints versions and devices, and checks in ten seconds that the core works on them.

    python -m sup_tickets

Counts, an exact selection, a rewire, a superposition and a selection sharded over all
devices are compared with NumPy, and RigL trains two steps. The exit code is 0 if all
is well, 1 if a check fails, and 2 if there is no device.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sup_tickets.distributions import erk
from sup_tickets.masks import apply_masks, layer_counts, random_masks
from sup_tickets.methods import rigl
from sup_tickets.selection import select
from sup_tickets.sparse_state import keep_sparse, masks_of
from sup_tickets.superposition import superposition
from sup_tickets.topology import rewire
from sup_tickets.transforms import sparse_training

_COLUMNS = 32


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code.

    Args:
      argv: the words after the command; by default those of the process.
    """
    parser = argparse.ArgumentParser(
        "python -m sup_tickets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    version = sys.modules["sup_tickets"].__version__
    others = ("jax", "jaxlib", "optax", "numpy")
    versions = [f"{name} {metadata.version(name)}" for name in others]
    print(f"sup-tickets {version}, Python {platform.python_version()}")
    print(", ".join(versions))
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that there is one
        print(f"error: JAX finds no device: {' '.join(str(error).split())}")
        return 2
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    print(f"devices: {len(devices)} ({devices[0].platform}: {kinds})")
    return _check_all(CHECKS)


def _check_all(checks: dict[str, Callable[[], str]]) -> int:
    begun, wrong = time.perf_counter(), 0
    for name, check in checks.items():
        try:
            line = f"ok     {name}: {check()}"
        except Exception as error:  # whatever it is, the other checks go on
            wrong += 1
            line = f"FAILED {name}: {' '.join(str(error).split())}"
        print(line, flush=True)
    seconds = time.perf_counter() - begun
    result = f"{wrong} of {len(checks)} checks failed" if wrong else "all is well"
    print(f"{result}, {seconds:.0f} s")
    return 1 if wrong else 0


# --- Checks: each says what it looked at, or raises -----------------------------------


def _check_counts() -> str:
    params = _params()
    counts = erk(params, sparsity=0.9)
    masks = random_masks(jax.random.key(0), params, counts)
    _same("active weights", layer_counts(masks), counts)
    total, size = sum(jax.tree.leaves(counts)), sum(w.size for w in _kernels(params))
    _same("active weights in all", total, round(0.1 * size))
    return f"{total} of {size} weights at sparsity 0.9"


def _check_selection() -> str:
    scores = np.random.default_rng(1).integers(0, 50, (64, _COLUMNS))  # with many ties
    got = select({"w": jnp.asarray(scores, jnp.float32)}, {"w": 300})["w"]
    _same("the mask", got, _top(scores, 300))
    return "the 300 largest of 2048, ties by index"


def _check_rewire() -> str:
    rng = np.random.default_rng(2)
    w, gradient = rng.normal(size=(2, 64, _COLUMNS)).astype(np.float32)
    mask = rng.random((64, _COLUMNS)) < 0.2
    w = np.where(mask, w, np.float32(0))
    dropped = int(0.3 * mask.sum())
    stay = _top(abs(w), mask.sum() - dropped, mask)
    wanted = stay | _top(abs(gradient), dropped, ~stay)
    got = jax.jit(rewire, static_argnames="fraction")(
        {"w": w},
        {"w": mask},
        drop_scores={"w": abs(w)},
        grow_scores={"w": abs(gradient)},
        fraction=0.3,
    )
    _same("the mask", got.masks["w"], wanted)
    _same("the weights", got.params["w"], np.where(wanted, w, 0))
    return f"{dropped} of {mask.sum()} weights dropped and grown"


def _check_superposition() -> str:
    rng = np.random.default_rng(3)
    masks = rng.random((3, 64, _COLUMNS)) < 0.2
    # Whole numbers, whose sums of three are exact in any order.
    tickets = np.where(masks, rng.integers(-99, 99, masks.shape) * 3, 0)
    average = superposition("cia", sparsity=0.8, prune_each=False)
    leaves = [{"w": jnp.asarray(t, jnp.float32)} for t in tickets]
    state = average.init(leaves[0], {"w": masks[0]})
    for leaf, mask in zip(leaves, masks, strict=True):
        state = jax.jit(average.update)(state, leaf, {"w": mask})
    params, superposed = jax.jit(average.result)(state)
    mean = tickets.sum(0) // 3
    active = round(0.2 * mean.size)
    _same("active weights", superposed["w"].sum(), active)
    error = abs(np.asarray(params["w"]) - np.where(superposed["w"], mean, 0)).max()
    if error > 1e-3:
        raise ValueError(f"the mean of three tickets is off by {error:.3g}")
    return f"three tickets averaged, {active} of {mean.size} weights kept"


def _check_training() -> str:
    params = _params()
    method = rigl(sparsity=0.9, update_every=1, total_steps=10)
    tx = sparse_training(optax.sgd(0.1, momentum=0.9), method)
    state = tx.init(params)
    params = keep_sparse(params, state)
    before = masks_of(state)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = jax.grad(_loss)(params)
        updates, state = tx.update(gradients, state, params)
        return keep_sparse(optax.apply_updates(params, updates), state), state

    for _ in range(2):
        params, state = step(params, state)
    masks = masks_of(state)
    _same("active weights", layer_counts(masks), layer_counts(before))
    _same("weights", params, apply_masks(masks, params))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise ValueError("weights are not finite")
    return "two steps of RigL keep every count, and exact zeros"


def _check_devices() -> str:
    devices = jax.devices()
    scores = np.random.default_rng(4).integers(0, 99, (len(devices), 8, _COLUMNS))
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,))
    shared = jax.device_put(
        np.float32(scores), NamedSharding(mesh, PartitionSpec("data"))
    )
    k = scores.size // 10
    got = jax.jit(lambda leaf: select({"w": leaf}, {"w": k})["w"])(shared)
    _same("the mask", got, _top(scores, k))
    return f"a selection sharded over {len(devices)} has the bits of NumPy's"


CHECKS = {
    "counts": _check_counts,
    "selection": _check_selection,
    "rewire": _check_rewire,
    "superposition": _check_superposition,
    "training": _check_training,
    "devices": _check_devices,
}


# --- Parts ----------------------------------------------------------------------------


def _params() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape), jnp.float32),
            "bias": jnp.zeros(shape[1]),
        }
        for name, shape in {"hidden": (64, _COLUMNS), "out": (_COLUMNS, 10)}.items()
    }


def _kernels(params: Any) -> list[Any]:
    return [layer["kernel"] for layer in params.values()]


def _loss(params: Any) -> jax.Array:
    x = jnp.ones((4, 64))
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return jnp.square(x - 1.0).mean()


def _top(scores: np.ndarray, k: int, among: Any = True) -> np.ndarray:
    """The largest ``k`` scores by a stable sort."""
    keys = np.where(among, -scores.astype(float), np.inf)
    ranked = np.argsort(keys, axis=None, kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[ranked[:k]] = True
    return mask.reshape(scores.shape)


def _same(what: str, got: Any, wanted: Any) -> None:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    different = sum(int((np.asarray(a) != np.asarray(b)).sum()) for a, b in pairs)
    if different:
        raise ValueError(f"{what}: {different} differ from NumPy's")


if __name__ == "__main__":
    sys.exit(main())
