"""The models: sizes of the papers, hooks, dtypes, initial values, one step each."""

import math
import re
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sup_tickets.models import MODELS, make_model, model_options
from sup_tickets.models.layers import BatchNorm, Layers, bias_init, gelu, halve
from sup_tickets.models.skips import GhostSkips, without_ghosts
from sup_tickets.training.state import completed
from sup_tickets.trees import sparse_leaves
from tests import helpers

# Each model, small enough to run: options, and the shape of a batch of images.
SMALL_RESNET = ({"widths": (4, 8), "blocks": (1, 1)}, (2, 8, 8, 3))
SMALL_MOBILE = {"width": 0.25, "small_images": True}
SMALL = {
    "conv": ({"features": (4, 4)}, (2, 8, 8, 1)),
    "lenet300": ({"hidden": (6, 5)}, (2, 4, 4, 1)),
    "lenet5": ({"features": (3, 4), "hidden": (5,)}, (2, 16, 16, 1)),
    "mlp": ({"features": (6, 5), "batch_norm": True}, (2, 4, 4, 1)),
    "mobilenet_v1": (
        {**SMALL_MOBILE, "blocks": ((32, 1), (64, 2))},
        (2, 8, 8, 3),
    ),
    "mobilenet_v2": (
        {
            **SMALL_MOBILE,
            "stages": ((1, 32, 1, 1), (2, 32, 2, 2)),
            "last_features": 16,
        },
        (2, 8, 8, 3),
    ),
    "resnet104": SMALL_RESNET,
    "resnet18": SMALL_RESNET,
    "resnet20": SMALL_RESNET,
    "resnet32": SMALL_RESNET,
    "resnet32x2": SMALL_RESNET,
    "resnet34": SMALL_RESNET,
    "resnet50": SMALL_RESNET,
    "resnet50_imagenet": (SMALL_RESNET[0], (2, 16, 16, 3)),
    "resnet56": SMALL_RESNET,
    "resnet56x2": SMALL_RESNET,
    "vgg16": ({"stages": ((4,), (4, 8)), "hidden": (8,)}, (2, 8, 8, 3)),
    "vgg19": ({"stages": ((4,), (4, 8))}, (2, 8, 8, 3)),
    "vit_s16": (
        {
            "image_size": 8,
            "patch_size": 4,
            "width": 8,
            "depth": 2,
            "heads": 2,
            "hidden": 16,
        },
        (2, 8, 8, 3),
    ),
    "wrn22x2": ({"widths": (4, 8), "blocks": 1, "stem_width": 4}, (2, 8, 8, 3)),
    "wrn28x10": ({"widths": (4, 8), "blocks": 1, "stem_width": 4}, (2, 8, 8, 3)),
}
# One of each code path, to be compiled; the others differ in sizes alone.
VARIANTS = [
    "conv",
    "lenet300",
    "lenet5",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet50_imagenet",
    "vgg16",
    "vit_s16",
    "wrn22x2",
]
BRIDGED = [
    "conv",
    "mlp",
    "mobilenet_v2",
    "resnet18",
    "vgg16",
    "wrn22x2",
]  # one a family
WITHOUT_3X3 = {"lenet300", "lenet5", "mlp", "vit_s16"}
NO_BATCH_NORM = {"lenet300", "lenet5", "vit_s16"}


def small(name, **options):
    return make_model(name, classes=3, **SMALL[name][0], **options)


def images_of(name):
    return jax.random.normal(jax.random.key(7), SMALL[name][1])


def shapes_of(model, shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    init = partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)


def paths(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# --- Sizes ----------------------------------------------------------------------------


def conv(k, inputs, outputs, bias=False):
    """Weights of a convolution and its batch norm."""
    return k * k * inputs * outputs + (2 + bias) * outputs


def closed_resnet(blocks, widths, classes, *, bottleneck=False, k=3, bias=True):
    """Residual network, counted layer by layer, 3 channels."""
    total, inputs = conv(k, 3, widths[0]), widths[0]
    for stage, (n, width) in enumerate(zip(blocks, widths, strict=True)):
        out = 4 * width if bottleneck else width
        for i in range(n):
            if bottleneck:
                total += conv(1, inputs, width) + conv(3, width, width)
                total += conv(1, width, out)
            else:
                total += conv(3, inputs, width) + conv(3, width, width)
            if inputs != out or (i == 0 and stage > 0):
                total += conv(1, inputs, out)
            inputs = out
    return total + inputs * classes + bias * classes


def closed_wide(depth, widen, classes):
    n = (depth - 4) // 6
    total, inputs = 27 * 16, 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        for i in range(n):
            total += 2 * inputs + 9 * inputs * width + 2 * width + 9 * width**2
            total += inputs * width if i == 0 else 0
            inputs = width
    return total + 2 * inputs + (inputs + 1) * classes


def closed_vgg(features, hidden, classes):
    total, inputs = 0, 3
    for width in features:
        total += conv(3, inputs, width, bias=True)
        inputs = width
    for width in hidden:
        total += (inputs + 3) * width  # weights, bias, batch norm
        inputs = width
    return total + (inputs + 1) * classes


VGG16_FEATURES = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
SOURCED = [
    # Counted on the released code of ToST, VITA-Group/ToST, and of Su et al. 2020.
    ("resnet18", 10, 11_173_962),
    ("resnet18", 100, 11_220_132),
    ("resnet32", 10, 466_906),
    ("resnet104", 10, 1_611_418),
    ("resnet32x2", 10, 1_860_522),
    # Published tables of kuangliu/pytorch-cifar's models, which have the same layers.
    ("resnet34", 10, 21_282_122),
    ("resnet50", 10, 23_520_842),
    ("mobilenet_v1", 10, 3_217_226),
    ("vgg19", 10, 20_040_522),
    # torchvision's documentation, num_params; MobileNet has 1281 more per class.
    ("resnet50_imagenet", 1000, 25_557_032),
    ("mobilenet_v2", 1000, 3_504_872),
    ("mobilenet_v2", 10, 3_504_872 - 990 * 1281),
    # TensorFlow's table of MobileNet V1, and Keras' trainable parameters.
    ("mobilenet_v1", 1000, 4_231_976),
    # "DeiT-S" of DeiT and timm.
    ("vit_s16", 1000, 22_050_664),
    # osmr/imgclsmob's table; 36.5M in Zagoruyko and Komodakis 2016.
    ("wrn28x10", 10, 36_479_194),
]
COUNTED = [
    ("resnet20", 10, closed_resnet((3,) * 3, (16, 32, 64), 10)),
    ("resnet20", 100, closed_resnet((3,) * 3, (16, 32, 64), 100)),
    ("resnet32", 100, closed_resnet((5,) * 3, (16, 32, 64), 100)),
    ("resnet32x2", 100, closed_resnet((5,) * 3, (32, 64, 128), 100)),
    ("resnet34", 100, closed_resnet((3, 4, 6, 3), (64, 128, 256, 512), 100)),
    ("resnet56", 10, closed_resnet((9,) * 3, (16, 32, 64), 10)),
    ("resnet56", 100, closed_resnet((9,) * 3, (16, 32, 64), 100)),
    ("resnet56x2", 10, closed_resnet((9,) * 3, (32, 64, 128), 10)),
    ("resnet56x2", 100, closed_resnet((9,) * 3, (32, 64, 128), 100)),
    (
        "resnet50",
        100,
        closed_resnet((3, 4, 6, 3), (64, 128, 256, 512), 100, bottleneck=True),
    ),
    ("resnet104", 100, closed_resnet((17,) * 3, (16, 32, 64), 100, bottleneck=True)),
    ("wrn22x2", 10, closed_wide(22, 2, 10)),
    ("wrn22x2", 100, closed_wide(22, 2, 100)),
    ("wrn28x10", 100, closed_wide(28, 10, 100)),
    ("vgg16", 10, closed_vgg(VGG16_FEATURES, [512], 10)),
    ("vgg16", 100, closed_vgg(VGG16_FEATURES, [512], 100)),
    (
        "vgg19",
        100,
        closed_vgg([64] * 2 + [128] * 2 + [256] * 4 + [512] * 8, [], 100),
    ),
    # 267K and 431K in SNIP, Lee et al. 2019.
    ("lenet300", 10, 785 * 300 + 301 * 100 + 101 * 10),
    ("lenet5", 10, 26 * 20 + (25 * 20 + 1) * 50 + (16 * 50 + 1) * 500 + 501 * 10),
    # 8 x 8 x 1 pixels are halved twice.
    (
        "conv",
        10,
        conv(3, 1, 32) + conv(3, 32, 32) + conv(3, 32, 64) + conv(3, 64, 64)
        + (2 * 2 * 64 + 1) * 10,
    ),
    ("mlp", 10, 65 * 256 + 257 * 128 + 129 * 10),
]  # fmt: skip


def full_shape(name):
    if name in ("conv", "mlp"):
        return (1, 8, 8, 1)
    if name in ("lenet300", "lenet5"):
        return (1, 28, 28, 1)
    side = 224 if name in ("resnet50_imagenet", "vit_s16") else 32
    return (1, side, side, 3)


@pytest.mark.parametrize(("name", "classes", "count"), SOURCED + COUNTED)
def test_number_of_parameters(name, classes, count):
    variables = shapes_of(make_model(name, classes=classes), full_shape(name))
    assert size(variables["params"]) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_every_model_is_counted():
    assert {name for name, *_ in SOURCED + COUNTED} == set(MODELS) == set(SMALL)
    # The closed forms agree with the published numbers.
    widths = (64, 128, 256, 512)
    assert closed_resnet((2, 2, 2, 2), widths, 100) == 11_220_132
    deep = partial(closed_resnet, (3, 4, 6, 3), widths, bottleneck=True)
    assert deep(1000, k=7) == 25_557_032
    assert closed_wide(28, 10, 10) == 36_479_194


def test_the_classifier_of_sup_tickets_has_no_bias():
    model = make_model("resnet50", classifier_bias=False)
    params = shapes_of(model, (1, 32, 32, 3))["params"]
    assert size(params) == 23_520_842 - 10
    assert set(params["classifier"]) == {"kernel"}


def test_weight_layers():
    def layers(name):
        params = shapes_of(make_model(name), full_shape(name))["params"]
        kernels = [path for path in paths(params) if path.endswith("kernel")]
        return len([path for path in kernels if "shortcut" not in path])

    depths = {"resnet20": 20, "resnet56": 56, "resnet104": 155, "resnet34": 34}
    depths |= {"resnet50": 50, "resnet50_imagenet": 50}
    # Their names count the 3 shortcuts, not the classifier.
    depths |= {"wrn22x2": 22 - 3 + 1, "wrn28x10": 28 - 3 + 1}
    depths |= {"vgg16": 15, "vgg19": 17, "mobilenet_v1": 28, "mobilenet_v2": 53}
    assert {name: layers(name) for name in depths} == depths


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_small_images_change_strides_alone(name):
    sides = []

    def look(layers, x, y, name):
        sides.append(y.shape[1])
        return y

    for side, small_images in ((224, False), (32, True)):
        model = make_model(name, small_images=small_images, bridge=look)
        params = shapes_of(model, (1, side, side, 3))["params"]
        assert size(params) == {"1": 3_217_226, "2": 2_236_682}[name[-1]]
    n = len(sides) // 2
    assert (sides[0], sides[n - 1]) == (112, 7)
    assert (sides[n], sides[-1]) == (32, 2 if name == "mobilenet_v1" else 4)


def test_width_multiplier():
    def features(width, name="mobilenet_v2"):
        model = make_model(name, width=width)
        params = shapes_of(model, (1, 32, 32, 3))["params"]
        return [params[key]["kernel"].shape[-1] for key in ("conv", "conv_last")]

    assert features(0.5) == [16, 1280]
    assert features(1.4) == [48, 1792]  # 44.8 is nearer to 48 than to 40
    assert features(0.3) == [16, 1280]  # 9.6 rounds to 8, less than 90% of it


# --- Hooks, dtypes, statistics --------------------------------------------------------


@pytest.fixture(scope="module")
def variables_of():
    """Initial variables of small models, each made once."""
    made = {}

    def get(name):
        if name not in made:
            init = jax.jit(partial(small(name).init, train=False))
            made[name] = init(jax.random.key(0), images_of(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fields_and_scores(name):
    model = small(name)
    assert (model.dtype, model.classes) == (jnp.float32, 3)
    options = model_options(name)
    assert {"activation", "bridge"} <= set(options)
    for option in ("bn_momentum", "bn_unbiased"):
        assert (option in options) == (name not in NO_BATCH_NORM)
    for dtype in (jnp.float32, jnp.bfloat16):
        init = partial(small(name, dtype=dtype).init_with_output, train=False)
        images = jax.ShapeDtypeStruct(SMALL[name][1], jnp.float32)
        scores, variables = jax.eval_shape(init, jax.random.key(0), images)
        assert (scores.shape, scores.dtype) == ((2, 3), jnp.float32)
        assert ("batch_stats" in variables) == (name not in NO_BATCH_NORM)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("name", VARIANTS)
def test_activation_is_reached_everywhere(name):
    seen = []

    def record(x):
        seen.append(x.shape)
        return nn.relu(x)

    assert shapes_of(small(name, activation=record), SMALL[name][1])
    hidden = {"lenet300": 2, "lenet5": 3, "mlp": 2, "conv": 2, "vgg16": 4}
    hidden |= {"vit_s16": 2, "resnet18": 5, "wrn22x2": 5}
    hidden |= {"resnet50_imagenet": 7}
    hidden |= {"mobilenet_v1": 5, "mobilenet_v2": 7}
    assert len(seen) == hidden[name]


def bridged_names(name, **options):
    names = []

    def record(layers, x, y, path):
        assert x.ndim == y.ndim
        names.append(path)
        return y

    variables = shapes_of(small(name, bridge=record, **options), SMALL[name][1])
    return names, variables["params"]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_bridge_sees_every_layer_of_its_kind_once(name):
    names, params = bridged_names(name)
    kernels = {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in paths(params).items()
        if path.endswith("kernel")
    }
    spatial = {path for path, shape in kernels.items() if shape[:2] == (3, 3)}
    hidden = {path for path in kernels if re.search(r"(conv|dense)\d$", path)}
    assert len(names) == len(set(names))
    assert set(names) == (hidden if name in WITHOUT_3X3 else spatial)
    assert names


def test_names_of_bridges():
    names, params = bridged_names("resnet18")
    assert names[:4] == [
        "conv", "stage1/block1/conv1", "stage1/block1/conv2", "stage2/block1/conv1"
    ]  # fmt: skip
    assert "stage2/block1/conv1/kernel" in paths(params)
    assert "stage2/block1/bn_shortcut/scale" in paths(params)
    assert bridged_names("conv")[0] == ["conv1", "conv2"]
    assert bridged_names("vgg16")[0] == ["stage1/conv1", "stage2/conv1", "stage2/conv2"]
    assert bridged_names("mobilenet_v2")[0] == [
        "conv", "stage1/block1/conv2", "stage2/block1/conv2", "stage2/block2/conv2"
    ]  # fmt: skip
    # The stem of ImageNet is 7 x 7.
    assert bridged_names("resnet50_imagenet")[0] == [
        f"stage{i}/block1/conv2" for i in (1, 2)
    ]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("project", [False, True])
def test_ghost_skips_are_layers_beside_others_and_leave_no_trace(
    name, project, variables_of
):
    images = images_of(name)
    plain, variables = small(name), variables_of(name)

    def added(strength):
        model = small(name, bridge=GhostSkips(strength, project=project))
        return model.init_with_output(jax.random.key(0), images, train=False)

    scores, both = jax.jit(added)(0.5)
    params, old = paths(both["params"]), paths(variables["params"])
    names, _ = bridged_names(name)
    ghosts = {path.split("_ghost")[0] for path in set(params) - set(old)}
    assert ghosts == set(names) if project else ghosts <= set(names)
    # The others are as they were, and so are they all once the ghosts are gone.
    chex.assert_trees_all_equal(without_ghosts(both), dict(variables))
    again = completed(variables["params"], both["params"])
    chex.assert_trees_all_equal(again, both["params"])
    chosen = paths(sparse_leaves(both["params"]))
    assert not any(sparse for path, sparse in chosen.items() if "_ghost" in path)

    @jax.jit
    def apply(variables, strength):
        model = small(name, bridge=GhostSkips(strength, project=project))
        return model.apply(variables, images, train=False)

    np.testing.assert_array_equal(
        apply(both, 0.0), jax.jit(partial(plain.apply, train=False))(variables, images)
    )
    assert (scores != apply(both, 0.0)).any()


def test_a_projection_is_small_at_the_start():
    """Deviation 1e-4 s / sqrt(1e-8 s^2 + 1e-5), s of the sum of the channels."""
    for s, deviation in ((1, 0.0316070), (4, 0.1254912), (8, 0.2452557)):
        x = jax.random.normal(jax.random.key(0), (64, 8, 8, 4)) * s / 2
        x = (x - x.sum(3).mean() / 4) * s / x.sum(3).std()

        class Bridged(nn.Module):
            @nn.compact
            def __call__(self, x):
                y = jnp.zeros((64, 8, 8, 6))
                return GhostSkips(1.0)(Layers(train=True), x, y, "conv1")

        branch, _ = Bridged().init_with_output(jax.random.key(1), x)
        assert branch.shape == (64, 8, 8, 6)
        np.testing.assert_allclose(branch.std(), deviation, rtol=1e-4)
        np.testing.assert_array_equal(branch[..., 0], branch[..., 5])


def test_counts_of_ghosts():
    """ToST's code on ResNet-18, which does not bridge the stem."""
    model = make_model("resnet18", bridge=GhostSkips(1.0, project=True))
    params = paths(shapes_of(model, (1, 32, 32, 3))["params"])
    ghosts = {n: p for n, p in params.items() if "_ghost" in n and "stage" in n}
    convolutions = [p.size for n, p in ghosts.items() if n.endswith("_ghost/kernel")]
    assert sum(convolutions) == 1_220_608
    assert sum(p.size for p in ghosts.values()) - sum(convolutions) == 7_680


@pytest.mark.parametrize("name", BRIDGED)
def test_the_identity_bridge_changes_no_bit(name, variables_of):
    variables, images = variables_of(name), images_of(name)
    scores = [
        jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(
            variables, images
        )
        for model in (small(name), small(name, bridge=lambda layers, x, y, path: y))
    ]
    chex.assert_trees_all_equal(*scores)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_step_and_bfloat16(name, variables_of):
    variables, images = variables_of(name), images_of(name)
    params = variables["params"]
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss_of(params, rest, dtype):
        scores, changed = small(name, dtype=dtype).apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(scores)[:, 0].mean(), (scores, changed)

    def step(params, rest, dtype):
        gradients, aux = jax.grad(loss_of, has_aux=True)(params, rest, dtype)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), *aux

    new, scores, changed = jax.jit(partial(step, dtype=jnp.float32))(params, rest)
    for leaf in jax.tree.leaves((new, scores, changed)):
        assert leaf.dtype == jnp.float32
        assert jnp.isfinite(leaf).all()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new, params)
    assert moved["classifier"]["kernel"]
    if name not in NO_BATCH_NORM:
        for old, leaf in zip(*map(jax.tree.leaves, (rest, changed)), strict=True):
            assert (old != leaf).any()

    half = partial(loss_of, dtype=jnp.bfloat16)
    _, (near, changed) = jax.jit(half)(params, rest)
    assert (near != scores).any()
    np.testing.assert_allclose(near, scores, atol=0.1)
    for leaf in jax.tree.leaves((near, changed)):
        assert leaf.dtype == jnp.float32
        assert jnp.isfinite(leaf).all()
    types = jax.eval_shape(partial(step, dtype=jnp.bfloat16), params, rest)
    assert {leaf.dtype for leaf in jax.tree.leaves(types)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("unbiased", "variance"), [(True, 38 / 3), (False, 38 / 4)])
def test_running_statistics_as_in_pytorch(unbiased, variance):
    # Of 4 values, with the mean 4 and deviations -3, -2, 0 and 5.
    x = jnp.asarray([[[[1.0], [2.0]]], [[[4.0], [9.0]]]])

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Layers(train=True, bn_unbiased=unbiased).norm(x, "bn")

    variables = Norm().init(jax.random.key(0), x)
    assert paths(variables["batch_stats"]) == {"bn/mean": 0, "bn/var": 1}
    y, changed = Norm().apply(variables, x, mutable=["batch_stats"])
    statistics = changed["batch_stats"]["bn"]
    # running = 0.9 * running + 0.1 * batch: PyTorch's momentum is 0.1.
    np.testing.assert_allclose(statistics["mean"], 0.9 * 0 + 0.1 * 4, rtol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 * 1 + 0.1 * variance, rtol=1e-6)
    # The batch itself is normalized by the variance of n in either case.
    np.testing.assert_allclose(y, (x - 4) / np.sqrt(9.5 + 1e-5), rtol=1e-5)


def test_batch_norm_is_flax_s_but_for_its_running_variance():
    x = jax.random.normal(jax.random.key(0), (6, 3, 5)) * 3 + 1
    flax = nn.BatchNorm(use_running_average=False, momentum=0.7)
    variables = flax.init(jax.random.key(0), x)
    params = {"scale": jnp.arange(5.0), "bias": jnp.arange(5.0) - 2}
    variables = {**variables, "params": params}
    y, new = flax.apply(variables, x, mutable=["batch_stats"])
    for unbiased in (False, True):
        own = BatchNorm(train=True, momentum=0.7, unbiased=unbiased)
        z, changed = own.apply(variables, x, mutable=["batch_stats"])
        np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-5)
        old, new_var = 0.7, new["batch_stats"]["var"] - 0.7
        scale = 18 / 17 if unbiased else 1.0
        np.testing.assert_allclose(
            changed["batch_stats"]["var"], old + scale * new_var, rtol=1e-5
        )
        np.testing.assert_allclose(
            changed["batch_stats"]["mean"], new["batch_stats"]["mean"], rtol=1e-5
        )
        still = BatchNorm(train=False).apply({**variables, **changed}, x)
        as_flax = nn.BatchNorm(use_running_average=True).apply(
            {**variables, **changed}, x
        )
        np.testing.assert_allclose(still, as_flax, rtol=1e-5, atol=1e-5)


def test_the_statistics_of_one_pixel_and_of_no_number():
    norm = BatchNorm(train=True, momentum=0.0)
    for x, variance in (([[3.0, 4.0]], 0.0), ([[1.0, jnp.nan], [3.0, 2.0]], 2.0)):
        x = jnp.asarray(x)
        _, changed = norm.init_with_output(jax.random.key(0), x)
        y, changed = norm.apply(changed, x, mutable=["batch_stats"])
        # With momentum 0 they are those of the batch, as re-estimation wants.
        assert changed["batch_stats"]["var"][0] == variance
        assert jnp.isfinite(y[:, 0]).all()
    assert jnp.isnan(changed["batch_stats"]["var"][1])


def test_running_variances_are_those_of_the_whole_batch_on_a_mesh():
    mesh = helpers.mesh(data=4)
    x = jnp.asarray([[1.0], [2.0], [4.0], [9.0]])
    norm = BatchNorm(train=True, momentum=0.0)
    variables = norm.init(jax.random.key(0), x)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    apply = jax.jit(partial(norm.apply, mutable=["batch_stats"]))
    _, changed = apply(variables, spread)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 38 / 3, rtol=1e-6)


# --- The same scores layer by layer ---------------------------------------------------


def by_hand(variables):
    """Convolution and batch norm, dense, from flat variables, in evaluation mode."""
    params, stats = paths(variables["params"]), paths(variables["batch_stats"])

    def conv(x, path, stride=1):
        kernel = params[f"{path}/kernel"]
        pad = [(kernel.shape[0] // 2,) * 2] * 2
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + params[f"{path}/bias"] if f"{path}/bias" in params else x

    def norm(x, path):
        x = (x - stats[f"{path}/mean"]) / jnp.sqrt(stats[f"{path}/var"] + 1e-5)
        return x * params[f"{path}/scale"] + params[f"{path}/bias"]

    def dense(x, path):
        return x @ params[f"{path}/kernel"] + params[f"{path}/bias"]

    return conv, norm, dense


def resnet_by_hand(variables, x):
    conv, norm, dense = by_hand(variables)
    x = nn.relu(norm(conv(x, "conv"), "bn"))
    for stage, stride in (("stage1", 1), ("stage2", 2)):
        at, shortcut = f"{stage}/block1", x
        y = nn.relu(norm(conv(x, f"{at}/conv1", stride), f"{at}/bn1"))
        y = norm(conv(y, f"{at}/conv2"), f"{at}/bn2")
        if stride == 2:
            shortcut = conv(x, f"{at}/conv_shortcut", 2)
            shortcut = norm(shortcut, f"{at}/bn_shortcut")
        x = nn.relu(y + shortcut)
    return dense(x.mean((1, 2)), "classifier")


def wide_by_hand(variables, x):
    conv, norm, dense = by_hand(variables)
    x = conv(x, "conv")
    for stage, stride in (("stage1", 1), ("stage2", 2)):
        at = f"{stage}/block1"
        before = nn.relu(norm(x, f"{at}/bn1"))
        if stride == 2:
            x = conv(before, f"{at}/conv_shortcut", 2)
        y = nn.relu(norm(conv(before, f"{at}/conv1", stride), f"{at}/bn2"))
        x = x + conv(y, f"{at}/conv2")
    return dense(nn.relu(norm(x, "bn")).mean((1, 2)), "classifier")


def vgg_by_hand(variables, x):
    conv, norm, dense = by_hand(variables)
    for name, i in (("stage1", 1), ("stage2", 1), ("stage2", 2)):
        x = nn.relu(norm(conv(x, f"{name}/conv{i}"), f"{name}/bn{i}"))
        x = halve(x) if (name, i) != ("stage2", 1) else x
    x = norm(nn.relu(dense(x.mean((1, 2)), "dense1")), "bn1")
    return dense(x, "classifier")


@pytest.mark.parametrize(
    ("name", "scores_by_hand"),
    [("resnet18", resnet_by_hand), ("wrn22x2", wide_by_hand), ("vgg16", vgg_by_hand)],
)
def test_scores_layer_by_layer(name, scores_by_hand, variables_of):
    leaves, structure = jax.tree.flatten(variables_of(name))
    keys = jax.random.split(jax.random.key(5), len(leaves))
    # Positive, for the variances; wide enough for every layer to matter.
    noise = [
        jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    variables = jax.tree.unflatten(
        structure, [a + b for a, b in zip(leaves, noise, strict=True)]
    )
    images = images_of(name)
    scores = jax.jit(partial(small(name).apply, train=False))(variables, images)
    with jax.numpy_rank_promotion("allow"):
        by = jax.jit(scores_by_hand)(variables, images)
    np.testing.assert_allclose(scores, by, rtol=1e-4)


# --- Initial values, pieces -----------------------------------------------------------


def test_initial_values():
    x = jnp.zeros((1, 4, 4, 64))

    class Two(nn.Module):
        conv_init: str
        dense_init: str

        @nn.compact
        def __call__(self, x):
            layers = Layers(
                train=False, conv_init=self.conv_init, dense_init=self.dense_init
            )
            return layers.dense(layers.conv(x, 128, "conv", bias=True), 256, "dense")

    def params(*names):
        return Two(*names).init(jax.random.key(0), x)["params"]

    torch = params("torch", "torch")
    for layer, fan_in in (("conv", 9 * 64), ("dense", 128)):
        for leaf in torch[layer].values():
            limit = fan_in**-0.5
            assert 0.95 * limit < jnp.abs(leaf).max() <= limit
            np.testing.assert_allclose(leaf.std(), limit / 3**0.5, rtol=0.15)
    fan_out = params("fan_out", "normal")
    np.testing.assert_allclose(
        fan_out["conv"]["kernel"].std(), (2 / (9 * 128)) ** 0.5, rtol=0.02
    )
    np.testing.assert_allclose(fan_out["dense"]["kernel"].std(), 0.01, rtol=0.02)
    assert not fan_out["conv"]["bias"].any()
    assert not fan_out["dense"]["bias"].any()


@pytest.mark.parametrize(
    ("name", "path", "std"),
    [
        ("resnet18", "stage1/block1/conv2/kernel", (3 * 9 * 48) ** -0.5),
        ("resnet18", "classifier/kernel", (3 * 48) ** -0.5),
        ("resnet32", "stage1/block1/conv2/kernel", (2 / (9 * 48)) ** 0.5),
        ("resnet32", "classifier/kernel", (3 * 48) ** -0.5),
        ("resnet32x2", "classifier/kernel", 0.01),
        ("wrn22x2", "stage1/block1/conv2/kernel", (2 / (9 * 48)) ** 0.5),
        ("vgg16", "stage2/conv1/kernel", (2 / (9 * 48)) ** 0.5),
        ("vgg16", "dense1/kernel", 0.01),
        ("mobilenet_v1", "block1/conv2/kernel", (2 / 48) ** 0.5),
        ("mobilenet_v1", "block1/conv1/kernel", (2 / (9 * 48)) ** 0.5),
        ("resnet50_imagenet", "stage1/block1/conv2/kernel", (2 / (9 * 48)) ** 0.5),
        ("vit_s16", "block1/qkv/kernel", 0.02),
    ],
)
def test_initial_spread_of_models(name, path, std):
    options, shape = {"classes": 20}, (1, 8, 8, 3)
    if "resnet" in name:
        stages = 4 if name in ("resnet18", "resnet50_imagenet") else 3
        options |= {"blocks": (1,) + (0,) * (stages - 1), "widths": (48,) * stages}
    elif name.startswith("wrn"):
        options |= {"blocks": 1, "widths": (48,), "stem_width": 48}
    elif name == "vgg16":
        options |= {"stages": ((48,), (48,)), "hidden": (48,)}
    elif name == "mobilenet_v1":
        options |= {"width": 1.5, "blocks": ((32, 1),)}
    else:
        options |= {"image_size": 8, "patch_size": 4, "width": 48, "depth": 1}
    init = jax.jit(partial(make_model(name, **options).init, train=False))
    params = init(jax.random.key(0), jnp.zeros(shape))["params"]
    np.testing.assert_allclose(paths(params)[path].std(), std, rtol=0.1)


def test_biases_start_within_the_limit_of_pytorch():
    biases = bias_init("torch", 25)(jax.random.key(0), (1000,), jnp.float32)
    assert 0.19 < jnp.abs(biases).max() <= 0.2
    assert not bias_init("fan_out", 25)(jax.random.key(0), (9,), jnp.float32).any()


def test_halving_leaves_out_an_odd_last_pixel():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(halve(x)[0, :, :, 0], [[6, 8]])


def test_padding_is_symmetric_at_every_stride():
    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Layers(train=False).conv(x, 1, "conv", stride=2)

    x = jnp.ones((1, 4, 4, 1))
    kernel = jnp.ones((3, 3, 1, 1))
    y = One().apply({"params": {"conv": {"kernel": kernel}}}, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 6], [6, 9]])  # as in PyTorch


def test_gelu_is_exact():
    np.testing.assert_allclose(gelu(jnp.asarray(1.0)), 0.8413447, rtol=1e-6)


def test_attention_is_softmax_over_the_tokens(variables_of):
    # Permuting the patches, with their positions, permutes nothing of the class token.
    variables, images = variables_of("vit_s16"), images_of("vit_s16")
    apply = jax.jit(partial(small("vit_s16").apply, train=False))
    flipped = images.reshape(2, 2, 4, 8, 3)[:, ::-1].reshape(images.shape)
    params = dict(variables["params"])
    params["positions"] = params["positions"][:, jnp.array([0, 3, 4, 1, 2])]
    np.testing.assert_allclose(
        apply(variables, images), apply({"params": params}, flipped), atol=1e-6
    )


def test_bad_options_are_told():
    with pytest.raises(ValueError, match=r"unknown model 'resnet3'; did you mean 'res"):
        make_model("resnet3")
    for name in MODELS:
        with pytest.raises(ValueError, match=r"no option 'clases'; .* 'classes'"):
            make_model(name, clases=3)
    with pytest.raises(ValueError, match="classes must be a whole number"):
        make_model("resnet20", classes=0)
    key, images = jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    for options, message in (
        ({"conv_init": "fanout"}, r"conv_init must be one of .*did you mean 'fan_out'"),
        ({"dense_init": "norm"}, r"dense_init must be one of .* got 'norm'"),
        ({"widths": (4, 4)}, "blocks and widths"),
    ):
        with pytest.raises(ValueError, match=message):
            make_model("resnet20", **options).init(key, images, train=False)
    with pytest.raises(ValueError, match=r"images must be 224 x 224 .* got 8 x 8"):
        make_model("vit_s16").init(key, images, train=False)
    bad = make_model("vit_s16", image_size=8, patch_size=3)
    with pytest.raises(ValueError, match="image_size must be a multiple of 3, got 8"):
        bad.init(key, images, train=False)
