"""Random sparse orthogonal matrices, by rotations of two columns at a time.

NumPy on the host, in float64.
"""

from typing import NamedTuple

import numpy as np

from sup_tickets.checks import check_whole

_DRAWS = 256  # rotations that are drawn at a time


def orthogonal_matrix(
    rng: np.random.Generator, rows: int, columns: int, count: int
) -> np.ndarray:
    """A random sparse matrix whose smaller side is orthonormal.

    An identity, cut to the shape, whose columns (rows, if it is tall) are rotated two
    at a time, a random pair by a random angle, as long as no more than ``count`` places
    are in use. ``A A^T = I`` if it is wide, ``A^T A = I`` if it is tall.

    Args:
      rng: consumed.
      rows: at least 1.
      columns: at least 1.
      count: of nonzeros at most, from ``min(rows, columns)`` to ``rows * columns``. A
        few less are in use, since one rotation adds several.

    Returns:
      [rows, columns] float64 array.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from sup_tickets.orthogonal import orthogonality_error
      >>> a = orthogonal_matrix(np.random.default_rng(0), 3, 5, 9)
      >>> bool(3 <= np.count_nonzero(a) <= 9), orthogonality_error(a) < 1e-13
      (True, True)
    """
    check_whole("rows", rows, 1)
    check_whole("columns", columns, 1)
    check_whole("count", count, min(rows, columns))
    if count > rows * columns:
        raise ValueError(f"count must be at most {rows * columns}, got {count}")
    return rotated_identity(rng, rows, columns, count).values


def expected_density(columns: int, rotations: int) -> float:
    """The density that a number of rotations is expected to lead to.

    The number of nonzeros of a row is a Markov chain from 1: of M columns a rotation
    takes a nonzero and a zero one, and adds a nonzero, with probability
    ``2 k (M - k) / (M (M - 1))``.

    Args:
      columns: M, the larger side, at least 1.
      rotations: at least 0.

    Example:
      >>> [round(expected_density(4, t), 6) for t in (0, 1, 2)]
      [0.25, 0.375, 0.520833]
    """
    m = check_whole("columns", columns, 1)
    k = np.arange(1, m + 1)
    grows = 2 * k * (m - k) / max(m * (m - 1), 1)
    chance = np.zeros(m)
    chance[0] = 1.0
    for _ in range(check_whole("rotations", rotations, 0)):
        moved = chance * grows
        chance -= moved
        chance[1:] += moved[:-1]
    return float(chance @ k) / m


class SparseMatrix(NamedTuple):
    """A matrix, and the places that are in use."""

    values: np.ndarray  # float64
    # Known from the rotations, not from the values: these can cancel to 0.
    used: np.ndarray  # bool


def rotated_identity(
    rng: np.random.Generator, rows: int, columns: int, count: int
) -> SparseMatrix:
    """`orthogonal_matrix`, with the places that are in use; nothing is checked."""
    short, long = sorted((rows, columns))
    # The columns that are rotated are rows here: contiguous, and thus fast.
    turned = SparseMatrix(np.eye(long, short), np.eye(long, short, dtype=bool))
    filled = [1] * short + [0] * (long - short)
    total = short
    while total < count:
        for i, j, angle in _draw_rotations(rng, long):
            joint = int(np.count_nonzero(turned.used[i] | turned.used[j]))
            total += 2 * joint - filled[i] - filled[j]
            if total > count:
                break
            _rotate(turned, i, j, angle)
            filled[i] = filled[j] = joint
    if rows <= columns:
        return SparseMatrix(turned.values.T, turned.used.T)
    return turned


def _draw_rotations(
    rng: np.random.Generator, columns: int
) -> list[tuple[int, int, float]]:
    """Pairs of different columns, all equally likely, and angles."""
    i = rng.integers(columns, size=_DRAWS)
    j = rng.integers(columns - 1, size=_DRAWS)
    j += j >= i
    angles = rng.uniform(0, 2 * np.pi, size=_DRAWS)
    return list(zip(i.tolist(), j.tolist(), angles.tolist(), strict=True))


def _rotate(matrix: SparseMatrix, i: int, j: int, angle: float) -> None:
    """Rotates two rows in place."""
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = matrix.values[i], matrix.values[j]
    matrix.values[i], matrix.values[j] = cos * a + sin * b, cos * b - sin * a
    matrix.used[i] |= matrix.used[j]
    matrix.used[j] = matrix.used[i]
