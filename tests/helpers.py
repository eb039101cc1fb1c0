"""Slow, plain NumPy references, and what several tests share."""

import os
import re
from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor, prod
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.exchanges import exchanges
from experiments.benchmarks.exchanges import operations as operations

quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

ROUND: dict[str, Callable[[Fraction], int]] = {
    "floor": floor,
    "nearest": lambda x: floor(x + Fraction(1, 2)),
    "ceil": ceil,
}


# --- References -----------------------------------------------------------------------


def top_k_mask(score: Any, k: int, among: Any = None) -> np.ndarray:
    """The k largest candidates: stable, NaN last, never a place outside ``among``."""
    score = np.asarray(score).astype(np.float64)
    flat = score.reshape(-1)
    allowed = np.ones(flat.size, bool) if among is None else np.ravel(among)
    order = sorted(
        (i for i in range(flat.size) if allowed[i]),
        key=lambda i: (np.isnan(flat[i]), 0 if np.isnan(flat[i]) else -flat[i], i),
    )
    mask = np.zeros(flat.size, bool)
    mask[order[: max(int(k), 0)]] = True
    return mask.reshape(score.shape)


def top_k_masks(scores: list[Any], k: int, among: list[Any] | None = None) -> list:
    """`top_k_mask` over several arrays together, ties in their order."""

    def flat(arrays: list[Any], dtype: Any) -> np.ndarray:
        return np.concatenate([np.ravel(np.asarray(a).astype(dtype)) for a in arrays])

    chosen = top_k_mask(
        flat(scores, np.float64), k, None if among is None else flat(among, bool)
    )
    parts = np.split(chosen, np.cumsum([np.size(s) for s in scores])[:-1])
    return [p.reshape(np.shape(s)) for p, s in zip(parts, scores, strict=True)]


def rewire_leaf(
    w: np.ndarray,
    mask: np.ndarray,
    drop_score: np.ndarray,
    grow_score: np.ndarray,
    fraction: Fraction,
    rounding: str = "floor",
    regrow_dropped: bool = True,
    prefer: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, mask and newly grown places after one rewire of one array."""
    active = int(mask.sum())
    dropped = ROUND[rounding](fraction * active)
    if not regrow_dropped:
        dropped = min(dropped, mask.size - active)
    stay = top_k_mask(drop_score, active - dropped, mask)
    candidates = ~stay if regrow_dropped else ~mask
    if prefer is None:
        prefer = np.ones_like(mask)
    first = top_k_mask(grow_score, dropped, candidates & prefer)
    rest = top_k_mask(grow_score, dropped - int(first.sum()), candidates & ~prefer)
    new = stay | first | rest
    return np.where(mask & new, w, 0), new, new & ~mask


def scores_with_ties(rng: np.random.Generator, shape: tuple, dtype: Any) -> np.ndarray:
    """Scores of which some repeat, and some are signed zeros, infinite or NaN."""
    score = rng.standard_normal(shape).astype(np.float32)
    score = np.where(rng.random(shape) < 0.5, np.round(score), score)
    special = rng.choice(np.float32([0.0, -0.0, np.inf, -np.inf, np.nan]), shape)
    return np.where(rng.random(shape) < 0.2, special, score).astype(dtype)


# --- Comparing ------------------------------------------------------------------------


def _as_numbers(leaf: Any) -> np.ndarray:
    is_array = isinstance(leaf, jax.Array)
    is_key = is_array and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(got: Any, wanted: Any) -> None:
    """Same structure, and bit by bit the same leaves."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = _as_numbers(a), _as_numbers(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(
            np.frombuffer(a.tobytes(), np.uint8), np.frombuffer(b.tobytes(), np.uint8)
        )


def jit_once(function: Callable) -> Callable:
    """``jax.jit(function)`` that fails if one test traces it twice."""
    return jax.jit(chex.assert_max_traces(function, n=1))


# --- Looking into programs ------------------------------------------------------------


def primitive_names(function: Callable, *args: Any) -> set[str]:
    """The primitives in the jaxpr of a function, those in inner jaxprs too."""
    names: set[str] = set()
    stack = [jax.make_jaxpr(function)(*args).jaxpr]
    while stack:
        for equation in stack.pop().eqns:
            names.add(equation.primitive.name)
            for part in jax.tree.leaves(list(equation.params.values())):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    stack.append(part)
    return names


def collectives(compiled: Any) -> list[tuple[str, str]]:
    """Operation and shape of what exchanges data between devices."""
    return [(each.operation, each.shape) for each in exchanges(compiled)]


def assert_exchanges_counts_alone(compiled: Any, most: int = 7) -> int:
    """The program has all-reduces, of so many counts of a leaf, and no other exchange.

    Returns:
      How many all-reduces there are; one in a loop counts once.
    """
    exchanged = collectives(compiled)
    assert exchanged, "a sharded program should exchange its counts"
    for operation, shape in exchanged:
        assert operation.startswith("all-reduce"), (operation, shape)
        for dims in re.findall(r"\[(\d[\d,]*)\]", shape):
            assert np.prod([int(n) for n in dims.split(",")]) <= most, shape
    return len(exchanged)


# --- Shards ---------------------------------------------------------------------------

SPECS = {
    "first": P("model", None),
    "last": P(None, "model"),
    "flat": P(("data", "model")),
    "both": P("data", "model"),
    "whole": P(),
}
SHAPES = {
    "first": (64, 48),
    "last": (32, 64),
    "flat": (512,),
    "both": (16, 32),
    "whole": (40, 9),
}


CPU_ONLY = pytest.mark.skipif(
    os.environ["SUP_TICKETS_TEST_PLATFORMS"] != "cpu",
    reason="of what is compiled for a CPU",
)


def need_devices(count: int) -> None:
    """Skips a test where there are fewer."""
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices, there are {jax.device_count()}")


def mesh(**shape: int) -> Mesh:
    """The first devices as, by default, ``data=2, model=4``."""
    shape = shape or {"data": 2, "model": 4}
    count, types = prod(shape.values()), (AxisType.Auto,) * len(shape)
    need_devices(count)
    return jax.make_mesh(
        (*shape.values(),), (*shape,), devices=jax.devices()[:count], axis_types=types
    )


def sharded(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree with the names of `SHAPES` spread as `SPECS` says."""
    over = mesh()
    return {
        k: jax.device_put(v, NamedSharding(over, SPECS[k])) for k, v in tree.items()
    }


def singular(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
