"""Pictures: what is drawn is what the masks and the numbers say."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets import pictures
from sup_tickets.panels import panels

MASKS = {
    "bias": None,
    "conv": jnp.zeros((3, 3, 2, 4), bool).at[0, 1].set(True),
    "out": jnp.eye(4, 5, dtype=bool),
}
AFTER = MASKS | {"out": jnp.eye(4, 5, k=1, dtype=bool).at[0, 0].set(True)}


def images(figure):
    return [np.asarray(place.images[0].get_array()) for place in figure.axes]


def titles(figure):
    return [place.get_title(loc="left") for place in figure.axes]


def points(place, line=0):
    return [
        tuple(map(float, p)) for p in zip(*place.lines[line].get_data(), strict=True)
    ]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_active_weights_are_black_with_outputs_to_the_right():
    figure = pictures.draw_masks(MASKS)
    assert titles(figure) == ["conv: 8 of 72, 11.1%", "out: 4 of 20, 20%"]
    conv, out = images(figure)
    np.testing.assert_array_equal(conv, MASKS["conv"].reshape(18, 4))
    np.testing.assert_array_equal(out, np.eye(4, 5))
    assert titles(pictures.draw_masks(MASKS, "^o")) == ["out: 4 of 20, 20%"]


def test_a_rewire_is_what_was_kept_dropped_and_grown():
    figure = pictures.draw_rewire(MASKS, AFTER, "out")
    assert titles(figure) == ["out: 1 kept, 3 dropped, 4 grown"]
    (dark,) = images(figure)
    before, after = np.asarray(MASKS["out"]), np.asarray(AFTER["out"])
    for chosen, grey in [
        (~before & ~after, 1.0),
        (before & after, 0.8),
        (before & ~after, 0.5),
        (~before & after, 0.0),
    ]:
        np.testing.assert_allclose(dark[chosen], 1 - grey, rtol=1e-6)
    assert legend(figure) == ["inactive", "kept", "dropped", "grown"]


def test_layers_have_their_sparsity_for_each_network():
    figure = pictures.draw_layers({"before": MASKS, "after": AFTER})
    (place,) = figure.axes
    sparsity = 100 * (1 - 8 / 72)
    assert points(place) == [(pytest.approx(sparsity), 0), (pytest.approx(80), 1)]
    assert points(place, 1) == [(pytest.approx(sparsity), 0), (pytest.approx(75), 1)]
    assert [t.get_text() for t in place.get_yticklabels()] == ["conv", "out"]
    assert legend(figure) == ["before", "after"]


def test_the_turnover_of_a_history_of_masks():
    figure = pictures.draw_turnover([(0, MASKS), (10, AFTER), (20, MASKS)])
    kept, ever, active = figure.axes
    share = pytest.approx
    # 8 + 1 of the 13 weights active after step 10 were there before.
    assert points(kept) == [(10, share(100 * 9 / 13)), (20, share(100 * 9 / 12))]
    assert points(ever) == [(10, share(100 * 16 / 92)), (20, share(100 * 16 / 92))]
    assert points(active) == [(10, 13), (20, 12)]


def test_a_number_of_active_weights_that_stays_is_not_drawn():
    figure = pictures.draw_turnover([(0, MASKS), (10, MASKS)])
    assert [place.get_ylabel() for place in figure.axes] == [
        "overlap with the\nmasks before, %",
        "weights active\nat any time, %",
    ]


def test_explorations_are_told_from_updates():
    changes = [
        {"event": "update", "step": 1, "overlap": 0.5},
        {"event": "explore", "step": 2, "overlap": 0.25},
    ]
    (place,) = pictures.draw_changes(changes).axes
    assert points(place) == [(1, 50), (2, 25)]
    assert (points(place, 1), points(place, 2)) == ([(1, 50)], [(2, 25)])
    assert place.lines[2].get_label() == "exploration"


def test_curves_are_below_each_other_and_marked():
    loss = {"rigl": [(i, 1 / (1 + i)) for i in range(1000)], "_set$": []}
    accuracy = {"rigl": [(500, 80.0), (1000, 90.0)], "_set$": [(500, 70.0)]}
    figure = pictures.draw_curves(
        {"loss": loss, "accuracy": accuracy}, log=["loss"], marks=[7, 9, 7], mark="x"
    )
    first, second = figure.axes
    assert (first.get_yscale(), second.get_yscale()) == ("log", "linear")
    drawn = points(first)  # means of groups of five
    assert len(drawn) == 200
    assert drawn[0] == (4, pytest.approx(sum(1 / i for i in range(1, 6)) / 5))
    assert points(second) == [(500, 80), (1000, 90)]
    assert [line.get_xdata()[0] for line in first.lines[2:]] == [7, 9]
    assert legend(figure) == ["rigl", r" _set\$", "x"]


def test_a_figure_is_a_file_when_it_is_saved(tmp_path):
    figure = pictures.draw_masks(MASKS)
    figure.savefig(tmp_path / "masks.png")
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: pictures.draw_masks(MASKS, "bias"), "leaves='bias'.*conv, out"),
        (lambda: pictures.draw_masks(MASKS, "("), "leaves '\\('"),
        (lambda: pictures.draw_rewire(MASKS, MASKS | {"conv": None}), "conv"),
        (lambda: pictures.draw_rewire(MASKS, {"out": MASKS["out"]}), "after"),
        (lambda: pictures.draw_layers({}), "networks is empty"),
        (lambda: pictures.draw_turnover([(0, MASKS)]), "at least two masks, got 1"),
        (lambda: pictures.draw_changes([]), "neither overlap"),
        (lambda: pictures.draw_curves({}), "quantities is empty"),
        (lambda: pictures.draw_curves({"a": {}}, log=["b"]), "log has .*b"),
    ],
)
def test_what_cannot_be_drawn_is_told(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"needs matplotlib; .*\[train\]"),
        panels(1, 2.0),
    ):
        pass
