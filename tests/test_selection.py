"""Exact top-k masks: against hand tables and NumPy, sharded, and within memory."""

import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draws
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sup_tickets import selection, selection_cpu, selection_mesh
from sup_tickets.groups import per_output
from sup_tickets.pruning import prune_to
from sup_tickets.saliency import magnitude
from sup_tickets.selection import select, select_globally
from sup_tickets.thresholds import Bracket, search
from sup_tickets.topology import rewire

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


def test_more_scores_than_int32_counts():
    def select_of(*sizes):
        leaves = [jax.ShapeDtypeStruct((n,), jnp.bfloat16) for n in sizes]
        return jax.eval_shape(lambda s: select_globally(s, 5), leaves)

    for sizes in ((2**30, 2**30 - 1), (2**30, 2**30), (2**31 - 1, 2**31 - 1)):
        assert [m.shape for m in select_of(*sizes)] == [(n,) for n in sizes]
    with pytest.raises(ValueError, match=r"at most 2.* - 1 scores .* got 2147483648"):
        select_of(2**31)


@pytest.mark.parametrize("ties", [False, True])
def test_counts_beyond_int32_choose_alike(ties, monkeypatch):
    scores = tree_of_scores(5, ties)
    wanted = [globally(scores, k) for k in (1, 999, 3000)]
    monkeypatch.setattr(selection_mesh, "MAX_COUNT", 3072)  # of the largest leaf
    monkeypatch.setattr(selection, "on_one_cpu", lambda _: False)
    choose = jax.jit(lambda *args: select_globally(*args))
    helpers.assert_same([choose(scores, k) for k in (1, 999, 3000)], wanted)
    assert "i64" in choose.lower(scores, 1).as_text()


# --- Jit ------------------------------------------------------------------------------


def tree_of_scores(seed=0, ties=False):
    rng = np.random.default_rng(seed)
    scores = {k: rng.standard_normal(s) for k, s in helpers.SHAPES.items()}
    if ties:  # 95% of the places share a value
        scores = {k: np.where(rng.random(s.shape) < 0.95, 0.5, s)
                  for k, s in scores.items()}  # fmt: skip
    return {k: s.astype(np.float32) for k, s in scores.items()}


def test_a_new_count_or_score_does_not_recompile():
    per_leaf = helpers.jit_once(lambda s, k: select({"w": s}, {"w": k}))
    together = helpers.jit_once(select_globally)
    for k in (0, 3, 50):
        scores = jax.random.normal(jax.random.key(k), (40,))
        assert int(per_leaf(scores, k)["w"].sum()) == min(k, 40)
        assert int(together([scores, scores], k)[0].sum()) <= 40


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


def test_rows_of_any_width_and_no_rows_choose_alike(monkeypatch):
    scores, tied = tree_of_scores(3), tree_of_scores(3, ties=True)
    among = {k: s > -1 for k, s in scores.items()}
    found, programs = [], []
    for long, on_cpu in ((1 << 12, True), (512, True), (1 << 12, False)):
        monkeypatch.setattr(selection_cpu, "_LONG", long)
        monkeypatch.setattr(selection, "on_one_cpu", lambda _, on_cpu=on_cpu: on_cpu)
        # A function of its own: what was traced the other way must not be used again.
        choose = jax.jit(lambda s, k: (
            select_globally(s, k, among=among),
            select(s, dict.fromkeys(s, 40), among=among),
        ))  # fmt: skip
        found.append([choose(s, k) for s in (scores, tied) for k in (1, 999, 3000)])
        programs.append(str(jax.make_jaxpr(choose)(scores, 1)))
    helpers.assert_same(found[0], found[1])
    helpers.assert_same(found[0], found[2])
    assert len(set(programs)) == 3


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
    # One in the search, for each of the three ways in which leaves lie; at most 11
    # times for thresholds and 11 for ties.
    assert helpers.assert_exchanges_counts_alone(compiled) == 3


@pytest.mark.parametrize("what", ["select", "globally", "rewire", "prune"])
def test_all_reduces_of_a_whole_tree(what):
    mesh = helpers.mesh(data=8)
    over = NamedSharding(mesh, P("data"))
    shapes = [(64, 5), (32, 3), (16, 7), (8, 4)]
    scores = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=over) for s in shapes]
    masks = [jax.ShapeDtypeStruct(s, bool, sharding=over) for s in shapes]
    loops, function = {
        "select": (1, lambda s, m: select(s, [9] * 4, among=m)),
        "globally": (1, lambda s, m: select_globally(s, 99, among=m)),
        # Active weights are counted once; then it drops, then it grows.
        "rewire": (3, lambda s, m: rewire(
            s, m, drop_scores=s, grow_scores=s, fraction=0.3)),
        "prune": (1, lambda s, m: prune_to(s, m, sparsity=0.9)),
    }[what]  # fmt: skip
    compiled = jax.jit(function).lower(scores, masks).compile()
    assert helpers.assert_exchanges_counts_alone(compiled) == loops


@pytest.mark.parametrize(("trials", "of_keys", "of_ties"), [(7, 11, 8), (3, 16, 12)])
def test_passes_are_bounded(trials, of_keys, of_ties):
    # However keys lie: of 2**32 integers the last, of 2**24 indices the first.
    for low, high, most in ((-(2**31), 2**31 - 1, of_keys), (-(2**24), 0, of_ties)):
        for hidden in (low, low + 1, (low + high) // 3, high - 1):
            start = Bracket(np.int32([[low], [high]]), np.int32([[9], [0]]))

            def count(trial, hidden=hidden):
                return jnp.where(trial <= hidden, jnp.int32(9), jnp.int32(0))

            counted = []
            with jax.disable_jit():
                found = search(
                    lambda t, n=counted: n.append(1) or count(t),
                    jnp.int32([5]), start, trials=trials, guesses=0,
                )  # fmt: skip
            passes = len(counted)
            assert int(found.low[0]) == hidden and passes <= most, (hidden, passes)


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


@helpers.CPU_ONLY
def test_one_leaf_of_keys_is_live_at_a_time():
    counts = {k: jax.ShapeDtypeStruct((), jnp.int32) for k in BIG}
    among = {k: jax.ShapeDtypeStruct(v.shape, bool) for k, v in BIG.items()}
    assert temporary_bytes(select, BIG, counts) < 1.3 * LEAF_BYTES
    used = temporary_bytes(lambda s, k, m: select(s, k, among=m), BIG, counts, among)
    assert used < 1.3 * LEAF_BYTES


@helpers.CPU_ONLY
def test_a_rewire_in_groups_keeps_no_more_than_a_leaf():
    masks = {k: jax.ShapeDtypeStruct(v.shape, bool) for k, v in BIG.items()}

    def call(params, masks, scores):
        drop_scores = magnitude(params)
        return rewire(
            *(params, masks),
            drop_scores=drop_scores,
            grow_scores=scores,
            fraction=0.3,
            groups=per_output(),
        ).masks

    assert temporary_bytes(call, BIG, masks, BIG) < 2 * LEAF_BYTES


def test_globally_one_tree_of_keys_is_live():
    assert temporary_bytes(select_globally, BIG, 1000) < 1.3 * 6 * LEAF_BYTES
