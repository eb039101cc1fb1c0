import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.training.landscape import barrier_of, blend, loss_path, loss_plane
from sup_tickets.training.state import Network
from tests.helpers import assert_same, quick


def point(*coordinates, stats=1.0, mask=None):
    """A network whose weights are a point, in two leaves."""
    a, b = jnp.float32(coordinates[:2]), jnp.float32(coordinates[2:])
    bn = {"mean": jnp.float32([stats]), "var": jnp.float32([stats])}
    masks = {"a": None if mask is None else jnp.array(mask), "b": None}
    return Network({"a": a, "b": b}, {"bn": bn}, masks)


def place(network):
    return np.concatenate([network.params["a"], network.params["b"]])


def bowl(network):
    """A loss around the point (1, 0, ...), and an accuracy that falls with it."""
    loss = float(np.sum((place(network) - np.eye(4)[0]) ** 2))
    return {"accuracy": 1 / (1 + loss), "nll": loss}


# --- Blending -------------------------------------------------------------------------


def test_blending_by_hand():
    a = point(1, 2, 3, 4, stats=1.0, mask=[True, False])
    b = point(5, 6, 7, 8, stats=3.0, mask=[False, False])
    mixed = blend([a, b], [0.25, 0.75])
    np.testing.assert_allclose(place(mixed), [4, 5, 6, 7])
    assert float(mixed.model_state["bn"]["var"][0]) == 2.5
    assert mixed.masks["a"].tolist() == [True, False]
    assert mixed.masks["b"] is None


def test_the_end_of_a_line_is_the_network_itself():
    a, b = point(0.1, 2, 3e-7, 4), point(5, 6, 7e9, 8)
    assert_same(blend([a, b], [1, 0]).params, a.params)
    assert_same(blend([a, b], [0.0, 1.0]), b)


def test_variances_stay_positive_and_means_do_not():
    mixed = blend([point(0, 0, 0, 0, stats=1.0), point(0, 0, 0, 0, stats=5.0)], [2, -1])
    assert float(mixed.model_state["bn"]["mean"][0]) == -3
    assert float(mixed.model_state["bn"]["var"][0]) == 0


def test_blending_keeps_the_dtype():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), point(1, 2, 3, 4).params)
    net = Network(half, {}, {"a": None, "b": None})
    assert blend([net, net], [0.5, 0.5]).params["a"].dtype == jnp.bfloat16


def test_what_cannot_be_blended_is_refused():
    a = point(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"one a network, got \(3,\)"):
        blend([a, a], [0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match="one a network"):
        blend([], [])
    with pytest.raises(ValueError, match="'params/b'"):
        blend([a, point(1, 2, 3)], [0.5, 0.5])


# --- A line ---------------------------------------------------------------------------


def test_a_path_through_a_bowl():
    path = loss_path(bowl, point(0, 0, 0, 0), point(3, 0, 0, 0), points=4)
    np.testing.assert_allclose(path.positions, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(path.losses, [1, 0, 1, 4], atol=1e-6)
    np.testing.assert_allclose(path.accuracies, [0.5, 1, 0.5, 0.2], atol=1e-6)
    assert path.barrier == 0  # it lies below the straight line


def test_a_hill_is_a_barrier():
    def hill(network):
        return {"nll": float(-abs(network.params["a"][0] - 1))}

    path = loss_path(hill, point(0, 0, 0, 0), point(4, 0, 0, 0), points=9)
    # From -1 to -3; the top, at a quarter of the way, is 0 where the line is -1.5.
    np.testing.assert_allclose(path.barrier, 1.5)


def test_a_path_from_a_network_to_itself_is_flat():
    a = point(1, 2, 3, 4)
    path = loss_path(bowl, a, a, points=5)
    assert path.barrier == pytest.approx(0, abs=1e-5)
    assert np.isfinite(path.losses).all()


def test_a_path_needs_two_ends():
    with pytest.raises(ValueError, match="points must be a whole number of at least 2"):
        loss_path(bowl, point(1, 2, 3, 4), point(1, 2, 3, 4), points=1)


@quick
@given(
    losses=st.lists(st.floats(-100, 100), min_size=2, max_size=12),
    shift=st.floats(-10, 10),
)
def test_the_barrier_is_the_largest_rise(losses, shift):
    ends, last = (losses[0], losses[-1]), len(losses) - 1
    wanted = max(
        loss - (ends[0] + (ends[1] - ends[0]) * i / last)
        for i, loss in enumerate(losses)
    )
    got = barrier_of(losses)
    assert got >= 0
    np.testing.assert_allclose(got, max(wanted, 0), atol=1e-9)
    # A straight line that is added changes nothing, nor does walking back.
    tilted = [loss + shift * i for i, loss in enumerate(losses)]
    np.testing.assert_allclose(barrier_of(tilted), got, atol=1e-9)
    np.testing.assert_allclose(barrier_of(losses[::-1]), got, atol=1e-9)


def test_a_path_that_breaks_is_an_infinite_barrier():
    assert barrier_of([1, np.nan, 1]) == barrier_of([1, np.inf, 1]) == np.inf
    with pytest.raises(ValueError, match="ends must have finite losses"):
        barrier_of([np.nan, 1, 1])


# --- A plane --------------------------------------------------------------------------

A, B, C = (0, 0, 0, 0), (3, 0, 0, 0), (1, 2, 0, 0)


def test_a_plane_by_hand():
    plane = loss_plane(
        bowl,
        *(point(*corner) for corner in (A, B, C)),
        points=4,
        margin=0.5,
        others=[point(1, 1, 0, 2), point(2, -1, 0, 0)],
    )
    np.testing.assert_allclose(plane.corners, [[0, 0], [3, 0], [1, 2]], atol=1e-6)
    np.testing.assert_allclose(plane.others, [[1, 1], [2, -1]], atol=1e-6)
    np.testing.assert_allclose(plane.heights, [2, 0], atol=1e-6)
    # From -1 to 2 in y, and half of the extent more on each side.
    np.testing.assert_allclose(plane.x, np.linspace(-1.5, 4.5, 4), atol=1e-6)
    np.testing.assert_allclose(plane.y, np.linspace(-2.5, 3.5, 4), atol=1e-6)
    wanted = (plane.x[None] - 1) ** 2 + plane.y[:, None] ** 2
    np.testing.assert_allclose(plane.losses, wanted, atol=1e-4)


@quick
@given(seed=st.integers(0, 2**16))
def test_distances_in_the_plane_are_those_of_the_weights(seed):
    rng = np.random.default_rng(seed)
    corners = rng.standard_normal((3, 4))
    nets = [point(*corner) for corner in corners]
    plane = loss_plane(bowl, *nets, points=2, others=[blend(nets, [0.2, 0.3, 0.5])])
    for i in range(3):
        for j in range(3):
            np.testing.assert_allclose(
                np.linalg.norm(plane.corners[i] - plane.corners[j]),
                np.linalg.norm(corners[i] - corners[j]),
                atol=1e-5,
            )
    middle = np.array([0.2, 0.3, 0.5]) @ plane.corners
    np.testing.assert_allclose(plane.others[0], middle, atol=1e-5)
    np.testing.assert_allclose(plane.heights, 0, atol=1e-5)


@pytest.mark.parametrize(
    "corners", [(A, A, C), (A, B, B), (A, B, A), (A, A, A), (A, B, (6, 0, 0, 0))]
)
def test_a_triangle_without_area_is_refused(corners):
    with pytest.raises(ValueError, match="three networks must span a plane, but they"):
        loss_plane(bowl, *(point(*corner) for corner in corners), points=2)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must have finite weights"):
        loss_plane(bowl, point(*A), point(*B), point(np.nan, 0, 0, 0), points=2)
