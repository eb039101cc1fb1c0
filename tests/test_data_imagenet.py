"""Photographs streamed from disk, at the size of toys."""

import gc
import io
import itertools
import math
from multiprocessing.synchronize import SemLock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from test_data import made_up, write_records

from sup_tickets.data import DataNotPrepared, imagenet
from sup_tickets.data.imagenet import Evaluation, Stream, open_imagenet, share_of
from sup_tickets.data.photos import centre_photo, random_box, random_photo
from sup_tickets.data.resident import Shardings
from tests import helpers

N, B, SIZE = 11, 4, 8


def photo(height, width, seed=0, mode="RGB"):
    """The bytes of a smooth PNG, and its pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    image = small.resize((width, height)).convert(mode)
    file = io.BytesIO()
    image.save(file, "tiff" if mode == "CMYK" else "png")
    return file.getvalue(), np.asarray(image)


class Records:
    """What a worker process can unpickle."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        data, _ = photo(12 + i, 20 - i, seed=int(i))
        return {"image": data, "label": np.int64(i), "file_name": b"x"}


@pytest.fixture(scope="module")
def place():
    mesh = helpers.mesh(data=4)
    return Shardings(
        NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    )


def stream_of(place, **options):
    options = {"seed": 7, "batch_size": B, "size": SIZE} | options
    return Stream(Records(), shardings=place, **options)


def check_equal(batch, other):
    np.testing.assert_array_equal(batch.images, other.images)
    np.testing.assert_array_equal(batch.labels, other.labels)


# --- Crops ----------------------------------------------------------------------------


def test_boxes_are_inside_and_of_the_shares_asked_for():
    rng = np.random.default_rng(0)
    options = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    boxes = np.array([random_box(rng, 300, 400, **options) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (right <= 400).all() and (bottom <= 300).all()
    width, height = right - left, bottom - top
    share, shape = width * height / 120_000, width / height
    assert 0.078 < share.min() < 0.1 and share.max() > 0.8
    assert 0.74 < shape.min() < 0.76 and 1.32 < shape.max() < 1.35
    # The logarithm of the ratio is uniform, where no draw is too large to fit.
    small = [random_box(rng, 500, 500, area=(0.1, 0.2), ratio=(0.5, 2)) for _ in boxes]
    logs = [math.log((r - x) / (b - y), 2) for x, y, r, b in small]
    assert abs(np.mean(logs)) < 0.05
    assert abs(np.std(logs) - 2 / math.sqrt(12)) < 0.02


def test_a_photograph_that_no_box_fits_is_cut_in_the_centre():
    rng = np.random.default_rng(0)
    options = {"area": (1.0, 1.0), "ratio": (3 / 4, 4 / 3)}
    assert random_box(rng, 30, 300, **options) == (130, 0, 170, 30)
    assert random_box(rng, 300, 30, **options) == (0, 130, 30, 170)


def test_a_random_photograph_is_its_box_resized():
    data, pixels = photo(40, 30)
    found = random_photo(data, np.random.default_rng(5), size=SIZE)
    rng = np.random.default_rng(5)
    options = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    left, top, right, bottom = random_box(rng, 40, 30, **options)
    part = Image.fromarray(pixels[top:bottom, left:right])
    expected = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    mirrored = rng.random() < 0.5
    np.testing.assert_array_equal(found, expected[:, ::-1] if mirrored else expected)


@pytest.mark.parametrize("height, width", [(40, 30), (30, 47), (16, 16), (9, 50)])
def test_the_centre_of_a_photograph(height, width):
    data, pixels = photo(height, width)
    found = centre_photo(data, size=SIZE, shorter_side=10)
    short = min(height, width)
    sizes = (10 * width // short, 10 * height // short)
    resized = Image.fromarray(pixels).resize(sizes, Image.Resampling.BILINEAR)
    top, left = round((sizes[1] - SIZE) / 2), round((sizes[0] - SIZE) / 2)
    expected = np.asarray(resized)[top : top + SIZE, left : left + SIZE]
    assert found.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_any_photograph_becomes_colour(mode):
    data, _ = photo(20, 20, mode=mode)
    assert centre_photo(data, size=SIZE, shorter_side=10).shape == (SIZE, SIZE, 3)


# --- Training -------------------------------------------------------------------------


def test_every_epoch_has_each_example_once(place):
    stream = stream_of(place)
    assert stream.steps_per_epoch == 3
    labels = np.concatenate([stream(step).labels for step in range(11)])
    stream.close()
    epochs = labels.reshape(4, N)
    np.testing.assert_array_equal(np.sort(epochs), [list(range(N))] * 4)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_batches_are_on_the_devices(place):
    batch = stream_of(place)(0)
    assert batch.images.shape == (B, SIZE, SIZE, 3)
    assert (batch.images.dtype, batch.labels.dtype) == (jnp.uint8, jnp.int32)
    for array in batch:
        assert array.sharding.is_equivalent_to(place.batch, array.ndim)


def test_a_batch_is_a_function_of_seed_and_step(place):
    one, other = stream_of(place), stream_of(place)
    batches = [one(step) for step in range(6)]
    for step in (5, 2, 3, 3, 0):  # jumps, a step that follows, the same step again
        check_equal(other(step), batches[step])
    far = 10**7
    check_equal(one(far), other(far))  # nothing is replayed
    changed = stream_of(place, seed=8)
    assert any((changed(s).labels != batches[s].labels).any() for s in range(3))
    # The same example is cropped anew each time.
    seen = {}
    for image, label in zip(*map(np.concatenate, zip(*batches, strict=True)), strict=1):
        seen.setdefault(int(label), []).append(image)
    pairs = [p for images in seen.values() for p in itertools.combinations(images, 2)]
    assert pairs and all((a != b).any() for a, b in pairs)


@pytest.mark.slow
def test_workers_do_not_change_a_bit(place):
    alone, helped = stream_of(place), stream_of(place, workers=2)
    for step in (0, 1, 2, 7, 8):
        check_equal(alone(step), helped(step))
    helped.close()
    helped.close()
    check_equal(alone(9), helped(9))  # starts again
    helped.close()
    alone.close()


def test_processes_share_a_batch_out(place):
    whole = stream_of(place)(5)
    parts = []
    for part in range(2):
        stream = stream_of(place)
        examples = stream._pipeline._batches._parent._parent  # before it is cut
        local = imagenet._Pipeline(examples, B, (part, 2), 0).at(5)
        assert local["labels"].shape == (B // 2,)
        parts.append(local)
    for name in ("images", "labels"):
        together = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(together, getattr(whole, name))


def test_the_share_of_a_process(place):
    assert share_of(place.batch, 8) == (0, 1)

    class Some:
        def __init__(self, *rows):
            self.rows = rows

        def addressable_devices_indices_map(self, shape):
            return {i: (slice(*pair),) for i, pair in enumerate(self.rows)}

    assert share_of(Some((4, 6), (6, 8)), 16) == (1, 4)
    assert share_of(Some((0, 4), (0, 4)), 8) == (0, 2)
    for rows in (((0, 2), (4, 6)), ((2, 6),)):
        with pytest.raises(ValueError, match="one part of the 16 examples"):
            share_of(Some(*rows), 16)


def test_a_block_is_its_batches(place):
    stream = stream_of(place)
    block = stream.block(1, 3)
    assert block.images.shape == (3, B, SIZE, SIZE, 3)
    spec = PartitionSpec(None, "data")
    expected = NamedSharding(place.replicated.mesh, spec)
    assert block.images.sharding.is_equivalent_to(expected, 5)
    labels = jax.jit(
        lambda block: jax.lax.map(lambda i: stream.at(block, i).labels, jnp.arange(3))
    )(block)
    for i in range(3):
        batch = stream(1 + i)
        check_equal(stream.at(block, i), batch)
        np.testing.assert_array_equal(labels[i], batch.labels)
    stream.close()


def test_wrong_workers(place):
    with pytest.raises(ValueError, match="workers must be a whole number"):
        stream_of(place, workers=-1)


# --- Evaluation -----------------------------------------------------------------------


def semaphores():
    """How many semaphores of `multiprocessing` are alive."""
    return sum(isinstance(o, SemLock) for o in gc.get_objects())


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_has_every_example_once_and_whole_batches(place, workers):
    batches = Evaluation(
        Records(),
        batch_size=B,
        shardings=place,
        size=SIZE,
        shorter_side=10,
        workers=workers,
    )
    assert len(batches) == 3
    before = semaphores()
    for _ in range(2 - workers):  # again and again
        found = list(batches)
        # None of a worker's 25 is left; two are Grain's own, of its shared memory.
        assert semaphores() <= before + 2
        assert [len(batch.labels) for batch in found] == [B] * 3
        images, labels, weights = (
            np.concatenate(arrays) for arrays in zip(*found, strict=True)
        )
        np.testing.assert_array_equal(weights, [1.0] * N + [0.0])
        np.testing.assert_array_equal(labels[:N], range(N))
        for i in range(N):
            data = Records()[i]["image"]
            expected = centre_photo(data, size=SIZE, shorter_side=10)
            np.testing.assert_array_equal(images[i], expected)


# --- The set itself -------------------------------------------------------------------


def test_a_prepared_imagenet_is_streamed(tmp_path, place, monkeypatch):
    with pytest.raises(DataNotPrepared, match=f"imagenet2012 --data_dir={tmp_path}"):
        open_imagenet("train", data_dir=tmp_path)
    splits = {
        "train": made_up((20, 14, 3), N, 1000, 0),
        "validation": made_up((9, 15, 3), 5, 1000, 1),
    }
    write_records(tmp_path, "imagenet2012", splits, 1000, form="jpeg")
    with pytest.raises(ValueError, match="train split of imagenet2012 has 11 of 1281"):
        open_imagenet("train", data_dir=tmp_path)
    monkeypatch.setattr(imagenet, "EXAMPLES", {"train": N, "validation": 5})
    train = open_imagenet("train", data_dir=tmp_path)
    options = {"seed": 0, "batch_size": B, "shardings": place, "size": SIZE}
    alone, helped = (Stream(train, workers=workers, **options) for workers in (0, 1))
    labels = []
    for step in range(11):
        batch = alone(step)
        check_equal(batch, helped(step))  # the records can be sent to a worker
        labels += batch.labels.tolist()
    assert sorted(labels) == sorted(splits["train"][1].tolist() * 4)
    helped.close()
    alone.close()
    test = open_imagenet("validation", data_dir=tmp_path)
    found = Evaluation(test, batch_size=B, shardings=place, size=SIZE)
    assert sum(float(batch.weights.sum()) for batch in found) == 5
