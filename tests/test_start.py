"""Masks found before training, ToST and lottery tickets, through whole tiny runs."""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.digits import get_config
from experiments.build.experiment import build, comparisons
from experiments.build.start import MASKS
from experiments.build.tost import tost_parts
from experiments.evaluate import evaluate
from experiments.lottery import Options, find_tickets, levels, lottery, main, table
from experiments.run import run
from experiments.runs import stopping
from experiments.runs.stopping import Stopped
from sup_tickets.files import atomic_write
from sup_tickets.masks import count, layer_counts
from sup_tickets.models.skips import without_ghosts
from sup_tickets.orthogonal import orthogonality_error
from sup_tickets.training.network_files import (
    load_sparse,
    provenance_of,
    save_sparse,
)
from sup_tickets.training.state import network_of
from sup_tickets.trees import named_leaves
from tests.test_experiments import config_of, one

pytestmark = pytest.mark.usefixtures("loose")

STATIC = {"method.name": "static", "sup.enabled": False}
GHOSTS = {"tost.parts": "soft+skips", "tost.ghost_fraction": 0.5}
ALL = {**GHOSTS, "tost.parts": "soft+skips+rescale+labels", "tost.rescale_steps": 3}


def started(**changes):
    """The state that a run starts with, on one device."""
    built = build(config_of(**{**STATIC, **changes}), devices=one())
    return built, jax.device_get(built.init().train)


def rows_of(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


def same(a, b):
    def data(leaf):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        )
        return jax.random.key_data(leaf) if is_key else leaf

    jax.tree.map(lambda x, y: np.testing.assert_array_equal(data(x), data(y)), a, b)


# --- Masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
def test_every_mask_is_trained_and_kept(name, tmp_path):
    # What does not change with the masks, or by chance, has no rounds.
    rounds = {} if name in ("random", "magnitude") else {"mask.rounds": 2}
    config = config_of(**STATIC, **rounds, **{"mask.name": name, "train.epochs": 2})
    run(config, tmp_path, devices=one())
    (row,) = rows_of(tmp_path)
    assert (row["active"], row["total"]) == (296, 592)
    path = tmp_path / "final" / "network.safetensors"
    assert provenance_of(path)["masks"] == name
    trained = load_sparse(path)
    same(trained.masks, started(**{"mask.name": name, **rounds})[1].method.masks)
    again = config_of(**STATIC, **{"masks": str(path), "train.epochs": 2})
    run(again, tmp_path / "again", devices=one())
    once_more = load_sparse(tmp_path / "again" / "final" / "network.safetensors")
    same(once_more.params, trained.params)


def test_masks_differ_and_weights_are_kept():
    plain = started()[1]
    # SNIP and Taylor rank alike.
    names = [name for name in MASKS if name != "taylor"]
    rounds = {"synflow": {"mask.rounds": 1}}
    found = {n: started(**{"mask.name": n, **rounds.get(n, {})})[1] for n in names}
    masks = [np.concatenate([np.ravel(m) for m in jax.tree.leaves(s.method.masks)])
             for s in found.values()]  # fmt: skip
    for i, a in enumerate(masks):
        assert all((a != b).any() for b in masks[:i])
    same(found["random"].method.masks, plain.method.masks)
    dense = build(config_of(**STATIC), devices=one())
    weights = dense.steps.begin(jax.random.split(jax.random.key(0))[0]).params
    for state in found.values():
        kept = jax.tree.map(
            lambda w, m: w if m is None else np.where(m, w, 0),
            jax.device_get(weights),
            state.method.masks,
        )
        same(kept, state.params)


def test_ratios_only_keeps_counts_and_redraws_places():
    one_way = started(**{"mask.name": "snip"})[1].method.masks
    other = started(**{"mask.name": "snip", "mask.ratios_only": True})[1].method.masks
    same(layer_counts(one_way), layer_counts(other))
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (one_way, other)), strict=True)
    )


def test_new_weights():
    old = started(**{"mask.name": "snip"})[1]
    new = started(**{"mask.name": "snip", "mask.weights": "new"})[1]
    same(old.method.masks, new.method.masks)
    assert (old.params["dense1"]["kernel"] != new.params["dense1"]["kernel"]).any()


def test_orthogonal_weights():
    changes = {"mask.name": "snip", "mask.orthogonal": True}
    state = started(**changes, **{"mask.orthogonal_gain": 0.5})[1]
    snip = started(**{"mask.name": "snip"})[1].method.masks
    same(layer_counts(snip), layer_counts(state.method.masks))
    assert orthogonality_error(state.params["dense1"]["kernel"], gain=0.5) < 2e-6


@pytest.mark.parametrize(
    ("changes", "passes"),  # of the dense network and of the sparse one, by one example
    [
        ({}, (0, 0)),
        ({"mask.name": "magnitude"}, (0, 0)),
        # 4 examples of each of 10 classes; a gradient is three passes.
        ({"mask.name": "snip", "mask.examples_per_class": 4}, (3 * 40, 0)),
        ({"mask.name": "grasp", "mask.rounds": 2}, (3 * 3 * 2 * 100, 0)),
        ({"mask.name": "synflow"}, (3 * 100, 0)),
        ({"tost.parts": "rescale", "tost.rescale_steps": 3}, (0, 9 * 3 * 256)),
    ],
)
def test_what_a_start_costs(changes, passes):
    built = build(config_of(**{**STATIC, **changes}), devices=one())
    dense, sparse = passes
    found = built.start_flops(dense=1000, sparse=10)
    assert found == 1000 * dense + 10 * sparse


def test_rounds_and_scope_and_pairing_are_reached():
    masks = [
        started(**{"mask.name": "grasp", **changes})[1].method.masks
        for changes in (
            {},
            {"mask.rounds": 4},
            {"mask.scope": "layer"},
            {"mask.examples_per_class": 3},
            # Of one batch both pairings are the same.
            {"mask.pairing": "each"},
            {"mask.temperature": 1.0},
        )
    ]
    for tree in masks:
        assert int(count(tree)) == 296
    flat = [np.concatenate([np.ravel(m) for m in jax.tree.leaves(t)]) for t in masks]
    differ = [(flat[0] != other).any() for other in flat[1:]]
    assert differ[:3] == [True] * 3


def test_masks_start_dynamic_methods_with_tickets(tmp_path):
    changes = {"mask.name": "snip", **ALL}
    run(config_of(**changes), tmp_path, devices=one())
    assert [(r["network"], r["active"]) for r in rows_of(tmp_path)] == [
        *((n, 296) for n in ("phase 1", "ticket 1", "ticket 2", "superposed ticket"))
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mask.name": "snips"}, "config.mask.name must be one of"),
        ({"mask.name": "snip", "method.name": "gmp"}, "'gmp' does not start with"),
        ({"mask.weights": "file"}, "needs a file, config.masks"),
        ({"masks": "nowhere"}, "there is no file 'nowhere'"),
        (
            {"mask.orthogonal": True, "mask.weights": "new"},
            "config.mask.weights must be 'init'",
        ),
        (
            {"mask.orthogonal": True, "method.structure": "fan-in"},
            "orthogonal weights choose their own places",
        ),
        ({"tost.parts": "soft+hard"}, "config.tost.parts must be some of"),
        ({"tost.parts": "soft", "tost.ghost_fraction": 1.0}, "config.tost.ghost_frac"),
        ({"tost.parts": "skips", "tost.ghost_fraction": 0.0}, "config.tost.ghost_f"),
    ],
)
def test_what_cannot_be_is_refused_first(changes, text):
    with pytest.raises(ValueError, match=text):
        build(config_of(**{**STATIC, **changes}), devices=one()).check_files()


def test_too_many_examples():
    with pytest.raises(ValueError, match="examples_per_class=5000 is more than"):
        started(**{"mask.name": "snip", "mask.examples_per_class": 5000})


def test_masks_of_another_run_are_refused(network):
    path = str(network)
    for changes, text in (
        (
            {"method.sparsity": 0.6},
            "has 296 of 592 weights active, sparsity 0.5; config.method.sparsity=0.6 "
            "asks for 237",
        ),
        ({"model.name": "lenet300"}, "is of model 'mlp'"),
        ({"seed": 1}, "found with seed 0, and this run begins with the weights of"),
        ({"mask.name": "snip"}, "has the masks already"),
        ({"method.structure": "fan-in"}, "active weights in one group of leaf"),
    ):
        config = config_of(**{**STATIC, "masks": path, **changes})
        if "model.name" in changes:
            config.model.options = ConfigDict()
        with pytest.raises(ValueError, match=text):
            build(config, devices=one()).check_files()
    other = config_of(**{**STATIC, "masks": path})
    other.model.options.features = (9,)
    with pytest.raises(
        ValueError, match=r"masks of leaf 'classifier/kernel' has shape"
    ):
        build(other, devices=one()).check_files()
    for how in ("new", "file"):
        state = started(**{"masks": path, "seed": 1, "mask.weights": how})[1]
        same(state.method.masks, load_sparse(path).masks)
    same(state.params, load_sparse(path).params)


def relabelled(source, path, **origin):
    """A network file with another label."""
    provenance = {"data": "digits", "model": "mlp", "seed": 0, "sparsity": 0.5}
    network = load_sparse(source)
    save_sparse(path, network, provenance={**provenance, **origin})
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished static run of two epochs."""
    folder = tmp_path_factory.mktemp("static")
    run(config_of(**STATIC, **{"train.epochs": 2}), folder, devices=one())
    return folder


@pytest.fixture(scope="module")
def network(trained):
    return trained / "final" / "network.safetensors"


def refused(text, **changes):
    with pytest.raises(ValueError, match=text) as error:
        build(config_of(**{**STATIC, **changes}), devices=one()).check_files()
    assert "\n" not in str(error.value)


def test_what_a_file_is_is_counted(network, tmp_path):
    dense = build(config_of(**{**STATIC, "method.name": "dense"}), devices=one())
    state = jax.device_get(dense.init().train)
    own = tmp_path / "dense.safetensors"
    origin = {"data": "digits", "model": "mlp", "seed": 0, "sparsity": 0.5}
    save_sparse(own, network_of(state), provenance=origin)
    refused("is of a dense network; it has no masks", masks=str(own))
    # A label that is wrong neither lets through nor keeps out.
    early = relabelled(network, tmp_path / "early.safetensors", sparsity=0.9)
    changes = {"masks": early, "method.sparsity": 0.9}
    refused("has 296 of 592 weights active, sparsity 0.5; .* asks for 59", **changes)
    build(config_of(**STATIC, masks=early), devices=one()).check_files()


def test_a_file_of_other_leaves_is_refused(network):
    text = "masks of leaf 'classifier/kernel' has shape .8, 10. in the file, and is not"
    config = config_of(**STATIC, masks=str(network))
    config.method.options.where = "dense1/kernel"
    with pytest.raises(ValueError, match=text):
        build(config, devices=one()).check_files()


def test_a_finished_run_is_evaluated_without_the_file(network, tmp_path):
    file = tmp_path / "masks.safetensors"
    relabelled(network, file)
    changes = {"masks": str(file), "mask.weights": "file", "train.epochs": 2}
    run(config_of(**STATIC, **changes), tmp_path / "run", devices=one())
    file.unlink()
    (found,) = evaluate(tmp_path / "run", devices=one()).values()
    assert found[0]["accuracy"] == rows_of(tmp_path / "run")[0]["accuracy"]
    refused("there is no file", masks=str(file))
    with pytest.raises(ValueError, match="there is no file"):
        run(config_of(**STATIC, **changes), tmp_path / "other", devices=one())
    assert not (tmp_path / "other").exists()


def test_masks_are_found_where_the_method_is_sparse():
    for name in ("snip", "magnitude"):
        config = config_of(**STATIC, **{"mask.name": name})
        config.method.options.where = "dense1/kernel"
        built = build(config, devices=one())
        state = built.init()
        masks = state.train.method.masks
        assert int(count(masks)) == 256 and masks["classifier"]["kernel"] is None
        same(jax.tree.structure(state), jax.tree.structure(built.like(0)))


@pytest.mark.parametrize("weights", ["init", "new", "file"])
def test_released_rescales_whatever_the_weights(weights, network):
    """Each tensor by one factor, the same at every active weight."""
    start = {"masks": str(network), "mask.weights": weights}
    plain = started(**start)[1]
    parts = {"tost.parts": "rescale", "tost.released": True, "tost.rescale_steps": 3}
    ours = started(**start, **parts)[1]
    same(plain.method.masks, ours.method.masks)
    for name in ("dense1", "classifier"):
        a, b = (np.asarray(s.params[name]["kernel"]) for s in (plain, ours))
        mask = np.asarray(plain.method.masks[name]["kernel"])
        ratio = b[mask] / a[mask]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
        assert abs(ratio[0] - 1) > 1e-3


# --- ToST -----------------------------------------------------------------------------


def test_the_argument_tost():
    parts = {
        text: tost_parts(get_config(f"tost={text}"))
        for text in ("true", "false", "soft+labels", "released")
    }
    assert parts["true"] == parts["released"] == ("soft", "skips", "rescale", "labels")
    assert (parts["false"], parts["soft+labels"]) == ((), ("soft", "labels"))
    assert get_config("tost=released").tost.released
    for argument in ("mask=snip,tost=true", "tost=true,mask=snip"):
        config = get_config(argument)
        assert (config.method.name, config.sup.enabled) == ("static", False)
    config = get_config("mask=snip,method=set,sup=true")
    assert (config.method.name, config.sup.enabled) == ("set", True)
    with pytest.raises(ValueError, match="tost must be true, false, released or some"):
        get_config("tost=maybe")


def test_ghosts_are_gone_after_their_last_epoch(tmp_path):
    changes = {**GHOSTS, "checkpoint.keep_epochs": (0, 1, 6)}
    config = config_of(**STATIC, **changes)
    built = build(config, devices=one())
    assert built.young is not None and built.young.until == 15
    state = built.init().train
    young = {name for name, _ in named_leaves(state.params)}
    plain = {name for name, _ in named_leaves(built.like(15).train.params)}
    assert {n.split("/")[0] for n in young - plain} == {
        "dense1_ghost",
        "dense1_ghost_bn",
    }
    same(
        jax.tree.structure(without_ghosts(state)),
        jax.tree.structure(built.like(15).train),
    )
    run(config, tmp_path, devices=one())
    for name in ("networks/epoch-0", "networks/epoch-1", "final/network"):
        network = load_sparse(tmp_path / f"{name}.safetensors")
        assert {name for name, _ in named_leaves(network.params)} == plain
        assert not jax.tree.leaves(network.model_state)
    kept = load_sparse(tmp_path / "networks" / "epoch-6.safetensors")
    same(kept.params, load_sparse(tmp_path / "final" / "network.safetensors").params)
    assert (
        "ghosts: soft and skips, gone after step 15"
        in (tmp_path / "plan.txt").read_text()
    )


def test_ghosts_live_for_an_epoch_at_least():
    changes = {"tost.ghost_fraction": 0.01, "tost.parts": "soft", "train.epochs": 2}
    built = build(config_of(**STATIC, **changes), devices=one())
    assert built.young is not None and built.young.until == 5


def test_without_ghosts_the_network_is_the_relu_network_bit_for_bit():
    """From the same state, the steps after the ghosts are those of a plain run."""
    haunted = build(config_of(**STATIC, **GHOSTS), devices=one())
    plain = build(config_of(**STATIC), devices=one())
    first, last = haunted.experiment.stages
    state = haunted.init().train
    for step in range(15):
        state, _ = first.steps.train(state, haunted.inputs.batches(step))
    state = first.then(state)
    copy = jax.tree.map(lambda x: x.copy(), state)
    for step in range(15, 18):
        state, a = last.steps.train(state, haunted.inputs.batches(step))
        copy, b = plain.steps.train(copy, plain.inputs.batches(step))
        same(a, b)
    same(state, copy)
    splits = [b.inputs.splits["test"]() for b in (haunted, plain)]
    assert haunted.evaluate(network_of(state), splits[0]) == plain.evaluate(
        network_of(copy), splits[1]
    )


@pytest.mark.parametrize("part", ["soft", "skips", "rescale", "labels"])
def test_every_part_alone_changes_the_run(part, network, tmp_path):
    changes = {"tost.parts": part, "train.epochs": 2}
    if part == "rescale":
        changes["tost.rescale_steps"] = 2
    run(config_of(**STATIC, **changes), tmp_path, devices=one())
    ours, other = map(
        load_sparse, (tmp_path / "final" / "network.safetensors", network)
    )
    same(ours.masks, other.masks)
    assert jax.tree.structure(ours) == jax.tree.structure(other)
    assert (ours.params["dense1"]["kernel"] != other.params["dense1"]["kernel"]).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"tost.soft": "mish"},
        {"tost.sharpness_start": 3.0},
        {"tost.sharpness_end": 5.0},
        {"tost.sharpness_shape": "linear"},
        {"tost.skip_shape": "cosine"},
        {"tost.ghost_fraction": 0.8},
        {"tost.label_smoothing": 0.3},
        {"tost.rescale_steps": 4},
        {"tost.rescale_rate": 0.05},
        {"tost.rescale_algorithm": "adam"},
    ],
)
def test_every_option_of_tost_is_reached(changes):
    """One of them at a time moves the weights after three steps elsewhere."""
    assert (plain_kernel() != kernel_after_steps(**changes)).any()


def kernel_after_steps(**changes):
    base = {**STATIC, **ALL, "train.epochs": 5, "tost.rescale_steps": 30}
    built = build(config_of(**{**base, **changes}), devices=one())
    steps = built.experiment.stages[0].steps
    state = built.init().train
    for step in range(3):
        state, _ = steps.train(state, built.inputs.batches(step))
    return np.asarray(state.params["dense1"]["kernel"])


plain_kernel = functools.cache(kernel_after_steps)


def test_blocks_and_a_resume_across_the_end_of_ghosts(tmp_path, monkeypatch):
    changes = {**STATIC, **ALL, "checkpoint.every_steps": 7}
    run(config_of(**changes), tmp_path / "whole", devices=one())
    folder, stops = tmp_path / "parts", []
    due = stopping.RunCheckpointer.stopping
    monkeypatch.setattr(
        stopping.RunCheckpointer,
        "stopping",
        lambda self, step: (
            (step in (4, 15, 21) and step not in stops and not stops.append(step))
            or due(self, step)
        ),
    )
    for _ in range(3):
        with pytest.raises(Stopped):
            run(config_of(**changes), folder, devices=one())
    run(config_of(**changes), folder, devices=one())
    ours, whole = (
        load_sparse(path / "final" / "network.safetensors")
        for path in (folder, tmp_path / "whole")
    )
    same(ours, whole)
    blocks = {**changes, "train.block_steps": 2}
    run(config_of(**blocks), tmp_path / "blocks", devices=one())
    again = load_sparse(tmp_path / "blocks" / "final" / "network.safetensors")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), again, whole)


def test_as_released_nothing_fades_and_all_of_it_is_counted(trained, tmp_path):
    changes = {**ALL, "tost.released": True, "train.epochs": 2}
    del changes["tost.ghost_fraction"]  # nothing fades
    run(config_of(**STATIC, **changes), tmp_path, devices=one())
    network = load_sparse(tmp_path / "final" / "network.safetensors")
    ghost = network.params["dense1_ghost"]["kernel"]
    assert ghost.shape == (64, 8) and network.masks["dense1_ghost"]["kernel"] is None
    cost = json.loads((tmp_path / "results.json").read_text())["cost"]
    plain = json.loads((trained / "results.json").read_text())["cost"]
    assert cost["inference_flops"] == plain["inference_flops"] + 2 * ghost.size
    assert cost["parameters"] == plain["parameters"] + ghost.size + 16


@pytest.mark.parametrize(("step", "text"), [
    (10, "rewound to step 10, and the ghosts of this run are gone after step 5"),
    (15, "rewound to step 15, and the ghosts"),
    (30, "rewound to step 30, and phase 1 of this run ends at step 30"),
])  # fmt: skip
def test_a_run_cannot_start_after_its_ghosts(step, text, network, tmp_path):
    file = relabelled(network, tmp_path / "late.safetensors", rewind_step=step)
    parts = {"tost.parts": "soft+skips", "mask.weights": "file"}
    refused(text, masks=file, **parts)


def test_a_run_starts_before_its_ghosts_are_gone(network, tmp_path):
    file = relabelled(network, tmp_path / "early.safetensors", rewind_step=5)
    built, state = started(**{**GHOSTS, "masks": file, "mask.weights": "file"})
    assert int(state.step) == 5 and "dense1_ghost" in state.params
    same(jax.tree.structure(state), jax.tree.structure(built.like(5).train))


def test_released_ghosts_of_a_file(network, tmp_path):
    """They are drawn where the file has none, and refused where nothing has them."""
    stays = {"tost.parts": "skips", "tost.released": True}
    start = {"masks": str(network), "mask.weights": "file"}
    built, state = started(**start, **stays)
    same(jax.tree.structure(state), jax.tree.structure(built.like(0).train))
    file = tmp_path / "ghosts.safetensors"
    origin = {"data": "digits", "model": "mlp", "seed": 0}
    save_sparse(file, network_of(state), provenance=origin)
    refused("leaf 'dense1_ghost/kernel' has shape", **{**start, "masks": str(file)})
    again = started(**{**start, "masks": str(file)}, **stays)[1]
    same(again.params, state.params)


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, (2, 3)), (2, (5, 7)), (3, (5, 10)), (4, (10, 15))]
)
def test_the_rate_of_a_short_phase_falls_twice(epochs, steps):
    built = build(config_of(**STATIC, **{"train.epochs": epochs}), devices=one())
    assert built.plan.milestones == steps
    rates = [float(built.learning_rate(s)) for s in (0, steps[0], steps[1])]
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.001], rtol=1e-6)


@pytest.mark.parametrize("drops", [(0,), (2, 2), (6,)])
def test_drops_are_different_epochs_after_the_first(drops):
    with pytest.raises(ValueError, match=r"drop_epochs=.*(from 1 to 5|there twice)"):
        build(config_of(**STATIC, **{"train.drop_epochs": drops}), devices=one())


# --- Lottery tickets ------------------------------------------------------------------


def test_levels():
    assert len(levels(0.972, 0.2)) == 16  # the ladder of ToST's code, and one more
    found = [round(100 * s, 1) for s in levels(0.972, 0.2)]
    assert found == [
        20, 36, 48.8, 59, 67.2, 73.8, 79, 83.2, 86.6, 89.3, 91.4, 93.1, 94.5, 95.6,
        96.5, 97.2,
    ]  # fmt: skip
    assert levels(0.2, 0.2) == []


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_lottery_is_exact_and_goes_on(epoch, tmp_path, capsys):
    config = config_of(**STATIC, **{"train.epochs": 3})
    options = Options(prune_fraction=0.3, rewind_epoch=epoch, targets=(0.25, 0.6))
    found = lottery(config, tmp_path, options, devices=one())
    dense = load_sparse(
        tmp_path / "round-00" / "networks" / f"epoch-{epoch}.safetensors"
    )
    nested = None
    for target, active in ((0.25, 444), (0.6, 237)):
        ticket = load_sparse(found[target])
        assert int(count(ticket.masks)) == active
        origin = provenance_of(found[target])
        assert (origin["sparsity"], origin["rewind_step"]) == (target, 5 * epoch)
        assert origin["made_by"]["jax"] == jax.__version__
        jax.tree.map(
            lambda w, d, m: np.testing.assert_array_equal(
                w, d if m is None else np.where(m, d, 0)
            ),
            ticket.params,
            dense.params,
            ticket.masks,
        )
        (row,) = rows_of(tmp_path / f"ticket-{target:g}")
        assert row["active"] == active
        results = json.loads(
            (tmp_path / f"ticket-{target:g}" / "results.json").read_text()
        )
        cost = results["cost"]
        steps, forward = 15 - 5 * epoch, cost["inference_flops"]
        assert cost["training_flops"] == 3 * forward * 256 * steps
        nested = ticket.masks
    # Each round keeps the largest of what the round before had trained.
    last = load_sparse(tmp_path / "round-02" / "final" / "network.safetensors")
    kernel, mask = last.params["dense1"]["kernel"], nested["dense1"]["kernel"]
    assert not (mask & (kernel == 0)).any()
    assert np.abs(kernel[mask]).min() >= np.abs(kernel[~mask]).max()
    capsys.readouterr()
    lottery(config, tmp_path, options, devices=one())
    assert capsys.readouterr().out.count("this run is finished") == 5
    for name in ("ticket-0.9", "my-notes"):  # one was stopped, one is the user's
        (tmp_path / name).mkdir()
    names = [line.partition(":")[0] for line in table(tmp_path).splitlines()]
    assert names == ["round-00", "round-01", "round-02", "ticket-0.25", "ticket-0.6"]


@pytest.mark.parametrize("variant", ["one-shot", "gradual"])
def test_other_lotteries(variant, tmp_path):
    config = config_of(**STATIC, **{"train.epochs": 4})
    found = lottery(config, tmp_path, Options(variant), devices=one())
    assert int(count(load_sparse(found[0.5]).masks)) == 296
    assert rows_of(tmp_path / "ticket-0.5")[0]["active"] == 296


def test_a_gradual_lottery_prunes_to_its_target(tmp_path):
    config = config_of(**STATIC, **{"train.epochs": 4})
    found = find_tickets(
        config, tmp_path, Options("gradual", targets=(0.6,)), devices=one()
    )
    assert int(count(load_sparse(found[0.6]).masks)) == 237
    (row,) = rows_of(tmp_path / "round-00")
    assert row["active"] == 237


def test_a_folder_is_of_one_lottery(tmp_path):
    config = config_of(**STATIC, **{"train.epochs": 2})
    lottery(config, tmp_path, Options("one-shot"), devices=one())
    ticket = (tmp_path / "ticket-0.5.safetensors").read_bytes()
    for options, text in (
        (Options("iterative"), "variant is 'one-shot' there and 'iterative' here"),
        (Options("gradual"), "variant is 'one-shot'"),
        (Options("one-shot", prune_fraction=0.3), "prune_fraction is 0.2 there"),
        (Options("one-shot", rewind_epoch=1), "rewind_epoch is 0 there and 1 here"),
    ):
        with pytest.raises(ValueError, match=text):
            lottery(config, tmp_path, options, devices=one())
    assert (tmp_path / "ticket-0.5.safetensors").read_bytes() == ticket
    other = config_of(**STATIC, **{"train.epochs": 2, "tost.parts": "labels"})
    with pytest.raises(ValueError, match=r"config.tost.parts is '' there"):
        lottery(other, tmp_path, Options("one-shot"), devices=one())
    (tmp_path / "lottery.json").unlink()
    with pytest.raises(ValueError, match=r"no lottery.json says of what"):
        lottery(config, tmp_path, Options("one-shot"), devices=one())
    mine = tmp_path / "other" / "ticket-0.5.safetensors"
    atomic_write(mine, "mine")
    with pytest.raises(ValueError, match=r"holds ticket-0.5.safetensors, and no"):
        lottery(config, mine.parent, Options("one-shot"), devices=one())
    assert mine.read_text() == "mine"


def test_a_lottery_prunes_where_the_method_is_sparse(tmp_path):
    config = config_of(**STATIC, **{"train.epochs": 2})
    config.method.options.where = "dense1/kernel"
    found = lottery(config, tmp_path, Options("one-shot"), devices=one())
    masks = load_sparse(found[0.5]).masks
    assert int(count(masks)) == 256 and masks["classifier"]["kernel"] is None
    assert rows_of(tmp_path / "ticket-0.5")[0]["active"] == 256


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Options("greedy"), "variant must be one of"),
        (Options(prune_fraction=1.0), "prune_fraction must be in"),
        (Options(rewind_epoch=6), "rewind_epoch must be at least 0 and below the 6"),
        (Options(targets=(1.0,)), "targets must be in"),
        (Options(targets=(0.0,)), "sparsity 0 is the dense network"),
        (Options("gradual", targets=(0.5, 0.6)), "'gradual' has one sparsity"),
    ],
)
def test_a_lottery_that_cannot_be(options, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        lottery(config_of(**STATIC), tmp_path, options, devices=one())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sup.enabled": True, "sup.cycles": 9}, "config.sup: cycles=9"),
        ({"method.name": "gmp"}, "method 'gmp' does not start with the final"),
        ({"mask.name": "snip"}, "a lottery finds masks and weights itself"),
        ({"tost.parts": "skips", "tost.ghost_fraction": 1.0}, "ghost_fraction=1.0"),
    ],
)
def test_a_ticket_that_cannot_be_trained_is_not_searched(changes, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        lottery(config_of(**{**STATIC, **changes}), tmp_path, devices=one())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "method"),
    [("", "static"), ("method=set,method.update_every_steps=10", "set")],
)
def test_tickets_stay_as_they_are_unless_a_method_is_named(
    argument, method, tmp_path, capsys
):
    words = f"{argument},epochs=2,model.name=lenet300,sparsity=0.2,sup=false"
    words = f"--config=configs/digits.py:{words} --workdir={tmp_path}".split()
    main([*words, "--prune_fraction=0.5"])
    trained = json.loads((tmp_path / "ticket-0.2" / "config.json").read_text())
    assert trained["method"]["name"] == method
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(",")[0] for line in lines] == [
        "round-00: sparsity 0.0000",
        "ticket-0.2: sparsity 0.2000",
    ]


def test_the_dense_network_to_compare_with_has_no_masks():
    config = config_of(**STATIC, compare=True, **{"mask.name": "snip"})
    (dense,) = comparisons(config).values()
    assert build(dense, devices=one()).method.name == "dense"
    assert config.mask.name == "snip"


def test_the_dense_network_to_compare_with_is_trained_plainly(tmp_path, capsys):
    changes = {"tost.parts": "labels", "train.epochs": 2, "train.momentum": 0.5}
    config = config_of(**STATIC, compare=True, **changes)
    config.method.distribution = "uniform"
    (dense,) = comparisons(config).values()
    assert (dense.tost.parts, dense.method.distribution) == ("", "erk")
    assert dense.train == config.train
    run(config, tmp_path, devices=one())
    assert "dense, for comparison, trained without ToST" in capsys.readouterr().out


def test_rewinding_past_the_ghosts_is_refused(tmp_path):
    config = config_of(**STATIC, **{"tost.parts": "soft"})
    with pytest.raises(ValueError, match="is after the ghosts of the run are gone"):
        lottery(config, tmp_path, Options(rewind_epoch=4), devices=one())
