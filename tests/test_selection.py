"""Exact top-k masks: against hand tables and NumPy, sharded, and within memory."""

import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draws

from sup_tickets import bisection
from sup_tickets.selection import select, select_globally

NAN, INF = np.nan, np.inf
DTYPES = ["float32", "bfloat16", "float16"]
SIZES = [(), (1,), (0, 3), (7,), (5, 8), (3, 3, 2, 4), (33,)]

globally = jax.jit(select_globally)
one = jax.jit(lambda s, k, m: select({"w": s}, {"w": k}, among={"w": m})["w"])


def chosen(score, k, among=None):
    return np.flatnonzero(one(jnp.asarray(score), k, among)).tolist()


@pytest.mark.parametrize(
    ("score", "k", "among", "places"),
    [
        ([0.5, 0.5, 0.2, 0.1], 1, None, [0]),  # Sup-tickets G8: exact, not two
        ([0.5, 0.5, 0.2, 0.1], 3, None, [0, 1, 2]),
        ([3.0, 1.0, 2.0, 3.0], 2, None, [0, 3]),
        ([1.0, 1.0, 1.0, 1.0], 2, None, [0, 1]),
        ([1.0, 2.0, 3.0], 0, None, []),
        ([1.0, 2.0, 3.0], -5, None, []),
        ([1.0, 2.0, 3.0], 3, None, [0, 1, 2]),
        ([1.0, 2.0, 3.0], 99, None, [0, 1, 2]),
        ([-0.0, 0.0, -0.0], 1, None, [0]),  # equal zeros
        ([-0.0, 0.0, -1.0], 2, None, [0, 1]),
        ([0.0, -0.0, 1e-40], 1, None, [2]),  # the smallest numbers are not zeros
        ([-1e-40, -0.0, 2e-40, 1e-40], 3, None, [1, 2, 3]),
        ([-3.0, -1.0, -2.0], 2, None, [1, 2]),
        ([-INF, -1.0, INF, 3e38], 2, None, [2, 3]),
        ([NAN, -INF, NAN, -1.0], 1, None, [3]),
        ([NAN, -INF, NAN, -1.0], 2, None, [1, 3]),  # NaN is below -inf
        ([NAN, -INF, NAN, -1.0], 3, None, [0, 1, 3]),
        ([NAN, -NAN, NAN], 2, None, [0, 1]),  # whatever the sign of the NaN
        ([9.0, 8.0, 7.0, 6.0], 2, [False, True, False, True], [1, 3]),
        ([9.0, 8.0, 7.0, 6.0], 4, [False, True, False, True], [1, 3]),
        ([9.0, NAN, 7.0, -INF], 4, [False, True, False, True], [1, 3]),
        ([9.0, NAN, 7.0, -INF], 1, [False, True, False, True], [3]),
        ([9.0, 8.0], 2, [False, False], []),
        ([9.0, 9.0, 9.0], 1, [False, True, True], [1]),
    ],
)
def test_hand_table(score, k, among, places):
    among = None if among is None else jnp.array(among)
    assert chosen(np.float32(score), k, among) == places


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_extremes_of_every_dtype_keep_their_order(dtype):
    info = jnp.finfo(dtype)
    ladder = [NAN, -INF, info.min, -1, -info.tiny, 0, info.tiny, 1, info.max, INF]
    score = jnp.array(ladder, dtype)
    for k in range(len(ladder) + 1):
        assert chosen(score, k) == list(range(len(ladder) - k, len(ladder)))


@pytest.mark.parametrize("dtype", DTYPES)
@helpers.quick
@given(
    shape=draws.sampled_from(SIZES),
    seed=draws.integers(0, 2**31),
    share=draws.floats(-0.1, 1.2),
    masked=draws.booleans(),
)
def test_like_numpy(dtype, shape, seed, share, masked):
    rng = np.random.default_rng(seed)
    score = helpers.scores_with_ties(rng, shape, jnp.dtype(dtype))
    among = rng.random(shape) < 0.6 if masked else np.ones(shape, bool)
    k = round(share * score.size)
    got = one(score, k, among)
    helpers.assert_same(got, helpers.top_k_mask(score, k, among))


def test_double_precision():
    with jax.enable_x64(True):
        score = jnp.array([1.0, 1.0 + 1e-15, -0.0, 0.0, NAN, -5e-324, 5e-324])
        assert score.dtype == jnp.float64
        for k in range(8):
            got = one(score, k, None)
            helpers.assert_same(got, helpers.top_k_mask(score, k))


def test_none_leaves_are_left_alone():
    scores = {"w": jnp.arange(4.0), "b": jnp.arange(2), "n": None}
    got = select(scores, {"w": 1, "b": None, "n": None})
    assert got["b"] is None and got["n"] is None
    assert got["w"].tolist() == [False, False, False, True]
    among = {"w": jnp.arange(4) < 2, "b": None, "n": None}
    got = select(scores, {"w": 1, "b": None, "n": None}, among=among)
    assert got["w"].tolist() == [False, True, False, False]


def test_a_leaf_without_candidates_given_has_all():
    scores = {"a": jnp.arange(3.0), "b": jnp.arange(3.0)}
    got = select(scores, {"a": 1, "b": 1}, among={"a": None, "b": jnp.arange(3) < 1})
    assert got["a"].tolist() == [False, False, True]
    assert got["b"].tolist() == [True, False, False]


def test_errors():
    scores = {"w": jnp.arange(4.0)}
    with pytest.raises(ValueError, match=r"among has shape \(3,\) at leaf 'w'"):
        select(scores, {"w": 1}, among={"w": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match=r"among has shape \(3,\) at leaf 'w'"):
        select_globally(scores, 1, among={"w": jnp.ones(3, bool)})
    with pytest.raises(TypeError, match="floating point of 16 bits or more, got int32"):
        select({"w": jnp.arange(4)}, {"w": 1})
    with pytest.raises(TypeError, match="floating point"):
        select_globally({"w": jnp.arange(4)}, 1)


def test_too_many_scores_are_refused():
    def half(n):
        return jax.ShapeDtypeStruct((n,), jnp.bfloat16)

    most = 2**30
    jax.eval_shape(
        lambda s: select_globally(s, 5), {"a": half(most), "b": half(most - 1)}
    )
    with pytest.raises(ValueError, match=r"at most 2.* - 1 scores .* got 2147483648"):
        jax.eval_shape(
            lambda s: select_globally(s, 5), {"a": half(most), "b": half(most)}
        )


# --- Jit ------------------------------------------------------------------------------


def tree_of_scores(seed=0, ties=False):
    rng = np.random.default_rng(seed)
    scores = {k: rng.standard_normal(s) for k, s in helpers.SHAPES.items()}
    if ties:  # 95% of the places share a value
        scores = {k: np.where(rng.random(s.shape) < 0.95, 0.5, s)
                  for k, s in scores.items()}  # fmt: skip
    return {k: s.astype(np.float32) for k, s in scores.items()}


def test_a_new_count_or_score_does_not_recompile():
    per_leaf, traces = helpers.traced(lambda s, k: select({"w": s}, {"w": k}))
    together, more = helpers.traced(select_globally)
    for k in (0, 3, 50):
        scores = jax.random.normal(jax.random.key(k), (40,))
        assert int(per_leaf(scores, k)["w"].sum()) == min(k, 40)
        assert int(together([scores, scores], k)[0].sum()) <= 40
    assert len(traces) == len(more) == 1


def test_jit_is_eager():
    scores = {"whole": tree_of_scores(ties=True)["whole"]}
    counts = {"whole": 100}
    helpers.assert_same(select(scores, counts), jax.jit(select)(scores, counts))
    helpers.assert_same(select_globally(scores, 7), globally(scores, 7))


def test_counts_may_be_traced_or_concrete():
    scores = {k: tree_of_scores()[k] for k in ("flat", "whole")}
    counts = {k: s.size // 3 for k, s in scores.items()}
    static = jax.jit(lambda s: select(s, counts))(scores)
    helpers.assert_same(jax.jit(select)(scores, counts), static)


def test_folded_and_plain_counts_choose_alike(monkeypatch):
    trees = [tree_of_scores(3, ties) for ties in (False, True)]
    keys = [
        [bisection.ordered_keys(k, jnp.asarray(tree[k]), tree[k] > -1) for k in tree]
        for tree in trees
    ]
    masks, programs = [], []
    for fold in (True, False):
        monkeypatch.setattr(bisection, "_may_fold", lambda _, fold=fold: fold)
        # Unwrapped: what was traced with the other count must not be used again.
        choose = jax.jit(lambda *args: bisection.largest.__wrapped__(*args)[0])
        masks.append([choose(leaves, k) for leaves in keys for k in (1, 999, 3000)])
        programs.append(str(jax.make_jaxpr(choose)(keys[0], 1)))
    helpers.assert_same(*masks)
    assert programs[0] != programs[1]


def test_vmap_over_scores():
    scores = np.stack([tree_of_scores(i, i % 2 == 0)["last"] for i in range(4)])
    ks = np.int32([0, 1, 700, 2048])
    got = jax.jit(jax.vmap(lambda s, k: select({"w": s}, {"w": k})["w"]))(scores, ks)
    for mask, score, k in zip(got, scores, ks, strict=True):
        helpers.assert_same(mask, helpers.top_k_mask(score, k))


def test_nothing_is_sorted():
    scores = {k: tree_of_scores()[k] for k in ("flat", "whole")}
    counts = {k: 5 for k in scores}

    def both(scores):
        return select(scores, counts), select_globally(scores, 5)

    names = helpers.primitive_names(both, scores)
    assert "while" in names and "ge" in names  # the walk enters loops
    assert not [name for name in names if re.search("sort|top_k", name)]
    compiled = jax.jit(both).lower(scores).compile()
    assert not [
        op for op, _ in helpers.operations(compiled) if re.match("sort|top", op)
    ]
    assert "TopK" not in compiled.as_text()


# --- Globally -------------------------------------------------------------------------


def test_globally_ties_follow_the_leaves():
    scores = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[2.0, 1.0]])}
    kept = [
        [m.reshape(-1).tolist() for m in jax.tree.leaves(globally(scores, k))]
        for k in range(5)
    ]
    assert kept == [
        [[False, False], [False, False]],
        [[False, True], [False, False]],
        [[False, True], [True, False]],
        [[True, True], [True, False]],
        [[True, True], [True, True]],
    ]


def test_globally_a_none_is_left_out():
    scores = {"a": jnp.array([9.0, 8.0]), "b": jnp.array([1.0, 2.0])}
    got = select_globally(scores, 3, among={"a": None, "b": jnp.array([True, True])})
    assert got["a"] is None and got["b"].tolist() == [True, True]
    assert select_globally(scores, 3, among={"a": None, "b": None}) == {
        "a": None,
        "b": None,
    }


@helpers.quick
@given(
    seed=draws.integers(0, 2**31),
    k=draws.integers(-2, 120),
    mixed=draws.booleans(),
    masked=draws.booleans(),
)
def test_globally_like_numpy(seed, k, mixed, masked):
    rng = np.random.default_rng(seed)
    dtypes = DTYPES if mixed else ["float32"] * 3
    shapes = [(5, 8), (0, 3), (3, 3, 2)] if mixed else [(40,), (), (33,)]
    scores = [
        helpers.scores_with_ties(rng, shape, jnp.dtype(dtype))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    among = [rng.random(s) < 0.7 for s in shapes] if masked else None
    got = globally(scores, k, among=among)
    helpers.assert_same(got, helpers.top_k_masks(scores, k, among))


# --- Shards ---------------------------------------------------------------------------


@jax.jit
def both_ways(scores, among):
    counts = {k: s.size // 3 for k, s in scores.items()}
    return (
        select(scores, counts, among=among),
        select_globally(scores, 2000, among=among),
    )


@pytest.mark.parametrize("ties", [False, True])
def test_sharded_is_unsharded(ties):
    scores = tree_of_scores(5, ties)
    among = {k: s > -1 for k, s in scores.items()}
    whole = both_ways(scores, among)
    spread = both_ways(helpers.sharded(scores), helpers.sharded(among))
    helpers.assert_same(spread, whole)
    per_leaf, together = whole
    for k, s in scores.items():
        wanted = helpers.top_k_mask(s, s.size // 3, among[k])
        helpers.assert_same(per_leaf[k], wanted)
    names = sorted(scores)
    wanted = helpers.top_k_masks(
        [scores[k] for k in names], 2000, [among[k] for k in names]
    )
    helpers.assert_same([together[k] for k in names], wanted)


def test_sharded_eagerly():
    scores = {"last": tree_of_scores(6, True)["last"]}
    got = select_globally(helpers.sharded(scores), 500)
    helpers.assert_same(got["last"], helpers.top_k_mask(scores["last"], 500))


@pytest.mark.parametrize("together", [False, True])
def test_sharded_selection_exchanges_scalars_alone(together):
    scores = helpers.sharded(tree_of_scores())
    counts = {k: s.size // 3 for k, s in scores.items()}
    choose = (lambda s: select_globally(s, 99)) if together else (
        lambda s: select(s, counts))  # fmt: skip
    compiled = jax.jit(choose).lower(scores).compile()
    helpers.assert_exchanges_scalars_alone(compiled)


def test_sharded_masks_stay_where_their_scores_are():
    scores = helpers.sharded(tree_of_scores())
    masks = jax.jit(lambda s: select(s, {k: 9 for k in scores}))(scores)
    for name in ("first", "last", "flat", "both"):
        wanted, got = scores[name].sharding, masks[name].sharding
        assert got.is_equivalent_to(wanted, masks[name].ndim), name


# --- Memory ---------------------------------------------------------------------------

LEAF_BYTES = 4 << 20
BIG = {f"w{i}": jax.ShapeDtypeStruct((1024, 1024), jnp.float32) for i in range(6)}


def temporary_bytes(function, *args):
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_one_leaf_of_keys_is_live_at_a_time():
    counts = {k: jax.ShapeDtypeStruct((), jnp.int32) for k in BIG}
    among = {k: jax.ShapeDtypeStruct(v.shape, bool) for k, v in BIG.items()}
    assert temporary_bytes(select, BIG, counts) < 1.3 * LEAF_BYTES
    used = temporary_bytes(lambda s, k, m: select(s, k, among=m), BIG, counts, among)
    assert used < 1.3 * LEAF_BYTES


def test_globally_one_tree_of_keys_is_live():
    assert temporary_bytes(select_globally, BIG, 1000) < 1.3 * 6 * LEAF_BYTES
