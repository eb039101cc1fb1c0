import math
import random
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sup_tickets.counting import active_count
from sup_tickets.distributions import (
    DISTRIBUTIONS,
    allocate,
    erdos_renyi,
    erdos_renyi_densities,
    erk,
    erk_densities,
    erk_plus,
    uniform,
    uniform_plus,
)

LENET = [(300, 784), (100, 300), (10, 100)]
# PyTorch's layout (OIHW): six convolutions and a classifier, 72,496 weights.
CONVS = [
    (16, 3, 3, 3),
    (16, 16, 3, 3),
    (32, 16, 3, 3),
    (32, 32, 3, 3),
    (64, 32, 3, 3),
    (64, 64, 3, 3),
    (10, 64),
]
CONVS_ERK_10 = [0.904255, 0.257713, 0.183112, 0.118684, 0.086469, 0.056799, 1.0]
CONVS_ERK_20 = [1.0, 0.556421, 0.395352, 0.256247, 0.186694, 0.122632, 1.0]
CONVS_ER_10 = [0.806757, 0.254765, 0.191074, 0.127383, 0.095537, 0.063691, 0.235658]

OIHW = (0, 1)
EVERY_LEAF = {"where": lambda name, leaf: True}


def tree(shapes):
    """Leaves named "00", "01", ...: their order is that of the list."""
    return {
        f"{i:02d}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for i, shape in enumerate(shapes)
    }


def sizes(shapes):
    return [math.prod(shape) for shape in shapes]


def listed(counts):
    return [counts[name] for name in sorted(counts)]


def by_bisection(raws, sizes, density):
    """An independent solution of sum(min(1, e * raw) * N) = D * N."""
    raws, sizes = np.asarray(raws, float), np.asarray(sizes, float)
    low, high = 0.0, 1.0 / raws.min()
    for _ in range(200):
        middle = (low + high) / 2
        if np.sum(np.minimum(1, middle * raws) * sizes) < density * sizes.sum():
            low = middle
        else:
            high = middle
    return np.minimum(1, high * raws)


def erk_raws(shapes, power=1.0):
    return [(sum(shape) / math.prod(shape)) ** power for shape in shapes]


# --- Golden densities -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "density", "expected"),
    [
        (LENET, 0.1, [0.079568, 0.230189, 1.0]),
        (LENET, 0.05, [0.038484, 0.111334, 0.918507]),
        (CONVS, 0.1, CONVS_ERK_10),
        (CONVS, 0.2, CONVS_ERK_20),
    ],
)
def test_erk_densities_golden(shapes, density, expected):
    densities = erk_densities(shapes, density)
    assert [round(d, 6) for d in densities] == expected


def test_erk_scale_golden():
    # eps: the density of a layer that is not dense, over its raw value.
    for shapes, density, eps in [
        (LENET, 0.1, 17.264151),
        (LENET, 0.05, 8.350063),
        (CONVS, 0.1, 15.625532),
        (CONVS, 0.2, 33.736683),
    ]:
        scale = erk_densities(shapes, density)[1] / erk_raws(shapes)[1]
        assert scale == pytest.approx(eps, abs=5e-7)


def test_er_densities_golden():
    densities = erdos_renyi_densities(CONVS, 0.1, channel_axes=OIHW)
    assert [round(d, 6) for d in densities] == CONVS_ER_10


def test_er_takes_the_last_two_axes_by_default():
    flax = [(*shape[2:], shape[1], shape[0]) for shape in CONVS]
    assert erdos_renyi_densities(flax, 0.1) == erdos_renyi_densities(CONVS, 0.1, OIHW)
    # The spatial axes say something else: the default is not layout invariant.
    assert erdos_renyi_densities(CONVS, 0.1) != erdos_renyi_densities(CONVS, 0.1, OIHW)


def test_er_counts_follow_the_channel_axes():
    shares = [d * n for d, n in zip(CONVS_ER_10, sizes(CONVS), strict=True)]
    counts = listed(erdos_renyi(tree(CONVS), sparsity=0.9, channel_axes=OIHW))
    np.testing.assert_allclose(counts, shares, atol=1.05, rtol=0)
    assert sum(counts) == 7250


def test_erk_plus_golden():
    counts = listed(erk_plus(tree(CONVS), sparsity=0.8, classifier="06"))
    assert counts[-1] == 640
    assert sum(counts) == 14499
    # With a dense classifier the convolutions stand as under ERK, which fills it too.
    assert counts == listed(erk(tree(CONVS), sparsity=0.8))
    d_prime = (0.2 * 72496 - 640) / (72496 - 640)
    assert d_prime == pytest.approx(0.192874638, abs=5e-10)
    expected = erk_densities(CONVS[:-1], d_prime)
    assert [round(d, 6) for d in expected] == CONVS_ERK_20[:-1]


def test_erk_plus_holds_the_classifier_at_its_density():
    counts = listed(
        erk_plus(tree(CONVS), sparsity=0.9, classifier="06$", classifier_density=0.25)
    )
    assert counts[-1] == 160
    rest = erk_densities(CONVS[:-1], (7249.6 - 160) / 71856)
    shares = [d * n for d, n in zip(rest, sizes(CONVS), strict=False)]
    np.testing.assert_allclose(counts[:-1], shares, atol=1, rtol=0)
    assert sum(counts) == 7250


def test_uniform_plus_golden():
    counts = listed(uniform_plus(tree(CONVS), sparsity=0.9, first="00", classifier="6"))
    assert (counts[0], counts[-1]) == (432, 128)
    for count, size in zip(counts[1:-1], sizes(CONVS)[1:-1], strict=True):
        # 0.093660: the release divides by all weights and gets 0.092275.
        assert abs(count - 0.0936604 * size) < 1
        assert abs(count - 0.092275 * size) > 2
    assert sum(counts) == 7250


def test_uniform_plus_compensates_for_the_first_layer_at_high_density_too():
    # D >= 0.2: the classifier is a layer like the others, (200 - 100) / 300 of it.
    shapes = [(10, 10), (20, 10), (10, 10)]
    counts = uniform_plus(tree(shapes), sparsity=0.5, first="00", classifier="02")
    assert listed(counts) == [100, 67, 33]
    counts = uniform_plus(tree(shapes), sparsity=0.7, first="00", classifier="02")
    assert listed(counts) == [100, 13, 7]  # (120 - 100) / 300 of 200 and 100


def test_uniform_plus_threshold_is_exclusive():
    shapes = [(1, 10), (30, 30), (9, 10)]
    held = uniform_plus(tree(shapes), sparsity=0.81, first="00", classifier="02")
    assert held["02"] == 18  # D = 0.19 < 0.2: exactly a fifth of 90
    free = uniform_plus(tree(shapes), sparsity=0.8, first="00", classifier="02")
    assert free["02"] == 17  # D' = 190 / 990 of 90 is 17.27


def test_uniform_plus_other_classifier_density():
    shapes = [(1, 10), (30, 30), (9, 10)]
    counts = uniform_plus(
        tree(shapes), sparsity=0.5, first="00", classifier="02", classifier_density=0.6
    )
    assert listed(counts) == [10, 436, 54]


@pytest.mark.parametrize(
    ("shape", "sparsity", "ones"),
    [((30, 4), 0.5, 60), ((1, 2, 1, 4), 0.8, 2), ((30,), 0.1, 27)],
)
@pytest.mark.parametrize("distribution", [uniform, erk])
def test_counts_of_rigl(distribution, shape, sparsity, ones):
    assert listed(distribution(tree([shape]), sparsity=sparsity, **EVERY_LEAF)) == [
        ones
    ]


# --- Rounding, by hand ----------------------------------------------------------------


def test_ties_go_to_the_first_leaves():
    # Shares 2.5 each, 8 in all.
    assert listed(uniform(tree([(1, 5)] * 3), sparsity=0.5)) == [3, 3, 2]


def test_the_largest_remainder_is_served_first():
    # D = 0.3: shares 1.2, 2.1, 2.7; total 6.
    shapes = [(1, 4), (1, 7), (1, 9)]
    assert listed(uniform(tree(shapes), sparsity=0.7)) == [1, 2, 3]


def test_small_leaves_keep_one_and_the_large_one_pays():
    # Shares 10, 0.2, 0.2, 0.2; total 11.
    shapes = [(10, 10), (1, 2), (1, 2), (1, 2)]
    assert listed(uniform(tree(shapes), sparsity=0.9)) == [8, 1, 1, 1]


def test_the_leaf_furthest_above_its_share_pays_first():
    # Shares 2.06, 2.04, 0.04, 0.04 (of 418 weights at 0.01: total 4).
    shapes = [(1, 206), (1, 204), (1, 4), (1, 4)]
    counts = listed(uniform(tree(shapes), sparsity=0.99))
    assert counts == [1, 1, 1, 1]
    # Shares 3.06, 2.04, 0.04: the total is 5, one too many; 2.04 is the nearer to 2.
    shapes = [(1, 306), (1, 204), (1, 4)]
    assert listed(uniform(tree(shapes), sparsity=0.99)) == [3, 1, 1]


def test_a_layer_that_the_distribution_filled_is_not_the_one_to_pay():
    # (1, 1, 1, 2) is full; ten leaves of share 0.84 are lifted to 1; total 52.
    shapes = [(1, 1, 1, 2), (100,)] + [(2,)] * 10
    counts = listed(erk(tree(shapes), sparsity=0.57, **EVERY_LEAF))
    assert counts == [2, 40] + [1] * 10


def test_half_a_weight_is_rounded_up():
    assert listed(uniform(tree([(1, 5)]), sparsity=0.5)) == [3]
    assert listed(uniform(tree([(10, 10)]), sparsity=0.71)) == [29]


def test_dense_leaves_are_paid_for():
    shapes = [(10, 10), (30, 10)]
    assert listed(uniform(tree(shapes), sparsity=0.5)) == [50, 150]
    assert listed(uniform(tree(shapes), sparsity=0.5, dense="00")) == [100, 100]
    assert listed(uniform(tree(shapes), sparsity=0.5, dense=["0$"])) == [100, 100]


def test_dense_wins_over_the_classifier_density():
    shapes = [(10, 10)] * 3
    for counts in [
        uniform_plus(
            tree(shapes), sparsity=0.3, first="00", classifier="2", dense="02"
        ),
        erk_plus(
            tree(shapes),
            sparsity=0.3,
            classifier="2",
            dense=("00", "02"),
            classifier_density=0.1,
        ),
    ]:
        assert listed(counts) == [100, 10, 100]


def test_dense_leaves_are_never_the_ones_to_pay():
    # 3 dense, eight lifted from 0.125 to 1, the other leaf pays.
    shapes = [(1, 3), (1, 40)] + [(1, 1)] * 8
    counts = listed(uniform(tree(shapes), sparsity=0.7, dense="00"))
    assert counts == [3, 4] + [1] * 8


def test_a_filled_layer_pays_before_a_dense_one():
    # Both of (1, 1, 1, 2) are full, one because it was asked to; ten leaves of share
    # 0.86 are lifted to 1 and have nothing to give; total 13.
    shapes = [(1, 1, 1, 2)] * 2 + [(2,)] * 10
    counts = erk(tree(shapes), sparsity=0.477, dense="00", **EVERY_LEAF)
    assert listed(counts) == [2, 1] + [1] * 10


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_sparsity_zero_is_dense(name):
    options = {"first": "00", "classifier": "06"}
    wanted = {"uniform_plus": options, "erk_plus": {"classifier": "06"}}.get(name, {})
    counts = allocate(tree(CONVS), sparsity=0, distribution=name, **wanted)
    assert listed(counts) == sizes(CONVS)


def test_density_one_is_one_exactly():
    assert erk_densities(CONVS, 1) == [1.0] * 7
    assert erdos_renyi_densities(CONVS, 1.0, OIHW) == [1.0] * 7


def test_tied_layers_become_dense_together():
    # Both small ones would be at 1.8.
    shapes = [(2, 2), (1000, 100), (2, 2)]
    densities = erk_densities(shapes, 0.02)
    assert densities[0] == densities[2] == 1.0
    assert densities[1] == pytest.approx((0.02 * 100008 - 8) / 100000, rel=1e-12)


def test_empty_leaves_have_no_weights():
    shapes = [(0, 3), (10, 10), (3, 0, 2)]
    for name in ("uniform", "er", "erk"):
        counts = allocate(tree(shapes), sparsity=0.5, distribution=name)
        assert listed(counts) == [0, 50, 0]
        assert allocate(tree([(0, 3)]), sparsity=0.5, distribution=name) == {"00": 0}
    assert erk_densities(shapes, 0.5) == [0.0, 0.5, 0.0]


def test_scalar_leaves_cannot_be_sparse():
    with pytest.raises(ValueError, match=r"chooses leaf '00' .*, which is a scalar"):
        erk(tree([(), (4, 4)]), sparsity=0.5, **EVERY_LEAF)


def test_structure_and_none():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 8)), "bias": jnp.ones(8)},
        "nothing": None,
        "heads": [jnp.ones((8, 4)), (jnp.ones((8, 2)),)],
        "norm": {"scale": jnp.ones((1, 8))},
    }
    counts = uniform(params, sparsity=0.75)
    assert counts == {
        "conv": {"kernel": 36, "bias": None},
        "nothing": None,
        "heads": [8, (4,)],
        "norm": {"scale": None},
    }
    assert all(type(n) is int for n in jax.tree.leaves(counts))


def test_arrays_and_shapes_agree():
    arrays = {name: jnp.zeros(leaf.shape) for name, leaf in tree(LENET).items()}
    assert erk(arrays, sparsity=0.9) == erk(tree(LENET), sparsity=0.9)


def test_counts_are_python_ints_under_jit():
    seen = []

    @jax.jit
    def traced(params):
        seen.append(erk(params, sparsity=0.9))
        return params

    traced({"w": jnp.ones((10, 10))})
    assert seen == [{"w": 10}]


def test_where_chooses_the_leaves():
    params = {"a": jnp.ones((4, 5)), "z": jnp.ones((4, 5)), "bias": jnp.ones(10)}
    assert uniform(params, sparsity=0.5, where="a$") == {
        "a": 10,
        "z": None,
        "bias": None,
    }
    everything = uniform(params, sparsity=0.5, **EVERY_LEAF)
    assert everything == {"a": 10, "z": 10, "bias": 5}


# --- Properties -----------------------------------------------------------------------

dimensions = st.integers(1, 12)
shape_lists = st.lists(
    st.lists(dimensions, min_size=2, max_size=4).map(tuple), min_size=1, max_size=12
)
sparsities = st.one_of(
    st.integers(0, 99).map(lambda percent: percent / 100),
    st.floats(0, 1, exclude_max=True),
)
properties = settings(deadline=None, max_examples=60)


def check_counts(shapes, counts, sparsity):
    counts = listed(counts)
    assert sum(counts) == active_count(sum(sizes(shapes)), sparsity)
    for count, size in zip(counts, sizes(shapes), strict=True):
        assert 1 <= count <= size


def is_feasible(shapes, sparsity):
    return active_count(sum(sizes(shapes)), sparsity) >= len(shapes)


@properties
@given(shape_lists, sparsities, st.sampled_from(["uniform", "er", "erk"]))
@example([(1, 1)] * 9 + [(12, 12)], 0.9, "uniform")
@example([(1, 1)] * 9 + [(12, 12)], 0.9, "erk")
def test_totals_are_exact_or_refused(shapes, sparsity, name):
    if is_feasible(shapes, sparsity):
        counts = allocate(tree(shapes), sparsity=sparsity, distribution=name)
        check_counts(shapes, counts, sparsity)
    else:
        with pytest.raises(ValueError, match="each needs at least 1"):
            allocate(tree(shapes), sparsity=sparsity, distribution=name)


@properties
@given(shape_lists, st.floats(0.01, 0.99), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_erk_densities_against_bisection(shapes, density, power):
    expected = by_bisection(erk_raws(shapes, power), sizes(shapes), density)
    np.testing.assert_allclose(erk_densities(shapes, density, power), expected, 1e-9)


@properties
@given(shape_lists, st.floats(0.01, 0.99))
def test_er_densities_against_bisection(shapes, density):
    raws = [(s[-2] + s[-1]) / (s[-2] * s[-1]) for s in shapes]
    expected = by_bisection(raws, sizes(shapes), density)
    np.testing.assert_allclose(erdos_renyi_densities(shapes, density), expected, 1e-9)


@properties
@given(shape_lists, sparsities)
def test_erk_counts_are_next_to_the_shares(shapes, sparsity):
    assume(0 < sparsity < 0.99)
    densities = by_bisection(erk_raws(shapes), sizes(shapes), 1 - sparsity)
    shares = densities * np.array(sizes(shapes))
    assume(shares.min() >= 1)
    counts = np.array(listed(erk(tree(shapes), sparsity=sparsity)))
    assert np.all(np.abs(counts - shares) < 1 + 1e-6)
    # Largest remainder: whoever was rounded up had no smaller a remainder.
    up, down = counts > shares + 1e-6, counts < shares - 1e-6
    if up.any() and down.any():
        remainders = shares - np.floor(shares)
        assert remainders[up].min() >= remainders[down].max() - 1e-6


@properties
@given(shape_lists, sparsities, st.randoms(use_true_random=False))
def test_erk_does_not_depend_on_the_layout(shapes, sparsity, generator: random.Random):
    assume(is_feasible(shapes, sparsity))
    turned = [tuple(generator.sample(shape, len(shape))) for shape in shapes]
    assert erk(tree(turned), sparsity=sparsity) == erk(tree(shapes), sparsity=sparsity)


@properties
@given(shape_lists, st.floats(0.01, 1), st.randoms(use_true_random=False))
def test_densities_do_not_depend_on_the_order(shapes, density, generator):
    order = generator.sample(range(len(shapes)), len(shapes))
    densities = erk_densities(shapes, density)
    turned = erk_densities([shapes[i] for i in order], density)
    assert turned == [densities[i] for i in order]


@properties
@given(shape_lists, sparsities, sparsities)
def test_a_denser_target_never_has_fewer_weights(shapes, one, other):
    sparser, denser = max(one, other), min(one, other)
    assume(is_feasible(shapes, sparser))
    fewer = listed(erk(tree(shapes), sparsity=sparser))
    more = listed(erk(tree(shapes), sparsity=denser))
    assert sum(fewer) <= sum(more)


@properties
@given(shape_lists, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_denser_target_makes_no_layer_sparser(shapes, one, other):
    sparse = erk_densities(shapes, min(one, other))
    dense = erk_densities(shapes, max(one, other))
    assert all(s <= d + 1e-15 for s, d in zip(sparse, dense, strict=True))


@properties
@given(shape_lists, sparsities, st.sets(st.integers(0, 11), min_size=1))
def test_dense_leaves_are_full_and_counted(shapes, sparsity, places):
    assume(sparsity > 0)
    places = {p for p in places if p < len(shapes)}
    assume(0 < len(places) < len(shapes))
    dense = [f"^{p:02d}$" for p in sorted(places)]
    kept = sum(sizes(shapes)[p] for p in places)
    others = len(shapes) - len(places)
    if active_count(sum(sizes(shapes)), sparsity) < kept + others:
        with pytest.raises(ValueError, match=f"have {kept} and each of the {others}"):
            erk(tree(shapes), sparsity=sparsity, dense=dense)
        return
    for name in ("uniform", "er", "erk"):
        counts = allocate(
            tree(shapes), sparsity=sparsity, distribution=name, dense=dense
        )
        check_counts(shapes, counts, sparsity)
        assert all(listed(counts)[p] == sizes(shapes)[p] for p in places)


@properties
@given(shape_lists, st.integers(1, 99).map(lambda percent: percent / 100))
def test_plus_variants_are_exact(shapes, sparsity):
    shapes = [(3, 3), *shapes, (4, 40)]
    last = f"{len(shapes) - 1:02d}"
    options = {"sparsity": sparsity, "classifier": f"^{last}$"}
    wanted = max(Fraction(1, 5), 1 - Fraction(str(sparsity)))
    try:
        plus = uniform_plus(tree(shapes), first="^00$", **options)
        kernel = erk_plus(tree(shapes), classifier_density=0.3, **options)
    except ValueError:
        target = active_count(sum(sizes(shapes)), sparsity)
        assert not 9 + 48 + len(shapes) <= target <= sum(sizes(shapes)) - 160 + 48
        return
    check_counts(shapes, plus, sparsity)
    check_counts(shapes, kernel, sparsity)
    assert plus["00"] == 9
    if all(n > 1 for n in listed(plus)):
        assert plus[last] <= math.ceil(wanted * 160)
    if all(n > 1 for n in listed(kernel)):
        assert kernel[last] == 48


def test_thousand_layers_are_quick():
    shapes = [(8, 8)] * 999 + [(1000, 1000)]
    tiny = [(2, 2)] * 999 + [(1000, 1000)]
    names = {f"{i:04d}": s for i, s in enumerate(tiny)}
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in names.items()}
    counts = uniform(params, sparsity=0.99)  # each tiny leaf is lifted from 0.04 to 1
    assert sum(counts.values()) == active_count(1003996, 0.99)
    assert counts["0999"] == 10040 - 999
    assert len(erk_densities(shapes, 0.01)) == 1000


# --- Registry -------------------------------------------------------------------------


def test_registry():
    assert {
        "uniform": uniform,
        "uniform_plus": uniform_plus,
        "er": erdos_renyi,
        "erk": erk,
        "erk_plus": erk_plus,
    } == DISTRIBUTIONS


def test_allocate_by_name_and_by_function():
    params = tree(CONVS)
    assert allocate(params, sparsity=0.9) == erk(params, sparsity=0.9)
    expected = erdos_renyi(params, sparsity=0.9, channel_axes=OIHW, dense="00")
    options = {"sparsity": 0.9, "channel_axes": OIHW, "dense": "00"}
    assert allocate(params, distribution="er", **options) == expected
    assert allocate(params, distribution=erdos_renyi, **options) == expected


# --- Errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("distribution", [uniform, erdos_renyi, erk])
def test_sparsity_out_of_range(distribution, sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        distribution(tree(LENET), sparsity=sparsity)


def test_traced_sparsity_is_refused():
    with pytest.raises(ValueError, match="sparsity must be a concrete number"):
        jax.jit(lambda s: erk(tree(LENET), sparsity=s))(0.5)


def test_fewer_weights_than_layers():
    with pytest.raises(
        ValueError,
        match=r"sparsity=0.9 of 20 weights leaves 2 active, but there are 5 sparse",
    ):
        uniform(tree([(2, 2)] * 5), sparsity=0.9)


def test_dense_exceeds_the_target():
    with pytest.raises(
        ValueError,
        match=r"leaves 40 active, but the leaves fixed dense \['01'\] have 300 and "
        r"each of the 1 others",
    ):
        uniform(tree([(10, 10), (30, 10)]), sparsity=0.9, dense="01")


def test_all_dense():
    message = r"all sparse leaves are fixed dense: \['00', '01'\]"
    with pytest.raises(ValueError, match=message):
        erk(tree([(10, 10), (30, 10)]), sparsity=0.1, dense="0")
    # Also where the target itself is rounded to all weights.
    with pytest.raises(ValueError, match=message):
        erk(tree([(10, 10), (30, 10)]), sparsity=1e-9, dense="0")


def test_dense_matches_nothing():
    with pytest.raises(ValueError, match=r"dense='stem': .*matches no leaf.*'00'"):
        erk(tree(LENET), sparsity=0.9, dense="stem")


@pytest.mark.parametrize(
    ("expression", "matched"), [("stem", "none"), ("0[01]", r"\['00', '01'\]")]
)
def test_first_and_classifier_match_one_leaf(expression, matched):
    options = {"first": "00", "classifier": "02"}
    for argument in options:
        message = rf"{argument}='{expression}'".replace("[", r"\[").replace("]", r"\]")
        with pytest.raises(ValueError, match=message + rf" must .*{matched}"):
            uniform_plus(
                tree(LENET), sparsity=0.9, **(options | {argument: expression})
            )
    with pytest.raises(ValueError, match=rf"classifier=.*matches {matched}"):
        erk_plus(tree(LENET), sparsity=0.9, classifier=expression)


def test_first_is_not_the_classifier():
    with pytest.raises(ValueError, match=r"two sparse leaves, both match '01'"):
        uniform_plus(tree(LENET), sparsity=0.9, first="01", classifier="1")


def test_first_and_classifier_are_required():
    with pytest.raises(TypeError, match="first"):
        uniform_plus(tree(LENET), sparsity=0.9, classifier="02")  # pyright: ignore
    with pytest.raises(TypeError, match="classifier"):
        erk_plus(tree(LENET), sparsity=0.9)  # pyright: ignore


@pytest.mark.parametrize("density", [0, -1, 1.1, float("nan")])
def test_density_out_of_range(density):
    with pytest.raises(ValueError, match=r"classifier_density must be in \(0, 1\]"):
        erk_plus(tree(LENET), sparsity=0.9, classifier="02", classifier_density=density)
    with pytest.raises(ValueError, match=r"classifier_density must be in \(0, 1\]"):
        uniform_plus(
            tree(LENET),
            sparsity=0.9,
            first="00",
            classifier="02",
            classifier_density=density,
        )
    with pytest.raises(ValueError, match=r"^density must be in \(0, 1\]"):
        erk_densities(LENET, density)
    with pytest.raises(ValueError, match=r"^density must be in \(0, 1\]"):
        erdos_renyi_densities(LENET, density)


def test_classifier_density_that_others_cannot_complete():
    shapes = [(10, 10), (10, 10)]
    # 190 active, 10 in the classifier: the other one would need 180 of 100.
    with pytest.raises(ValueError, match=r"\['01'\] keep 10 and .* between 1 and 100"):
        erk_plus(tree(shapes), sparsity=0.05, classifier="1", classifier_density=0.1)
    # 20 active, 90 in the classifier.
    with pytest.raises(ValueError, match=r"\['01'\] keep 90 and"):
        erk_plus(tree(shapes), sparsity=0.9, classifier="1", classifier_density=0.9)
    # One leaf alone has the target's density or none.
    alone = {"classifier": "0", "classifier_density": 0.5}
    assert erk_plus(tree([(10, 10)]), sparsity=0.5, **alone) == {"00": 50}
    with pytest.raises(ValueError, match=r"keep 50 and"):
        erk_plus(tree([(10, 10)]), sparsity=0.6, **alone)


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf")])
def test_power_out_of_range(power):
    with pytest.raises(ValueError, match="power must be a finite number of at least 0"):
        erk(tree(LENET), sparsity=0.9, power=power)


def test_power_zero_is_uniform():
    assert erk(tree(CONVS), sparsity=0.9, power=0) == uniform(tree(CONVS), sparsity=0.9)


@pytest.mark.parametrize("axes", [(0, 0), (-1, 1), (0, 2), (-3, -1)])
def test_channel_axes_that_a_leaf_lacks(axes):
    with pytest.raises(ValueError, match=r"channel_axes=.* two axes .* shape \(9, 8\)"):
        erdos_renyi({"w": jnp.ones((9, 8))}, sparsity=0.5, channel_axes=axes)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("ERK", "erk"), ("uniform+", "uniform"), ("erk-plus", "erk_plus"), ("e", "er")],
)
def test_unknown_distribution(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'") as caught:
        allocate(tree(LENET), sparsity=0.9, distribution=name)
    assert f"got {name!r}" in str(caught.value)
    assert "one of uniform, uniform_plus, er, erk, erk_plus" in str(caught.value)


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"options of distribution 'erk'.*pwer"):
        allocate(tree(LENET), sparsity=0.9, pwer=1.0)
