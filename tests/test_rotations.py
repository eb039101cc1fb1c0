"""Random sparse orthogonal matrices."""

import numpy as np
import pytest

from sup_tickets.orthogonal import orthogonality_error
from sup_tickets.rotations import (
    SparseMatrix,
    _draw_rotations,
    _rotate,
    expected_density,
    orthogonal_matrix,
)
from tests.helpers import singular


def identity(rows, columns):
    """A matrix to be rotated, as `orthogonal` holds it: its columns are rows."""
    return SparseMatrix(np.eye(columns, rows), np.eye(columns, rows, dtype=bool))


def test_three_rotations_by_hand():
    turned = identity(4, 4)
    used = []
    for i, j, angle in [(0, 1, np.pi / 6), (2, 3, np.pi / 4), (1, 2, np.pi / 3)]:
        _rotate(turned, i, j, angle)
        used.append(int(turned.used.sum()))
    assert used == [6, 8, 12]
    wanted = [
        [0.866025, -0.25, 0.433013, 0],
        [0.5, 0.433013, -0.75, 0],
        [0, 0.612372, 0.353553, -0.707107],
        [0, 0.612372, 0.353553, 0.707107],
    ]
    a = turned.values.T
    np.testing.assert_allclose(a, wanted, atol=5e-7)
    np.testing.assert_array_equal(turned.used.T, np.array(wanted) != 0)
    assert orthogonality_error(a) < 1e-15


def test_places_in_use_survive_cancellation():
    turned = identity(2, 2)
    _rotate(turned, 0, 1, 0.0)  # values of exactly 0
    assert np.count_nonzero(turned.values) == 2 and turned.used.all()


GOLDEN = {
    **{(100, 0): 0.01, (100, 1): 0.0102, (100, 10): 0.012185, (100, 50): 0.026567},
    **{(100, 100): 0.067248, (100, 200): 0.303440, (100, 249): 0.491456},
    **{(100, 300): 0.680775, (4, 1): 0.375, (4, 2): 0.520833, (4, 3): 0.663194},
    **{(4, 4): 0.778356, (1, 0): 1.0, (1, 5): 1.0},
}


@pytest.mark.parametrize(("columns", "rotations"), GOLDEN)
def test_expected_densities(columns, rotations):
    wanted = GOLDEN[columns, rotations]
    assert expected_density(columns, rotations) == pytest.approx(wanted, abs=6e-7)


@pytest.mark.parametrize(("rows", "rotations"), [(100, 100), (100, 249), (30, 249)])
def test_simulated_densities_are_as_expected(rows, rotations):
    rng, runs = np.random.default_rng(0), 40
    found = []
    for _ in range(runs):
        turned = identity(rows, 100)
        draws = [d for _ in range(1 + rotations // 256) for d in draw(rng, 100)]
        for i, j, angle in draws[:rotations]:
            _rotate(turned, i, j, angle)
        found.append(turned.used.mean())
    error = np.mean(found) - expected_density(100, rotations)
    assert abs(error) < 4 * np.std(found) / runs**0.5
    assert np.std(found) < 0.06


def draw(rng, columns):
    return _draw_rotations(rng, columns)


def test_pairs_are_of_different_columns_and_equally_likely():
    draws = [d for _ in range(40) for d in draw(np.random.default_rng(1), 3)]
    pairs, counts = np.unique([(i, j) for i, j, _ in draws], axis=0, return_counts=True)
    assert [tuple(p) for p in pairs] == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert counts.min() > 0.6 * len(draws) / 6
    angles = np.array([angle for *_, angle in draws])
    assert 0 <= angles.min() < 0.2 and 6 < angles.max() < 2 * np.pi


SHAPES = [(1, 1), (1, 9), (9, 1), (16, 16), (40, 200), (784, 300), (512, 512)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_matrices_are_orthogonal(shape, density):
    rows, columns = shape
    count = max(min(shape), round(density * rows * columns))
    a = orthogonal_matrix(np.random.default_rng(3), rows, columns, count)
    assert a.shape == shape and a.dtype == np.float64
    assert orthogonality_error(a) < 1e-13
    assert orthogonality_error(a.astype(np.float32)) < 2e-6
    np.testing.assert_allclose(singular(a), 1, atol=1e-13)
    # One rotation more would have been too many: it adds two columns at most.
    assert count - 2 * min(shape) <= np.count_nonzero(a) <= count
    if density in (0, 1):
        assert np.count_nonzero(a) == count
    if rows < columns:
        assert np.abs(a.T @ a - np.eye(columns)).max() > 0.1


def test_matrices_refuse_what_cannot_be():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="count must be a whole number of at least 3"):
        orthogonal_matrix(rng, 3, 5, 2)
    with pytest.raises(ValueError, match="count must be at most 15, got 16"):
        orthogonal_matrix(rng, 3, 5, 16)
    with pytest.raises(ValueError, match="rows must be a whole number of at least 1"):
        orthogonal_matrix(rng, 0, 5, 0)
