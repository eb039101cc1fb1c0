"""N:M groups and blocks."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sup_tickets.block_selection import select_blocks, select_n_m


def test_two_of_four_along_the_inputs():
    score = jnp.array([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 5.0]])
    got = select_n_m({"kernel": score, "bias": jnp.ones(2)}, 2, 4)
    assert got["bias"] is None
    assert got["kernel"].T.tolist() == [
        [True, True, False, False],
        [True, False, False, True],
    ]


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_n_of_m_like_numpy(axis):
    rng = np.random.default_rng(1)
    score = helpers.scores_with_ties(rng, (8, 12), np.float32)
    choose = helpers.jit_once(lambda s, n: select_n_m({"w": s}, n, 4, axis=axis)["w"])
    for n in range(5):
        groups = np.moveaxis(score, axis, -1).reshape(-1, 4)
        wanted = np.stack([helpers.top_k_mask(g, n) for g in groups])
        other = score.shape[1 - axis % 2]
        wanted = np.moveaxis(wanted.reshape(other, -1), -1, axis)
        helpers.assert_same(choose(score, n), wanted)


def test_n_of_m_where_and_errors():
    tree = {"u": jnp.ones((4, 4)), "w": jnp.ones((4, 6))}
    assert select_n_m(tree, 1, 4, where="u")["w"] is None
    with pytest.raises(ValueError, match="m=4: blocks of 4 along axis 1 does not"):
        select_n_m(tree, 1, 4, axis=1)
    for n in (-1, 5):
        with pytest.raises(ValueError, match=rf"n must be in \[0, m=4\], got {n}"):
            select_n_m(tree, n, 4)
    with pytest.raises(ValueError, match="m must be a whole number of at least 1"):
        select_n_m(tree, 0, 0)


def test_blocks():
    score = jnp.array(
        [
            [1.0, 1.0, 0.0, 9.0],
            [1.0, 1.0, 0.0, 0.0],
            [2.0, 0.0, 5.0, -5.0],
            [0.0, 3.0, 5.0, -5.0],
        ]
    )  # sums 4, 9, 5, 0
    choose = jax.jit(lambda k: select_blocks({"w": score}, {"w": k}, (2, 2))["w"])
    masks = [choose(k)[::2, ::2].astype(int) for k in range(5)]
    assert [m.tolist() for m in masks] == [
        [[0, 0], [0, 0]],
        [[0, 1], [0, 0]],
        [[0, 1], [1, 0]],
        [[1, 1], [1, 0]],
        [[1, 1], [1, 1]],
    ]
    among = {"w": jnp.ones((4, 4), bool).at[1, 3].set(False)}
    got = select_blocks({"w": score}, {"w": 1}, (2, 2), among=among)["w"]
    assert np.argwhere(got).tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]


def test_blocks_of_every_shape_cover_whole_blocks():
    score = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    for block in [(), (6,), (2, 3), (3, 2, 2)]:
        counts = {"w": 2, "b": None}
        got = jax.jit(
            lambda s, block=block, counts=counts: select_blocks(s, counts, block)
        )({"w": score, "b": score})
        assert got["b"] is None
        full = (1,) * (3 - len(block)) + block
        split = [p for s, b in zip(score.shape, full, strict=True) for p in (s // b, b)]
        inside = (1, 3, 5)
        sums = score.reshape(split).sum(inside)
        wanted = np.kron(helpers.top_k_mask(sums, 2), np.ones(full)).astype(bool)
        helpers.assert_same(got["w"], wanted)


def test_block_errors():
    tree = {"w": jnp.ones((4, 6))}
    for block in [(4, 4), (3, 2), (0, 2), (2, 2, 2)]:
        with pytest.raises(ValueError, match=r"does not divide leaf 'w' of shape"):
            select_blocks(tree, {"w": 1}, block)
