"""The loss between networks: on the line through two, in the plane through three.

Every point is an affine combination of whole networks: of their weights, and of their
model state, batch-norm statistics, with the same factors, as superposition averages
them.

References:
  Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020,
  https://arxiv.org/abs/1912.05671 (the barrier; here the straight line between the ends
  is subtracted, as in Entezari et al., 2022, https://arxiv.org/abs/2110.06296).
  Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018,
  https://arxiv.org/abs/1802.10026, appendix (the plane).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.checks import check_whole
from sup_tickets.masks import union
from sup_tickets.training.state import Network
from sup_tickets.trees import check_same_leaves, map_named

Evaluate = Callable[[Network], Mapping[str, float]]
"""``network -> metrics`` on some split."""

# What the libraries call variances.
_VARIANCE = re.compile(r"(^|/)var(iance)?(_ema)?(/|$)")

_FLAT = 1e-4  # of the longest side of a triangle, the least height


class LossPath(NamedTuple):
    """The loss on the line between two networks. P points."""

    positions: np.ndarray  # [P] from 0 at the first network to 1 at the second
    losses: np.ndarray  # [P] nats
    accuracies: np.ndarray  # [P] in [0, 1]; NaN if the task has none
    barrier: float  # nats, largest rise above the straight line between the ends; >= 0


class LossPlane(NamedTuple):
    """The loss in the plane through three networks. P points a side."""

    x: np.ndarray  # [P] distance from the first network towards the second
    y: np.ndarray  # [P] distance from that line towards the third
    losses: np.ndarray  # [P, P] nats, at (x[j], y[i])
    corners: np.ndarray  # [3, 2] where the three networks are
    others: np.ndarray  # [N, 2] where further networks are, projected
    heights: np.ndarray  # [N] and how far off the plane


def blend(networks: Sequence[Network], weights: Any) -> Network:
    """An affine combination of networks.

    Args:
      networks: M of one model.
      weights: [M] numbers; affine if they sum to 1. They may be negative, and traced.

    Returns:
      The network whose weights and model state are the sums, each in the
      dtype it had; variances are at least 0. A weight is active if it is in any one.

    Raises:
      ValueError: if the networks and weights are not as many, or of different models.
    """
    networks, count = list(networks), np.shape(weights)
    if not networks or count != (len(networks),):
        raise ValueError(f"weights must be one a network, got {count}")
    first, *others = ({"params": n.params, "state": n.model_state} for n in networks)
    for other in others:
        check_same_leaves("a network", other, "the first", first)
    mixed = _mix(jnp.asarray(weights, jnp.float32), first, *others)
    return Network(
        params=mixed["params"],
        model_state=map_named(_positive, mixed["state"]),
        masks=functools.reduce(union, (n.masks for n in networks)),
    )


@jax.jit
def _mix(weights: jax.Array, *trees: Any) -> Any:
    def one(*leaves: jax.Array) -> jax.Array:
        total = sum(
            w * x.astype(jnp.float32) for w, x in zip(weights, leaves, strict=True)
        )
        return jnp.asarray(total).astype(leaves[0].dtype)

    return jax.tree.map(one, *trees)


def _positive(name: str, leaf: jax.Array) -> jax.Array:
    """Variances may fall below 0 outside of the networks."""
    if not _VARIANCE.search(name):
        return leaf
    return jnp.maximum(leaf, jnp.zeros_like(leaf))


# --- A line ---------------------------------------------------------------------------


def loss_path(
    evaluate: Evaluate,
    a: Network,
    b: Network,
    *,
    points: int = 11,
    objective: str = "nll",
) -> LossPath:
    """The loss at equal steps from one network to another.

    Args:
      evaluate: the metrics of a network.
      a: at position 0.
      b: at position 1.
      points: with both ends, at least 2.
      objective: the metric that is the loss.

    Raises:
      ValueError: for too few points, or networks of different models.
    """
    positions = np.linspace(0, 1, check_whole("points", points, 2))
    found = [evaluate(blend([a, b], [1 - t, t])) for t in positions]
    losses = np.array([metrics[objective] for metrics in found])
    return LossPath(
        positions=positions,
        losses=losses,
        accuracies=np.array([metrics.get("accuracy", np.nan) for metrics in found]),
        barrier=barrier_of(losses),
    )


def barrier_of(losses: Any) -> float:
    """The largest rise of a path above the straight line between its ends, nats.

    Args:
      losses: [P] at equal steps; infinite or NaN between the ends is an infinite
        barrier.

    Raises:
      ValueError: if an end is not finite.

    Example:
      >>> barrier_of([1.0, 4.0, 3.0])
      2.0
    """
    losses = np.asarray(losses, np.float64)
    if not np.isfinite(losses[[0, -1]]).all():
        raise ValueError(f"the ends must have finite losses, got {losses[[0, -1]]}")
    line = np.linspace(losses[0], losses[-1], len(losses))
    rise = losses[1:-1] - line[1:-1]  # 0 at the ends
    return float(np.max(np.where(np.isfinite(rise), rise, np.inf), initial=0.0))


# --- A plane --------------------------------------------------------------------------


class _Plane(NamedTuple):
    """Coordinates from inner products; u and v are an orthonormal basis."""

    origin: Any  # params
    u: Any
    v: Any
    corners: np.ndarray  # [3, 2]

    def project(self, params: Any) -> tuple[np.ndarray, float]:
        """The coordinates [2] of weights, and their distance from the plane."""
        away = _minus(params, self.origin)
        place = np.array([_dot(away, self.u), _dot(away, self.v)])
        rest = _minus(_minus(away, self.u, place[0]), self.v, place[1])
        return place, _norm(rest)

    def shares(self, x: float, y: float) -> np.ndarray:
        """The affine weights [3] of the corners that a point has."""
        third = y / self.corners[2, 1]
        second = (x - third * self.corners[2, 0]) / self.corners[1, 0]
        return np.array([1 - second - third, second, third])


def loss_plane(
    evaluate: Evaluate,
    a: Network,
    b: Network,
    c: Network,
    *,
    points: int = 11,
    margin: float = 0.3,
    others: Sequence[Network] = (),
    objective: str = "nll",
) -> LossPlane:
    """The loss on a grid in the plane through three networks.

    Distances are Euclidean, over all weights. The grid holds the three networks and the
    projections of the others.

    Args:
      evaluate: the metrics of a network.
      a: the origin.
      b: on the first axis.
      c: in the upper half of the plane.
      points: a side of the grid, at least 2; ``points ** 2`` networks are evaluated.
      margin: around the networks, as a share of the extent on each axis.
      others: networks to be projected, the superposed one for example.
      objective: the metric that is the loss.

    Raises:
      ValueError: if two of the three are the same, or all are on a line.
    """
    check_whole("points", points, 2)
    plane = _plane(a.params, b.params, c.params)
    found = [plane.project(network.params) for network in others]
    places = np.array([place for place, _ in found]).reshape(-1, 2)
    inside = np.concatenate([plane.corners, places])
    low, high = inside.min(axis=0), inside.max(axis=0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    x, y = np.linspace(low, high, points).T

    def loss(place_x: float, place_y: float) -> float:
        blended = blend([a, b, c], plane.shares(place_x, place_y))
        return evaluate(blended)[objective]

    return LossPlane(
        x=x,
        y=y,
        losses=np.array([[loss(at_x, at_y) for at_x in x] for at_y in y]),
        corners=plane.corners,
        others=places,
        heights=np.array([height for _, height in found]),
    )


def _plane(a: Any, b: Any, c: Any) -> _Plane:
    """Gram-Schmidt on the sides of the triangle."""
    side, other = _minus(b, a), _minus(c, a)
    lengths = np.array([_norm(side), _norm(other), _norm(_minus(c, b))])
    if not np.isfinite(lengths).all():
        raise ValueError("the three networks must have finite weights")
    u = _times(side, 1 / lengths[0]) if lengths[0] > 0 else side
    along = _dot(other, u)
    rest = _minus(other, u, along)
    height = _norm(rest)
    if min(lengths[0], height) <= _FLAT * lengths.max():
        raise ValueError(
            "the three networks must span a plane, but they are "
            f"{lengths[0]:.3g}, {lengths[1]:.3g} and {lengths[2]:.3g} apart"
        )
    corners = np.array([[0, 0], [lengths[0], 0], [along, height]])
    return _Plane(a, u, _times(rest, 1 / height), corners)


@jax.jit
def _minus_times(a: Any, b: Any, times: jax.Array) -> Any:
    return jax.tree.map(
        lambda x, y: x.astype(jnp.float32) - times * y.astype(jnp.float32), a, b
    )


def _minus(a: Any, b: Any, times: float = 1.0) -> Any:
    return _minus_times(a, b, jnp.float32(times))


def _times(a: Any, times: float) -> Any:
    return jax.tree.map(lambda x: jnp.float32(times) * x, a)


@jax.jit
def _dots(a: Any, b: Any) -> list[jax.Array]:
    dots = jax.tree.map(lambda x, y: (x * y).sum(), a, b)
    return jax.tree.leaves(dots)


def _dot(a: Any, b: Any) -> float:
    return float(np.sum(np.array(jax.device_get(_dots(a, b)), np.float64)))


def _norm(a: Any) -> float:
    return float(np.sqrt(_dot(a, a)))
