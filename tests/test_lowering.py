"""Every program of the library can be lowered for accelerators that are not there.

On an accelerator and on several devices leaves are selected from in another way than on
one CPU: here as there.
"""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sup_tickets as st
from configs.digits import get_config
from experiments.build.experiment import build
from sup_tickets import place_counts, selection
from sup_tickets.superposition import Kind
from sup_tickets.training.state import as_trees, network_of
from tests import test_contract, test_views_contract

PLATFORMS = ("tpu", "cuda")
RUNS = ("granet", "rigl-itop")  # `test_a_method` has all


@pytest.fixture(scope="module", autouse=True)
def on_an_accelerator():
    """Programs as an accelerator runs them; what was traced otherwise is dropped."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (place_counts, selection):
            patch.setattr(module, "on_one_cpu", lambda _: False)
        jax.clear_caches()
        yield
    jax.clear_caches()


def check(name, program, *arguments, **options):
    """Traced once, lowered for each of them."""
    traced = jax.jit(program, **options).trace(*arguments)
    for platform in PLATFORMS:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "func.func public @main" in text, (name, platform)


# --- The programs of a run ------------------------------------------------------------


@pytest.mark.parametrize("method", RUNS)
def test_a_run(method):
    argument = "model=conv,data.batch_size=64,epochs=12,cycles=2,cycle_epochs=1"
    config = get_config(f"{argument},method={method}")
    run = build(config, devices=jax.devices()[:1])
    steps, task = run.steps, run.experiment.task
    state = run.like(run.plan.total_steps).train
    batch, network = run.inputs.batches(0), network_of(state)
    seen = next(iter(run.inputs.splits["test"]()))
    given = (network.params, network.model_state, seen)
    for name, (program, arguments) in {
        "init": (steps.init, (jax.random.key(0),)),
        "train": (steps.train, (state, batch)),
        "topology": (steps.topology, (state, batch)),
        "explore": (steps.explore, (state, batch, 0.5)),
        "metrics": (task.metrics, (*given, jnp.int32(0))),
        "predictions": (task.predict, given),
        "as trees": (as_trees, (network,)),
    }.items():
        check(name, program, *arguments)


# --- The library's own ----------------------------------------------------------------

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)},
    "dense": {"kernel": jnp.ones((16, 8))},
}
MASKS = jax.tree.map(lambda p: p > 0 if p.ndim > 1 else None, PARAMS)


EXPLORED = ("mest", "snfs", "rigl-itop", "srigl", "selfish-rnn")


def methods():
    named = {
        name: st.make_method(name, **options)
        for name, options in test_contract.METHODS.items()
    }
    return named | test_contract.STRUCTURED


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("name", methods())
def test_a_method(name):
    """Its step in the drop-in, which changes the topology too; an exploration."""
    method, params = methods()[name], test_contract.network()
    sparse = st.sparse_training(optax.adam(0.1), method)
    check("drop-in", sparse.update, params, jax.eval_shape(sparse.init, params), params)
    if name in EXPLORED:
        begin = partial(st.init_topology, method, jax.random.key(0))
        explore, state = (
            partial(st.explore_topology, method),
            jax.eval_shape(begin, params),
        )
        check("explore", explore, state, params, params, jnp.int32(4), 0.5)


@pytest.mark.parametrize("prune_each", [False, True])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_superposition(kind, prune_each):
    decay = 0.9 if kind == "cima" else None
    ours = st.superposition(kind, sparsity=0.5, prune_each=prune_each, decay=decay)
    average = jax.eval_shape(ours.init, PARAMS, MASKS)
    check("update", ours.update, average, PARAMS, MASKS)
    check("result", ours.result, average)


@pytest.mark.parametrize("name", test_views_contract.VIEWS)
def test_a_view(name):
    view, key = test_views_contract.VIEWS[name], jax.random.key(1)
    extra = jax.eval_shape(view.init, key, PARAMS)
    check("init", view.init, key, PARAMS)
    check("apply", view.apply, PARAMS, extra, key, True, static_argnums=3)
    check("after", view.after_step, PARAMS, extra, key, jnp.int32(3))

    def loss(trained, extra):
        seen = view.apply(*st.with_trained(PARAMS, extra, trained), key, True)
        return optax.tree.norm(seen, squared=True)

    def gradient(extra):
        return jax.grad(loss)(st.trainable(view, PARAMS, extra), extra)

    check("gradient", gradient, extra)


def forward(params, inputs):
    images = inputs.reshape(-1, 4, 4, 4)
    window = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=window
    )
    return jnp.mean(found, (1, 2)) @ params["dense"]["kernel"][:8]


def scores():
    loss = st.classification_loss(forward)
    batch = (jnp.ones((2, 64)), jnp.zeros(2, jnp.int32))
    return {
        "snip": lambda p: st.snip(loss, p, [batch]),
        "grasp": lambda p: st.grasp(loss, p, [batch]),
        "synflow": lambda p: st.synflow(forward, p, (1, 64)),
        "taylor": lambda p: st.taylor(p, st.total_gradient(loss, p, [batch])),
    }


def test_a_selection_keeps_no_integers_as_large_as_a_leaf():
    """Keys and indices are made in every pass, so that no device has them beside."""
    leaf, flag, number = (jax.ShapeDtypeStruct(s, t) for s, t in SELECTED)

    def change(scores, counts, among):
        return st.select(scores, counts, among=among)

    trees = ({"a": each, "b": each} for each in (leaf, number, flag))
    text = jax.jit(change).lower(*trees).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    assert "f32[96,64]" in entry and "s32[96,64]" not in entry


SELECTED = (((96, 64), jnp.float32), ((96, 64), jnp.bool_), ((), jnp.int32))


@pytest.mark.parametrize("name", ["snip", "grasp", "taylor"])
def test_scores_are_computed_in_full_float32(name):
    """Where a device by default rounds what it multiplies."""
    text = jax.jit(scores()[name]).lower(PARAMS).as_text()
    products = [
        line
        for line in text.splitlines()
        if "dot_general" in line or "convolution(" in line
    ]
    assert products and all("HIGHEST" in line for line in products)


KERNELS = {"conv": PARAMS["conv"]["kernel"], "dense": PARAMS["dense"]["kernel"]}
TRUE = jax.tree.map(lambda p: p > 0, KERNELS)
CONDENSED = st.condense(
    np.ones((16, 8), np.float32), np.eye(16, 8) + np.eye(16, 8, -1) > 0
)
TREES = {
    "prune globally": lambda p: st.prune_to(p, TRUE, sparsity=0.5),
    "prune layers": lambda p: st.prune_to(p, TRUE, sparsity=0.5, scope="layer"),
    "2:4": lambda p: st.select_n_m(p, 2, 4),
    "blocks": lambda p: st.select_blocks(p, {"conv": 2, "dense": 2}, (4, 4)),
    "outputs": lambda p: st.select(p, {"conv": 2, "dense": 2}, groups=st.per_output()),
    "resample": lambda p: st.resample(jax.random.key(0), jax.tree.map(jnp.isfinite, p)),
    "pack": lambda p: st.pack(jax.tree.map(jnp.isfinite, p)),
    "unpack": lambda p: st.unpack(st.pack(jax.tree.map(jnp.isfinite, p)), p),
    "condensed": lambda p: st.condensed_matmul(p["dense"].T, CONDENSED),
    "condensed, one": lambda p: st.condensed_matmul(p["dense"][:, 0], CONDENSED),
    "density": lambda p: st.density(jax.tree.map(jnp.isfinite, p)),
    "overlap": lambda p: st.overlap(TRUE, jax.tree.map(jnp.isfinite, p)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*scores(), *TREES])
def test_a_function_of_trees(name):
    if name in TREES:
        check(name, TREES[name], KERNELS)
    else:
        check(name, scores()[name], PARAMS)
