"""How the tickets of a run differ, and what lies between them; as JSON."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any

import numpy as np

from sup_tickets.masks import overlap
from sup_tickets.training.comparison import Predict, compare
from sup_tickets.training.landscape import loss_path, loss_plane
from sup_tickets.training.predictions import PredictionSums, prediction_metrics
from sup_tickets.training.state import Network
from sup_tickets.training.task import Metrics


def analyse(
    tickets: Mapping[str, Network],
    superposed: Network | None,
    *,
    predict: Predict,
    evaluate: Callable[[Network], Metrics],
    batches: Iterable[Any],
    summarize: Callable[[PredictionSums], Metrics] = prediction_metrics,
    path_points: int = 11,
    plane_points: int = 0,
) -> dict[str, Any]:
    """Compares tickets with each other and with the network made of them.

    Args:
      tickets: T networks by name, in the order of their making; all in memory.
      superposed: the network made of them, or none.
      predict: the predictions of a network.
      evaluate: the metrics of a network, for paths and plane; on fewer examples, since
        it is called ``(T - 1) * path_points + plane_points ** 2`` times.
      batches: a split, for the ensemble and the pairs.
      summarize: of the task, for the ensemble.
      path_points: networks from each ticket to the next; 0 leaves the paths out.
      plane_points: a side of the plane through the last three; 0 leaves it out.

    Returns:
      A dict that JSON can hold, numbers that are not finite as ``None``: "tickets"
      (names), "ensemble" (metrics), "disagreement", "kl" and "overlap" [T, T],
      "superposed_overlap" [T], "paths" (one from each ticket to the next), "plane". A
      path or plane that there cannot be has an "error" in place of numbers. Empty
      without tickets.
    """
    if not tickets:
        return {}
    names, networks = list(tickets), list(tickets.values())
    pairs = compare(predict, networks, batches, summarize=summarize)
    found: dict[str, Any] = {
        "tickets": names,
        "ensemble": pairs.ensemble,
        "disagreement": pairs.disagreement,
        "kl": pairs.kl,
        "overlap": [
            [float(overlap(a.masks, b.masks)) for b in networks] for a in networks
        ],
    }
    if superposed is not None:
        found["superposed_overlap"] = [
            float(overlap(network.masks, superposed.masks)) for network in networks
        ]
    if path_points:
        found["paths"] = _paths(tickets, evaluate, path_points)
    if plane_points and len(networks) >= 3:
        found["plane"] = _plane(tickets, superposed, evaluate, plane_points)
    return plain(found)


def _paths(
    tickets: Mapping[str, Network], evaluate: Callable[[Network], Metrics], points: int
) -> list[dict[str, Any]]:
    paths, names = [], list(tickets)
    for a, b in itertools.pairwise(names):
        ends = {"from": a, "to": b}
        try:
            path = loss_path(evaluate, tickets[a], tickets[b], points=points)
            paths.append(ends | path._asdict())
        except ValueError as error:  # an end whose loss is not finite
            paths.append(ends | {"error": str(error)})
    return paths


def _plane(
    tickets: Mapping[str, Network],
    superposed: Network | None,
    evaluate: Callable[[Network], Metrics],
    points: int,
) -> dict[str, Any]:
    names = list(tickets)[-3:]
    a, b, c = (tickets[name] for name in names)
    others = [] if superposed is None else [superposed]
    shown = {"names": names, "other_names": ["superposed ticket"] * len(others)}
    try:
        plane = loss_plane(evaluate, a, b, c, points=points, others=others)
    except ValueError as error:  # the same ticket twice
        return shown | {"error": str(error)}
    return shown | plane._asdict()


def plain(value: Any) -> Any:
    """The same in lists and numbers that JSON can hold; what is not finite is None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
