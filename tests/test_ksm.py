"""The KSM experiment, at a size of seconds."""

import json
import signal

import jax
import numpy as np
import pytest

from configs.ksm import get_config
from configs.ksm_cifar import get_config as cifar_config
from experiments.build import ksm as ksm_build
from experiments.build.ksm import METHODS, build_ksm, is_head, norm_rule
from experiments.config.fields import KSM_FIELDS, check_config, flat
from experiments.ksm import run_ksm
from experiments.reports.ksm import _forgotten, matrix
from experiments.reports.systems import interval, judged
from experiments.runs.stopping import Stopped
from experiments.systems.tasks import Lab
from sup_tickets.data.image_sets import load_dataset
from sup_tickets.data.incremental import check_disjoint, read_classes, superclasses
from sup_tickets.learning_rates import cosine_lr
from sup_tickets.models import ConvNet
from sup_tickets.training.libraries.linen import linen_network
from sup_tickets.training.network_files import save_dense
from sup_tickets.training.state import Network

TINY = (
    "ksm.epochs=2,ksm.batch_size=64,ksm.methods='norms,ksm,sequential',"
    "ksm.tasks='4-5,6-7',epochs=2,data.batch_size=256,train.validate_every_epochs=0"
)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"):  # of Optax's Adam
        yield


def config_of(argument=TINY, **changes):
    config = get_config(argument)
    config.model.options.features = (3, 4)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


FAST = {"ksm.learning_rate": 0.01}  # scores move far enough to switch kernels off


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file of a network that nothing was trained on."""
    net = linen_network(
        ConvNet(classes=4, features=(3, 4)), np.zeros((1, 8, 8, 1), np.float32)
    )
    params, state = jax.jit(net.init)(jax.random.key(0))
    path = tmp_path_factory.mktemp("backbone") / "network.safetensors"
    save_dense(path, Network(params, state, None))
    return str(path)


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    place = tmp_path_factory.mktemp("ksm")
    with jax.numpy_dtype_promotion("standard"):
        run_ksm(config_of(**FAST, **{"ksm.backbone": backbone}), place)
    return place


def results(place):
    return json.loads((place / "seed=0/results.json").read_text())


# --- A whole experiment ---------------------------------------------------------------


def test_earlier_tasks_are_unchanged_to_the_bit_unless_weights_are_shared(whole):
    found = results(whole)
    assert found["unchanged"] == {"norms": True, "ksm": True, "sequential": False}
    rows = [row for row in found["rows"] if row["method"] == "sequential"]
    assert [len(row["accuracy"]) for row in rows] == [1, 2]
    assert matrix(rows)[1].tolist() == rows[1]["accuracy"]


def test_what_a_task_adds_is_counted(whole):
    rows = {(r["method"], r["task"]): r for r in results(whole)["rows"]}
    ksm, norms = rows["ksm", "task 1"], rows["norms", "task 1"]
    assert ksm["places"] == ksm["bits"]["masks"] == 1 * 3 + 3 * 4
    assert ksm["bits"]["scales"] == 8 * (ksm["places"] - ksm["on"])
    assert 0 < ksm["on"] < ksm["places"]
    assert norms["bits"]["masks"] == norms["bits"]["weights"] == 0
    assert ksm["bits"]["norms"] == norms["bits"]["norms"] == 32 * 4 * (3 + 4)
    sequential = rows["sequential", "task 1"]["bits"]
    assert sequential["weights"] == 32 * 9 * (1 * 3 + 3 * 4)


def test_the_report_has_tables_and_pictures(whole):
    text = (whole / "report/summary.md").read_text()
    for part in (
        "KSM less norms and head alone",
        "every bit",
        "tasks.png",
        "matrix.png",
    ):
        assert part in text
    for name in ("index.html", "tasks.png", "matrix.png"):
        assert (whole / "report" / name).stat().st_size > 1000
    lines = (whole / "report/results.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2
    assert lines[0].startswith("seed,method,task,classes,accuracy")


def test_what_is_forgotten_is_the_best_less_what_is_left():
    """Of the first two of three tasks: 90 - 50 and 80 - 70 points."""
    nan = np.nan
    found = np.array([[0.9, nan, nan], [0.6, 0.8, nan], [0.5, 0.7, 0.9]])
    assert _forgotten(found) == pytest.approx(0.25)
    assert _forgotten(np.array([[0.9]])) == 0


def test_verdicts_are_by_intervals():
    """t(.975) of 2 degrees of freedom is 4.303; one seed settles nothing."""
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2, 4.302653 / 3**0.5), rel=1e-6)
    assert judged([1.0, 2.0, 3.0], low=0) == "+2.00 ± 2.48, not resolved"
    assert judged([2.0, 2.1, 2.2], low=0).endswith("0.25, as expected")
    assert judged([2.0, 2.1, 2.2], high=0).endswith("0.25, not as expected")
    assert "one seed" in judged([5.0], low=0)


def test_a_finished_experiment_is_left_alone(whole, backbone, capsys):
    before = (whole / "seed=0/results.json").read_bytes()
    config = config_of(**FAST, **{"ksm.backbone": backbone})
    run_ksm(config, whole)
    assert "seed=0: finished" in capsys.readouterr().out
    assert (whole / "seed=0/results.json").read_bytes() == before
    config.ksm.epochs = 3
    with pytest.raises(ValueError, match="holds another KSM experiment"):
        run_ksm(config, whole)


def test_it_goes_on_in_the_middle_of_a_task_bit_for_bit(
    whole, backbone, tmp_path, monkeypatch
):
    config = config_of(**FAST, **{"ksm.backbone": backbone, "ksm.methods": ("ksm",)})
    make = Lab._make_step

    def stopping(self, *arguments):
        step, tx = make(self, *arguments)

        def one(state, batch, key, index, rate):
            if index == 3:
                self._phases.signals.received = signal.SIGTERM
            return step(state, batch, key, index, rate)

        return one, tx

    monkeypatch.setattr(Lab, "_make_step", stopping)
    with pytest.raises(Stopped, match=r"stopped after 4 of \d+ steps of 'ksm-01'"):
        run_ksm(config, tmp_path)
    assert not list(tmp_path.glob("seed=0/bundles/*/*"))
    monkeypatch.setattr(Lab, "_make_step", make)
    run_ksm(config, tmp_path)
    for name in ("task-01", "task-02"):
        file = f"seed=0/bundles/ksm/{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()
    assert not list((tmp_path / "seed=0/phases").iterdir())


# --- Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ksm.tasks": ("4-5", "5-6")}, "task 2 has class 5, which task 1 has seen"),
        ({"ksm.tasks": ("3-5",)}, "task 1 has class 3, which the backbone has seen"),
        ({"ksm.tasks": ("8-10",)}, "task 1 has class 10, and the data set has 0-9"),
        ({"ksm.tasks": ("4",)}, "classes must be two or more"),
        ({"ksm.tasks": ("a",)}, "classes must look like 0-4 or 0.3.7-9, got 'a'"),
        ({"ksm.tasks": ("coarse",)}, "tasks='coarse' are of cifar100"),
        ({"ksm.first_tasks": 3}, "first_tasks=3 is more than 2"),
        ({"ksm.methods": ("kms",)}, "methods must be one of"),
        ({"ksm.methods": ()}, "methods must be some and all different"),
        ({"ksm.scale": 0.0}, "scale must be above 0 for method 'ksm'"),
        ({"ksm.batch_size": 5000}, "batch_size=5000 is more than the"),
        ({"ksm.data": "digits:0-4"}, "tasks have its classes, say 'digits'"),
        ({"ksm.backbone": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_before_compute(changes, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        build_ksm(config_of(**changes))
    assert "\n" not in str(error.value)


def test_masks_of_a_network_without_convolutions_are_refused():
    config = config_of(**{"model.name": "mlp"})
    config.model.options = type(config)({"features": (4,)})
    with pytest.raises(ValueError, match="where=convolutions chooses no leaf"):
        build_ksm(config)


def test_pixels_count_as_the_data_set_of_the_tasks_says(monkeypatch):
    """Mean and deviation are what the frozen backbone knows."""
    load = ksm_build.load
    monkeypatch.setattr(ksm_build, "load", lambda *n: load(*n)._replace(scale=255.0))
    numbers = build_ksm(config_of()).numbers
    assert (numbers.scale, numbers.mean) == (255.0, load_dataset("digits").mean)


def test_a_backbone_of_another_model_is_refused(backbone):
    config = config_of(**{"ksm.backbone": backbone})
    config.model.options.features = (3, 5)
    with pytest.raises(ValueError, match=r"backbone .* has shape \(4,\) at leaf 'bn2/"):
        build_ksm(config)


@pytest.mark.slow
def test_the_backbone_is_a_run_of_its_own(tmp_path):
    """As by the command line, all methods; a run that is there is not made again."""
    methods = tuple(METHODS)
    config = config_of(**{"ksm.methods": methods, "ksm.epochs": 1})
    run_ksm(config, tmp_path, devices=jax.devices()[:1])
    found = results(tmp_path)
    assert found["unchanged"] == {m: m != "sequential" for m in methods}
    assert 0 < found["backbone_accuracy"] <= 1
    run = tmp_path / "seed=0/backbone/final/network.safetensors"
    again = tmp_path / "again"
    given = config_of(**{"ksm.methods": ("element",), "ksm.backbone": str(run)})
    given.ksm.epochs = 1
    run_ksm(given, again)
    file = "seed=0/bundles/element/task-02.safetensors"
    assert (again / file).read_bytes() == (tmp_path / file).read_bytes()


# --- Parts ----------------------------------------------------------------------------


def test_configurations_have_exactly_the_known_fields():
    for get in (get_config, cifar_config):
        config = get("seed=3,ksm.epochs=4")
        assert (config.seed, config.ksm.epochs) == (3, 4)
        check_config(config, KSM_FIELDS)
        assert {n for n in flat(config) if ".options." not in n} == set(KSM_FIELDS)
    assert set(cifar_config("").ksm.methods) == set(METHODS)


def test_superclasses_are_those_of_cifar_100():
    found = superclasses()
    assert len(found) == 20 and {len(classes) for classes in found} == {5}
    assert sorted(sum(found, ())) == list(range(100))
    assert found[0] == (4, 30, 55, 72, 95)  # aquatic mammals: beaver, .., whale
    assert found[14] == (2, 11, 35, 46, 98)  # people: baby, boy, girl, man, woman
    check_disjoint({str(i): classes for i, classes in enumerate(found)}, 100)
    assert read_classes("0+3+7-9") == (0, 3, 7, 8, 9)


def test_rates_of_the_release():
    """Golden of part E, at epochs 1, 15, 29 and 30 of 30."""
    rate = cosine_lr(2e-4, total_steps=30)
    wanted = [1.99452e-4, 1e-4, 5.478e-7, 0]
    np.testing.assert_allclose(
        [rate(e) for e in (1, 15, 29, 30)], wanted, rtol=1e-3, atol=1e-12
    )


def test_norms_and_heads_are_known_by_their_leaves():
    params = {
        "conv1": {"kernel": 1},
        "bn1": {"scale": 1, "bias": 1},
        "dense": {"bias": 1},
    }
    norm = norm_rule(params)
    assert norm("bn1/bias") and not norm("dense/bias") and not norm("conv1/kernel")
    assert is_head("classifier/bias") and not is_head("stage/classifier/bias")
