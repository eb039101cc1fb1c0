import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runs.analysis import analyse, plain
from sup_tickets.data.resident import Weighted
from sup_tickets.masks import apply_masks, random_masks
from sup_tickets.models import MLP
from sup_tickets.training.classification import image_classification
from sup_tickets.training.comparison import compare
from sup_tickets.training.evaluation import evaluate, predictions
from sup_tickets.training.landscape import blend, loss_path
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.state import Network

MODEL = MLP(classes=3, features=(4,), batch_norm=True)
TASK = image_classification(
    linen_network(MODEL, jnp.zeros((1, 2, 2, 1))), prepare=lambda batch, key: batch
)
PREDICT = functools.partial(predictions, TASK)
EVALUATE = functools.partial(evaluate, TASK)


def batches():
    rng = np.random.default_rng(0)
    return [
        Weighted(
            rng.normal(size=(8, 2, 2, 1)).astype(np.float32),
            rng.integers(0, 3, 8).astype(np.int32),
            np.ones(8, np.float32),
        )
        for _ in range(2)
    ]


def ticket(seed):
    key = jax.random.key(seed)
    variables = MODEL.init(key, jnp.zeros((1, 2, 2, 1)), train=False)
    params, stats = variables["params"], variables["batch_stats"]
    counts = jax.tree.map(lambda leaf: None if leaf.ndim < 2 else 6, params)
    masks = random_masks(key, params, counts)
    return Network(apply_masks(masks, params), stats, masks)


def analysed(tickets, superposed=None, **options):
    split = batches()
    return analyse(
        tickets,
        superposed,
        predict=PREDICT,
        evaluate=lambda network: EVALUATE(network, split),
        batches=split,
        **options,
    )


def three():
    return {f"ticket {i}": ticket(i) for i in (1, 2, 3)}


def test_an_analysis_holds_what_the_parts_find():
    tickets = three()
    mean = blend(list(tickets.values()), [1 / 3] * 3)
    found = analysed(tickets, mean, path_points=3, plane_points=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["tickets"] == list(tickets)
    pairs = compare(PREDICT, list(tickets.values()), batches())
    assert found["ensemble"] == pairs.ensemble
    np.testing.assert_array_equal(found["kl"], pairs.kl)
    np.testing.assert_array_equal(found["disagreement"], pairs.disagreement)
    assert [found["overlap"][i][i] for i in range(3)] == [1, 1, 1]
    assert found["overlap"][0][1] == found["overlap"][1][0] < 1
    # The union has every weight of a ticket.
    active = sum(int(m.sum()) for m in jax.tree.leaves(mean.masks))
    np.testing.assert_allclose(found["superposed_overlap"], 12 / active, rtol=1e-6)
    ends = [(path["from"], path["to"]) for path in found["paths"]]
    assert ends == [("ticket 1", "ticket 2"), ("ticket 2", "ticket 3")]
    wanted = loss_path(
        lambda n: EVALUATE(n, batches()),
        tickets["ticket 1"],
        tickets["ticket 2"],
        points=3,
    )
    assert found["paths"][0]["losses"] == wanted.losses.tolist()
    assert found["paths"][0]["barrier"] == wanted.barrier
    plane = found["plane"]
    assert np.shape(plane["losses"]) == (2, 2)
    assert plane["names"] == list(tickets)
    assert plane["other_names"] == ["superposed ticket"]
    np.testing.assert_allclose(
        plane["others"][0], np.mean(plane["corners"], axis=0), atol=1e-5
    )


def test_parts_are_left_out():
    found = analysed(three(), path_points=0)
    assert set(found) == {"tickets", "ensemble", "disagreement", "kl", "overlap"}
    assert "plane" not in analysed(dict(list(three().items())[:2]), plane_points=3)
    assert analysed({}) == {}
    assert analysed({"ticket 1": ticket(1)})["paths"] == []


def test_identical_tickets_have_no_plane_and_no_barrier():
    one = ticket(1)
    found = analysed({"a": one, "b": one, "c": one}, path_points=2, plane_points=2)
    assert "must span a plane" in found["plane"]["error"]
    assert [path["barrier"] for path in found["paths"]] == [0, 0]
    assert np.max(found["kl"]) == np.max(found["disagreement"]) == 0


def test_a_broken_ticket_leaves_the_rest():
    tickets = three()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, tickets["ticket 2"].params)
    tickets["ticket 2"] = tickets["ticket 2"].replace(params=broken)
    found = analysed(tickets, path_points=2, plane_points=2)
    json.dumps(found, allow_nan=False)
    assert all("finite losses" in path["error"] for path in found["paths"])
    assert "finite weights" in found["plane"]["error"]
    assert found["ensemble"]["nll"] is None
    assert found["kl"][0][1] is None
    assert found["kl"][0][2] is not None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        ((1, {"a": np.inf}), [1, {"a": None}]),
        (True, True),
        ("x", "x"),
    ],
)
def test_plain_values(value, wanted):
    assert plain(value) == wanted
