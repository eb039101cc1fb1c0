"""Data sets from disk: real ones if $TFDS_DATA_DIR is set, else small made-up ones."""

import hashlib
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sup_tickets.data import (
    DATASETS,
    DataNotPrepared,
    files,
    image_sets,
    load_dataset,
    prepared,
)
from sup_tickets.data.files import Split, TrainTest

PREPARED = ["mnist", "fashion_mnist", "cifar10", "cifar100"]
TRAIN, TEST = 40, 12  # examples of the made-up sets


def image_bytes(pixels, form):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, form)
    return file.getvalue()


def made_up(shape, n, classes, seed):
    """Images and labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return images, rng.integers(classes, size=n).astype(np.int32)


def write_records(folder, name, splits, classes, form="png"):
    """A set as TFDS prepares it, by a builder of ours that needs no TensorFlow."""
    import tensorflow_datasets as tfds

    version = tfds.builder(name, data_dir=folder).version

    def info(builder):
        shape = (None, None, 3) if form == "jpeg" else splits["train"][0][0].shape
        image = tfds.features.Image(shape=shape, encoding_format=form)
        label = tfds.features.ClassLabel(num_classes=classes)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=builder, features=features)

    def examples(images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": io.BytesIO(image_bytes(image, form)), "label": label}

    with tfds.core.registered.skip_registration():
        members = {
            "name": name,
            "VERSION": version,
            "pkg_dir_path": None,
            "__module__": __name__,
            "_info": info,
            "_generate_examples": None,
            "_split_generators": lambda *_: {
                split: examples(*part) for split, part in splits.items()
            },
        }
        cls = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    builder = cls(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder


def small(monkeypatch, name, **changes):
    """Makes the registry expect the made-up sizes."""
    changes = {"train": TRAIN, "test": TEST, "validation_examples": 5} | changes
    monkeypatch.setitem(DATASETS, name, DATASETS[name]._replace(**changes))
    return DATASETS[name]


@pytest.fixture(scope="module")
def made_up_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for name in PREPARED:
        known = DATASETS[name]
        splits = {
            split: made_up(known.shape, n, known.classes, n)
            for split, n in (("train", TRAIN), ("test", TEST))
        }
        write_records(folder, name, splits, known.classes)
    return folder


@pytest.fixture
def own_sets(made_up_sets, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made_up_sets, tmp_path / "sets")


def rows_of(split):
    """The examples as a set of tuples, since TFDS shuffles as it writes."""
    return {
        (*image.reshape(-1).tolist(), int(label))
        for image, label in zip(*split, strict=True)
    }


# --- Prepared sets --------------------------------------------------------------------


@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_set_comes_back(name, own_sets, monkeypatch):
    known = small(monkeypatch, name)
    data = load_dataset(name, data_dir=own_sets)
    assert (data.name, data.classes, data.scale) == (name, known.classes, 255)
    assert data.train.images.shape == (TRAIN - 5, *known.shape)
    assert data.validation.images.shape == (5, *known.shape)
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
    together = rows_of(data.train) | rows_of(data.validation)
    assert together == rows_of(made_up(known.shape, TRAIN, known.classes, TRAIN))
    assert rows_of(data.test) == rows_of(
        made_up(known.shape, TEST, known.classes, TEST)
    )
    # The next start reads the cache and gives the same bits, without TFDS.
    monkeypatch.setattr("sup_tickets.data.prepared.open_builder", None)
    again = load_dataset(name, data_dir=own_sets)
    for one, other in zip(data[2:5], again[2:5], strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_the_cut_is_fixed_by_its_seed(made_up_sets, monkeypatch):
    small(monkeypatch, "mnist")
    full, none, again, other = (
        load_dataset("mnist", data_dir=made_up_sets, **options)
        for options in (
            {"validation_examples": 0},
            {"validation_examples": 0, "split_seed": 1},
            {"validation_examples": 7},
            {"validation_examples": 7, "split_seed": 1},
        )
    )
    assert full.validation.images.shape == (0, 28, 28, 1)
    np.testing.assert_array_equal(full.train.images, none.train.images)
    held = np.sort(np.random.default_rng(0).permutation(TRAIN)[:7])
    np.testing.assert_array_equal(again.validation.images, full.train.images[held])
    rest = np.delete(full.train.images, held, axis=0)  # in the order of the set
    np.testing.assert_array_equal(again.train.images, rest)
    assert rows_of(again.validation) != rows_of(other.validation)
    np.testing.assert_array_equal(again.test.images, full.test.images)


def test_the_default_folder(made_up_sets, monkeypatch):
    small(monkeypatch, "mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_up_sets))
    assert len(load_dataset("mnist").test.labels) == TEST
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert files.data_folder(None).name == "tensorflow_datasets"


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_not_prepared_says_how(name, tmp_path):
    command = f"python -m experiments.prepare_data {name} --data_dir={tmp_path}"
    with pytest.raises(DataNotPrepared) as caught:
        load_dataset(name, data_dir=tmp_path)
    assert str(caught.value) == f"{name} is not prepared in {tmp_path}; run: {command}"
    assert isinstance(caught.value, FileNotFoundError)
    (tmp_path / name).mkdir()  # as an interrupted preparation leaves it
    with pytest.raises(DataNotPrepared, match="is not prepared"):
        load_dataset(name, data_dir=tmp_path)


@pytest.mark.parametrize("form", ["tfrecord", "parquet"])
def test_other_formats_are_refused(form, own_sets):
    path = next((own_sets / "cifar10").glob("*/dataset_info.json"))
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": form}))
    with pytest.raises(DataNotPrepared, match=f"is prepared as {form}, .*=OTHER"):
        load_dataset("cifar10", data_dir=own_sets)


def test_a_truncated_set_is_refused(own_sets, monkeypatch):
    # Fewer than the set has, as it is published.
    message = f"train split of cifar10 has {TRAIN} of 50000 .*prepare_data cifar10 "
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", data_dir=own_sets)
    # Fewer than the metadata say, as TFDS writes parquet.
    small(monkeypatch, "cifar10", train=TRAIN + 1)
    path = next((own_sets / "cifar10").glob("*/dataset_info.json"))
    info = json.loads(path.read_text())
    train = next(split for split in info["splits"] if split["name"] == "train")
    assert train["shardLengths"] == [str(TRAIN)]
    train["shardLengths"] = [str(TRAIN + 1)]
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match="train split of cifar10 has"):
        load_dataset("cifar10", data_dir=own_sets)


def test_a_record_that_is_broken_is_named(own_sets, monkeypatch):
    small(monkeypatch, "mnist")
    for cache in (own_sets / "mnist").glob("*.npz"):
        cache.unlink()
    pixels = made_up((28, 28, 1), 1, 2, 0)[0][0]

    def png(array):
        return image_bytes(array, "PNG")

    for data, what in {
        png(pixels)[:60]: "",
        b"": "it is no image",
        b"GIF89a": "it is no image",
        png(pixels[:20]): r"it is uint8 of shape \(20, 28, 1\), not uint8 of \(28,",
        png(np.repeat(pixels, 3, -1)): r"it is uint8 of shape \(28, 28, 3\), not",
        png(pixels.astype(np.uint16)): r"it is uint16 of shape",
        png(pixels > 9): r"it is bool of shape",
    }.items():
        original = prepared.open_split

        def spoiled(*arguments, data=data, original=original, **named):
            class Source:
                records = original(*arguments, **named)

                def __getitems__(self, rows):
                    found = self.records.__getitems__(rows)
                    return [
                        record | {"image": data} if row == 3 else record
                        for row, record in zip(rows, found, strict=True)
                    ]

            return Source()

        with monkeypatch.context() as patch:
            patch.setattr(prepared, "open_split", spoiled)
            message = (
                r"^cannot read the image 3 of the train split of .*mnist.*: " + what
            )
            with pytest.raises(ValueError, match=message) as caught:
                load_dataset("mnist", data_dir=own_sets)
        assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(made_up_sets, monkeypatch):
    small(monkeypatch, "mnist", train=TRAIN + 1)  # no cache fits
    real = files.importlib.import_module

    def without(name):
        if name == "tensorflow_datasets":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(files.importlib, "import_module", without)
    message = r"^tensorflow_datasets is needed to read mnist; .*sup-tickets\[train\]$"
    with pytest.raises(ModuleNotFoundError, match=message):
        load_dataset("mnist", data_dir=made_up_sets)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load_dataset("cifar-10")
    with pytest.raises(ValueError, match=r"validation_examples must be .*got -1"):
        load_dataset("cifar10", data_dir=tmp_path, validation_examples=-1)
    with pytest.raises(ValueError, match="leaves nothing of the 3 to train on"):
        image_sets._cut(Split(*made_up((2, 2, 1), 3, 2, 0)), 3, 0)


# --- Cache ----------------------------------------------------------------------------


def test_a_cache_is_whole_or_ignored(tmp_path):
    path = tmp_path / "set.npz"
    data = TrainTest(*(Split(*made_up((4, 4, 1), n, 3, n)) for n in (9, 5)))
    assert files.read_cache(path) is None
    files.write_cache(path, data, source="one")
    assert os.listdir(tmp_path) == ["set.npz"]
    found = files.read_cache(path, source="one")
    assert found is not None
    np.testing.assert_array_equal(found.train.images, data.train.images)
    np.testing.assert_array_equal(found.test.labels, data.test.labels)
    assert files.read_cache(path, source="another") is None
    whole = path.read_bytes()
    for broken in (whole[:-40], whole[:300], b"", whole.replace(b"train", b"brain")):
        path.write_bytes(broken)
        assert files.read_cache(path, source="one") is None
    spoiled = bytearray(whole)
    spoiled[len(whole) // 3] ^= 1  # one bit; the checksum of the archive sees it
    path.write_bytes(spoiled)
    assert files.read_cache(path, source="one") is None


def test_a_folder_that_cannot_be_written_to_has_no_cache(tmp_path):
    data = TrainTest(*(Split(*made_up((4, 4, 1), n, 3, n)) for n in (9, 5)))
    files.write_cache(tmp_path / "nowhere" / "set.npz", data)
    assert not list(tmp_path.iterdir())


def test_a_broken_cache_is_replaced(own_sets, monkeypatch):
    small(monkeypatch, "mnist")
    first = load_dataset("mnist", data_dir=own_sets)
    cache = next((own_sets / "mnist").glob("*-sup_tickets.npz"))
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    second = load_dataset("mnist", data_dir=own_sets)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert cache.stat().st_size == len(whole)


# --- Folders of images ----------------------------------------------------------------


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "png" if path.suffix == ".png" else "jpeg"
    path.write_bytes(image_bytes(pixels, form))


@pytest.fixture(params=["folders", "annotations"])
def image_folder(request, tmp_path):
    """Two classes, 6 training images, 4 of val, in both forms that val may have."""
    images, _ = made_up((8, 6, 3), 10, 2, 0)
    for i, pixels in enumerate(images[:6]):
        deeper = "images/" if i % 2 else ""
        write_image(tmp_path / f"set/train/n{i // 3}/{deeper}{i}.png", pixels)
    (tmp_path / "set/train/n0/boxes.txt").write_text("not an image")
    lines = []
    for i, pixels in enumerate(images[6:]):
        place = "images" if request.param == "annotations" else f"n{i % 2}"
        write_image(tmp_path / f"set/val/{place}/v{i}.png", pixels)
        lines.append(f"v{i}.png\tn{i % 2}\t0\t1\t2\t3")
    if request.param == "annotations":
        (tmp_path / "set/val/val_annotations.txt").write_text("\n".join(lines))
    return tmp_path, images


def test_a_folder_of_images(image_folder):
    folder, images = image_folder
    data = load_dataset("folder:set", data_dir=folder, validation_examples=0)
    assert (data.name, data.classes) == ("folder:set", 2)
    # Files go by their whole names: 0.png, 2.png, images/1.png.
    np.testing.assert_array_equal(data.train.images, images[[0, 2, 1, 4, 3, 5]])
    np.testing.assert_array_equal(data.train.labels, [0, 0, 0, 1, 1, 1])
    assert data.test.labels.sum() == 2
    expected = {(*images[6 + i].reshape(-1).tolist(), i % 2) for i in range(4)}
    assert rows_of(data.test) == expected
    pixels = images[:6].reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(data.std, pixels.std(0), rtol=1e-9)
    cut = load_dataset("folder:set", data_dir=folder, validation_examples=2)
    assert len(cut.validation.labels) == 2
    assert cut.mean == data.mean  # of the whole training set
    assert len(load_dataset("folder:set", data_dir=folder).validation.labels) == 0


def test_the_cache_of_a_folder_notices_changes(image_folder):
    folder, images = image_folder
    load = lambda: load_dataset("folder:set", data_dir=folder)  # noqa: E731
    first = load()
    assert (folder / "set/sup_tickets.npz").is_file()
    np.testing.assert_array_equal(load().train.images, first.train.images)
    write_image(folder / "set/train/n1/more.png", images[0])
    assert len(load().train.labels) == 7


def test_grey_images_become_colour(image_folder):
    folder, images = image_folder
    write_image(folder / "set/train/n0/0.png", images[0][..., :1])
    data = load_dataset("folder:set", data_dir=folder)
    np.testing.assert_array_equal(
        data.train.images[0], np.repeat(images[0][..., :1], 3, axis=-1)
    )


def test_what_is_wrong_with_a_folder(image_folder):
    folder, images = image_folder
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*other/train"):
        load_dataset("folder:other", data_dir=folder)
    write_image(folder / "set/train/n1/x.JPEG", images[0][:4])
    with pytest.raises(ValueError, match=r"x.JPEG has \(6, 4\) .* has \(6, 8\)"):
        load_dataset("folder:set", data_dir=folder)
    if not (folder / "set/val/val_annotations.txt").exists():
        write_image(folder / "set/val/n9/x.png", images[0])
    else:
        (folder / "set/val/val_annotations.txt").write_text("v0.png\tn9\t0")
    with pytest.raises(ValueError, match=r"train lacks: .*n9"):
        load_dataset("folder:set", data_dir=folder)
    shutil.rmtree(folder / "set/train/n0")
    shutil.rmtree(folder / "set/train/n1")
    with pytest.raises(FileNotFoundError, match="train has no images"):
        load_dataset("folder:set", data_dir=folder)


def test_tiny_imagenet(image_folder, monkeypatch):
    folder, _ = image_folder
    (folder / "set").rename(folder / "tiny-imagenet-200")
    with pytest.raises(ValueError, match=r"200 has training images \(6, 8, 6, 3\)"):
        load_dataset("tiny_imagenet", data_dir=folder)
    sizes = {"train": 6, "test": 4, "classes": 2, "shape": (8, 6, 3)}
    small(monkeypatch, "tiny_imagenet", **sizes, validation_examples=1)
    data = load_dataset("tiny_imagenet", data_dir=folder)
    assert [len(split.labels) for split in data[2:5]] == [5, 1, 4]
    assert data.mean == DATASETS["tiny_imagenet"].mean
    with pytest.raises(FileNotFoundError, match=r"unpack .*tiny-imagenet-200\.zip"):
        load_dataset("tiny_imagenet", data_dir=folder / "nowhere")


# --- The digits -----------------------------------------------------------------------


def test_the_digits_are_those_of_scikit_learn():
    ours = load_dataset("digits", validation_examples=0)
    theirs = load_digits()
    images = np.concatenate([ours.train.images, ours.test.images])[..., 0]
    labels = np.concatenate([ours.train.labels, ours.test.labels])

    def rows(images, labels):
        return sorted(
            (*image.ravel(), label) for image, label in zip(images, labels, strict=True)
        )

    assert rows(images, labels) == rows(theirs.images, theirs.target)


def test_without_scikit_learn_the_digits_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="datasets is needed for the digits"):
        load_dataset("digits")


def test_the_digits_are_split_once_and_balanced():
    data = load_dataset("digits")
    assert [len(split.labels) for split in data[2:5]] == [1257, 180, 360]
    assert (data.scale, data.mean, data.std) == (16, (0.305,), (0.376,))
    for split, per_class in ((data.validation, 18), (data.test, 36)):
        np.testing.assert_array_equal(np.bincount(split.labels), [per_class] * 10)
    assert data.train.images.shape == (1257, 8, 8, 1)
    assert data.train.images.max() == 16
    # Committed results depend on them.
    digest = hashlib.sha256(b"".join(part.tobytes() for s in data[2:5] for part in s))
    assert digest.hexdigest()[:16] == "ee7601b4b222ab2f"
    other = load_dataset("digits", split_seed=1)
    assert rows_of(other.test) != rows_of(data.test)
    together = rows_of(data.train) | rows_of(data.validation) | rows_of(data.test)
    assert len(together) == 1797
    full = load_dataset("digits", validation_examples=0)
    assert [len(split.labels) for split in full[2:5]] == [1437, 0, 360]
    np.testing.assert_array_equal(full.test.images, data.test.images)
    with pytest.raises(ValueError, match="a multiple of 10, up to 1000, got 5"):
        load_dataset("digits", validation_examples=5)


def test_moments_are_those_of_the_pixels():
    images, _ = made_up((5, 4, 3), 7, 2, 1)
    mean, std = image_sets._moments(images)
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-12)
    assert image_sets._moments(np.zeros((2, 2, 2, 1), np.uint8))[1] == (1 / 255,)


# --- Fewer and smaller images ---------------------------------------------------------


def test_squares_of_pixels_are_averaged():
    image = np.array([[0, 1, 255, 255], [0, 1, 255, 254]], np.uint8)
    (small,) = image_sets._shrunk(image[None, ..., None], 2)
    # The means are 0.5 and 254.75; halves are rounded up.
    np.testing.assert_array_equal(small[..., 0], [[1, 255]])
    assert small.dtype == np.uint8


def test_images_of_all_splits_shrink():
    whole, small = load_dataset("digits"), load_dataset("digits", shrink=4)
    for name in ("train", "validation", "test"):
        images, labels = getattr(whole, name)
        means = images.reshape(-1, 2, 4, 2, 4, 1).mean((2, 4))
        np.testing.assert_array_equal(
            getattr(small, name).images, np.floor(means + 0.5)
        )
        np.testing.assert_array_equal(getattr(small, name).labels, labels)


def test_some_of_the_training_images():
    whole, some, more, other = (
        load_dataset("digits", training_examples=count, split_seed=seed)
        for count, seed in ((0, 0), (100, 0), (200, 0), (100, 1))
    )
    assert some.train.images.shape == (100, 8, 8, 1)
    assert rows_of(some.train) < rows_of(more.train) < rows_of(whole.train)
    assert rows_of(some.train) != rows_of(other.train)
    np.testing.assert_array_equal(some.test.images, whole.test.images)
    np.testing.assert_array_equal(some.validation.images, whole.validation.images)
    full = load_dataset("digits", training_examples=len(whole.train.labels))
    np.testing.assert_array_equal(full.train.images, whole.train.images)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"training_examples": -1}, "training_examples must be .*got -1"),
        ({"training_examples": 1258}, "training_examples=1258 is more than the 1257"),
        ({"shrink": 0}, "shrink must be .*got 0"),
        ({"shrink": 3}, "shrink must divide the 8 x 8 pixels of an image, got 3"),
    ],
)
def test_images_that_cannot_be_had(options, text):
    with pytest.raises(ValueError, match=text):
        load_dataset("digits", **options)


@pytest.mark.parametrize("name", PREPARED)
def test_a_real_set(name):
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("TFDS_DATA_DIR is not set")
    try:
        data = load_dataset(name, validation_examples=0)
    except DataNotPrepared as error:
        pytest.skip(str(error))
    known = DATASETS[name]
    per_class = np.bincount(data.train.labels)
    assert len(per_class) == known.classes
    if name != "mnist":
        assert (per_class == known.train // known.classes).all()
        assert (np.bincount(data.test.labels) == known.test // known.classes).all()
    mean, std = image_sets._moments(data.train.images)
    np.testing.assert_allclose(mean, data.mean, atol=6e-5)
    np.testing.assert_allclose(std, data.std, atol=6e-5)
