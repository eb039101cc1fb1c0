"""Counts beyond 2**31, exact with and without jit, and fractions of whole numbers."""

import functools
from fractions import Fraction
from math import floor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sup_tickets as st
from sup_tickets import counting, pruning, selection, selection_mesh, updates
from sup_tickets import masks as masks_module
from sup_tickets.counting import exact_portion, portion

MASKS = {
    "a": jnp.arange(15).reshape(5, 3) % 2 == 0,
    "b": jnp.arange(4).reshape(2, 2) == 3,
    "c": None,
}


def shapes(*sizes):
    """Masks of a logical size that no test could hold."""
    return {f"{i}": jax.ShapeDtypeStruct(s, jnp.bool_) for i, s in enumerate(sizes)}


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ([(30000, 30000)] * 3, jnp.int64),  # three of 9e8
        ([(60000, 60000)], jnp.int64),  # one leaf alone
        ([(2**15, 2**15)] * 2, jnp.int64),  # 2**31
        ([(2**15, 2**15), (2**15, 2**15 - 1)], jnp.int32),
    ],
)
def test_a_count_is_as_wide_as_the_tree_needs(sizes, dtype):
    tree = shapes(*sizes)
    assert jax.eval_shape(st.count, tree).dtype == dtype
    assert jax.eval_shape(st.hamming, tree, tree).dtype == dtype
    for share in (st.density, st.sparsity):
        assert jax.eval_shape(share, tree).dtype == jnp.float32
    assert jax.eval_shape(st.overlap, tree, tree).dtype == jnp.float32
    assert st.size(tree) == sum(a * b for a, b in sizes)


class WideSums(chex.TestCase):
    """The sum of counts that int32 cannot hold: 3 (2**31 - 1) of 2**34."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_exact(self):
        counts = [jnp.int32(2**31 - 1)] * 3
        total = self.variant(lambda n: masks_module._total(n, 2**34))(counts)
        assert int(total) == 3 * (2**31 - 1)
        share = self.variant(lambda n: masks_module._share(n, 2**34))(total)
        assert float(share) == 0.375

    @chex.variants(with_jit=True, without_jit=True)
    def test_as_the_narrow_sums(self):
        functions = (st.count, st.density, st.sparsity, st.layer_counts)
        narrow = [self.variant(f)(MASKS) for f in functions]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masks_module, "MAX_COUNT", 3)
            # A wrapper of its own: jit must not find the program of before.
            wide = [self.variant(functools.partial(f))(MASKS) for f in functions]
        as_int = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
        chex.assert_trees_all_equal(as_int(narrow), as_int(wide))
        assert wide[0].dtype == jnp.int64 and int(wide[0]) == 9


TOO_LARGE = {
    "select": lambda w, m: st.select(w, {"w": 3}),
    "select_globally": lambda w, m: st.select_globally(w, 3),
    "drop": lambda w, m: st.drop(m, w, 0.3),
    "grow": lambda w, m: st.grow(m, w, {"w": 3}),
    "rewire": lambda w, m: st.rewire(
        w, m, drop_scores=w, grow_scores=w, fraction=0.3
    ),
    "prune_to": lambda w, m: st.prune_to(w, m, sparsity=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_leaf_of_too_many_places_is_refused(name):
    w, m = (
        {"w": jax.ShapeDtypeStruct((2**16, 2**15), dtype)}
        for dtype in (jnp.bfloat16, bool)
    )
    with pytest.raises(ValueError, match="got 2147483648 at leaf 'w'; split"):
        jax.eval_shape(TOO_LARGE[name], w, m)


@pytest.mark.parametrize("rounding", ["floor", "nearest", "ceil"])
def test_a_portion_of_more_than_int32_holds(rounding):
    for count, part in ((2**32 + 2, 0.5), (2**33 + 6, 0.25), (2**31, 1.0)):
        got = portion(count, np.float32(part), rounding)
        wanted = exact_portion(count, part, rounding)
        assert got.dtype == jnp.int64 and int(got) == wanted, (count, part)


def masks_by(name):
    """A function of parameters and the step, by a method that prunes on its way."""
    options = {} if name == "acdc" else {"update_every": 4}
    method = st.make_method(name, sparsity=0.8, total_steps=40, **options)

    def masks_at(params, step):
        state = st.init_topology(method, 0, params)
        return st.update_topology(method, state, params, params, step).state.masks

    return masks_at


@pytest.mark.parametrize(
    "name", ["acdc", pytest.param("granet", marks=pytest.mark.slow)]
)
def test_schedules_of_more_weights_than_int32(name):
    large = {c: jax.ShapeDtypeStruct((30000, 30000), jnp.bfloat16) for c in "abc"}
    found = jax.eval_shape(masks_by(name), large, jnp.int32(12))
    assert found["c"].shape == (30000, 30000)


@pytest.mark.parametrize(
    "name",
    ["gmp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("granet", "acdc"))],
)
def test_schedules_beyond_a_limit_prune_alike(name, monkeypatch):
    """The limit is one that the leaves pass together."""
    masks_at = masks_by(name)
    rng = np.random.default_rng(0)
    leaf = rng.standard_normal((48, 64)).astype(np.float32)
    params = {"a": jnp.asarray(leaf), "b": jnp.asarray(leaf[::-1])}
    monkeypatch.setattr(selection, "on_one_cpu", lambda _: False)
    narrow = jax.jit(masks_at)(params, 12)
    for module in (counting, masks_module, pruning, selection_mesh, updates):
        monkeypatch.setattr(module, "MAX_COUNT", leaf.size)
    program = jax.jit(functools.partial(masks_at)).lower(params, 12)
    assert "i64" in program.as_text()
    chex.assert_trees_all_equal(program.compile()(params, 12), narrow)
    assert 0.2 * 2 * leaf.size <= int(st.count(narrow)) <= 2 * leaf.size


def test_layers_of_more_than_int32_are_not_shared_out():
    shape = {c: jax.ShapeDtypeStruct((30000, 30000), bool) for c in "abc"}
    with pytest.raises(ValueError, match=r"scope='layer' .* 1 places, got 2700000000"):
        jax.eval_shape(
            lambda m: pruning.prune_to_total(m, m, jnp.int32(9), scope="layer"), shape
        )


def test_counting_compiles_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def counted(masks):
        return st.count(masks), st.density(masks)

    for flipped in (MASKS, jax.tree.map(jnp.logical_not, MASKS)):
        active, share = counted(flipped)
        assert float(share) == float(np.float32(int(active) / 19))


@pytest.mark.parametrize(
    ("count", "fraction", "down", "near", "up"),
    [
        (10000, 0.57, 5700, 5700, 5700),
        (100, 0.29, 29, 29, 29),
        (10, 0.25, 2, 3, 3),  # half up, not to even
        (3, 0.5, 1, 2, 2),
        (7, 0, 0, 0, 0),
        (7, 1, 7, 7, 7),
        (0, 0.3, 0, 0, 0),
        (10**15, np.float32(0.1), 10**14, 10**14, 10**14),
    ],
)
def test_exact_portions(count, fraction, down, near, up):
    got = [exact_portion(count, fraction, r) for r in ("floor", "nearest", "ceil")]
    assert got == [down, near, up]


def test_every_percent_of_every_length_is_exact():
    for percent in range(101):
        for steps in (1, 7, 99, 100, 391, 10000, 97750):
            wanted = floor(Fraction(percent, 100) * steps)
            assert exact_portion(steps, percent / 100, "floor") == wanted


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-1, 0.5), "count"), ((2.0, 0.5), "count"), ((9, 1.5), "fraction"),
     ((9, 50), "fraction"), ((9, 0.5, "down"), "rounding")],
)  # fmt: skip
def test_bad_portions(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        exact_portion(*arguments)
