"""Every method, option and kind of data set, through whole runs of tiny size."""

import importlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import cifar10, cifar100, fashion_mnist
from configs import imagenet as imagenet_config
from experiments.build import inputs
from experiments.build.experiment import build
from experiments.run import run
from sup_tickets.data import image_sets, imagenet
from sup_tickets.data.files import Split, TrainTest
from sup_tickets.methods import METHODS
from sup_tickets.structures import check_structure, n_of_m
from sup_tickets.training.network_files import load_sparse
from tests.test_experiments import CONFIGS, config_of, one

pytestmark = pytest.mark.usefixtures("loose")


def results_of(config, folder):
    run(config, folder, devices=one())
    return json.loads((folder / "results.json").read_text())


# --- Methods --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_with_sup_tickets(name, tmp_path):
    config = config_of(
        **{"method.name": name, "report.path_points": 2, "report.examples": 256}
    )
    if name == "selfish-rnn":  # these networks have no gates
        config.method.options.gate_growth = "pooled"
    results = results_of(config, tmp_path)
    rows = {row["network"]: row for row in results["rows"]}
    assert list(rows) == ["phase 1", "ticket 1", "ticket 2", "superposed ticket"]
    # Of 8 and of 10 neurons, all with as many inputs, SRigL's.
    expected = {"dense": (0, 0), "srigl": (300, 592)}.get(name, (296, 592))
    final = rows["superposed ticket"]
    assert (final["active"], final["total"]) == expected
    assert all(np.isfinite(row["nll"]) for row in rows.values())
    cost = results["cost"]
    full = cost["dense_training_flops"]
    assert 0 < cost["training_flops"] <= full
    assert (cost["training_flops"] == full) == (name == "dense")


# --- Options --------------------------------------------------------------------------

OPTIONS = {
    "adamw": {
        "train.optimizer": "adamw",
        "train.learning_rate": 0.01,
        "train.schedule": "cosine",
        "train.warmup_epochs": 1,
        "train.clip_norm": 1.0,
        "train.no_weight_decay": ("bias", "bn"),
        "train.label_smoothing": 0.1,
        "train.label_smoothing_over": "others",
        "sup.form": "restart",
        "sup.kind": "caa",
        "sup.prune_each": False,
    },
    "blocks": {
        "train.block_steps": 2,
        "train.nesterov": True,
        "train.schedule": "constant",
        "data.flip": True,
        "data.cutout": 2,
        "data.crop_mode": "reflect",
        "sup.form": "constant",
        "sup.kind": "cima",
        "sup.decay": 0.5,
        "sup.extend_budget": True,
    },
    "parts": {
        "train.accumulate": 2,
        "train.drop_epochs": (2, 3),
        "model.dtype": "bfloat16",
        "model.options.batch_norm": True,
        "method.name": "granet",
        "method.initial_sparsity": 0.2,
        "method.drop_schedule": "linear",
        "method.distribution": "uniform",
        "sup.form": "release",
        "sup.batch_norm": "bu",
        "sup.include_phase1": True,
    },
    "no validation": {
        "data.validation_examples": 0,
        "method.keep_dense": ("classifier",),
        "method.options.rounding": "ceil",
        "sup.explore_fraction": 0.0,
        "report.path_points": 0,
    },
    "alone": {"sup.enabled": False, "evaluate": "validation"},
    "2:4": {"method.structure": "2:4", "sup.kind": "caa", "sup.prune_each": False},
}


# That SRigL's run keeps its structure is seen above.
SLOW = ("2:4",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in OPTIONS]
)
def test_options_together(name, tmp_path):
    changes = OPTIONS[name]
    config = config_of(**{k: v for k, v in changes.items() if ".options." not in k})
    for key, value in changes.items():
        if ".options." in key:
            section, option = key.split(".options.")
            config[section].options[option] = value
    results = results_of(config, tmp_path)
    steps = (8 if name == "blocks" else 6) * (6 if name == "no validation" else 5)
    events = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert events[-1]["step"] == steps
    assert all(np.isfinite(row["nll"]) for row in results["rows"])
    if name == "no validation":
        assert not [e for e in events if e["event"] == "validation"]
        counts = {row["layer"]: row for row in results["layers"]["phase 1"]}
        assert counts["classifier/kernel"]["active"] == 80
    if name == "alone":
        assert [row["network"] for row in results["rows"]] == ["final"]
        assert results["rows"][0]["examples"] == 180
    if name == "2:4":
        (file,) = (tmp_path / "final").glob("*.safetensors")
        final = load_sparse(file)
        check_structure(n_of_m(2, 4), final.masks)
    if name == "parts":
        densities = [e["active"] / 592 for e in events if e["event"] == "start"]
        assert 0.75 < densities[0] < 0.85


def test_swa_without_exploration_keeps_the_masks(tmp_path):
    results = results_of(config_of(**{"sup.explore_fraction": 0.0}), tmp_path)
    overlap = results["analysis"]["overlap"]
    assert np.asarray(overlap).min() == 1.0


# --- Data sets ------------------------------------------------------------------------


class Photos:
    """Records as `sup_tickets.data.imagenet.open_imagenet` gives them."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.records = []
        for label in range(count):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG")
            self.records.append({"image": file.getvalue(), "label": label % 1000})

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return self.records[i]


@pytest.mark.slow
def test_imagenet_is_streamed(tmp_path, monkeypatch):
    sets = {"train": Photos(22, 0), "validation": Photos(5, 1)}
    monkeypatch.setattr(imagenet, "open_imagenet", lambda split, **_: sets[split])
    config = imagenet_config.get_config(
        "sparsity=0.5,epochs=3,cycles=1,cycle_epochs=1,data.batch_size=4,"
        "method.update_every_steps=4,data.validation_examples=6,data.workers=0,"
        "train.warmup_epochs=1,checkpoint.every_steps=3,train.block_steps=2"
    )
    config.train.drop_epochs = (1,)
    config.model.options.blocks = (1,)
    config.model.options.widths = (4,)
    results = results_of(config, tmp_path)
    assert [row["examples"] for row in results["rows"]] == [5, 5, 5]
    config.data.cutout = 3
    with pytest.raises(ValueError, match=r"config.data: 'imagenet2012' has random res"):
        build(config, devices=one())


@pytest.fixture
def black_sets(monkeypatch):
    """All sets in their true sizes, black."""

    def read(name, folder, *, shape, examples):
        splits = (
            Split(np.zeros((n, *shape), np.uint8), np.arange(n, dtype=np.int32) % 10)
            for n in examples.values()
        )
        return TrainTest(*splits)

    sizes = {"train": 1_281_167, "validation": 50_000}
    monkeypatch.setattr(image_sets, "read_prepared", read)
    monkeypatch.setattr(
        imagenet, "open_imagenet", lambda split, **_: range(sizes[split])
    )
    yield
    inputs._load.cache_clear()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_given_configuration_is_built(name, black_sets):
    given = {
        "selfish_rnn": "data=pydoc_topics,data.training_examples=0"
    }  # on all machines
    config = importlib.import_module(f"configs.{name}").get_config(given.get(name, ""))
    built = build(config, devices=one())
    built.inputs.close()
    assert built.plan.total_steps > 0


@pytest.mark.parametrize("config", [cifar10, cifar100, fashion_mnist])
def test_real_sets(config, tmp_path):
    name = config.__name__.split(".")[-1]
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"TFDS_DATA_DIR has no {name}")
    ours = config.get_config(
        "model=mlp,epochs=3,cycles=1,cycle_epochs=1,data.batch_size=5000,"
        "method.update_every_steps=4"
    )
    ours.model.options.features = (32,)
    results = results_of(ours, tmp_path)
    assert [row["examples"] for row in results["rows"]] == [10000] * 3
    classes = 100 if name == "cifar100" else 10
    assert results["rows"][-1]["accuracy"] > 1.5 / classes


def test_a_set_that_is_not_prepared_says_how_to(tmp_path):
    ours = cifar10.get_config()
    ours.data.dir = str(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"experiments.prepare_data cifar10"
    ) as e:
        build(ours, devices=one())
    assert "\n" not in str(e.value)
