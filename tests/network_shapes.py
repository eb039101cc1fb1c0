"""Shapes of networks with known densities, and an independent solver of these."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

LENET = [(300, 784), (100, 300), (10, 100)]
# PyTorch's layout (OIHW): six convolutions and a classifier, 72,496 weights.
CONVS = [
    (16, 3, 3, 3),
    (16, 16, 3, 3),
    (32, 16, 3, 3),
    (32, 32, 3, 3),
    (64, 32, 3, 3),
    (64, 64, 3, 3),
    (10, 64),
]
CONVS_ERK_10 = [0.904255, 0.257713, 0.183112, 0.118684, 0.086469, 0.056799, 1.0]
CONVS_ERK_20 = [1.0, 0.556421, 0.395352, 0.256247, 0.186694, 0.122632, 1.0]
CONVS_ER_10 = [0.806757, 0.254765, 0.191074, 0.127383, 0.095537, 0.063691, 0.235658]
OIHW = (0, 1)
EVERY_LEAF = {"where": lambda name, leaf: True}


def tree(shapes):
    """Leaves named "00", "01", ...: their order is that of the list."""
    return {
        f"{i:02d}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for i, shape in enumerate(shapes)
    }


def sizes(shapes):
    return [math.prod(shape) for shape in shapes]


def listed(counts):
    return [counts[name] for name in sorted(counts)]


def by_bisection(raws, sizes, density):
    """An independent solution of sum(min(1, e * raw) * N) = D * N."""
    raws, sizes = np.asarray(raws, float), np.asarray(sizes, float)
    low, high = 0.0, 1.0 / raws.min()
    for _ in range(200):
        middle = (low + high) / 2
        if np.sum(np.minimum(1, middle * raws) * sizes) < density * sizes.sum():
            low = middle
        else:
            high = middle
    return np.minimum(1, high * raws)


def erk_raws(shapes, power=1.0):
    return [(sum(shape) / math.prod(shape)) ** power for shape in shapes]


dimensions = st.integers(1, 12)


shape_lists = st.lists(
    st.lists(dimensions, min_size=2, max_size=4).map(tuple), min_size=1, max_size=12
)


sparsities = st.one_of(
    st.integers(0, 99).map(lambda percent: percent / 100),
    st.floats(0, 1, exclude_max=True),
)


properties = settings(deadline=None, max_examples=60)
