"""Networks of which a task trains a part, and the bundles that keep it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sup_tickets.models import ResNet
from sup_tickets.models.conv import ConvNet
from sup_tickets.training.bundles import (
    Bundle,
    Mask,
    backbone_digest,
    bundle_of,
    load_bundle,
    save_bundle,
    storage_bits,
)
from sup_tickets.training.classification import image_classification
from sup_tickets.training.learner import begin, scaled, step_of
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.network_files import save_sparse
from sup_tickets.training.partly import (
    chosen,
    frozen,
    frozen_parts,
    seen_through,
    viewed,
)
from sup_tickets.training.state import Network, completed
from sup_tickets.trees import named_leaves
from sup_tickets.views import ksm, piggyback
from sup_tickets.views.kernels import convolutions

EXAMPLE = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)


def is_head(name):
    return name.startswith("classifier/")


def is_own(name):
    return is_head(name) or "/bn" in f"/{name}"


@functools.cache
def parts():
    """A small network, and its backbone."""
    net = linen_network(ConvNet(classes=2, features=(3, 4)), EXAMPLE)
    params, state = jax.jit(net.init)(jax.random.key(0))
    none = jax.tree.map(lambda _: None, params)
    return net, Network(params, state, none)


def prepare(batch, key):
    return batch


def batch_of(seed):
    images = jax.random.normal(jax.random.key(seed), (6, 4, 4, 1))
    return images, jnp.arange(6) % 2


def trained(view, own=is_own, statistics=True, steps=3, seed=0):
    """The parameters and the state of `seen_through`, after a few steps."""
    net, backbone = parts()
    params, state = viewed(
        view, backbone.params, backbone.model_state, jax.random.key(1)
    )

    def rule(name):
        part, _, leaf = name.partition("/")
        return part == "scores" or own(leaf)

    partly = frozen(seen_through(net, view), trained=rule, statistics=statistics)
    task = image_classification(partly, prepare=prepare)
    tx = optax.chain(
        optax.scale_by_adam(), scaled(lambda name: 2.0 if "score" in name else 1.0)
    )
    step = step_of(task, tx)
    learned = begin(*frozen_parts(params, state, rule), tx)
    with jax.numpy_dtype_promotion("standard"):  # of Optax's Adam
        for i in range(steps):
            learned, report = step(
                learned, batch_of(seed + i), jax.random.key(3), i, 2e-3
            )
    assert np.isfinite(report["loss"])
    return completed(learned.params, params), learned.model_state["state"]


def logits(network, seed=9):
    net, _ = parts()
    images = batch_of(seed)[0]
    return np.asarray(
        net.apply(
            network.params, network.model_state, images, False, jax.random.key(0), 0
        )[0]
    )


# --- Parts ----------------------------------------------------------------------------


def test_only_what_is_chosen_is_trained_and_the_rest_is_as_it_was():
    _, backbone = parts()
    params, state = trained(None, own=is_head, statistics=False)
    for name, leaf in named_leaves(params["weights"]):
        before = dict(named_leaves(backbone.params))[name]
        assert (leaf == before).all() == (not is_head(name)), name
    # Features are those of evaluation: no statistic moves.
    jax.tree.map(
        np.testing.assert_array_equal, state["statistics"], backbone.model_state
    )
    _, state = trained(None)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state["statistics"], backbone.model_state
    )
    assert all(jax.tree.leaves(moved))


def test_frozen_needs_a_leaf():
    _, backbone = parts()
    with pytest.raises(ValueError, match="trained chooses no leaf"):
        frozen_parts(backbone.params, backbone.model_state, lambda name: False)


# --- Bundles --------------------------------------------------------------------------


VIEWS = {
    "ksm": (ksm(), 0.5),
    "kernels": (ksm(soft=False), 0.0),
    "elements": (piggyback(where=convolutions), 0.0),
    "none": (None, 0.0),
}


@functools.cache
def made(name, seed=0):
    view, scale = VIEWS[name]
    params, state = trained(view, seed=seed, steps=4)
    if view is not None:  # some kernels off, at random
        key = jax.random.key(5)
        params["scores"] = jax.tree.map(
            lambda s: 0.01 * jax.random.normal(key, s.shape), params["scores"]
        )
    return params, state, bundle_of(view, params, state, own=is_own, scale=scale)


@pytest.mark.parametrize("name", VIEWS)
def test_a_bundle_is_what_the_trained_network_sees(name, tmp_path):
    net, backbone = parts()
    params, state, bundle = made(name)
    through = seen_through(net, VIEWS[name][0])
    wanted = through.apply(params, state, batch_of(9)[0], False, jax.random.key(0), 0)[
        0
    ]
    ours = logits(bundle.network(backbone))
    if name == "ksm":  # 8 bits of a scale: half a step of 1/255 of 0.5
        np.testing.assert_allclose(ours, wanted, atol=0.02)
    else:
        np.testing.assert_array_equal(ours, wanted)
    # And again from the file, bit for bit.
    digest = backbone_digest(backbone, is_head)
    size = save_bundle(
        tmp_path / "a.safetensors", bundle, backbone=digest, provenance={"task": 1}
    )
    again, origin = load_bundle(tmp_path / "a.safetensors", backbone=digest)
    assert origin["task"] == 1
    np.testing.assert_array_equal(logits(again.network(backbone)), ours)
    bits = storage_bits(bundle, is_head)
    assert storage_bits(again, is_head) == bits
    header = 8 + int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    rounded = sum(
        -(-mask.on.size // 8) * 8 - mask.on.size for mask in bundle.masks.values()
    )
    assert 8 * (size - header) == sum(bits.values()) + rounded


def test_nothing_of_an_earlier_task_changes_to_the_bit(tmp_path):
    """Zero forgetting: the backbone is never written to."""
    _, backbone = parts()
    digest = backbone_digest(backbone, is_head)
    file = tmp_path / "1.safetensors"
    save_bundle(file, made("ksm")[2], backbone=digest, provenance={})
    first = logits(load_bundle(file, backbone=digest)[0].network(backbone))
    others = [made("ksm", seed)[2] for seed in (20, 40)]
    assert backbone_digest(backbone, is_head) == digest
    assert (logits(others[1].network(backbone)) != first).any()
    again = logits(load_bundle(file, backbone=digest)[0].network(backbone))
    np.testing.assert_array_equal(again, first)


def test_scales_are_rounded_to_8_bits():
    """Golden of part E: [[.01, .004], [-.002, .006]] is seen as [[1, .5], [0, 1]]."""
    score = jnp.array([[0.01, 0.004], [-0.002, 0.006]])[None, None]
    weights = {"conv": {"kernel": jnp.ones((3, 3, 2, 2))}}
    params = {"weights": weights, "scores": {"conv": {"kernel": {"score": score}}}}
    state = {"kept": None, "statistics": {}}
    bundle = bundle_of(ksm(), params, state, own=lambda name: False, scale=0.5)
    on, codes = bundle.masks["conv/kernel"]
    np.testing.assert_array_equal(on[0, 0], [[True, False], [False, True]])
    np.testing.assert_array_equal(codes[0, 0], [[0, 255], [0, 0]])
    seen = bundle.network(Network(weights, {}, None)).params["conv"]["kernel"]
    np.testing.assert_array_equal(seen[1, 2], [[1, 0.5], [0, 1]])


def test_storage_of_resnet_14_is_that_of_the_specification():
    """18,992 kernels against 170,928 weights; 2.6 bits a kernel with a fifth off."""
    model = ResNet(blocks=(2, 2, 2), widths=(16, 32, 64))
    shape = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    params, state = jax.eval_shape(linen_network(model, shape).init, jax.random.key(0))
    kernels = {
        name: leaf.shape
        for name, leaf in named_leaves(params)
        if convolutions(name, leaf) and leaf.shape[0] == 3
    }
    places = {
        name: np.ones((1, 1, *shape[2:]), bool) for name, shape in kernels.items()
    }
    assert sum(on.size for on in places.values()) == 18_992
    kernel = Bundle({n: Mask(on, None) for n, on in places.items()}, {}, {})
    element = Bundle(
        {n: Mask(np.ones(shape, bool), None) for n, shape in kernels.items()}, {}, {}
    )
    assert storage_bits(kernel, is_head)["masks"] == 18_992
    assert storage_bits(element, is_head)["masks"] == 170_928 == 9 * 18_992
    soft = {}
    for name, on in places.items():
        off = on.copy().reshape(-1)
        off[::5] = False
        soft[name] = Mask(off.reshape(on.shape), np.zeros(on.shape, np.uint8))
    bits = storage_bits(Bundle(soft, {}, {}, 0.5), is_head)
    total = (bits["masks"] + bits["scales"]) / 18_992
    assert total == pytest.approx(2.6, abs=0.005) and total < 9
    own = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (params, state))
    head = storage_bits(Bundle({}, chosen(own[0], is_own), own[1]), is_head)
    # Five norms of each width, those of the stem and of the shortcuts included.
    channels = 16 * 5 + 32 * 5 + 64 * 5
    assert head["norms"] == 32 * 4 * channels
    assert head["head"] == 32 * (64 * 10 + 10) and not head["weights"]


def test_a_bundle_of_another_backbone_is_refused(tmp_path):
    _, backbone = parts()
    file = tmp_path / "a.safetensors"
    digest = backbone_digest(backbone, is_head)
    save_bundle(file, made("kernels")[2], backbone=digest, provenance={})
    other = backbone.replace(
        params=jax.tree.map(lambda leaf: leaf + 1, backbone.params)
    )
    with pytest.raises(ValueError, match="is a bundle of another backbone, "):
        load_bundle(file, backbone=backbone_digest(other, is_head))
    # The head of a backbone is nobody's.
    headless = jax.tree.map(lambda leaf: leaf, backbone.params)
    headless["classifier"]["bias"] = headless["classifier"]["bias"] + 1
    assert backbone_digest(backbone.replace(params=headless), is_head) == digest


def test_damaged_and_other_files_are_refused(tmp_path):
    _, backbone = parts()
    file = tmp_path / "a.safetensors"
    save_bundle(file, made("ksm")[2], backbone="", provenance={})
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        load_bundle(file, backbone="")
    save_sparse(file, backbone)
    with pytest.raises(ValueError, match="it is not a sup-tickets task bundle"):
        load_bundle(file, backbone="")
