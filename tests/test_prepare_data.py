"""The command that prepares data; the part with TensorFlow runs where that is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_data import made_up, rows_of, small, write_records

from experiments import prepare_data
from experiments.prepare_data import main, prepare
from sup_tickets.data import DATASETS, load_dataset

ROOT = Path(__file__).parents[1]
PREPARED = ["mnist", "fashion_mnist", "cifar10", "cifar100"]
TRAIN, TEST = 40, 12


def write_originals(folder, name):
    """Small files in the original format, and the two splits in them."""
    known = DATASETS[name]
    train, test = (made_up(known.shape, n, known.classes, n) for n in (TRAIN, TEST))
    if name.startswith("cifar"):
        write_cifar(folder, name, train, test)
    else:
        for part, (images, labels) in (("train", train), ("t10k", test)):
            header = np.array([0x803, len(labels), 28, 28], ">i4").tobytes()
            data = header + images.tobytes()
            (folder / f"{part}-images-idx3-ubyte").write_bytes(data)
            header = np.array([0x801, len(labels)], ">i4").tobytes()
            data = header + labels.astype(np.uint8).tobytes()
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(data)
    return train, test


def write_cifar(folder, name, train, test):
    def records(images, labels):
        flat = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        columns = [labels.astype(np.uint8)[:, None], flat]
        if name == "cifar100":
            columns.insert(0, (labels % 20).astype(np.uint8)[:, None])
        return np.concatenate(columns, axis=1).tobytes()

    def names(n):
        return "\n".join(f"name{i}" for i in range(n))

    if name == "cifar10":
        folder = folder / "cifar-10-batches-bin"
        folder.mkdir()
        for i in range(5):
            part = [array[i * TRAIN // 5 : (i + 1) * TRAIN // 5] for array in train]
            (folder / f"data_batch_{i + 1}.bin").write_bytes(records(*part))
        (folder / "test_batch.bin").write_bytes(records(*test))
        (folder / "batches.meta.txt").write_text(names(10))
    else:
        folder = folder / "cifar-100-binary"
        folder.mkdir()
        (folder / "train.bin").write_bytes(records(*train))
        (folder / "test.bin").write_bytes(records(*test))
        (folder / "fine_label_names.txt").write_text(names(100))
        (folder / "coarse_label_names.txt").write_text(names(20))


@pytest.mark.parametrize("name", PREPARED)
def test_original_files_are_prepared(name, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow", reason="TensorFlow is needed to prepare data")
    module = "tensorflow_datasets.image_classification.mnist"  # knows its sizes
    monkeypatch.setattr(f"{module}._TRAIN_EXAMPLES", TRAIN)
    monkeypatch.setattr(f"{module}._TEST_EXAMPLES", TEST)
    small(monkeypatch, name, mean=(0.5,) * len(DATASETS[name].mean))
    files = tmp_path / "files" / name
    files.mkdir(parents=True)
    train, test = write_originals(files, name)
    told = []
    for _ in range(2):
        prepare(
            name,
            data_dir=str(tmp_path / "sets"),
            from_files=str(tmp_path / "files"),
            tell=told.append,
        )
    assert told[0].startswith(f"{name} is prepared in ")
    assert told[1] == told[3] == f"{name} has {TRAIN} + {TEST} examples"
    assert told[2].startswith(f"{name} is prepared already in ")
    monkeypatch.setattr("sup_tickets.data.prepared.open_builder", None)  # the cache
    data = load_dataset(name, data_dir=tmp_path / "sets", validation_examples=0)
    assert rows_of(data.train) == rows_of(train)
    assert rows_of(data.test) == rows_of(test)


def test_what_is_prepared_is_left_alone(tmp_path, monkeypatch):
    known = small(monkeypatch, "mnist", mean=(0.5,))
    splits = {
        "train": made_up(known.shape, TRAIN, 10, 0),
        "test": made_up(known.shape, TEST, 10, 1),
    }
    write_records(tmp_path, "mnist", splits, 10)
    told = []
    prepare("mnist", data_dir=str(tmp_path), tell=told.append)
    assert told == [
        f"mnist is prepared already in {tmp_path / 'mnist'}",
        f"mnist has {TRAIN} + {TEST} examples",
    ]
    assert list((tmp_path / "mnist").glob("*-sup_tickets.npz"))
    # Neither is one of other files, nor one with examples missing.
    monkeypatch.setitem(DATASETS, "mnist", known._replace(mean=(0.13,)))
    with pytest.raises(ValueError, match=r"mnist have the mean \[0\.[45].*other files"):
        prepare("mnist", data_dir=str(tmp_path), tell=told.append)
    monkeypatch.setitem(DATASETS, "mnist", known._replace(test=TEST + 1))
    with pytest.raises(ValueError, match=f"test split of mnist has {TEST} of 13"):
        prepare("mnist", data_dir=str(tmp_path), tell=told.append)


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == f"{caught.value}\n"
    return str(caught.value)


def test_errors_take_one_line(tmp_path, capsys, monkeypatch):
    folder = f"--data_dir={tmp_path}"
    monkeypatch.setattr(prepare_data.importlib.util, "find_spec", lambda _: None)
    assert error_of(capsys, "cifar10", folder).endswith(
        'install it with: pip install "sup-tickets[train,tf]"'
    )
    assert "did you mean 'cifar10'" in error_of(capsys, "mnist", "cifar1O", folder)
    assert "required: NAME" in error_of(capsys, folder)
    assert "unknown flag '--dir'; did you mean '--data_dir'" in error_of(
        capsys, "mnist", "--dir=x"
    )
    assert not list(tmp_path.iterdir())


def test_a_missing_original_is_named(tmp_path, capsys):
    arguments = (f"--data_dir={tmp_path}", f"--from_files={tmp_path}")
    missing = {
        "cifar10": "cifar-10-batches-bin/test_batch.bin",
        "cifar100": "cifar-100-binary/test.bin",
        "fashion_mnist": "train-images-idx3-ubyte",
        "imagenet2012": "ILSVRC2012_img_train.tar",
    }
    for name, file in missing.items():
        message = f"error: there is no {file} in {tmp_path}; "
        assert error_of(capsys, name, *arguments).startswith(message)


def test_imagenet_says_where_its_files_go(tmp_path, capsys):
    message = error_of(capsys, "imagenet2012", f"--data_dir={tmp_path}")
    assert (
        f"in {tmp_path}/downloads/manual; get ILSVRC2012_img_train.tar and" in message
    )
    assert "--from_files=FOLDER" in message


def test_another_format_is_not_written_over(tmp_path, capsys):
    writer = write_records(
        tmp_path,
        "mnist",
        {
            "train": made_up((28, 28, 1), 3, 10, 0),
            "test": made_up((28, 28, 1), 3, 10, 1),
        },
        10,
    )
    path = Path(writer.data_path) / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    message = error_of(capsys, "mnist", f"--data_dir={tmp_path}")
    assert f"mnist in {tmp_path} is prepared as tfrecord, " in message
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.prepare_data"]
    options = {"capture_output": True, "text": True, "cwd": ROOT, "env": {**os.environ}}
    found = subprocess.run([*command, "--help"], **options)
    assert found.returncode == 0
    assert "cifar-10-batches-bin" in found.stdout
    found = subprocess.run([*command, "imagenet", f"--data_dir={tmp_path}"], **options)
    assert found.returncode == 2
    assert found.stderr.strip().startswith(
        "error: the name of the data set must be one"
    )
    assert "did you mean 'imagenet2012'" in found.stderr
