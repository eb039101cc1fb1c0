"""Every optimizer of the installed Optax: it keeps the promises, or is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import sup_tickets as st

# No two leaves share a shape, so a slot of a kernel's shape is one of its weights.
SHAPES = {"kernel": (7, 5), "head": {"kernel": (5, 3)}, "bias": (5,)}
FROZEN = {"kernel": "train", "head": "frozen", "bias": "train"}
LINEAR = optax.linear_schedule(0.1, 0.01, 20)


def never(step):
    return step < 2


def by_rank(params):
    return jax.tree.map(lambda p: "matrix" if p.ndim > 1 else "vector", params)


# Name, optimizer, per-weight slots of every kernel.
WORKS = {
    "adabelief": (optax.adabelief(0.1), 2),
    "adadelta": (optax.adadelta(10.0), 2),
    "adafactor": (optax.adafactor(0.1), 1),
    "adafactor, factored": (
        optax.adafactor(0.1, min_dim_size_to_factor=3, momentum=0.9),
        1,
    ),
    "adagrad": (optax.adagrad(0.1), 1),
    "adam": (optax.adam(0.1), 2),
    "adamax": (optax.adamax(0.1), 2),
    "adamaxw": (optax.adamaxw(0.1), 2),
    "adamw": (optax.adamw(0.1), 2),
    "adan": (optax.adan(0.1), 4),
    "amsgrad": (optax.amsgrad(0.1), 3),
    "fromage": (optax.fromage(0.1), 0),
    "lamb": (optax.lamb(0.1), 2),
    "lars": (optax.lars(0.1), 1),
    "lion": (optax.lion(0.1), 1),
    "nadam": (optax.nadam(0.1), 2),
    "nadamw": (optax.nadamw(0.1), 2),
    "noisy_sgd": (optax.noisy_sgd(0.1, key=0), 0),
    "novograd": (optax.novograd(0.1), 1),
    "optimistic_adam": (optax.optimistic_adam(0.1), 3),
    "optimistic_adam_v2": (optax.optimistic_adam_v2(0.1), 3),
    "optimistic_gradient_descent": (optax.optimistic_gradient_descent(0.1), 1),
    "polyak_sgd": (optax.polyak_sgd(), 0),
    "radam": (optax.radam(0.1), 2),
    "rmsprop": (optax.rmsprop(0.1, initial_scale=1.0, centered=True, momentum=0.9), 3),
    "rprop": (optax.rprop(0.1), 2),
    "sgd": (optax.sgd(0.1, momentum=0.9, nesterov=True), 1),
    "sign_sgd": (optax.sign_sgd(0.1), 0),
    "sm3": (optax.sm3(0.1), 1),
    "yogi": (optax.yogi(0.1), 2),
    # contrib
    "ademamix": (contrib.ademamix(0.1), 3),
    "adopt": (contrib.adopt(0.1), 2),
    "cocob": (contrib.cocob(), 5),
    "dadapt_adamw": (contrib.dadapt_adamw(), 3),
    "dog": (contrib.dog(0.1), 1),
    "dowg": (contrib.dowg(0.1), 1),
    "mechanize": (contrib.mechanize(optax.adam(0.1)), 3),
    "momo": (contrib.momo(0.1), 1),
    "momo_adam": (contrib.momo_adam(0.1), 2),
    "muon": (contrib.muon(0.1), 1),
    "prodigy": (contrib.prodigy(), 4),
    "reduce_on_plateau": (
        optax.chain(optax.adam(0.1), contrib.reduce_on_plateau()),
        2,
    ),
    "sam": (
        contrib.sam(optax.adam(0.1), optax.sgd(0.01), opaque_mode=True),
        2,
    ),
    "schedule_free": (
        contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1, b1=0.9),
        1,
    ),
    "schedule_free_adamw": (contrib.schedule_free_adamw(0.1), 2),
    "schedule_free_sgd": (contrib.schedule_free_sgd(0.1), 1),
    "simplified_ademamix": (contrib.simplified_ademamix(0.1), 2),
    "sophia": (contrib.sophia(0.1, update_interval=2), 2),
    "split_real_and_imaginary": (
        contrib.split_real_and_imaginary(optax.adam(0.1)),
        2,
    ),
    # parts and wrappers
    "adaptive_grad_clip": (
        optax.chain(optax.adaptive_grad_clip(0.5), optax.trace(0.9), optax.scale(-0.1)),
        1,
    ),
    "add_noise": (optax.chain(optax.add_noise(0.1, 0.5, 0), optax.adam(0.1)), 2),
    "apply_if_finite": (optax.apply_if_finite(optax.adam(0.1), 5), 2),
    "centralize": (optax.chain(optax.centralize(), optax.sgd(0.1, momentum=0.9)), 1),
    "clip, decay": (
        optax.chain(
            optax.clip(0.5),
            optax.clip_by_block_rms(0.5),
            optax.clip_by_global_norm(0.5),
            optax.add_decayed_weights(LINEAR),
            optax.normalize_by_update_norm(),
            optax.sgd(LINEAR, momentum=0.9),
        ),
        1,
    ),
    "conditionally_transform": (
        optax.chain(
            optax.sgd(0.1), optax.conditionally_transform(optax.trace(0.9), never)
        ),
        1,
    ),
    "conditionally_mask": (optax.conditionally_mask(optax.adam(0.1), never), 2),
    "ema": (optax.chain(optax.sgd(0.1), optax.ema(0.9)), 1),
    "freeze, by prefix": (
        optax.chain(
            optax.adam(0.1),
            optax.freeze({"kernel": False, "head": True, "bias": False}),
        ),
        2,
    ),
    "inject_hyperparams": (
        optax.inject_hyperparams(optax.adamw)(learning_rate=LINEAR),
        2,
    ),
    "keep_params_nonnegative": (
        optax.chain(optax.sgd(0.1, momentum=0.9), optax.keep_params_nonnegative()),
        1,
    ),
    "masked, a function": (
        optax.masked(optax.adam(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        2,
    ),
    "named_chain": (
        optax.named_chain(("adam", optax.adam(0.1)), ("half", optax.scale(0.5))),
        2,
    ),
    "normalize": (optax.chain(contrib.normalize(), optax.sgd(0.1, momentum=0.9)), 1),
    "partition, labels by function": (
        optax.partition({"matrix": optax.adam(0.1), "vector": optax.sgd(0.1)}, by_rank),
        2,
    ),
    "scale_by_param_block": (
        optax.chain(
            optax.sgd(0.1, momentum=0.9),
            optax.scale_by_param_block_norm(),
            optax.scale_by_param_block_rms(),
        ),
        1,
    ),
    "scale_by_backtracking_linesearch": (
        optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)),
        0,
    ),
    "snapshot": (optax.chain(optax.sgd(0.1), optax.snapshot("u", lambda u: u)), 1),
    "stateless": (
        optax.chain(optax.stateless(lambda u, p: u), optax.sgd(0.1, momentum=0.9)),
        1,
    ),
    "trace": (optax.chain(optax.trace(0.9), optax.scale(-0.1)), 1),
    "zero_nans": (optax.chain(optax.zero_nans(), optax.adam(0.1)), 2),
    "two sparse leaves of three in partition": (
        optax.partition({"train": optax.yogi(0.1), "frozen": optax.adam(0.1)}, FROZEN),
        2,
    ),
}
# Of later versions than the lowest that setup.py allows.
NEWER = {
    (optax, "signum"): (lambda make: make(0.1), 1),
    (optax, "measure_with_ema"): (
        lambda make: optax.chain(make(lambda u: u, decay=0.9), optax.sgd(0.1)),
        1,
    ),
    (contrib, "galore"): (lambda make: make(0.1, rank=2, update_proj_gap=1), 0),
    (contrib, "madgrad"): (lambda make: make(0.1), 3),
}
WORKS |= {
    name: (build(getattr(place, name)), slots)
    for (place, name), (build, slots) in NEWER.items()
    if hasattr(place, name)
}
EXTRA = {
    "polyak_sgd": ("value",),
    "momo": ("value",),
    "momo_adam": ("value",),
    "reduce_on_plateau": ("value",),
    "sam": ("grad_fn",),
    "sophia": ("obj_fn",),
    "scale_by_backtracking_linesearch": ("value", "grad", "value_fn"),
}


def draw(key, scale=1.0):
    def leaf(shape, seed):
        return scale * jax.random.normal(jax.random.fold_in(key, seed), shape)

    return {
        "kernel": leaf(SHAPES["kernel"], 0),
        "head": {"kernel": leaf(SHAPES["head"]["kernel"], 1)},
        "bias": leaf(SHAPES["bias"], 2),
    }


def masks_at(seed):
    key = jax.random.fold_in(jax.random.key(7), seed)
    masks = jax.tree.map(lambda w: w > 0, draw(key))
    return {**masks, "bias": None}


TARGET = draw(jax.random.key(11))


def loss(params, noise):
    # A term with all weights, so that no Hessian is diagonal.
    whole = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
    parts = jax.tree.map(
        lambda p, t, n: jnp.sum((p - t - n) ** 2), params, TARGET, noise
    )
    return sum(jax.tree.leaves(parts)) + 0.01 * whole**2


def is_number(array):
    return not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def with_masks(state, masks):
    return state._replace(method=state.method._replace(masks=masks))


def step_of(tx, extra, traces):
    def step(params, state, noise):
        traces.append(None)
        objective = lambda p, *_: loss(p, noise)  # noqa: E731
        value, gradients = jax.value_and_grad(objective)(params)
        known = {
            "value": value,
            "grad": gradients,
            "value_fn": objective,
            "obj_fn": objective,
            "grad_fn": jax.grad(objective),
        }
        updates, state = tx.update(
            gradients, state, params, **{name: known[name] for name in extra}
        )
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def check_as_new(tx, params, state, slots):
    """Weights 0 and slots as ``tx.init`` gives them wherever a weight is inactive."""
    masks = st.masks_of(state)
    fresh = tx.init(st.apply_masks(masks, params))
    for weight, mask in zip(
        (params["kernel"], params["head"]["kernel"]),
        (masks["kernel"], masks["head"]["kernel"]),
        strict=True,
    ):
        dead = ~np.asarray(mask)
        assert not np.any(np.asarray(weight)[dead].view(np.uint32))
        found = 0
        for slot, new in zip(
            jax.tree.leaves(state.inner), jax.tree.leaves(fresh), strict=True
        ):
            if slot.shape == weight.shape:
                found += 1
                np.testing.assert_array_equal(
                    np.asarray(slot)[dead], np.asarray(new)[dead]
                )
        assert found == slots


def traces_of_plain(tx, extra):
    """How often the step of an optimizer that is not wrapped is compiled."""
    traces = []
    step = step_of(tx, extra, traces)
    params = draw(jax.random.key(0))
    state = tx.init(params)
    for i in range(4):
        noise = draw(jax.random.key(100 + i), 0.01)
        params, state = step(*jax.tree.map(jnp.array, (params, state)), noise)
    return len(traces)


@pytest.mark.parametrize("name", WORKS)
@jax.numpy_dtype_promotion("standard")
@jax.numpy_rank_promotion("allow")
def test_slots_of_inactive_weights_are_as_new(name):
    """The masks change twice: two thirds of all weights die or are born on the way."""
    tx, slots = WORKS[name]
    params = draw(jax.random.key(0))
    wrapped = st.sparse_training(tx, st.static(sparsity=0.5))
    state = with_masks(wrapped.init(params), masks_at(0))
    params = st.keep_sparse(params, state)
    state = state._replace(inner=tx.init(params))
    traces = []
    step = step_of(wrapped, EXTRA.get(name, ()), traces)
    params, state = jax.tree.map(jnp.array, (params, state))  # to be donated
    form = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    moved = jax.tree.map(lambda p: np.zeros(p.shape, bool), params)
    for i in range(9):
        if i in (3, 5):
            state = with_masks(state, masks_at(i))
        params, state = step(params, state, draw(jax.random.key(100 + i), 0.01))
        check_as_new(tx, params, state, slots)
        if i >= 5:
            moved = jax.tree.map(lambda m, p: m | (np.asarray(p) != 0), moved, params)
    # A line search is compiled twice by plain Optax too, as others are by old versions.
    plainly = 1 if len(traces) == 1 else traces_of_plain(tx, EXTRA.get(name, ()))
    assert len(traces) == plainly, "recompiled"
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == form
    arrays = (params, state.inner)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(arrays) if is_number(a))
    if "freeze" in name or "nonnegative" in name or name == "conditionally_mask":
        return
    for there, mask in (
        (moved["kernel"], st.masks_of(state)["kernel"]),
        (moved["head"]["kernel"], st.masks_of(state)["head"]["kernel"]),
    ):
        assert np.all(there[np.asarray(mask)])


LOOKAHEAD = optax.LookaheadParams(*2 * [draw(jax.random.key(0))])
REFUSED = {
    "lbfgs": (optax.lbfgs(), "lbfgs"),
    "acprop": (contrib.acprop(0.1), "acprop"),
    "acprop, deep": (
        optax.chain(optax.clip(1.0), optax.apply_if_finite(contrib.acprop(0.1), 3)),
        "acprop",
    ),
    "lookahead": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "lookahead"),
    "MultiSteps": (optax.MultiSteps(optax.adam(0.1), 2), "MultiSteps"),
    "MultiSteps, deep": (
        optax.chain(
            optax.clip(1.0),
            optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        ),
        "MultiSteps",
    ),
    "apply_every": (
        optax.chain(optax.apply_every(4), optax.adam(0.1)),
        "apply_every",
    ),
    "flatten": (optax.flatten(optax.adam(0.1)), "flatten"),
    "sam": (contrib.sam(optax.sgd(0.1), optax.sgd(0.01)), "opaque_mode=True"),
    "dpsgd": (
        contrib.dpsgd(0.1, 1.0, 1.0, 0),
        "differentially_private_aggregate",
    ),
    "scale_by_backtracking_linesearch": (
        optax.chain(
            optax.sgd(0.1),
            optax.scale_by_backtracking_linesearch(5, store_grad=True),
        ),
        "store_grad=False",
    ),
    "scale_by_zoom_linesearch": (
        optax.chain(optax.sgd(0.1), optax.scale_by_zoom_linesearch(5)),
        "line search",
    ),
    "sparse_training": (
        st.sparse_training(optax.sgd(0.1), st.static(sparsity=0.5)),
        "sparse_training",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_wrapped_is_refused_by_name(name):
    tx, message = REFUSED[name]
    wrapped = st.sparse_training(tx, st.static(sparsity=0.5))
    params = LOOKAHEAD if name == "lookahead" else LOOKAHEAD.fast
    with pytest.raises(ValueError, match=f"cannot wrap .*{message}") as error:
        wrapped.init(params)
    assert "\n" not in str(error.value)


# Those of which an alias above is made, and what is no optimizer by itself.
PARTS = {
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "add_decayed_weights",
    "freeze",
    "identity",
    "inject_stateful_hyperparams",
    "masked",
    "multi_transform",
    "normalize_by_update_norm",
    "partition",
    "scale",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "selective_transform",
    "set_to_zero",
    "stateless_with_tree_map",
    "with_extra_args_support",
    "differentially_private_aggregate",
}


def test_the_table_has_every_optimizer_of_optax():
    known = PARTS | {name.split(",")[0] for name in (*WORKS, *REFUSED)}
    for module in (optax, contrib):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            name = name.removeprefix("_deprecated_")
            returned = str(inspect.signature(function).return_annotation)
            if "GradientTransformation" not in returned or name in known:
                continue
            assert name.startswith("scale_by_"), f"{name} is not in the table"
