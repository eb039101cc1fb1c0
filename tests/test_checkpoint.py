"""Runs that are saved, stopped, broken and resumed."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from sup_tickets.masks import layer_table
from sup_tickets.training import checkpoint as checkpoint_module
from sup_tickets.training.checkpoint import BrokenCheckpoints, Checkpoints
from sup_tickets.training.loop import TrainingStopped, train
from sup_tickets.training.state import RunState
from tests import helpers
from tests.helpers import assert_same
from tests.test_training import Recorder, experiment_of, finished, place_of, start_of


@dataclasses.dataclass
class Saver:
    """Saves every so many steps, and after some step says that the run must stop."""

    checkpoints: Checkpoints
    every: int = 10**9
    stop_at: int = 10**9
    saved: list = dataclasses.field(default_factory=list)

    def due(self, step):
        return step % self.every == 0

    def stopping(self, step):
        return step >= self.stop_at

    def save(self, state):
        self.saved.append(int(state.train.step))
        self.checkpoints.save(state, {"stop": self.stop_at}, rank=0.5)


def restored(path, job, devices=1):
    checkpoints = Checkpoints(path)
    found = checkpoints.restore(job.like, place_of(devices).replicated)
    checkpoints.close()
    return found


def bits(tree):
    """Host arrays, random keys as numbers."""
    return jax.tree.map(
        lambda leaf: np.asarray(
            jax.random.key_data(leaf)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        ),
        tree,
    )


@pytest.mark.parametrize("name", ["rigl", pytest.param("set", marks=pytest.mark.slow)])
def test_a_run_goes_on_from_any_step_to_the_same_bits(name, tmp_path):
    whole, _ = finished(name)
    job = experiment_of(name)
    checkpoints = Checkpoints(tmp_path)
    for stop in (3, 5, 12, 13, 16, 19, 20):
        found = checkpoints.restore(job.like, place_of().replicated)
        state = start_of(job) if found is None else found.state

        with pytest.raises(TrainingStopped, match=r"stopped after \d+ steps"):
            train(job, state, Recorder(), Saver(checkpoints, stop_at=stop))
    found = checkpoints.restore(job.like, place_of().replicated)
    assert found.step == 20 and found.notes == {"stop": 20} and found.broken == ()
    checkpoints.close()
    outcome = train(job, found.state, Recorder())
    assert_same(bits(outcome), bits(whole))


def test_other_numbers_of_devices_go_on(tmp_path):
    helpers.need_devices(8)
    job = experiment_of("rigl")
    checkpoints = Checkpoints(tmp_path)
    train(job, start_of(job), Recorder(), Saver(checkpoints, every=14))
    checkpoints.close()
    shutil.rmtree(tmp_path / "20")
    eight = experiment_of("rigl", devices=8)
    found = restored(tmp_path, eight, devices=8)
    assert found.step == 16
    assert len(found.state.train.params["dense1"]["kernel"].sharding.device_set) == 8
    outcome = train(eight, found.state, Recorder())
    whole, _ = finished("rigl")
    np.testing.assert_allclose(
        outcome.network.params["dense1"]["kernel"],
        whole.network.params["dense1"]["kernel"],
        atol=1e-4,
    )
    table = layer_table(outcome.superposed.masks)
    assert table[-1] == layer_table(whole.superposed.masks)[-1]


@pytest.fixture
def saved(tmp_path):
    """A run with the checkpoints of its last steps, and the best."""
    job = experiment_of("rigl")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    saver = Saver(checkpoints, every=18)
    train(job, start_of(job), Recorder(), saver)
    checkpoints.close()
    assert saver.saved == [12, 16, 18, 20]
    return tmp_path / "checkpoints", job


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    job = experiment_of("rigl")
    checkpoints = Checkpoints(tmp_path)
    state = start_of(job).train
    for step, accuracy in ((1, 0.4), (2, 0.9), (3, 0.5), (4, None), (5, 0.6)):
        numbered = state.replace(step=jax.numpy.int32(step))
        checkpoints.save(RunState(numbered), {}, rank=accuracy)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5"]


def test_masks_take_one_bit(saved):
    path, job = saved
    state = restored(path, job).state
    mask = state.train.method.masks["dense1"]["kernel"]
    assert mask.dtype == bool and mask.shape == (16, 16)
    metadata = (path / "20" / "state" / "_METADATA").read_text()
    assert "masks" in metadata


def arrays_of(path):
    return [p for p in (path / "state").rglob("*") if p.is_file()]


def test_broken_checkpoints_are_told_and_set_aside(saved):
    path, job = saved
    biggest = max(arrays_of(path / "20"), key=lambda p: p.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-200])
    found = restored(path, job)
    assert found.step == 18
    assert len(found.broken) == 1 and found.broken[0].startswith("step 20: ")
    assert (path.parent / "broken-20-0").is_dir() and not (path / "20").exists()
    whole, _ = finished("rigl")
    checkpoints = Checkpoints(path)
    outcome = train(job, found.state, Recorder(), Saver(checkpoints))
    checkpoints.close()
    assert_same(bits(outcome), bits(whole))
    assert restored(path, job).step == 20


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(saved):
    path, job = saved
    whole = bits(restored(path, job).state)
    rng = np.random.default_rng(0)
    noticed = 0
    for file in arrays_of(path / "20"):
        good = file.read_bytes()
        for place in rng.integers(0, max(len(good), 1), 2) if good else ():
            changed = bytearray(good)
            changed[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(bytes(changed))
            found = restored(path, job)
            if found.step == 20:
                assert_same(bits(found.state), whole)
            else:
                noticed += 1
                aside = sorted(path.parent.glob("broken-20-*"))[-1]
                aside.rename(path / "20")
            file.write_bytes(good)
    assert noticed


def test_nothing_readable_is_an_error_and_removes_nothing(saved):
    path, job = saved
    for step in ("18", "20"):
        for file in arrays_of(path / step):
            file.write_bytes(b"")
    with pytest.raises(BrokenCheckpoints, match=r"no checkpoint can be read \(step 20"):
        restored(path, job)
    assert (path / "18").exists() and (path / "20").exists()


def test_a_first_checkpoint_that_was_not_finished_is_a_fresh_start(tmp_path):
    job = experiment_of("rigl")
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(start_of(job), {})
    checkpoints.close()
    (tmp_path / "c" / "0" / "checksums.json").unlink()  # killed just before
    assert restored(tmp_path / "c", job) is None
    assert (tmp_path / "broken-0-0").is_dir()


def test_a_checkpoint_that_cannot_be_written_leaves_the_good_ones(saved, monkeypatch):
    path, job = saved
    checkpoints = Checkpoints(path)
    found = checkpoints.restore(job.like, place_of().replicated)
    later = found.state.train.replace(step=jax.numpy.int32(21))

    def full(folder):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_module, "seal", full)
    message = r"step 21 could not be written \(OSError: No space .* of step 20"
    with pytest.raises(OSError, match=message):
        checkpoints.save(RunState(later, found.state.average), {})
    checkpoints.close()
    monkeypatch.undo()
    assert not (path / "21").exists()
    assert restored(path, job).step == 20


def test_no_checkpoint_is_none(tmp_path):
    assert restored(tmp_path / "none", experiment_of("rigl")) is None


def test_a_checkpoint_of_another_shape_is_not_taken(saved):
    path, _ = saved
    other = experiment_of("rigl")

    def wrong(step):
        shapes = other.like(step)
        train = shapes.train
        return shapes.replace(train=train.replace(params={"other": train.step}))

    with pytest.raises(BrokenCheckpoints):
        checkpoints = Checkpoints(path)
        checkpoints.restore(
            wrong,
            place_of().replicated,
        )
