"""Densities and exact counts: golden, by hand, against an independent solver."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sup_tickets.densities import erdos_renyi_densities, erk_densities
from sup_tickets.distributions import (
    erk,
    erk_plus,
    uniform,
    uniform_plus,
)
from tests.network_shapes import (
    CONVS,
    CONVS_ER_10,
    CONVS_ERK_10,
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
    tree,
)


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


def test_density_one_is_one_exactly():
    assert erk_densities(CONVS, 1) == [1.0] * 7
    assert erdos_renyi_densities(CONVS, 1.0, OIHW) == [1.0] * 7


def test_tied_layers_become_dense_together():
    # Both small ones would be at 1.8.
    shapes = [(2, 2), (1000, 100), (2, 2)]
    densities = erk_densities(shapes, 0.02)
    assert densities[0] == densities[2] == 1.0
    assert densities[1] == pytest.approx((0.02 * 100008 - 8) / 100000, rel=1e-12)


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
@given(shape_lists, st.floats(0.01, 1), st.randoms(use_true_random=False))
def test_densities_do_not_depend_on_the_order(shapes, density, generator):
    order = generator.sample(range(len(shapes)), len(shapes))
    densities = erk_densities(shapes, density)
    turned = erk_densities([shapes[i] for i in order], density)
    assert turned == [densities[i] for i in order]


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


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf")])
def test_power_out_of_range(power):
    with pytest.raises(ValueError, match="power must be a finite number of at least 0"):
        erk(tree(LENET), sparsity=0.9, power=power)
