import math
import random
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sup_tickets.counting import active_count
from sup_tickets.densities import erk_densities
from sup_tickets.distributions import (
    DISTRIBUTIONS,
    allocate,
    erdos_renyi,
    erk,
    erk_plus,
    uniform,
    uniform_plus,
)
from tests.network_shapes import (
    CONVS,
    CONVS_ER_10,
    CONVS_ERK_20,
    EVERY_LEAF,
    LENET,
    OIHW,
    by_bisection,
    erk_raws,
    listed,
    properties,
    shape_lists,
    sizes,
    sparsities,
    tree,
)

# --- Golden densities -----------------------------------------------------------------


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


def test_dense_leaves_are_paid_for():
    shapes = [(10, 10), (30, 10)]
    assert listed(uniform(tree(shapes), sparsity=0.5)) == [50, 150]
    assert listed(uniform(tree(shapes), sparsity=0.5, keep_dense="00")) == [100, 100]
    assert listed(uniform(tree(shapes), sparsity=0.5, keep_dense=["0$"])) == [100, 100]


def test_dense_wins_over_the_classifier_density():
    shapes = [(10, 10)] * 3
    for counts in [
        uniform_plus(
            tree(shapes), sparsity=0.3, first="00", classifier="2", keep_dense="02"
        ),
        erk_plus(
            tree(shapes),
            sparsity=0.3,
            classifier="2",
            keep_dense=("00", "02"),
            classifier_density=0.1,
        ),
    ]:
        assert listed(counts) == [100, 10, 100]


def test_dense_leaves_are_never_the_ones_to_pay():
    # 3 dense, eight lifted from 0.125 to 1, the other leaf pays.
    shapes = [(1, 3), (1, 40)] + [(1, 1)] * 8
    counts = listed(uniform(tree(shapes), sparsity=0.7, keep_dense="00"))
    assert counts == [3, 4] + [1] * 8


def test_a_filled_layer_pays_before_a_dense_one():
    # Both of (1, 1, 1, 2) are full, one because it was asked to; ten leaves of share
    # 0.86 are lifted to 1 and have nothing to give; total 13.
    shapes = [(1, 1, 1, 2)] * 2 + [(2,)] * 10
    counts = erk(tree(shapes), sparsity=0.477, keep_dense="00", **EVERY_LEAF)
    assert listed(counts) == [2, 1] + [1] * 10


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_sparsity_zero_is_dense(name):
    options = {"first": "00", "classifier": "06"}
    wanted = {"uniform_plus": options, "erk_plus": {"classifier": "06"}}.get(name, {})
    counts = allocate(tree(CONVS), sparsity=0, distribution=name, **wanted)
    assert listed(counts) == sizes(CONVS)


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
            erk(tree(shapes), sparsity=sparsity, keep_dense=dense)
        return
    for name in ("uniform", "er", "erk"):
        counts = allocate(
            tree(shapes), sparsity=sparsity, distribution=name, keep_dense=dense
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
    expected = erdos_renyi(params, sparsity=0.9, channel_axes=OIHW, keep_dense="00")
    options = {"sparsity": 0.9, "channel_axes": OIHW, "keep_dense": "00"}
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
        uniform(tree([(10, 10), (30, 10)]), sparsity=0.9, keep_dense="01")


def test_all_dense():
    message = r"all sparse leaves are fixed dense: \['00', '01'\]"
    with pytest.raises(ValueError, match=message):
        erk(tree([(10, 10), (30, 10)]), sparsity=0.1, keep_dense="0")
    # Also where the target itself is rounded to all weights.
    with pytest.raises(ValueError, match=message):
        erk(tree([(10, 10), (30, 10)]), sparsity=1e-9, keep_dense="0")


def test_dense_matches_nothing():
    with pytest.raises(ValueError, match=r"keep_dense='stem': .*matches no leaf.*'00'"):
        erk(tree(LENET), sparsity=0.9, keep_dense="stem")


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
