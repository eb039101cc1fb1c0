"""Pruning in rounds: exact counts, whatever is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import sup_tickets as st
from tests.helpers import quick


def test_rounds_count_exactly_and_nest():
    params = {"kernel": jnp.ones((100, 100))}
    seen = []

    def score(pruned, masks):
        seen.append(masks["kernel"])
        assert not (np.asarray(pruned["kernel"])[~np.asarray(masks["kernel"])]).any()
        return st.random_scores(jax.random.key(len(seen)), params)

    last = st.prune_in_rounds(score, params, sparsity=0.98, rounds=100)["kernel"]
    assert (int(seen[1].sum()), int(seen[50].sum()), int(last.sum())) == (
        *(9616, 1414),
        200,
    )
    for outer, inner in zip(seen, [*seen[1:], last], strict=True):
        assert not (inner & ~outer).any()
    linear = st.prune_in_rounds(
        lambda p, m: p, params, sparsity=0.5, rounds=2, spacing="linear"
    )
    assert int(st.count(linear)) == 5000


@pytest.mark.slow
@quick
@given(
    some.lists(some.tuples(some.integers(2, 6), some.integers(2, 6)), min_size=1,
               max_size=3),
    some.floats(0, 0.8),
    some.integers(1, 4),
    some.sampled_from(["global", "layer"]),
    some.sampled_from(["linear", "exponential"]),
)  # fmt: skip
def test_exact_for_any_shapes(shapes, sparsity, rounds, scope, spacing):
    params = {f"{i}": {"kernel": jnp.ones(s)} for i, s in enumerate(shapes)}
    params["0"]["bias"] = jnp.ones(3)
    total = sum(a * b for a, b in shapes)
    if st.active_count(total, sparsity) < len(shapes):
        return
    masks = st.prune_in_rounds(
        lambda p, m: st.random_scores(jax.random.key(0), p),
        params,
        sparsity=sparsity,
        rounds=rounds,
        scope=scope,
        spacing=spacing,
    )
    assert int(st.count(masks)) == st.active_count(total, sparsity)
    assert masks["0"]["bias"] is None
    again = st.resample(jax.random.key(1), masks)
    jax.tree.map(
        np.testing.assert_array_equal, st.layer_counts(again), st.layer_counts(masks)
    )


THREE = {
    "big": jnp.arange(1.0, 31.0).reshape(6, 5),
    "mid": jnp.arange(1.0, 13.0).reshape(4, 3),
    "small": jnp.arange(1.0, 9.0).reshape(4, 2),
}


def pruned_by_magnitude(**options):
    masks = st.prune_in_rounds(lambda p, m: st.magnitude(p), THREE, **options)
    return {name: int(mask.sum()) for name, mask in masks.items() if mask is not None}


def some_active(**counts):
    return {
        k: None
        if n is None
        else (jnp.arange(THREE[k].size) < n).reshape(THREE[k].shape)
        for k, n in counts.items()
    }


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_count_is_met_or_refused_where_leaves_stay_dense(scope, rounds):
    options = {"scope": scope, "rounds": rounds}
    kept = pruned_by_magnitude(sparsity=0.3, keep_dense="big", **options)
    assert kept["big"] == 30 and sum(kept.values()) == 35
    message = r"sparsity=0.5 of 50 weights leaves 25 active, but .* keep_dense= have 30"
    with pytest.raises(ValueError, match=message):
        pruned_by_magnitude(sparsity=0.5, keep_dense="big", **options)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_dense_leaves_of_ones_own_masks_count_what_is_active(scope):
    """The leaf that stays dense has 10 of 30; the 10 others come from the rest."""
    masks = some_active(big=10, mid=12, small=8)
    kept = pruned_by_magnitude(sparsity=0.6, keep_dense="big", masks=masks, scope=scope)
    assert kept["big"] == 10 and sum(kept.values()) == 20


@pytest.mark.parametrize(
    ("active", "wanted"),
    [
        # 0.4 of 30, 12 and 8; "where" does not matter once there are masks.
        ({"big": 30, "mid": 12, "small": 8}, {"big": 12, "mid": 5, "small": 3}),
        # "big" has 4 of its 12, and the 16 others are shared out 12 : 8.
        ({"big": 4, "mid": 12, "small": 8}, {"big": 4, "mid": 10, "small": 6}),
        ({"big": None, "mid": 12, "small": 8}, {"mid": 5, "small": 3}),
    ],
)
def test_layers_of_ones_own_masks(active, wanted):
    kept = pruned_by_magnitude(
        sparsity=0.6, scope="layer", where="small", masks=some_active(**active)
    )
    assert kept == wanted


def test_masks_with_too_few_weights_are_refused():
    message = "leaves 45 active, but masks has only 44"
    with pytest.raises(ValueError, match=message):
        masks = some_active(big=30, mid=12, small=2)
        pruned_by_magnitude(sparsity=0.1, masks=masks)
