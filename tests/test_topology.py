"""Drop, grow, rewire, prune: golden steps, NumPy, invariants, shards, memory."""

import functools
from fractions import Fraction

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draws

from sup_tickets.counting import active_count
from sup_tickets.masks import count, layer_counts
from sup_tickets.pruning import prune_to, prune_to_counts
from sup_tickets.saliency import magnitude, random_scores
from sup_tickets.topology import (
    drop,
    grow,
    rewire,
    share_out,
)


def array(*values):
    return jnp.array(values, jnp.float32)


def places(mask):
    return np.flatnonzero(mask).tolist()


def rewire_by_gradient(w, mask, g, **options):
    params, masks, grown = rewire(
        {"w": w, "bias": jnp.ones(2)},
        {"w": mask, "bias": None},
        drop_scores={"w": jnp.abs(w), "bias": None},
        grow_scores={"w": jnp.abs(g), "bias": jnp.ones(2)},
        **options,
    )
    assert masks["bias"] is None and grown["bias"] is None
    assert params["bias"].tolist() == [1, 1]
    return params["w"], masks["w"], grown["w"]


# --- Golden steps ---------------------------------------------------------------------


def test_rigl_step():
    w = array(0.5, -0.1, 0, 0.3, 0, 0, -0.7, 0.2)
    mask = jnp.array([1, 1, 0, 1, 0, 0, 1, 1], bool)
    g = array(0.9, 0.05, 0.8, 0.1, 0.2, 0.7, 0.3, 0.75)
    # 0.4 of 5 are 2: drops 1 and 7, grows 2 and 7, which keeps its value.
    params, new, grown = rewire_by_gradient(w, mask, g, fraction=0.4)
    assert new.tolist() == [True, False, True, True, False, False, True, True]
    helpers.assert_same(params, array(0.5, 0, 0, 0.3, 0, 0, -0.7, 0.2))
    assert places(grown) == [2]


G9 = (
    array(0.5, -0.1, 0.3, -0.2, 0, 0, 0, 0),
    jnp.arange(8) < 4,
    array(1, 0.4, 1, 0.05, 0.3, -0.6, 0.1, 0.2),
)


def test_exploration():
    params, new, grown = rewire_by_gradient(*G9, fraction=0.5)
    assert places(new) == [0, 1, 2, 5] and places(grown) == [5]
    helpers.assert_same(params, array(0.5, -0.1, 0.3, 0, 0, 0, 0, 0))


def test_exploration_without_regrowing():
    params, new, grown = rewire_by_gradient(*G9, fraction=0.5, regrow_dropped=False)
    assert places(new) == [0, 2, 4, 5] and places(grown) == [4, 5]
    helpers.assert_same(params, array(0.5, 0, 0.3, 0, 0, 0, 0, 0))


def test_half_of_three_is_two_by_the_ceiling():
    w, g = array(3, -2, 1, 0, 0), array(0, 0, 0, 5, 6)
    mask = jnp.arange(5) < 3
    _, new, _ = rewire_by_gradient(w, mask, g, fraction=0.5, rounding="ceil")
    assert places(new) == [0, 3, 4]
    _, new, _ = rewire_by_gradient(w, mask, g, fraction=0.5)
    assert places(new) == [0, 1, 4]
    _, new, _ = rewire_by_gradient(w, mask, g, fraction=0.5, rounding="nearest")
    assert places(new) == [0, 3, 4]


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_fully_dense_layer_is_left_alone(regrow, fraction):
    w, g = array(0.5, -0.1, 0.3, -0.2), array(1, 2, 3, 4)
    params, new, grown = rewire_by_gradient(
        w, jnp.ones(4, bool), g, fraction=fraction, regrow_dropped=regrow
    )
    assert new.all() and not grown.any()
    helpers.assert_same(params, w)


def test_without_regrowing_no_more_is_dropped_than_there_is_room_for():
    w, g = array(4, 3, 2, 1, 0), array(9, 9, 9, 9, 0)
    _, new, grown = rewire_by_gradient(
        w, jnp.arange(5) < 4, g, fraction=1.0, regrow_dropped=False
    )
    assert places(new) == [0, 1, 2, 4] and places(grown) == [4]


def test_zero_gradients_grow_by_index():
    w = array(0, 3, 0, 2, 0, 1, 0)
    params, new, grown = rewire_by_gradient(w, w != 0, 0 * w, fraction=0.7)
    assert places(new) == [0, 1, 2] and places(grown) == [0, 2]
    helpers.assert_same(params, array(0, 3, 0, 0, 0, 0, 0))


def test_never_active_places_are_preferred():
    w, mask, g = G9
    never = jnp.array([0, 0, 0, 0, 0, 0, 1, 1], bool)
    options = {"fraction": 0.5, "prefer": {"w": never, "bias": None}}
    _, new, grown = rewire_by_gradient(w, mask, g, **options)
    assert places(new) == [0, 2, 6, 7] and places(grown) == [6, 7]
    options["prefer"]["w"] = jnp.arange(8) == 6  # too few: then by score
    _, new, _ = rewire_by_gradient(w, mask, g, **options)
    assert places(new) == [0, 2, 5, 6]
    options["prefer"]["w"] = jnp.arange(8) == 0  # not a candidate
    _, new, _ = rewire_by_gradient(w, mask, g, **options)
    assert places(new) == [0, 1, 2, 5]


@pytest.mark.parametrize("regrow", [True, False])
def test_what_stands_in_dead_weights_is_harmless(regrow):
    w, mask, g = G9
    clean = rewire_by_gradient(w, mask, g, fraction=0.5, regrow_dropped=regrow)
    for rubbish in (np.nan, np.inf, -np.inf, -0.0, 1e9):
        dirty = jnp.where(mask, w, rubbish)
        got = rewire_by_gradient(dirty, mask, g, fraction=0.5, regrow_dropped=regrow)
        helpers.assert_same(got, clean)


@pytest.mark.parametrize("rubbish", [np.nan, -np.inf])
def test_growth_scores_of_rubbish_keep_the_count(rubbish):
    w, mask, _ = G9
    dirty = jnp.where(mask, jnp.inf, rubbish)
    masks = {"w": mask}
    new = rewire(
        {"w": w},
        masks,
        drop_scores={"w": dirty},
        grow_scores={"w": -dirty},
        fraction=0.5,
    )
    assert int(count(new.masks)) == 4


# --- Drop and grow --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "rounding", "left"),
    [
        (0.0, "floor", [0, 2, 4, 5, 6]),
        (0.0, "ceil", [0, 2, 4, 5, 6]),
        (0.3, "floor", [0, 2, 4, 6]),
        (0.3, "nearest", [0, 2, 6]),
        (0.3, "ceil", [0, 2, 6]),
        (0.6, "ceil", [0, 2]),
        (1.0, "floor", []),
    ],
)
def test_drop_hand_table(fraction, rounding, left):
    scores = {"w": array(5, 99, 3, 99, 1, 1, 3), "bias": None}
    masks = {"w": jnp.array([1, 0, 1, 0, 1, 1, 1], bool), "bias": None}
    # Of equal scores the first stays.
    got = drop(masks, scores, fraction, rounding=rounding)
    assert got["bias"] is None and places(got["w"]) == left


@pytest.mark.parametrize(
    ("n", "active"),
    [
        (-1, [1, 3]),
        (0, [1, 3]),
        (1, [1, 3, 4]),
        (2, [0, 1, 3, 4]),
        (3, [0, 1, 2, 3, 4]),
        (9, [0, 1, 2, 3, 4]),
    ],
)
def test_grow_hand_table(n, active):
    masks = {"w": jnp.array([0, 1, 0, 1, 0], bool), "bias": None}
    scores = {"w": array(1, 9, 1, 9, 2), "bias": jnp.ones(3)}
    got = grow(masks, scores, {"w": jnp.int32(n), "bias": None})
    assert got["bias"] is None and places(got["w"]) == active


# --- Like NumPy -----------------------------------------------------------------------

SHAPES = {"a": (3, 2, 2, 3), "b": (17,), "c": (1,), "d": (0, 4)}


@functools.cache
def compiled_rewire(rounding, regrow):
    """One program for each pair; what is preferred and the fraction are arguments."""

    def step(params, masks, drop_scores, grow_scores, fraction, prefer):
        return rewire(
            params,
            masks,
            drop_scores=drop_scores,
            grow_scores=grow_scores,
            fraction=fraction,
            rounding=rounding,
            regrow_dropped=regrow,
            prefer=prefer,
        )

    return helpers.jit_once(step)


def random_layers(seed, density):
    rng = np.random.default_rng(seed)
    masks = {k: rng.random(s) < density for k, s in SHAPES.items()}
    # Active weights may be 0 too, and what stands in dead places may be anything.
    params = {k: helpers.scores_with_ties(rng, s, np.float32)
              for k, s in SHAPES.items()}  # fmt: skip
    drop_scores = {k: np.abs(w) for k, w in params.items()}
    grow_scores = {k: helpers.scores_with_ties(rng, s, np.float32)
                   for k, s in SHAPES.items()}  # fmt: skip
    prefer = {k: rng.random(s) < rng.choice([0, 0.2, 1]) for k, s in SHAPES.items()}
    return params, masks, drop_scores, grow_scores, prefer


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("rounding", ["floor", "nearest", "ceil"])
@helpers.quick
@given(
    seed=draws.integers(0, 2**31),
    density=draws.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    hundredths=draws.integers(0, 100),
)
def test_rewire_like_numpy(rounding, regrow, seed, density, hundredths):
    params, masks, drop_scores, grow_scores, prefer = random_layers(seed, density)
    step = compiled_rewire(rounding, regrow)
    fraction = hundredths / 100
    got = step(params, masks, drop_scores, grow_scores, fraction, prefer)
    for k in SHAPES:
        wanted = helpers.rewire_leaf(
            params[k],
            masks[k],
            drop_scores[k],
            grow_scores[k],
            Fraction(hundredths, 100),
            rounding,
            regrow,
            prefer[k],
        )
        helpers.assert_same((got.params[k], got.masks[k], got.grown[k]), wanted)
        # And what must hold of any rewire:
        old, new = masks[k], np.asarray(got.masks[k])
        values = np.asarray(got.params[k])
        assert new.sum() == old.sum()
        assert not values[~new].any() and not np.signbit(values[~new]).any()
        np.testing.assert_array_equal(got.grown[k], new & ~old)
        assert not values[new & ~old].any()
        np.testing.assert_array_equal(values[new & old], params[k][new & old])


def test_jit_is_eager():
    layers = random_layers(3, 0.5)
    layers = [{"b": tree["b"]} for tree in layers]
    params, masks, drop_scores, grow_scores, prefer = layers

    def step(fraction):
        return rewire(
            params,
            masks,
            drop_scores=drop_scores,
            grow_scores=grow_scores,
            fraction=fraction,
            prefer=prefer,
        )

    params = jax.tree.map(jnp.asarray, params)
    masks = jax.tree.map(jnp.asarray, masks)
    helpers.assert_same(jax.jit(step)(0.3), step(0.3))


def test_double_precision():
    with jax.enable_x64(True):
        w, mask, g = (jnp.asarray(np.asarray(x, x.dtype.name)) for x in G9)
        w, g = w.astype(jnp.float64), g.astype(jnp.float64)
        new = rewire(
            {"w": w},
            {"w": mask},
            drop_scores={"w": jnp.abs(w)},
            grow_scores={"w": jnp.abs(g)},
            fraction=0.5,
            shares={"w": 1.0},
        )
        assert places(new.masks["w"]) == [0, 1, 2, 5]
        assert new.params["w"].dtype == jnp.float64
        assert int(count(prune_to(*new[:2], sparsity=0.75)[1])) == 2


def test_vmap_is_one_by_one():
    layers = [random_layers(i, 0.4) for i in range(3)]
    layers = [[{"b": tree["b"]} for tree in one] for one in layers]
    fractions = np.float32([0.0, 0.3, 1.0])
    stacked = jax.tree.map(lambda *x: np.stack(x), *layers)

    def step(layers, fraction):
        params, masks, drop_scores, grow_scores, prefer = layers
        return rewire(
            params,
            masks,
            drop_scores=drop_scores,
            grow_scores=grow_scores,
            fraction=fraction,
            prefer=prefer,
        )

    got = jax.jit(jax.vmap(step))(stacked, fractions)
    single = jax.jit(step)
    for i, (one, fraction) in enumerate(zip(layers, fractions, strict=True)):
        wanted = single(one, fraction)
        helpers.assert_same(jax.tree.map(lambda x, i=i: x[i], got), wanted)


# --- Shares ---------------------------------------------------------------------------


def test_snfs_shares():
    got = share_out([3.0, 1.0], [15, 25], [1000, 1000])
    assert [int(n) for n in got] == [30, 10]
    got = share_out({"a": 3.0, "b": None, "c": 1.0}, {"a": 40, "b": None, "c": 0},
                    {"a": 99, "b": None, "c": 99})  # fmt: skip
    assert got["b"] is None and (int(got["a"]), int(got["c"])) == (30, 10)
    assert share_out({}, {}, {}) == {}


@pytest.mark.parametrize(
    ("shares", "total", "room", "given"),
    [
        ([3, 1], 40, [25, 99], [25, 15]),  # what does not fit goes to the others
        ([3, 1, 0], 40, [25, 5, 99], [25, 5, 10]),
        ([1, 1, 1], 10, [99, 99, 99], [4, 3, 3]),  # the rest to the first of equals
        ([1, 2, 1], 10, [99, 99, 99], [2, 6, 2]),  # and to the largest share
        ([0, 0], 7, [99, 99], [4, 3]),  # no share at all: alike
        ([0, 1], 7, [99, 99], [0, 7]),
        ([np.nan, 1], 7, [99, 99], [4, 3]),
        ([np.inf, 1], 7, [99, 99], [4, 3]),
        ([3e38, 3e38], 7, [99, 99], [4, 3]),
        ([-1, 1], 7, [99, 99], [0, 7]),
        ([5, 1], 0, [99, 99], [0, 0]),
        ([5, 1], 9, [0, 9], [0, 9]),
        ([1e-30, 1e-30], 8, [99, 99], [4, 4]),
        ([1e30, 1], 8, [3, 99], [3, 5]),
    ],
)
def test_share_out_hand_table(shares, total, room, given):
    dropped = [total] + [0] * (len(shares) - 1)
    got = share_out([jnp.float32(s) for s in shares], dropped, room)
    assert [int(n) for n in got] == given


_share_out = jax.jit(lambda s, d, r: share_out(list(s), list(d), list(r)))


@helpers.quick
@given(
    layers=draws.lists(
        draws.tuples(
            draws.floats(0, 100, width=32),
            draws.integers(0, 10**8),
            draws.integers(0, 10**8),
        ),
        min_size=4,
        max_size=4,
    )
)
def test_share_out_is_exact_and_within_room(layers):
    shares, dropped, spare = (np.array(x) for x in zip(*layers, strict=True))
    room = dropped + spare
    got = np.array(
        _share_out(shares.astype(np.float32), dropped.astype(np.int32),
                   room.astype(np.int32))
    )  # fmt: skip
    assert got.sum() == dropped.sum()
    assert (got >= 0).all() and (got <= room).all()


def test_shares_move_weights_between_layers():
    n = {"a": 40, "b": 40}
    params = {k: jnp.where(jnp.arange(40) < 20, jnp.arange(40.0) + 1, 0.0) for k in n}
    masks = {k: jnp.arange(40) < 20 for k in n}
    scores = {k: jnp.arange(40.0) for k in n}
    for regrow in (True, False):
        new = rewire(
            params,
            masks,
            drop_scores=scores,
            grow_scores=scores,
            fraction=0.5,
            regrow_dropped=regrow,
            shares={"a": 3.0, "b": 1.0},
        )
        assert jax.tree.map(int, layer_counts(new.masks)) == {"a": 25, "b": 15}
        assert places(new.masks["a"]) == [*range(10, 20), *range(25, 40)]
        assert int(new.grown["a"].sum()) == 15
        assert not new.params["a"][25:].any()


# --- Prune ----------------------------------------------------------------------------

TWO = {"a": array(9, 1, 2, 8, 3), "b": array(7, 6, 5, 4, 0.5), "bias": array(1)}
ALL = {"a": jnp.ones(5, bool), "b": jnp.ones(5, bool), "bias": None}


def test_prune_globally_and_by_layer():
    params, kept = prune_to(TWO, ALL, sparsity=0.4)
    assert places(kept["a"]) == [0, 3] and places(kept["b"]) == [0, 1, 2, 3]
    assert kept["bias"] is None and params["bias"].tolist() == [1]
    assert params["a"].tolist() == [9, 0, 0, 8, 0]
    params, kept = prune_to(TWO, ALL, sparsity=0.4, scope="layer")
    assert places(kept["a"]) == [0, 3, 4] and places(kept["b"]) == [0, 1, 2]
    assert params["b"].tolist() == [7, 6, 5, 0, 0]


def test_prune_by_other_scores():
    scores = {"a": -TWO["a"], "b": -TWO["b"], "bias": None}
    _, kept = prune_to(TWO, ALL, sparsity=0.7, scores=scores)
    assert places(kept["a"]) == [1, 2] and places(kept["b"]) == [4]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruning_never_activates(scope):
    masks = {**ALL, "a": jnp.array([0, 1, 0, 0, 0], bool)}
    masks["b"] = jnp.zeros(5, bool)
    dirty = {**TWO, "b": jnp.full(5, jnp.inf)}
    params, kept = prune_to(dirty, masks, sparsity=0.5, scope=scope)
    assert places(kept["a"]) == [1] and not kept["b"].any()
    assert params["a"].tolist() == [0, 1, 0, 0, 0] and not params["b"].any()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_traced_sparsity_prunes_alike_and_does_not_recompile(scope):
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.standard_normal(n), jnp.float32)
              for k, n in (("a", 300), ("b", 700))}  # fmt: skip
    masks = {k: jnp.ones(w.shape, bool) for k, w in params.items()}
    step = helpers.jit_once(lambda s: prune_to(params, masks, sparsity=s, scope=scope))
    exactly = jax.jit(lambda counts: prune_to_counts(params, masks, counts))
    for sparsity in (0.0, 0.29, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99):
        counts = {k: active_count(w.size, sparsity) for k, w in params.items()}
        if scope == "global":
            counts = active_count(1000, sparsity)
        helpers.assert_same(step(sparsity), exactly(counts))


def test_prune_to_counts():
    _, kept = prune_to_counts(TWO, ALL, 3)
    assert places(kept["a"]) == [0, 3] and places(kept["b"]) == [0]
    _, kept = prune_to_counts(TWO, ALL, {"a": 1, "b": 2, "bias": None})
    assert places(kept["a"]) == [0] and places(kept["b"]) == [0, 1]
    assert int(count(prune_to_counts(TWO, ALL, jnp.int32(0))[1])) == 0
    _, kept = prune_to_counts(TWO["a"], ALL["a"], 2)  # a bare array is a tree too
    assert places(kept) == [0, 3]


# --- Errors ---------------------------------------------------------------------------


def test_errors():
    w, mask, _ = G9
    params, masks = {"w": w}, {"w": mask}
    scores = {"drop_scores": params, "grow_scores": params}
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got"):
            rewire(params, masks, **scores, fraction=fraction)
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got"):
            drop(masks, params, fraction)
    with pytest.raises(TypeError, match="masks must be bool, got float32 at leaf 'w'"):
        rewire(params, params, **scores, fraction=0.1)
    short = {"w": w[:3]}
    for name in scores:
        with pytest.raises(ValueError, match=rf"{name} has shape \(3,\) at leaf 'w'"):
            rewire(params, masks, **{**scores, name: short}, fraction=0.1)
    with pytest.raises(ValueError, match=r"masks has shape \(8,\) at leaf 'w', where"):
        rewire(short, masks, **scores, fraction=0.1)
    with pytest.raises(ValueError, match=r"masks has shape \(8,\) at leaf 'w'"):
        grow(masks, short, {"w": 1})
    for sparsity in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
            prune_to(params, masks, sparsity=sparsity)
    with pytest.raises(ValueError, match=r"scope must be one of 'global', .*, got 'al"):
        prune_to(params, masks, sparsity=0.5, scope="all")
    with pytest.raises(ValueError, match="masks has a leaf 'w' that params lacks"):
        prune_to({}, masks, sparsity=0.5)


# --- Shards and memory ----------------------------------------------------------------


def gradient_step(params, masks, gradients, fraction):
    return rewire(
        params,
        masks,
        drop_scores=magnitude(params),
        grow_scores=magnitude(gradients),
        fraction=fraction,
    )


def sharded_layers(ties):
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(2):
        tree = {k: rng.standard_normal(s) for k, s in helpers.SHAPES.items()}
        if ties:
            tree = {k: np.where(rng.random(s.shape) < 0.95, 0.5, s)
                    for k, s in tree.items()}  # fmt: skip
        layers.append({k: s.astype(np.float32) for k, s in tree.items()})
    params, gradients = layers
    masks = {k: rng.random(s) < 0.3 for k, s in helpers.SHAPES.items()}
    params = {k: np.where(masks[k], w, np.float32(0)) for k, w in params.items()}
    return params, masks, gradients


def test_sharded_is_unsharded_and_exchanges_scalars_alone():
    step = jax.jit(gradient_step)
    layers = sharded_layers(False)
    spread = [helpers.sharded(tree) for tree in layers]
    compiled = step.lower(*spread, 0.3).compile()
    helpers.assert_exchanges_counts_alone(compiled)
    for ties in (False, True):
        layers = sharded_layers(ties)
        spread = [helpers.sharded(tree) for tree in layers]
        helpers.assert_same(step(*spread, 0.3), step(*layers, 0.3))


def test_sharded_pruning():
    params, masks, _ = sharded_layers(True)
    step = jax.jit(lambda p, m, s: prune_to(p, m, sparsity=s))
    spread = [helpers.sharded(params), helpers.sharded(masks)]
    helpers.assert_same(step(*spread, 0.9), step(params, masks, 0.9))
    helpers.assert_exchanges_counts_alone(step.lower(*spread, 0.9).compile())


def test_random_growth_over_shards_exchanges_scalars_alone(key):
    params, masks, _ = (helpers.sharded(tree) for tree in sharded_layers(False))

    def step(key, params, masks):
        scores = random_scores(key, params)
        return rewire(
            params,
            masks,
            drop_scores=magnitude(params),
            grow_scores=scores,
            fraction=0.3,
        )

    compiled = jax.jit(step).lower(key, params, masks).compile()
    helpers.assert_exchanges_counts_alone(compiled)


@helpers.CPU_ONLY
def test_a_rewire_works_on_one_leaf_at_a_time():
    leaf = 4 << 20
    shape = (1024, 1024)
    params = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k in "abcd"}
    masks = {k: jax.ShapeDtypeStruct(shape, bool) for k in params}
    for donated, leaves in (((), 1.3), ((0, 1), 2.2)):
        # Without donation the outputs serve as scratch; with it nothing is free.
        step = jax.jit(gradient_step, donate_argnums=donated)
        compiled = step.lower(params, masks, params, 0.3).compile()
        used = compiled.memory_analysis().temp_size_in_bytes
        assert used < leaves * leaf
    dropping = jax.jit(lambda p, m, f: drop(m, magnitude(p), f))
    compiled = dropping.lower(params, masks, 0.3).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.3 * leaf
