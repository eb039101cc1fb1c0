"""The SoftNet experiment, at a size of seconds, and the splits of its protocols."""

import json
import signal

import jax
import numpy as np
import pytest

from configs.softnet import get_config
from configs.softnet_cifar import get_config as cifar_config
from experiments import softnet as softnet_command
from experiments.build.softnet import base_kind, build_softnet
from experiments.config.fields import SOFTNET_FIELDS, check_config, flat
from experiments.runs.stopping import Stopped
from experiments.softnet import run_softnet
from experiments.systems.sessions import Lab
from sup_tickets.data import prepared
from sup_tickets.data.image_sets import load_dataset
from sup_tickets.data.incremental import drawn_rows, in_turn, read_rows, topic_rows
from sup_tickets.data.prepared import original_positions

TINY = (
    "softnet.bases='hard-0.5,soft-0.5',softnet.rules='frozen,minor-block',"
    "softnet.soft_epoch=1,softnet.draws=2,softnet.epochs=2,softnet.block=^conv2/,"
    "train.epochs=2,data.batch_size=256"
)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def config_of(argument=TINY, **changes):
    config = get_config(argument)
    config.model.options.features = (3, 4)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("softnet")
    with jax.numpy_dtype_promotion("standard"):
        run_softnet(config_of(), place)
    return place


def rows_of(place):
    found = json.loads((place / "seed=0/results.json").read_text())["rows"]
    return {(row["base"], row["rule"]): row for row in found}


# --- A whole experiment ---------------------------------------------------------------


def test_accuracies_are_of_the_classes_seen(whole):
    rows = rows_of(whole)
    assert len(rows) == 4
    for row in rows.values():
        assert [len(parts) for parts in row["parts"]] == [1, 2, 3]
        # 36 test images of each digit: six of the base, two of a session.
        for whole_, parts in zip(row["accuracy"], row["parts"], strict=True):
            weights = [6, 2, 2][: len(parts)]
            assert whole_ == pytest.approx(np.average(parts, weights=weights))
    # A HardNet has no minor weights: its sessions train nothing.
    hard = [rows["hard-0.5", rule] for rule in ("frozen", "minor-block")]
    assert hard[0]["parts"] == hard[1]["parts"]


def test_the_report_has_tables_and_pictures(whole):
    text = (whole / "report/summary.md").read_text()
    for part in (
        *("soft-0.5 less hard-0.5 after session 1", "over frozen", "matrix.png"),
        *("no weight is minor", "which settles nothing", "new classes"),
        *("\nMade sup-tickets ", "\nCommand: "),
    ):
        assert part in text
    for name in ("index.html", "sessions.png", "matrix.png"):
        assert (whole / "report" / name).stat().st_size > 1000
    assert len((whole / "report/results.csv").read_text().splitlines()) == 1 + 4 * 9


def test_it_goes_on_in_the_middle_of_a_session_bit_for_bit(
    whole, tmp_path, monkeypatch
):
    calls = []

    class Stopping(Lab):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            step = self._session

            def one(*given):
                calls.append(1)
                if len(calls) == 3:  # of four: the second session's first
                    self._phases.signals.received = signal.SIGTERM
                return step(*given)

            self._session = one

    monkeypatch.setattr(softnet_command, "Lab", Stopping)
    with pytest.raises(Stopped, match=r"after 3 of 4 steps of .sessions-soft-"):
        run_softnet(config_of(), tmp_path)
    run_softnet(config_of(), tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)
    for file in (whole / "seed=0/phases").iterdir():
        again = tmp_path / "seed=0/phases" / file.name
        assert again.read_bytes() == file.read_bytes(), file.name
    with pytest.raises(ValueError, match="holds another SoftNet experiment"):
        run_softnet(config_of(**{"softnet.epochs": 3}), tmp_path)


# --- Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"softnet.bases": ("soft-1.5",)}, r"c of 'soft-1.5' must be in \(0, 1\]"),
        ({"softnet.bases": ("soft-0",)}, r"c of 'soft-0' must be in \(0, 1\]"),
        ({"softnet.bases": ("soft",)}, "bases must look like dense, hard-0.5"),
        ({"softnet.bases": ("sofd-0.5",)}, "bases must be one of"),
        ({"softnet.rules": ("none",)}, "rules must be one of"),
        ({"softnet.shots": 500}, "shots=500 is more than the 1.. examples of class 6"),
        ({"softnet.ways": 3}, "ways=3 does not divide the 4 classes"),
        ({"softnet.base_classes": 10}, "base_classes must be"),
        ({"softnet.soft_epoch": 2}, "soft_epoch=2 must be below the 2 epochs"),
        ({"softnet.block": "^conv9"}, "block '.conv9' matches no leaf"),
        ({"softnet.block": "bn"}, "the leaves are 'conv1/kernel', 'conv2/kernel'"),
        ({"softnet.bases": ("soft-0.5", "soft-.5")}, "bases must be some and all diff"),
        (
            {"train.schedule": "step", "train.drop_epochs": (2,)},
            r"config.train.drop_epochs=\(2,\): epoch 2 is not within the 2 epochs",
        ),
        ({"train.momentum": 1.0}, r"config.train.momentum must be in \[0, 1\)"),
        ({"data.cutout": 9}, "config.data: cutout must be below the 8 pixels"),
        ({"model.options.features": (0, 4)}, "model: a layer would have no weights"),
        ({"softnet.split": "topic"}, "split='topic' has base_classes=60"),
        ({"softnet.split": "file"}, "rows is the file of split='file'"),
        ({"data.name": "digits:0-4"}, "sessions take all classes"),
        ({"data.validation_examples": 15}, "is not as many of each of the 10"),
        ({"evaluate": "validation"}, "needs validation_examples above 0"),
    ],
)
def test_what_is_wrong_is_one_line_before_compute(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build_softnet(config_of(**changes))
    assert "\n" not in str(error.value)


def test_a_file_of_rows_is_checked_line_by_line(tmp_path):
    labels = load_dataset("digits", validation_examples=0).train.labels
    sessions = in_turn(6, 2, 10)
    rows = [drawn_rows(labels, s, shots=5, seed=0, draw=0) for s in sessions]
    file = tmp_path / "rows.txt"
    lines = [" ".join(map(str, part.ravel()[::-1])) for part in rows]
    file.write_text("\n".join(lines))
    found = read_rows(file, labels, sessions)
    for ours, wanted in zip(found, rows, strict=True):
        np.testing.assert_array_equal(np.sort(ours), wanted)
    changes = {"softnet.split": "file", "softnet.rows": str(file), "softnet.draws": 1}
    setup = build_softnet(config_of(**changes))
    np.testing.assert_array_equal(np.sort(setup.draws[0][1]), rows[1])
    with pytest.raises(ValueError, match="of a class, fewer than shots=6"):
        build_softnet(config_of(**changes, **{"softnet.shots": 6}))
    for text, message in {
        lines[0]: "has 1 lines for 2 sessions",
        "\n".join(lines[::-1]): "line 1 must have as many examples of each",
        f"{lines[0]} {lines[0].split()[0]}\n{lines[1]}": "line 1 has a number twice",
        f"{lines[0]}\n1 2 x": "line 2 must have numbers below 1437",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_rows(file, labels, sessions)


# --- Splits ---------------------------------------------------------------------------


def test_the_split_of_topic():
    """Goldens of section 4: five of each of 60, .., 64; test sizes 6,000 to 10,000."""
    sessions = in_turn(60, 5, 100)
    assert len(sessions) == 8 and sessions[0] == (60, 61, 62, 63, 64)
    sizes = [100 * (60 + 5 * t) for t in range(9)]
    assert (sizes[0], sizes[1], sizes[-1]) == (6000, 6500, 10000)
    rows = topic_rows()
    assert rows.shape == (40, 5) and len(np.unique(rows)) == 200
    assert rows[0].tolist() == [29774, 33344, 4815, 6772, 48317]
    assert rows[-1].tolist() == [30627, 33728, 4895, 6299, 47507]


def test_draws_are_functions_of_the_seed_the_draw_and_the_class():
    labels = np.arange(60) % 6
    one = drawn_rows(labels, (2, 4), shots=3, seed=1997, draw=0)
    assert one.shape == (2, 3) and (labels[one] == [[2], [4]]).all()
    again = drawn_rows(labels, (4,), shots=3, seed=1997, draw=0)
    np.testing.assert_array_equal(one[1:], again)
    other = drawn_rows(labels, (2, 4), shots=3, seed=1997, draw=1)
    assert (one != other).any()


def test_held_out_examples_are_shown_in_no_session():
    config = config_of(**{"data.validation_examples": 100, "evaluate": "validation"})
    setup = build_softnet(config)
    assert np.bincount(setup.held.labels).tolist() == [10] * 10
    assert len(setup.base.labels) == sum(setup.data.train.labels < 6) - 60
    shown = np.concatenate([rows.ravel() for draw in setup.draws for rows in draw])
    images = {image.tobytes() for image in setup.data.train.images[shown]}
    assert not images & {image.tobytes() for image in setup.held.images}


def test_positions_before_tfds_shuffled(monkeypatch, tmp_path):
    class Records:
        def __init__(self, ids):
            self.ids = ids

        def __getitems__(self, rows):
            return [{"id": self.ids[row]} for row in rows]

    def found(*ids):
        monkeypatch.setattr(prepared, "open_builder", lambda *_: None)
        monkeypatch.setattr(prepared, "open_split", lambda *_, **__: Records(ids))
        return original_positions("cifar100", tmp_path, examples=len(ids)).tolist()

    assert found(b"train_00002", b"train_00000", "train_00001") == [2, 0, 1]
    with pytest.raises(ValueError, match="does not say where an example was first"):
        found(b"train_00002", b"x")


def test_configurations_have_exactly_the_known_fields():
    for get in (get_config, cifar_config):
        config = get("seed=3,softnet.epochs=4")
        assert (config.seed, config.softnet.epochs) == (3, 4)
        check_config(config, SOFTNET_FIELDS)
        assert {n for n in flat(config) if ".options." not in n} == set(SOFTNET_FIELDS)
    assert [base_kind(name)[1] for name in cifar_config("").softnet.bases] == [
        *(1.0, 0.5, 0.5, 0.8, 0.8)
    ]
