"""Values that XLA computes in several places; run by `test_fused` as a user would.

Prints one JSON object: for each case what was found. Compiled as by default: the tests
switch optimizations of the backend off, which may hide what is looked for.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import sup_tickets as st
from sup_tickets.block_selection import select_n_m
from sup_tickets.models import ConvNet, LeNet5, make_model
from sup_tickets.ramps import polynomial

# name: model, shape of the images. The first two are those of the fault: with a maximum
# over a reshape their kernels were wrong by 39 to 45%.
QUICK = {
    "conv": (ConvNet(features=(64,) * 4), (3, 8, 8, 3)),
    "vgg16": (make_model("vgg16", stages=((64, 64), (64, 64))), (6, 16, 16, 3)),
}
FULL = {
    **{f"vgg16 at {b}": (make_model("vgg16"), (b, 32, 32, 3)) for b in (6, 50, 100)},
    "conv at 5": (ConvNet(features=(64,) * 4), (5, 8, 8, 3)),
    "lenet5": (LeNet5(), (7, 28, 28, 1)),
    "resnet20": (make_model("resnet20"), (5, 32, 32, 3)),
    "mobilenet_v2": (make_model("mobilenet_v2", small_images=True), (6, 32, 32, 3)),
    "wrn22x2": (make_model("wrn22x2"), (3, 32, 32, 3)),
    "vit": (
        make_model("vit_s16", image_size=32, patch_size=4, depth=2),
        (7, 32, 32, 3),
    ),
}


def variables_of(model, images):
    """Made-up ones: drawing the model's own would have to be compiled first."""
    rng = np.random.default_rng(0)

    def make(path, leaf):
        if len(leaf.shape) > 1:
            return rng.standard_normal(leaf.shape, np.float32) * leaf.shape[-1] ** -0.5
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(make, shapes))


def gradient_error(model, shape):
    """The largest relative error of a kernel's gradient, compiled to op by op."""
    images = jax.random.normal(jax.random.key(1), shape)
    labels = jnp.arange(shape[0]) % 10
    variables = variables_of(model, images)
    rest = {name: part for name, part in variables.items() if name != "params"}

    @jax.jit
    @jax.grad
    def gradient(params):
        scores, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"]
        )
        log_p = jax.nn.log_softmax(scores)
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

    program = gradient.lower(variables["params"])
    # Without fusions every value is computed once: bit by bit what `jax.disable_jit`
    # gives, and compiled as one program instead of a hundred.
    one_by_one = {
        "xla_disable_hlo_passes": "fusion",
        "xla_backend_optimization_level": 0,
    }
    compiled, plain = (
        program.compile(compiler_options=options)(variables["params"])
        for options in ({}, one_by_one)
    )
    errors = jax.tree.map(
        lambda a, b: (
            float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) if a.ndim > 1 else 0.0
        ),
        compiled,
        plain,
    )
    return max(jax.tree.leaves(errors))


def normalized(x):
    return (x - x.mean()) * lax.rsqrt(x.var() + 1e-5)


CHAINS = {
    "affine": lambda x, s: x * s[0] + s[1],
    "batch norm": lambda x, s: normalized(x) * s[0] + s[1],
    "softmax": lambda x, s: jnp.exp(x * s[0]) / jnp.exp(x * s[0]).sum() / 3,
    "moment": lambda x, s: (x * s[0] + jnp.square(x) * s[1]) / (1 - s[0] ** 3) + x / 3,
    "swish": lambda x, s: jax.nn.sigmoid(x * s[0]) * x / x.size + s[1],
}


def wrong_counts():
    """How many masks have not the count asked for, scores made in the same program."""

    @jax.jit
    def masks(x, s, k, fraction):
        scores = {name: chain(x, s) for name, chain in CHAINS.items()}
        # A fraction that a schedule computes, as the training loop's.
        part = 0.3 * (1 + jnp.cos(jnp.pi * fraction)) / 2
        old = jax.tree.map(lambda v: v > 0.1, scores)
        old = {name: mask | (x > 1) for name, mask in old.items()}
        new = st.rewire(
            scores, old, drop_scores=scores, grow_scores=scores, fraction=part
        ).masks
        return (
            st.select(scores, jax.tree.map(lambda _: k, scores)),
            st.select_globally(scores, k),
            select_n_m(scores, 2, 4, where=lambda *_: True),
            old,
            new,
        )

    wrong = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.standard_normal((48, 52), np.float32))
        s = jnp.asarray(rng.uniform(0.1, 0.9, 2).astype(np.float32))
        k = int(rng.integers(1, x.size))
        each, together, grouped, old, new = jax.device_get(
            masks(x, s, k, jnp.float32(rng.uniform()))
        )
        wrong += sum(int(mask.sum()) != k for mask in each.values())
        wrong += sum(int(mask.sum()) for mask in together.values()) != k
        wrong += sum(
            bool((m.reshape(12, 4, 52).sum(1) != 2).any()) for m in grouped.values()
        )
        wrong += sum(int(old[n].sum()) != int(new[n].sum()) for n in old)
    return wrong


def keys_made_once():
    """Whether the masks read no score but through the result of a loop."""

    def mask(x, s):
        return st.select({"w": x * s[0] + s[1]}, {"w": 7})["w"]

    x, s = jnp.ones((40, 40)), jnp.ones(2)
    program = jax.jit(mask).lower(x, s).compile().as_text()
    entry = program[program.index("ENTRY") :].splitlines()
    (mask,) = [line for line in entry if "pred[40,40]" in line and " fusion(" in line]
    names = mask.split("fusion(")[1].split(")")[0].split(", ")
    made = [
        next(line for line in entry if line.split(" = ")[0].strip() == name)
        for name in names
    ]
    return not [line for line in made if "parameter(" in line or "fusion(" in line]


def missed_corners():
    """How many schedules are not exactly 0 where they should be."""
    spans = [3, 7, 49, 90, 1000]

    @jax.jit
    def corners(ends):
        ghosts = [st.fading(n)(ends[i]) for i, n in enumerate(spans)]
        ramps = [polynomial(0, 0.9, 1, 0, n)(ends[i] - n) for i, n in enumerate(spans)]
        return jnp.stack(ghosts + ramps)

    return int((corners(jnp.asarray(spans)) != 0).sum())


if __name__ == "__main__":
    models = FULL if "full" in sys.argv else QUICK
    found = {name: gradient_error(*case) for name, case in models.items()}
    if "full" not in sys.argv:
        found |= {"wrong counts": wrong_counts(), "made once": keys_made_once()}
        found["missed corners"] = missed_corners()
    print(json.dumps(found))
