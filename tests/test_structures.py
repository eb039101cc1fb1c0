"""Structures: which layers take them, exact counts, SRigL's rule, what is refused."""

from fractions import Fraction
from math import floor

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draws

import sup_tickets as st
from sup_tickets.ablation import rewire_neurons
from sup_tickets.groups import split_of
from sup_tickets.structures import check_structure, group_counts, structure_of

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 4, 8))},
    "dense": {"kernel": jnp.ones((32, 16)), "bias": jnp.ones(16)},
    "classifier": {"kernel": jnp.ones((16, 6))},
}


def by_output(mask):
    return st.layer_counts({"w": mask}, groups=st.per_output())["w"].tolist()


# --- Counts ---------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95])
def test_fan_ins_come_near_the_sparsity(sparsity):
    counts = st.erk(PARAMS, sparsity=sparsity)
    each = group_counts(st.fan_in(), PARAMS, counts)
    neurons = {"conv": 8, "dense": 16, "classifier": 6}
    total = sum(n * each[name]["kernel"] for name, n in neurons.items())
    # Within half of the layer with fewest neurons, where none is at its least.
    assert abs(total - sum(jax.tree.leaves(counts))) <= 3


def test_a_layer_kept_dense_is_dense():
    method = st.static(sparsity=0.8, keep_dense="classifier")
    masks = st.init_topology(
        method.replace(structure=st.fan_in()), jax.random.key(0), PARAMS
    ).masks
    assert bool(masks["classifier"]["kernel"].all())
    method = st.static(sparsity=0.5, keep_dense="classifier")
    masks = st.init_topology(
        method.replace(structure=st.n_of_m(2, 4)), jax.random.key(0), PARAMS
    ).masks
    assert masks["classifier"]["kernel"] is None
    assert int(st.count(masks)) * 2 == st.size(masks) == 288 + 512


def test_counts_are_rounded_to_whole_groups():
    shapes = {"a": jnp.ones((10, 7)), "b": jnp.ones((10, 4))}
    found = group_counts(st.fan_in(), shapes, {"a": 24, "b": 6})
    assert found == {"a": 3, "b": 2}  # 3.4 and 1.5, of which 29 weights make 30
    with pytest.raises(ValueError, match="needs a weight in each group, and 2 weights"):
        group_counts(st.fan_in(), shapes, {"a": 1, "b": 1})


def test_texts_name_structures():
    assert structure_of("") is None
    assert structure_of("2:4") == st.n_of_m(2, 4)
    assert structure_of("fan-in") == st.fan_in()
    for text in ("4:2", "4:4", "0:4", "rows"):
        with pytest.raises(
            ValueError, match=r"n must be|structure must be '', 'fan-in'"
        ):
            structure_of(text)


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"structure": "2:4"},
            r"must be a Structure, such as n_of_m\(2, 4\), got '2:4'",
        ),
        (
            {"structure": st.n_of_m(1, 4)},
            "sparsity with structure=1:4 must be 0.75, got",
        ),
        (
            {"structure": st.n_of_m(2, 4), "initial_sparsity": 0.3},
            "initial_sparsity with structure=2:4 must be 0.5, 0.25, 0, got 0.3",
        ),
        (
            {
                "structure": st.fan_in(),
                "redistribute": True,
                "momentum_decay": 0.9,
            },
            "redistribute=True moves weights between layers; structure=fan-in needs",
        ),
        (
            {"structure": st.fan_in(ablate_below=0.3), "regrow_dropped": False},
            "ablates neurons cannot have regrow_dropped=False",
        ),
        (
            {"structure": st.fan_in(ablate_below=0.3), "prefer_unexplored": True},
            "ablates neurons cannot have prefer_unexplored",
        ),
        (
            {"structure": st.fan_in(), "where": None, "sparsity": 0.0},
            "where=None leaves all weights dense; structure=fan-in needs some",
        ),
    ],
)
def test_methods_that_cannot_keep_it(fields, message):
    method = st.rigl(sparsity=0.5, total_steps=1000)
    with pytest.raises(ValueError, match=message):
        method.replace(**{"prune_end_step": 500, **fields})


def test_a_leaf_that_cannot_take_it_is_named_before_training():
    params = {"fc": {"kernel": jnp.ones((8, 4))}}
    method = st.static(sparsity=0.6).replace(structure=st.n_of_m(2, 5))
    message = "structure=2:5: blocks of 5 along axis -2 does not divide leaf 'fc/ker"
    with pytest.raises(ValueError, match=message):
        st.init_topology(method, jax.random.key(0), params)


def test_masks_of_another_structure_are_named():
    mask = jnp.array([[1, 1], [1, 0], [0, 0], [0, 0]], bool)
    with pytest.raises(
        ValueError, match="masks has 1 active weights in a group of leaf"
    ):
        check_structure(st.n_of_m(2, 4), {"w": mask})
    with pytest.raises(
        ValueError, match="1 active weights in one group of leaf 'w' and"
    ):
        check_structure(st.fan_in(), {"w": mask})
    ablated = mask.at[:, 1].set(False)
    check_structure(st.fan_in(ablate_below=0.3), {"w": ablated})
    with pytest.raises(ValueError, match="0 active weights in one group"):
        check_structure(st.fan_in(), {"w": ablated})


def test_describe_says_which_layers_can_take_it():
    with pytest.raises(ValueError, match=r"must be a Structure, .*, got '2:4'"):
        st.describe(PARAMS, structure="2:4")
    text = str(st.describe(PARAMS, structure=st.n_of_m(2, 16)))
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert rows["dense/kernel"].endswith("a kernel  2:16 in 32 groups of 16")
    assert "cannot: blocks of 16 along axis -2" in rows["conv/kernel"]
    assert rows["dense/bias"].endswith("a bias")


# --- SRigL ----------------------------------------------------------------------------


def rewired_neurons(w, mask, g, budget, fraction, share):
    """The rule of the specification on one matrix, columns are neurons."""
    n_in, n_out = mask.shape
    active = int(mask.sum())
    dropped = floor(fraction * active)
    kept = helpers.top_k_mask(np.abs(w), active - dropped, mask)
    salient = (kept | helpers.top_k_mask(np.abs(g), dropped)).sum(axis=0)
    least = max(1, floor(share * (budget // n_out)))
    needed = max(1, -(-budget // n_in))
    alive = (salient >= least) | helpers.top_k_mask(salient, needed)
    fan_in = min(budget // int(alive.sum()), n_in)
    new = np.zeros_like(mask)
    for j in np.flatnonzero(alive):
        stay = helpers.top_k_mask(np.abs(w[:, j]), fan_in, kept[:, j])
        more = fan_in - int(stay.sum())
        new[:, j] = stay | helpers.top_k_mask(np.abs(g[:, j]), more, ~stay)
    return np.where(mask & new, w, 0), new, new & ~mask


rewire_one = jax.jit(
    lambda w, mask, g, budget, fraction: rewire_neurons(
        {"w": w},
        {"w": mask},
        st.fan_in(ablate_below=0.5),
        {"w": budget},
        drop_scores={"w": jnp.abs(w)},
        grow_scores={"w": jnp.abs(g)},
        fraction=fraction,
    )
)


def test_srigl_by_hand():
    """Of three neurons with two inputs each, the last has nothing that is salient."""
    w = np.float32([[5, 4, 0.1], [3, 0, 0.2], [0, 6, 0], [0, 0, 0]])
    g = np.float32([[0, 0, 0], [0, 7, 0], [8, 0, 0], [1, 2, 0]])
    new = rewire_one(w, w != 0, g, 6, 0.4)
    # Two are dropped, both of the last neuron; 8 and 7 are salient gradients. The two
    # neurons that stay have three inputs each.
    assert new.masks["w"].astype(int).tolist() == [
        [1, 1, 0],
        [1, 1, 0],
        [1, 1, 0],
        [0, 0, 0],
    ]
    assert np.argwhere(new.grown["w"]).tolist() == [[1, 1], [2, 0]]
    assert by_output(new.masks["w"]) == [3, 3, 0]
    # The surplus that goes is the smallest, whatever its place (the release's fault).
    w = np.float32([[1, 0, 0], [5, 0, 0.2], [4, 6, 0.1], [3, 9, 0]])
    new = rewire_one(w, w != 0, g * 0, 6, 0.25)
    assert new.masks["w"][:, 0].tolist() == [False, True, True, True]


@helpers.quick
@given(
    seed=draws.integers(0, 2**31),
    hundredths=draws.integers(0, 100),
    density=draws.sampled_from([0.1, 0.3, 0.7, 1.0]),
)
def test_srigl_like_numpy(seed, hundredths, density):
    rng = np.random.default_rng(seed)
    w, g = (rng.standard_normal((9, 7)).astype(np.float32) for _ in range(2))
    g *= rng.random(7) < 0.5  # neurons that no gradient reaches
    w *= rng.random(7).astype(np.float32) ** 3
    mask = rng.permuted(np.arange(9)[:, None] < round(9 * density), axis=0)
    mask = np.broadcast_to(mask, (9, 7)).copy()
    budget = int(mask.sum())
    got = rewire_one(w * mask, mask, g, budget, hundredths / 100)
    wanted = rewired_neurons(
        w * mask, mask, g, budget, Fraction(hundredths, 100), Fraction(1, 2)
    )
    for ours, reference in zip(
        (got.params["w"], got.masks["w"], got.grown["w"]), wanted, strict=True
    ):
        np.testing.assert_array_equal(ours, reference)


def test_the_last_layer_keeps_its_neurons():
    names = ["conv/kernel", "dense/kernel", "classifier/kernel"]
    assert st.fan_in().ablates(names) == set()
    assert st.fan_in(ablate_below=0.3).ablates(names) == set(names[:2])
    keep = st.fan_in(ablate_below=0.3, keep_neurons="conv")
    assert keep.ablates(names) == set(names[1:])
    with pytest.raises(ValueError, match="keep_neurons 'x' matches no leaf"):
        st.fan_in(ablate_below=0.3, keep_neurons="x").ablates(names)


def test_it_is_known_which_layer_is_the_last_before_training():
    """Else the outputs themselves could be ablated, silently."""
    method = st.srigl(sparsity=0.5, total_steps=1000)
    bare = {
        "Dense_0": {"kernel": jnp.ones((8, 6))},
        "Dense_1": {"kernel": jnp.ones((6, 4))},
    }

    def begin(**structure):
        ours = method.replace(structure=st.fan_in(ablate_below=0.3, **structure))
        return st.init_topology(ours, 0, bare).masks

    with pytest.raises(ValueError, match=r"is named as the last layer.*keep_ne"):
        begin()
    with pytest.raises(ValueError, match="keep_neurons 'Dense_2' matches no leaf"):
        begin(keep_neurons="Dense_2")
    for keep in ("Dense_1", ()):
        assert by_output(begin(keep_neurons=keep)["Dense_0"]["kernel"]) == [3] * 6
    # A dense last layer is there all the same.
    params = {"fc": bare["Dense_0"], "classifier": bare["Dense_1"]}
    ours = method.replace(where="fc")
    assert st.init_topology(ours, 0, params).masks["classifier"]["kernel"] is None


def test_sharded_is_unsharded(key):
    params, gradients = (
        {"last": jax.random.normal(jax.random.fold_in(key, i), (32, 64))}
        for i in range(2)
    )
    masks = jax.tree.map(lambda g: jnp.abs(g) > 1, gradients)
    budgets = st.layer_counts(masks)

    @jax.jit
    def change(params, masks, gradients):
        return rewire_neurons(
            st.apply_masks(masks, params),
            masks,
            st.fan_in(ablate_below=0.9),
            budgets,
            drop_scores=st.magnitude(params),
            grow_scores=st.magnitude(gradients),
            fraction=0.3,
        )

    whole = change(params, masks, gradients)
    spread = change(*(helpers.sharded(tree) for tree in (params, masks, gradients)))
    helpers.assert_same(spread, whole)
    assert split_of(st.per_output(), "w", (64, 48)).number == 48


# --- Superposition --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cia", "caa"])
@pytest.mark.parametrize("prune_each", [True, False])
@pytest.mark.parametrize("structure", [st.n_of_m(2, 4), st.fan_in()])
def test_the_superposed_ticket_keeps_the_structure(kind, prune_each, structure):
    params = {"w": jax.random.normal(jax.random.key(0), (8, 6))}
    sup = st.superposition(
        kind, sparsity=None, prune_each=prune_each, groups=structure.groups
    )
    method = st.static(sparsity=0.5, where="w").replace(structure=structure)
    tickets = [st.init_topology(method, jax.random.key(i), params) for i in range(3)]
    state = sup.init(params, tickets[0].masks)
    update = jax.jit(sup.update)
    for ticket in tickets:
        state = update(state, params, ticket.masks)
    average, masks = jax.jit(sup.result)(state)
    check_structure(structure, masks)
    assert int(st.count(masks)) == 24
    assert not np.asarray(average["w"])[~np.asarray(masks["w"])].any()


def test_a_sparsity_beside_groups_is_refused():
    with pytest.raises(ValueError, match="sparsity must be None with groups="):
        st.superposition("cia", sparsity=0.5, groups=st.per_output())


# --- Masks by scores ------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("structure", [st.n_of_m(1, 4), st.fan_in()])
def test_masks_by_scores_have_the_structure(structure, scope):
    params = {
        "a": {"kernel": jax.random.normal(jax.random.key(0), (8, 4))},
        "b": {"kernel": 2 * jax.random.normal(jax.random.key(1), (12, 4))},
    }
    masks = st.prune_in_rounds(
        lambda params, masks: st.magnitude(params),
        params,
        sparsity=0.75,
        rounds=2,
        scope=scope,
        structure=structure,
    )
    check_structure(structure, masks)
    assert int(st.count(masks)) == 20
    if structure == st.fan_in():  # the larger weights are b's
        assert by_output(masks["b"]["kernel"]) == [3 if scope == "layer" else 4] * 4
    drawn = st.resample(jax.random.key(2), masks, groups=structure.groups)
    check_structure(structure, drawn)
    assert int(st.hamming(drawn, masks)) > 0


def test_a_sparsity_that_is_not_of_the_structure_is_refused():
    with pytest.raises(ValueError, match="sparsity with structure=2:4 must be"):
        st.prune_in_rounds(
            lambda params, masks: params,
            PARAMS,
            sparsity=0.9,
            structure=st.n_of_m(2, 4),
        )
