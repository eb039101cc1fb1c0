"""Groups: against hand tables and NumPy, traced, sharded, and their errors."""

import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draws

from sup_tickets import place_counts, selection_groups
from sup_tickets.groups import (
    Groups,
    Part,
    per_block,
    per_output,
    per_part,
    split_of,
)
from sup_tickets.masks import layer_counts, random_masks
from sup_tickets.pruning import prune_to, prune_to_counts
from sup_tickets.selection import select
from sup_tickets.sort_keys import ordered_keys
from sup_tickets.topology import drop, grow, rewire

MEMBERS_BY_HEAD = Groups({-1: [Part(None, False), Part(3, True)], 0: [Part(2, True)]})
CASES = {
    "outputs": (per_output(), (40, 6)),
    "outputs first": (per_output(0), (6, 40)),
    "outputs of a convolution": (per_output(), (3, 3, 4, 5)),
    "outputs of two axes": (per_output((-2, -1)), (12, 2, 3)),
    "2:4": (per_block(4), (8, 6)),
    "2:4 of a convolution": (per_block(4), (3, 3, 4, 5)),
    "blocks of 18": (per_block(18, axis=0), (36, 5)),
    "gates": (per_part(4), (7, 12)),
    "gates first": (per_part(4, axis=0), (12, 7)),
    "strided": (Groups({-1: [Part(None, False), Part(3, True)]}), (5, 12)),
    "two axes": (MEMBERS_BY_HEAD, (2, 4, 12)),
    "one group": (Groups({0: [Part(None, False)]}), (5, 7)),
    "alone": (Groups({0: [Part(None, True)]}, others_apart=True), (5, 3)),
    # Two parts of one axis tell groups apart: a count for each pair of them.
    "blocks of parts": (
        Groups({0: [Part(2, True), Part(3, True), Part(4, False)]}, others_apart=True),
        (24, 5),
    ),
    "long blocks of parts": (
        Groups({1: [Part(2, True), Part(None, True), Part(20, False)]}, True),
        (3, 80),
    ),
}


def members(groups, shape):
    """The leaf's indices of every group, in the order of the groups."""
    split = split_of(groups, "w", shape)
    index = np.arange(np.prod(shape)).reshape([size for size, *_ in split.parts])
    apart = [i for i, part in enumerate(split.parts) if part[1]]
    inside = [i for i, part in enumerate(split.parts) if not part[1]]
    return index.transpose(apart + inside).reshape(split.number, split.members)


def grouped_mask(score, counts, groups, among=None):
    """`helpers.top_k_mask` in every group."""
    flat, mask = score.reshape(-1), np.zeros(score.size, bool)
    allowed = np.ones(score.size, bool) if among is None else among.reshape(-1)
    of_groups = members(groups, score.shape)
    counts = np.broadcast_to(counts, split_of(groups, "w", score.shape).counts)
    for places, k in zip(of_groups, counts.reshape(-1), strict=True):
        mask[places] = helpers.top_k_mask(flat[places], k, allowed[places])
    return mask.reshape(score.shape)


PROGRAMS = {
    name: jax.jit(
        lambda s, k, m, groups=groups: select(
            {"w": s}, {"w": k}, among={"w": m}, groups=groups
        )["w"]
    )
    for name, (groups, _) in CASES.items()
}


# --- Splits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "shape", "counts", "size", "said"),
    [
        (per_output(), (3, 3, 4, 5), (5,), 36, "a group for each index of axis -1"),
        (per_block(4), (8, 6), (2, 6), 4, "blocks of 4 along axis -2"),
        (per_part(4), (7, 12), (4,), 21, "4 parts of axis -1"),
        (
            MEMBERS_BY_HEAD,
            (2, 4, 12),
            (2, 3),
            16,
            "axis -1 as ... x 3 apart, axis 0 as 2 apart",
        ),
    ],
)
def test_splits(groups, shape, counts, size, said):
    split = split_of(groups, "w", shape)
    assert (split.counts, split.members, str(groups)) == (counts, size, said)
    assert split.number * split.members == np.prod(shape)


def test_groups_are_values():
    assert per_part(4) == Groups({-1: [Part(4, True), Part(None, False)]})
    assert hash(per_block(4)) == hash(per_block(4))
    assert per_block(4) != per_block(4, axis=-1)


def test_what_is_no_grouping_is_refused():
    for axes in ({}, 3, {-1: [4]}, {-1: []}, {"a": [Part(4, True)]}):
        with pytest.raises(ValueError, match=r"axes must give parts \(size, apart\)"):
            Groups(axes)
    with pytest.raises(ValueError, match="one part of axis 0 at most may be without"):
        Groups({0: [Part(None, True), Part(None, False)]})
    with pytest.raises(ValueError, match="a part of axis -1 must be a whole number of"):
        per_part(0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (per_block(4), r"groups: blocks of 4 along axis -2 does not divide leaf 'w'"),
        (per_part(5), r"5 parts of axis -1 does not divide leaf 'w' of shape \(6, 8\)"),
        (per_output(2), r"needs another axis than leaf 'w' of shape \(6, 8\) has"),
        ({"w": 3}, "groups must be Groups or None at leaf 'w', got 3"),
        ({"v": per_output()}, "groups has a leaf 'v' that the tree lacks"),
        (Groups({0: [Part(2, True), Part(2, False)]}), "does not divide leaf 'w'"),
    ],
)
def test_a_leaf_that_cannot_be_split_so_is_named(groups, message):
    with pytest.raises(ValueError, match=message):
        select({"w": jnp.ones((6, 8))}, {"w": 1}, groups=groups)


def test_counts_are_checked():
    scores = {"w": jnp.ones((6, 8))}
    for counts in (7, -1, np.int32([1] * 7 + [7])):
        with pytest.raises(ValueError, match=r"counts at leaf 'w' must be .*\[0, 6\]"):
            select(scores, {"w": counts}, groups=per_output())
    with pytest.raises(ValueError, match=r"integers of shape \(8,\), got int32 of"):
        select(scores, {"w": jnp.ones(6, jnp.int32)}, groups=per_output())


# --- Selection ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@helpers.quick
@given(
    seed=draws.integers(0, 2**31),
    share=draws.floats(-0.1, 1.2),
    masked=draws.booleans(),
    alike=draws.booleans(),
)
def test_like_numpy(name, seed, share, masked, alike):
    groups, shape = CASES[name]
    split = split_of(groups, "w", shape)
    rng = np.random.default_rng(seed)
    score = helpers.scores_with_ties(rng, shape, np.float32)
    among = rng.random(shape) < 0.6 if masked else np.ones(shape, bool)
    counts = np.int32(rng.integers(-1, split.members + 2, split.counts))
    if alike:
        counts = np.full(split.counts, round(share * split.members), np.int32)
    got = PROGRAMS[name](score, counts, among)
    helpers.assert_same(got, grouped_mask(score, counts, groups, among))


@pytest.mark.parametrize(
    ("dtype", "name", "k"),
    [("bfloat16", "outputs", 7), ("float16", "outputs", 7), ("bfloat16", "2:4", 2)],
)
def test_narrow_scores(dtype, name, k):
    groups, shape = CASES[name]
    score = helpers.scores_with_ties(np.random.default_rng(3), shape, jnp.dtype(dtype))
    got = PROGRAMS[name](score, np.int32(k), np.ones(shape, bool))
    helpers.assert_same(got, grouped_mask(score, k, groups))


def largest(keys, split):
    """Traced anew at every call."""
    choose = selection_groups.largest_of_groups.__wrapped__
    return jax.jit(lambda k: choose(keys, k, jnp.int32(0), split)[0])


@pytest.mark.parametrize("name", CASES)
def test_folded_and_plain_counts_choose_alike(name, monkeypatch):
    groups, shape = CASES[name]
    monkeypatch.setattr(selection_groups, "_FEW", 0)
    split = split_of(groups, "w", shape)
    score = helpers.scores_with_ties(np.random.default_rng(1), shape, np.float32)
    keys = ordered_keys(jnp.asarray(score), score > -1)
    counts = np.int32(np.arange(split.number).reshape(split.counts))
    masks = []
    for small in (0, 1 << 12):
        monkeypatch.setattr(place_counts, "_SMALL", small)
        choose = largest(keys, split)
        masks.append([choose(k) for k in (counts % split.members, 1)])
    helpers.assert_same(*masks)


@pytest.mark.parametrize("name", CASES)
def test_folded_and_plain_sums_are_alike(name, monkeypatch):
    groups, shape = CASES[name]
    split = split_of(groups, "w", shape)
    mask = np.random.default_rng(1).random(shape) < 0.5
    expected = mask.reshape(-1)[members(groups, shape)].sum(1).reshape(split.counts)
    for small in (0, 1 << 12):
        monkeypatch.setattr(place_counts, "_SMALL", small)
        helpers.assert_same(place_counts.count_true(mask, split), np.int32(expected))


def test_few_are_ranked_and_many_searched_alike(monkeypatch):
    score = helpers.scores_with_ties(np.random.default_rng(2), (16, 5), np.float32)
    keys = ordered_keys(jnp.asarray(score), score > -1)
    split = split_of(per_block(8), "w", score.shape)
    masks = []
    for few in (16, 0):
        monkeypatch.setattr(selection_groups, "_FEW", few)
        choose = largest(keys, split)
        masks.append([choose(k) for k in (0, 3, 8)])
    helpers.assert_same(*masks)


def test_one_value_a_function_and_a_tree_say_the_same():
    tree = {"a": jnp.arange(24.0).reshape(4, 6), "b": jnp.arange(6.0)}
    counts, none = {"a": 1, "b": 2}, {"a": per_output(), "b": None}
    by_tree = select(tree, counts, groups=none)
    by_name = select(tree, counts, groups=lambda name, leaf: none[name])
    helpers.assert_same(by_tree, by_name)
    assert by_tree["a"].sum(0).tolist() == [1] * 6 and int(by_tree["b"].sum()) == 2
    whole = select(tree, {"a": 1, "b": None}, groups=per_output())
    helpers.assert_same(whole["a"], by_tree["a"])


def test_a_new_count_does_not_recompile():
    choose = helpers.jit_once(
        lambda s, k: select({"w": s}, {"w": k}, groups=per_output())["w"]
    )
    for k in range(3):
        got = choose(jax.random.normal(jax.random.key(k), (9, 4)), jnp.full(4, k))
        assert got.sum(0).tolist() == [k] * 4


def test_vmap():
    scores = np.random.default_rng(0).standard_normal((3, 9, 4)).astype(np.float32)
    choose = jax.vmap(lambda s: select({"w": s}, {"w": 2}, groups=per_output())["w"])
    for got, score in zip(jax.jit(choose)(scores), scores, strict=True):
        helpers.assert_same(got, grouped_mask(score, 2, per_output()))


# --- Masks and topology ---------------------------------------------------------------


def gate_counts(mask):
    return layer_counts({"w": mask}, groups=per_part(4))["w"].tolist()


def test_random_masks_are_exact_in_every_group(key):
    params = {"w": jnp.ones((3, 3, 8, 5)), "b": jnp.ones(5)}
    masks = random_masks(key, params, {"w": 11, "b": None}, groups=per_output())
    assert masks["b"] is None
    assert layer_counts(masks, groups=per_output())["w"].tolist() == [11] * 5
    assert int(layer_counts(masks)["w"]) == 55


def test_drop_and_grow_in_every_group():
    score = jnp.array([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]])
    masks = {"w": jnp.array([[1, 1], [1, 1], [1, 0], [1, 0]], bool)}
    left = drop(masks, {"w": score}, 0.5, groups=per_output())["w"]
    assert left.astype(int).tolist() == [[1, 0], [1, 1], [0, 0], [0, 0]]
    counts = {"w": jnp.array([1, 2])}
    grown = grow({"w": left}, {"w": score}, counts, groups=per_output())["w"]
    assert grown.astype(int).tolist() == [[1, 0], [1, 1], [1, 1], [0, 1]]


def test_pruning_in_every_group():
    score = jnp.array([[4.0, 1.0], [-3.0, 2.0], [2.0, 3.0], [1.0, 9.0]])
    masks = {"w": jnp.ones((4, 2), bool)}
    options = {"scope": "layer", "groups": per_output()}
    for sparsity in (0.5, jnp.float32(0.5)):
        _, kept = prune_to({"w": score}, masks, sparsity=sparsity, **options)
        assert kept["w"].T.astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    counts = {"w": np.int32([1, 3])}
    _, kept = prune_to_counts({"w": score}, masks, counts, groups=per_output())
    assert kept["w"].T.astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 1, 1]]
    with pytest.raises(ValueError, match="with scope='layer', got 'global'"):
        prune_to({"w": score}, masks, sparsity=0.5, groups=per_output())
    with pytest.raises(ValueError, match="need a count for each leaf, got one for all"):
        prune_to_counts({"w": score}, masks, 3, groups=per_output())


def gates(nnz, dropped):
    """Of every gate, 12 places in a column, so many active, the last of them low."""
    w = np.zeros((12, 4), np.float32)
    for gate, (n, low) in enumerate(zip(nnz, dropped, strict=True)):
        w[:n, gate] = 1.0
        w[n - low : n, gate] = 0.1
    return w


def test_gates_drop_together_and_grow_alike():
    """The figure of Selfish-RNN: 6, 6, 7, 6 of 12; 12 dropped jointly, 3 grown each."""
    w = gates((6, 6, 7, 6), (1, 3, 4, 4))
    params, masks = {"w": jnp.asarray(w)}, {"w": jnp.asarray(w != 0)}
    scores = {"w": jax.random.uniform(jax.random.key(0), w.shape)}
    drop_scores = {"w": jnp.abs(params["w"])}
    change = jax.jit(
        lambda f: rewire(
            params,
            masks,
            drop_scores=drop_scores,
            grow_scores=scores,
            fraction=f,
            regrow_dropped=False,
            grow_groups=per_part(4),
        )
    )
    new = change(0.5)  # of 25, rounded down
    assert gate_counts(new.masks["w"]) == [8, 6, 6, 5]
    assert gate_counts(new.grown["w"]) == [3, 3, 3, 3]
    # No more than the 23 inactive ones: two stay, the first two of the first row.
    assert gate_counts(change(1.0).masks["w"]) == [7, 7, 5, 6]


def test_a_gate_without_room_leaves_its_part_to_the_others():
    w = gates((12, 12, 12, 0), (0, 0, 12, 0))
    new = rewire(
        {"w": jnp.asarray(w)},
        {"w": jnp.asarray(w != 0)},
        drop_scores={"w": jnp.abs(jnp.asarray(w))},
        grow_scores={"w": jnp.ones_like(w)},
        fraction=1 / 3,
        grow_groups=per_part(4),
    )
    assert gate_counts(new.masks["w"]) == [12, 12, 6, 6]


@pytest.mark.parametrize("prefer", [False, True])
@pytest.mark.parametrize("regrow", [True, False])
def test_rewire_keeps_every_groups_count(regrow, prefer):
    rng = np.random.default_rng(4)
    shape = (20, 6)
    mask, before = rng.random(shape) < 0.4, rng.random(shape) < 0.5
    mask[:, 0] = True  # the weights that it drops are all that it can grow
    w, g = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    w = w * mask
    new = rewire(
        {"w": jnp.asarray(w)},
        {"w": jnp.asarray(mask)},
        drop_scores={"w": jnp.abs(jnp.asarray(w))},
        grow_scores={"w": jnp.abs(jnp.asarray(g))},
        fraction=0.3,
        regrow_dropped=regrow,
        prefer={"w": jnp.asarray(before)} if prefer else None,
        groups=per_output(),
    )
    active = int(mask.sum())
    stay = helpers.top_k_mask(np.abs(w), active - 3 * active // 10, mask)
    wanted = stay.copy()
    for j in range(shape[1]):
        ranks = [~mask[:, j], mask[:, j]] if not regrow else [np.ones(20, bool)]
        ranks = [r & p for r in ranks for p in ((before[:, j], ~before[:, j])
                 if prefer else (True,))]  # fmt: skip
        for among in ranks:
            n = int(mask[:, j].sum() - wanted[:, j].sum())
            free = among & ~wanted[:, j]
            wanted[:, j] |= helpers.top_k_mask(np.abs(g[:, j]), n, free)
    np.testing.assert_array_equal(new.masks["w"], wanted)
    np.testing.assert_array_equal(new.grown["w"], wanted & ~mask)
    np.testing.assert_array_equal(new.params["w"], np.where(mask & wanted, w, 0))
    assert wanted.sum(axis=0).tolist() == mask.sum(axis=0).tolist()


def test_one_rule_says_how_many_grow():
    tree = {"w": jnp.ones((4, 4))}
    options = {"drop_scores": tree, "grow_scores": tree, "fraction": 0.5}
    masks = {"w": jnp.eye(4, dtype=bool)}
    with pytest.raises(ValueError, match="shares and groups both say how many"):
        rewire(tree, masks, **options, shares={"w": 1.0}, groups=per_output())
    with pytest.raises(ValueError, match="groups and grow_groups both say how many"):
        rewire(tree, masks, **options, groups=per_output(), grow_groups=per_part(2))


# --- Shards ---------------------------------------------------------------------------

SHARDED = {
    "first": per_output(),
    "last": per_output(),
    "both": per_block(4),
    "whole": per_part(3),
}


def grouped_rewire(params, masks, gradients):
    return rewire(
        params,
        masks,
        drop_scores=jax.tree.map(jnp.abs, params),
        grow_scores=gradients,
        fraction=0.3,
        groups=SHARDED,
    ).masks


def test_sharded_is_unsharded_and_exchanges_counts_alone(key):
    params, gradients = (
        {
            name: jax.random.normal(jax.random.fold_in(key, i), helpers.SHAPES[name])
            for name in SHARDED
        }
        for i in range(2)
    )
    masks = jax.tree.map(lambda g: jnp.abs(g) > 1, gradients)
    whole = jax.jit(grouped_rewire)(params, masks, gradients)
    given = [helpers.sharded(tree) for tree in (params, masks, gradients)]
    program = jax.jit(grouped_rewire).lower(*given).compile()
    helpers.assert_same(program(*given), whole)
    # Seven trial keys of every group.
    most = 7 * max(helpers.SHAPES["first"][1], helpers.SHAPES["last"][1])
    for operation, shape in helpers.collectives(program):
        sizes = [np.prod([int(n) for n in dims.split(",")])
                 for dims in re.findall(r"\[(\d[\d,]*)\]", shape)]  # fmt: skip
        assert all(size <= most for size in sizes), (operation, shape)
