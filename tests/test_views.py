"""Views by their golden values, and their gradients by the rules that they state."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import sup_tickets as st
from sup_tickets.views.leaves import share, share_of_softnet
from tests.helpers import quick, top_k_mask

EVERY: dict[str, Any] = {"where": lambda name, leaf: True}


def leaf(*values, shape=None):
    array = jnp.asarray(values, jnp.float32)
    return {"w": array if shape is None else array.reshape(shape)}


def scores(*values):
    return {"w": {"score": jnp.asarray(values, jnp.float32)}}


def pulled(view, params, extra, gradient):
    """The gradient of the stored weights and of what is extra, for one of the seen."""
    seen, pull = jax.vjp(
        lambda w, t: view.apply(w, extra._replace(trained=t)), params, extra.trained
    )
    of_weights, of_extra = pull({"w": jnp.asarray(gradient, jnp.float32)})
    return np.asarray(seen["w"]), np.asarray(of_weights["w"]), of_extra


# --- Scores ---------------------------------------------------------------------------


def test_softnet_golden():
    """other_systems.md B: the threshold is the k-th smallest, and majors are 1."""
    for n, rest, k in ((9, 0.5, 5), (100, 0.03, 4), (100, 0.05, 6), (576, 0.1, 59)):
        count = int(share_of_softnet(jnp.zeros(n), None, round(1 - rest, 2)))
        assert n - count + 1 == k
    view = st.softnet(density=0.75, **EVERY)
    params = leaf(*[1.0] * 8)
    extra = view.init(jax.random.key(0), params)
    ranked = extra._replace(trained=scores(0.9, 0.1, 0.4, -0.3, 0.8, 0.2, 0.7, 0.6))
    mask = np.asarray(view.apply(params, ranked)["w"])
    assert (mask == 1).tolist() == [True, False, True, True, True, False, True, True]
    factors = np.asarray(extra.untrained["w"]["factor"])
    assert mask[1] == factors[1] and mask[5] == factors[5] and 0 < mask[1] < 1


def test_softnet_gradient_golden():
    """w = 2, upstream 3: 6 for the score whatever its mask; 3 m for the weight."""
    view = st.softnet(density=0.4, **EVERY)
    params = leaf(2.0, 2.0)
    extra = view.init(jax.random.key(0), params)
    untrained = {"w": {**extra.untrained["w"], "factor": jnp.array([0.5, 0.25])}}
    extra = st.Extra(scores(0.9, 0.1), untrained)
    seen, of_weight, of_extra = pulled(view, params, extra, [3.0, 3.0])
    assert seen.tolist() == [2.0, 0.5]
    assert of_weight.tolist() == [3.0, 0.75]
    assert of_extra["w"]["score"].tolist() == [6.0, 6.0]
    # Where a score is below 0, its magnitude rises as it falls.
    _, _, of_extra = pulled(
        view, params, extra._replace(trained=scores(0.9, -0.1)), [3, 3]
    )
    assert of_extra["w"]["score"].tolist() == [6.0, -6.0]


def test_softnet_draws_its_minor_factors_anew_only_when_it_is_due():
    """After the first step of an epoch: those that its end is judged by are trained."""
    params = leaf(*[1.0] * 6)
    for every, changes in ((0, ()), (1, (1, 2, 3, 4)), (3, (1, 4))):
        view = st.softnet(density=0.5, redraw_every=every, **EVERY)
        extra = view.init(jax.random.key(0), params)
        for step in (1, 2, 3, 4):
            key = jax.random.fold_in(jax.random.key(1), step)
            new = view.after_step(params, extra, key, jnp.int32(step))
            old, now = (e.untrained["w"]["factor"] for e in (extra, new))
            assert bool((old != now).any()) == (step in changes)
            assert ((now >= 0) & (now < 1)).all()
            extra = new


def test_hardnet_has_the_scores_and_the_major_weights_of_softnet():
    """n = 10, c = 1/2: both have 10 - round(4.5) = 6, not one of them 5."""
    params, key = leaf(*range(1, 11)), jax.random.key(3)
    soft, hard = (st.softnet(density=0.5, soft=s, **EVERY) for s in (True, False))
    extras = soft.init(key, params), hard.init(key, params)
    np.testing.assert_array_equal(*(e.trained["w"]["score"] for e in extras))
    seen = np.asarray(soft.apply(params, extras[0])["w"])
    major = seen == np.arange(1, 11)
    assert major.sum() == 6
    hidden, of_weight, of_extra = pulled(hard, params, extras[1], [1.0] * 10)
    assert hidden.tolist() == np.where(major, seen, 0).tolist()
    assert of_weight.tolist() == major.astype(float).tolist()
    assert (np.abs(of_extra["w"]["score"]) == np.arange(1, 11)).all()
    again = hard.after_step(params, extras[1], key, jnp.int32(1))
    assert not again.untrained["w"]["factor"].any()


@quick
@given(some.integers(1, 300), some.integers(1, 100))
def test_shares_are_exact_and_of_the_active_weights(n, percent):
    density, rest = percent / 100, Fraction(100 - percent, 100)
    nearest = max((2 * percent * n + 100) // 200, 1)
    major = n - round(rest * (n - 1))
    assert int(share(np.zeros(n), None, density)) == nearest
    assert int(share_of_softnet(np.zeros(n), None, density)) == major
    mask = jnp.asarray(np.arange(300) < n)
    assert int(share(np.zeros(300), mask, density)) == nearest
    # Of a traced count exact halves are rounded up.
    half = (rest * (n - 1) * 2) % 2 == 1
    assert major - int(share_of_softnet(np.zeros(300), mask, density)) in (0, int(half))


@pytest.mark.parametrize("trains", [False, True])
def test_edge_popup_shows_the_largest_scores(trains):
    view = st.edge_popup(density=0.5, train_weights=trains, **EVERY)
    params = leaf(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    extra = view.init(jax.random.key(0), params)
    extra = extra._replace(trained=scores(0.1, -0.9, 0.5, 0.5, 0.5, 0.0))
    seen, of_weight, of_extra = pulled(view, params, extra, [1.0] * 6)
    assert seen.tolist() == [0, 2, 3, 4, 0, 0]  # of the tie, the first
    assert of_weight.tolist() == [0, 1, 1, 1, 0, 0]
    assert of_extra["w"]["score"].tolist() == [1, -2, 3, 4, 5, 0]
    assert view.freezes == (not trains)


def test_scores_of_pruned_weights_are_never_before_active_ones():
    params = {"dense": {"kernel": jnp.ones((20, 10))}}
    masks = st.random_masks(jax.random.key(0), params, {"dense": {"kernel": 80}})
    for view in (st.edge_popup(density=0.25), st.softnet(density=0.25)):
        extra = view.init(jax.random.key(1), params, masks)
        seen = view.apply(st.apply_masks(masks, params), extra)["dense"]["kernel"]
        majors = 20 if not view.name.startswith("Soft") else 80 - 59  # .75 * 79 = 59.25
        assert int((seen == 1).sum()) == majors


def test_kaiming_scores_are_within_their_bound():
    params = {"dense": {"kernel": jnp.ones((100, 50))}}
    extra = st.edge_popup(density=0.5).init(jax.random.key(0), params)
    found = np.asarray(extra.trained["dense"]["kernel"]["score"])
    assert 0.098 < np.abs(found).max() <= 0.1 and abs(found.mean()) < 5e-3


def test_piggyback_is_a_threshold():
    view = st.piggyback(**EVERY)
    params = leaf(1.0, 2.0, 3.0)
    extra = view.init(jax.random.key(0), params)
    np.testing.assert_allclose(extra.trained["w"]["score"], 0.01)
    extra = st.Extra(scores(0.005, 0.0049, 0.1))
    seen, _, of_extra = pulled(view, params, extra, [1.0, 1.0, 1.0])
    assert seen.tolist() == [1, 0, 3]
    assert of_extra["w"]["score"].tolist() == [1, 2, 3]


# --- KSM ------------------------------------------------------------------------------


def ksm_case(**options):
    view = st.ksm(where=lambda name, leaf: True, **options)
    params = {"w": jnp.ones((3, 3, 2, 2))}
    score = jnp.array([[0.01, 0.004], [-0.002, 0.006]]).reshape(1, 1, 2, 2)
    return view, params, st.Extra({"w": {"score": score}})


def test_ksm_golden():
    view, params, extra = ksm_case()
    seen, of_weight, of_extra = pulled(view, params, extra, jnp.ones((3, 3, 2, 2)))
    np.testing.assert_allclose(seen[0, 0], [[1, 0.5], [0, 1]], rtol=1e-6)
    assert (seen == seen[:1, :1]).all() and (of_weight == seen).all()
    slopes = [[2.997302, 2.999892], [2.994714, 2.999892]]
    # The gradient of one mask is the sum over its kernel of nine weights.
    np.testing.assert_allclose(of_extra["w"]["score"][0, 0] / 9, slopes, rtol=1e-6)
    first = view.init(jax.random.key(0), params)
    assert first.trained["w"]["score"].shape == (1, 1, 2, 2)
    of_first = pulled(view, params, first, jnp.ones((3, 3, 2, 2)))[2]
    np.testing.assert_allclose(of_first["w"]["score"] / 9, 2.997302, rtol=1e-6)


@jax.jit
def ksm_pulled(weight, score, gradient):
    view = st.ksm(where=lambda name, leaf: True)
    seen, pull = jax.vjp(
        lambda w, r: view.apply({"w": w}, st.Extra({"w": {"score": r}}))["w"],
        *(weight, score),
    )
    return seen, *pull(gradient)


@quick
@given(some.integers(0, 2**31), some.sampled_from(["any", "off", "on", "alike"]))
def test_ksm_is_the_release_in_numpy(seed, kind):
    """Masks and gradients by the release's lines, with ties, all off and all on."""
    draw = np.random.default_rng(seed)
    score = draw.integers(-3, 12, (1, 1, 3, 4)).astype(np.float32) / 1000
    if kind != "any":
        score = {"off": score.clip(max=0.004), "on": score.clip(min=0.005)}.get(
            kind, np.full_like(score, 0.002)
        )
    weight, gradient = draw.normal(size=(2, 3, 3, 3, 4)).astype(np.float32)
    soft = 1 / (1 + np.exp(-12 * (score.astype(np.float64) - 0.005)))
    hard = score >= np.float32(0.005)
    off = score * ~hard
    width = off.max() - off.min()
    with np.errstate(invalid="ignore"):  # 0 / 0 in the release: we rank them all 1
        ranks = np.where(off != 0, (off - off.min()) / width if width else 1.0, 0)
    mask = hard + 0.5 * ranks
    seen, of_weight, of_score = ksm_pulled(weight, score, gradient)
    np.testing.assert_allclose(seen, mask * weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_weight, mask * gradient, rtol=1e-5, atol=1e-6)
    wanted = 12 * soft * (1 - soft) * (gradient * weight).sum((0, 1), keepdims=True)
    np.testing.assert_allclose(
        of_score, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()
    )


def test_ksm_slope_is_that_of_the_two_way_softmax():
    """Section 4: sigmoid(6 / 100) = .514995502, and its derivative by differences."""

    def two_way(r):
        p = jax.nn.sigmoid(1200 * (r - 0.005))
        return jax.nn.softmax(jnp.log(jnp.stack([p, 1 - p])) / 100)[0]

    np.testing.assert_allclose(two_way(jnp.float32(0.01)), 0.514995502, rtol=1e-6)
    with jax.enable_x64(True):
        ahead, behind = (two_way(jnp.float64(0.01 + e)) for e in (1e-6, -1e-6))
        np.testing.assert_allclose((ahead - behind) / 2e-6, 2.997302, rtol=1e-6)


def test_ksm_without_the_soft_part_per_element_and_channel():
    view, params, extra = ksm_case(soft=False)
    seen = view.apply(params, extra)["w"]
    assert seen[0, 0].tolist() == [[1, 0], [0, 1]]
    shapes: dict[Any, Any] = {
        "kernel": (1, 1, 2, 2),
        "channel": (1, 1, 1, 2),
        "element": (3, 3, 2, 2),
    }
    for per, shape in shapes.items():
        own = st.ksm(per=per, **EVERY).init(jax.random.key(0), params)
        assert own.trained["w"]["score"].shape == shape
        assert (st.ksm(per=per, **EVERY).apply(params, own)["w"] == 1).all()


def test_ksm_scales_off_kernels_that_are_all_alike_by_the_whole_scale():
    view, params, _ = ksm_case(scale=0.25)
    extra = st.Extra({"w": {"score": jnp.full((1, 1, 2, 2), 0.001)}})
    assert (view.apply(params, extra)["w"] == 0.25).all()


def test_ksm_noise_is_of_training_alone():
    view, params, _ = ksm_case(noise=True, start=0.005)
    extra = view.init(jax.random.key(0), params)
    draws = [
        np.asarray(view.apply(params, extra, jax.random.key(i), True)["w"] >= 1)
        for i in range(20)
    ]
    assert 0.2 < np.mean(draws) < 0.8 and len({d.tobytes() for d in draws}) > 3
    assert (view.apply(params, extra, jax.random.key(1), False)["w"] == 1).all()


def test_ksm_is_of_convolutions_and_refuses_a_network_without_any():
    view = st.ksm()
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 2))}, "head": jnp.ones((2, 2))}
    assert view.covers(params) == {"conv": {"kernel": True}, "head": False}
    with pytest.raises(ValueError, match="chooses no leaf to be sparse"):
        view.covers({"head": {"kernel": jnp.ones((2, 2))}})


# --- Magnitude ------------------------------------------------------------------------


def test_sr_ste_golden():
    view = st.sr_ste(2, 4, decay=0.5, where=lambda name, leaf: True)
    params = leaf(1.0, -4.0, 3.0, 2.0, 0.5, 0.5, -0.5, 0.5, shape=(8, 1))
    seen, of_weight, _ = pulled(view, params, st.Extra(), jnp.ones((8, 1)))
    assert seen[:, 0].tolist() == [0, -4, 3, 0, 0.5, 0.5, 0, 0]
    # g + decay (1 - m) w
    wanted = [1.5, 1, 1, 2, 1, 1, 0.75, 1.25]
    np.testing.assert_allclose(of_weight[:, 0], wanted)
    plain = st.sr_ste(2, 4, decay=0, where=lambda name, leaf: True)
    _, of_weight, _ = pulled(plain, params, st.Extra(), jnp.ones((8, 1)))
    assert (of_weight == 1).all()
    assert st.sr_ste().name == "SR-STE 2:4, decay 0.0002"


def test_sr_ste_along_another_axis_and_of_leaves_that_m_does_not_divide():
    params = {"a": {"kernel": jnp.arange(24.0).reshape(4, 6) + 1}}
    with pytest.raises(
        ValueError, match=r"2:4.*'a/kernel' of shape \(4, 6\).*keep_dense"
    ):
        st.sr_ste(axis=-1).init(jax.random.key(0), params)
    seen = st.sr_ste(1, 3, axis=-1).apply(params, st.Extra())["a"]["kernel"]
    assert (np.asarray(seen)[0] != 0).tolist() == [False, False, True] * 2
    both = {**params, "b": {"kernel": jnp.ones((3, 6))}}
    seen = st.sr_ste(keep_dense="b").apply(both, st.Extra())
    assert (np.asarray(seen["b"]["kernel"]) == 1).all()


def test_top_kast_golden():
    """A = top 2, B = top 4 of 8; w in A, w / D in B alone, nothing else."""
    view = st.top_kast(density=0.25, backward_density=0.5, decay=0.1, **EVERY)
    params = leaf(1.0, -8.0, 3.0, -4.0, 0.5, 6.0, -0.25, 2.0)
    extra = view.init(jax.random.key(0), params)
    seen, of_weight, _ = pulled(view, params, extra, [1.0] * 8)
    assert seen.tolist() == [0, -8, 0, 0, 0, 6, 0, 0]
    wanted = [0, 1 - 0.8, 1 + 1.2, 1 - 1.6, 0, 1 + 0.6, 0, 0]
    np.testing.assert_allclose(of_weight, wanted, rtol=1e-5, atol=1e-6)


def test_the_penalty_of_top_kast_is_the_gradient_of_its_norms():
    view = st.top_kast(density=0.25, backward_density=0.75, decay=0.3, **EVERY)
    params = leaf(*np.random.default_rng(0).normal(size=16))
    extra = view.init(jax.random.key(0), params)
    sets = jax.tree.map(np.asarray, extra.untrained["w"])

    def penalty(w):
        w = np.asarray(w, np.float64)
        between = sets["backward"] & ~sets["forward"]
        return 0.15 * ((w[sets["forward"]] ** 2).sum() + (w[between] ** 2).sum() / 0.25)

    _, of_weight, _ = pulled(view, params, extra, [0.0] * 16)
    w = np.asarray(params["w"], np.float64)
    each = [(penalty(w + 1e-4 * e) - penalty(w - 1e-4 * e)) / 2e-4 for e in np.eye(16)]
    np.testing.assert_allclose(of_weight, each, atol=1e-5)


def test_top_kast_chooses_its_sets_anew_when_it_is_due():
    view = st.top_kast(
        density=0.25, backward_density=0.5, refresh_every=2, end_step=4, **EVERY
    )
    extra = view.init(jax.random.key(0), leaf(4.0, 3.0, 2.0, 1.0))
    seen = []
    for step in range(1, 7):
        params = leaf(*np.roll([4.0, 3.0, 2.0, 1.0], step))
        extra = view.after_step(params, extra, jax.random.key(0), jnp.int32(step))
        seen.append(np.flatnonzero(extra.untrained["w"]["forward"]).tolist())
        assert int(extra.untrained["w"]["backward"].sum()) == 2
    assert seen == [[0], [2], [2], [0], [0], [0]]  # 4 stands at step % 4


# --- Powerpropagation -----------------------------------------------------------------


def test_powerpropagation_golden():
    view = st.powerpropagation(alpha=2.0, **EVERY)
    params = leaf(-2.0, 0.0, 0.5, 3.0)
    seen, of_weight, _ = pulled(view, params, st.Extra(), [1.0] * 4)
    assert seen.tolist() == [-4, 0, 0.25, 9]
    assert of_weight.tolist() == [4, 0, 1, 6]
    stored = view.store(leaf(-4.0, 0.0, 0.25, 9.0))
    np.testing.assert_allclose(stored["w"], params["w"], rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 3.0])
def test_powerpropagation_has_its_true_gradient(alpha):
    view = st.powerpropagation(alpha=alpha, **EVERY)
    params = leaf(*np.random.default_rng(1).normal(size=12), 0.0)
    _, of_weight, _ = pulled(view, params, st.Extra(), [1.0] * 13)
    w = np.asarray(params["w"], np.float64)

    def power(p):
        return p * np.abs(p) ** (alpha - 1)

    each = (power(w + 1e-6) - power(w - 1e-6)) / 2e-6
    np.testing.assert_allclose(of_weight, each, rtol=1e-4, atol=2e-3)


# --- By a reference -------------------------------------------------------------------


@quick
@given(some.integers(0, 2**31), some.integers(1, 100))
def test_what_is_selected_is_the_top_k_of_numpy(seed, percent):
    """With ties: the values are a few whole numbers."""
    draw = np.random.default_rng(seed)
    params = {"w": jnp.asarray(draw.integers(1, 5, 40).astype(np.float32))}
    view = st.edge_popup(density=percent / 100, **EVERY)
    own = draw.integers(-4, 5, 40).astype(np.float32)
    extra = view.init(jax.random.key(0), params)._replace(trained=scores(*own))
    k = max((2 * percent * 40 + 100) // 200, 1)
    seen = np.asarray(view.apply(params, extra)["w"]) != 0
    np.testing.assert_array_equal(seen, top_k_mask(np.abs(own), k))
