"""Where the parts of a state lie, and what topology steps move between devices."""

import functools
import itertools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sup_tickets.masks import random_masks
from sup_tickets.method_state import init_topology
from sup_tickets.methods import make_method
from sup_tickets.pruning import prune_to
from sup_tickets.saliency import magnitude
from sup_tickets.selection import select, select_globally
from sup_tickets.superposition import superposition
from sup_tickets.topology import rewire
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.libraries.nnx import nnx_network
from sup_tickets.training.mesh import data_mesh, data_shardings
from sup_tickets.training.processes import agreed
from sup_tickets.training.sharding import Layout, parse_rule
from sup_tickets.transforms import sparse_training
from sup_tickets.updates import explore_topology, update_topology
from sup_tickets.views import edge_popup
from tests import helpers

SHAPES = {
    "conv": (3, 3, 16, 32),
    "dense": {"kernel": (64, 128), "bias": (128,)},
    "head": (128, 10),
    "odd": (7, 9),
}
RULES = (("dense/kernel", P(None, "model")), ("head", P("model")))
LAYOUTS = {"8x1": 1, "4x2": 2, "2x4": 4}


@functools.cache
def layout_of(name):
    model = LAYOUTS[name]
    return Layout(data_mesh(model=model), fsdp=True, rules=RULES if model > 1 else ())


def arrays(seed=0):
    """Few values, so that many tie."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(np.round(4 * rng.standard_normal(shape)) / 4, "f4"),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def masks_of(params, seed=0):
    counts = jax.tree.map(lambda w: w.size // 4 if w.ndim > 1 else None, params)
    return random_masks(jax.random.key(seed), params, counts)


def placed(layout, tree, params):
    return jax.tree.map(jax.device_put, tree, layout.of(tree, params))


# --- Layouts --------------------------------------------------------------------------


def test_specs():
    names = ("conv", "dense/kernel", "dense/bias", "head", "odd")
    wanted = {
        "8x1": (P(None, None, None, "data"), P(None, "data"), P(), P("data"), P()),
        "4x2": (
            *(P(None, None, None, "data"), P("data", "model"), P()),
            *(P("model"), P()),  # 10 is no multiple of 4
        ),
        "2x4": (
            *(P(None, None, None, "data"), P("data", "model"), P()),
            *(P("model", "data"), P()),
        ),
    }
    for name, specs in wanted.items():
        found = layout_of(name).specs(arrays())
        assert found == dict(zip(names, specs, strict=True)), name
    assert Layout(data_mesh()).is_replicated


def test_the_first_rule_that_is_found_counts_and_one_beats_the_model():
    mesh = data_mesh(model=2)
    rules = (("kernel", P("model")), ("dense", P()))
    layout = Layout(mesh, rules=rules, annotated={"head": P("model"), "odd": P("data")})
    with pytest.raises(ValueError, match=r"'odd' of shape .* cannot be split as "):
        layout.specs(arrays())
    layout = Layout(mesh, rules=rules, annotated={"head": P("model")})
    found = layout.specs(arrays())
    assert (found["dense/kernel"], found["dense/bias"]) == (P("model"), P())
    assert found["head"] == P("model")
    ruled = Layout(mesh, rules=(("head", P()),), annotated={"head": P("model")})
    assert ruled.specs(arrays())["head"] == P()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing = model", "rules 'nothing' matches no leaf"),
        ("bias = model -  -", "'dense/bias' of shape .128,. is given 3 axes, 'model"),
        ("odd = - model", "of shape .7, 9. cannot be split as '- model': 9 is no mul"),
        ("odd = - data+model", "'- data.model': 9 is no multiple of 8"),
        (
            "head = rows",
            "'head' has the axis 'rows'; those of the mesh are data, model",
        ),
        ("head = model model", "'head' has the axis 'model' twice"),
        ("head", "a rule must look like"),
        ("head =", "a rule must look like"),
        ("he[ad = model", "is not a regular expression"),
    ],
)
def test_rules_that_cannot_be(text, message):
    with pytest.raises(ValueError, match=message):
        Layout(data_mesh(model=2), rules=(parse_rule(text),)).specs(arrays())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"rules": (("head", "model"),)}, r"of the mesh, got \('head', 'model'\)"),
        ({"annotated": {"head": "model"}}, r"of the mesh, got \('head', 'model'\)"),
        ({"rules": (("head", P(P.UNCONSTRAINED)),)}, "of None and axes .*UNCONSTR"),
        ({"rules": ("head = model",)}, "must be an expression and a PartitionSpec"),
        ({"rules": "head = model"}, r"rules must be a sequence of \(expression, "),
        ({"rules": {"head": P("model")}}, r"rules must be a sequence of \(expr"),
    ],
)
def test_what_is_no_rule(said, message):
    with pytest.raises(ValueError, match=message):
        Layout(data_mesh(model=2), **said)


def test_fsdp_over_one_of_several_devices_is_refused():
    with pytest.raises(ValueError, match=r"of the 8 devices one is along 'data'"):
        Layout(data_mesh(model=8), fsdp=True)
    assert Layout(data_mesh(jax.devices()[:1]), fsdp=True).specs(arrays())


def test_meshes():
    assert dict(data_mesh(model=4).shape) == {"data": 2, "model": 4}
    for model in (0, 3, 16):
        with pytest.raises(ValueError, match=f"model={model} must divide the 8 dev"):
            data_mesh(model=model)


def test_what_linen_and_nnx_say_is_honoured():
    columns = (None, "model")
    drawn = nn.initializers.lecun_normal()

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dense(8, kernel_init=nn.with_partitioning(drawn, columns), name="a")(
                x
            )
            return nn.Dense(4, name="b")(x)

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            said = nnx.with_partitioning(drawn, columns)
            self.a = nnx.Linear(4, 8, kernel_init=said, rngs=rngs)
            self.b = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.b(self.a(x))

    x, key, mesh = jnp.ones((2, 4)), jax.random.key(0), data_mesh(model=2)
    for network in (linen_network(Linen(), x), nnx_network(Nnx)):
        params, state = network.init(key)
        logits, _ = network.apply(params, state, x, True, key, 0)
        layout = Layout(mesh, annotated=network.annotated)
        assert logits.shape == (2, 4) and not layout.is_replicated
        names = ("a/bias", "a/kernel", "b/bias", "b/kernel")
        wanted = dict(zip(names, (P(), P(*columns), P(), P()), strict=True))
        assert layout.specs(params) == wanted


def test_other_meshes():
    mesh = helpers.mesh(rows=8)
    found = Layout(mesh, rules=(("head", P("rows")),)).specs(arrays())
    assert (found["head"], found["conv"]) == (P("rows"), P())
    with pytest.raises(ValueError, match="'fsdp' has the axis 'data'; those of the"):
        Layout(mesh, fsdp=True)
    with pytest.raises(
        ValueError, match=r"mesh must have an axis 'data' .* has 'rows'"
    ):
        data_shardings(mesh, batch_size=8)


def specs_in(layout, tree, params):
    leaves = jax.tree_util.tree_flatten_with_path(layout.of(tree, params))[0]
    return {jax.tree_util.keystr(path): leaf.spec for path, leaf in leaves}


@pytest.mark.usefixtures("loose")
def test_all_that_is_per_weight_follows_its_weight():
    params, layout = arrays(), layout_of("4x2")
    wanted = layout.specs(params)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    method = METHODS["rigl-itop"]
    view = edge_popup(density=0.5)
    state = {
        "params": params,
        "slots": jax.eval_shape(tx.init, params),
        "factors": jax.eval_shape(optax.adafactor(1e-3).init, params),
        "method": init_topology(method, 0, params),
        "view": view.init(jax.random.key(0), params),
        "average": superposition("caa", sparsity=0.8).init(params, masks_of(params)),
        "key": jax.random.key(0),
    }
    found = specs_in(layout, state, params)
    kernel = [spec for name, spec in found.items() if "['kernel']" in name]
    # Itself, three moments, masks, masks so far, its score, S and its counts.
    assert kernel.count(wanted["dense/kernel"]) == 9
    assert set(kernel) == {wanted["dense/kernel"], P()}  # factors of Adafactor
    rest = ("['key']", ".count", ".tickets", ".key", "bias']", "['odd']")
    for name, spec in found.items():
        if name.endswith(rest):
            assert spec == P(), name
    assert Layout(data_mesh()).of(state, params).spec == P()


def test_shares():
    params = arrays()
    tree = {"params": params, "key": jax.random.key(0)}
    whole = 8 + 4 * sum(w.size for w in jax.tree.leaves(params))
    own = 8 + 4 * (4608 / 8 + 8192 / 8 + 128 + 1280 / 8 + 63)
    assert layout_of("8x1").share(tree, params) == pytest.approx(own / whole)
    assert Layout(data_mesh()).share(tree, params) == 1
    assert layout_of("8x1").share({}, {}) == 1


# --- The same masks, by exchanging counts ---------------------------------------------

METHODS = {
    name: make_method(name, sparsity=0.8, update_every=4, total_steps=40)
    for name in ("set", "rigl", "rigl-itop", "snfs", "granet")
}
PER_KIND = {
    kind: superposition(kind, sparsity=0.9, decay=decay, packed=False)
    for kind, decay in (("cia", None), ("caa", None), ("cima", 0.5))
}


def selected(scores):
    counts = jax.tree.map(lambda s: s.size // 3, scores)
    return select(scores, counts), select_globally(scores, 2000)


def rewired(params, masks, gradients):
    scores = {"drop_scores": magnitude(params), "grow_scores": magnitude(gradients)}
    return rewire(params, masks, fraction=0.3, **scores)


def pruned(params, masks):
    return (
        prune_to(params, masks, sparsity=0.9, scope="global"),
        prune_to(params, masks, sparsity=0.9, scope="layer"),
    )


def superposed(sup, state, params, masks):
    state = sup.update(state, params, masks)
    return state, sup.result(state)


def cases():
    params, gradients = arrays(0), arrays(1)
    masks = masks_of(params)
    yield "selection", selected, (gradients,)
    yield "rewire", rewired, (params, masks, gradients)
    yield "prune", pruned, (params, masks)
    for kind, sup in PER_KIND.items():
        given = (sup.init(params, masks), params, masks)
        yield kind, partial(superposed, sup), given
    for name, method in METHODS.items():
        state = init_topology(method, 0, params)
        given = (state, params, gradients, jnp.int32(4))
        yield name, partial(update_topology, method), given
    given = (init_topology(METHODS["set"], 0, params), params, gradients, jnp.int32(4))
    yield "explore", partial(explore_topology, METHODS["set"], fraction=0.5), given


CASES: dict[str, Any] = {name: rest for name, *rest in cases()}


@functools.cache
def on_one_device(case):
    function, given = CASES[case]
    return jax.jit(function)(*given)


QUICK = {("rigl", "4x2"), ("cia", "4x2")}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(*both, marks=[] if both in QUICK else pytest.mark.slow)
        for both in itertools.product(CASES, LAYOUTS)
    ],
)
def test_masks_are_the_same_and_counts_alone_are_exchanged(case, name):
    function, given = CASES[case]
    layout, params = layout_of(name), arrays()
    given = [placed(layout, tree, params) for tree in given]
    program = jax.jit(function).lower(*given).compile()
    helpers.assert_exchanges_counts_alone(program, most=3 * 4)
    found = program(*given)
    wanted = on_one_device(case)
    helpers.assert_same(found, wanted)
    # And they are where their weights are.
    places = layout.of(found, params)
    for leaf, place in zip(
        jax.tree.leaves(found), jax.tree.leaves(places), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_copies_that_differ_become_those_of_the_first_device():
    mesh = helpers.mesh(data=8)
    copies = [jax.device_put(np.full(3, i), d) for i, d in enumerate(mesh.devices.flat)]
    place = NamedSharding(mesh, P())
    apart = jax.make_array_from_single_device_arrays((3,), place, copies)
    assert apart.is_fully_replicated  # as JAX sees it
    host = np.ones(2)
    found = agreed(
        {"a": apart, "b": None, "c": host}, {"a": apart, "b": apart, "c": host}
    )
    assert [int(s.data[0]) for s in found["a"].addressable_shards] == [0] * 8
    assert found["a"].sharding == place and found["b"] is None
    assert isinstance(found["c"], np.ndarray) and found["c"].tolist() == [1, 1]


@pytest.mark.parametrize("what", ["superposition", "sparse_training"])
def test_explicit_axes_are_refused(what):
    """The default of `jax.make_mesh`, under which a reshape of a sharded leaf fails."""
    helpers.need_devices(8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    params = {"w": jax.device_put(jnp.ones((16, 8)), NamedSharding(mesh, P("data")))}
    masks = {"w": params["w"] > 0}

    def begin(params, masks):
        if what == "superposition":
            return superposition("cia", sparsity=0.5).init(params, masks)
        method = make_method("set", sparsity=0.5, update_every=4, total_steps=40)
        return sparse_training(optax.sgd(0.1), method).init(params)

    for way in (begin, jax.jit(begin)):
        with pytest.raises(ValueError, match="mesh whose axes are Auto"):
            way(params, masks)
