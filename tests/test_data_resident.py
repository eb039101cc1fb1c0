"""Batches of a set that lives on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from sup_tickets.data import resident
from sup_tickets.data.resident import Rows, Shardings
from tests import helpers

N, B = 21, 8


def placement_on(devices):
    mesh = helpers.mesh(data=devices)
    return Shardings(
        NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    )


def source_on(place, key):
    images = np.arange(N * 4, dtype=np.uint8).reshape(N, 2, 2, 1)
    labels = np.arange(N, dtype=np.int32)
    return resident.training_batches(
        (images, labels), key=key, batch_size=B, shardings=place
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_are_the_rows_of_epochs(key, devices):
    source = source_on(placement_on(devices), key)
    for step in (0, 2, 3, 100, 1):
        rows = resident.epoch_rows(key, step // 3, N, B)[step % 3]
        for batch in (source(step), source.batch(step)):
            images, labels = jax.jit(resident.take)(batch)
            np.testing.assert_array_equal(labels, rows)
            np.testing.assert_array_equal(images[:, 0, 0, 0], 4 * rows)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_block_is_its_batches(key, devices):
    place = placement_on(devices)
    source = source_on(place, key)
    block = source.block(2, 5)  # over the end of an epoch, and the next
    assert block.rows.shape == (5, B)
    expected = NamedSharding(place.replicated.mesh, PartitionSpec(None, "data"))
    assert block.rows.sharding.is_equivalent_to(expected, 2)
    assert block.examples[0].sharding.is_equivalent_to(place.replicated, 4)

    @jax.jit
    def labels_of(block: Rows):
        def one(_, i):
            batch = source.at(block, i)
            return None, resident.take(batch)[1]

        return jax.lax.scan(one, None, jnp.arange(5))[1]

    found = labels_of(block)
    for i in range(5):
        np.testing.assert_array_equal(found[i], source(2 + i).rows)
        np.testing.assert_array_equal(source.at(block, i).rows, source(2 + i).rows)


def test_a_single_device_needs_no_mesh(key):
    only = SingleDeviceSharding(jax.devices()[0])
    source = source_on(Shardings(only, only), key)
    np.testing.assert_array_equal(source.block(0, 2).rows[1], source(1).rows)


def test_sharding_does_not_change_the_rows(key):
    one, eight = (source_on(placement_on(n), key) for n in (1, 8))
    np.testing.assert_array_equal(one.block(0, 9).rows, eight.block(0, 9).rows)


def test_what_other_processes_hold_is_put_by_pieces(monkeypatch):
    # As with several processes, where not all devices can be written to from here.
    place = placement_on(8)
    array = np.arange(16, dtype=np.int32).reshape(8, 2)
    monkeypatch.setattr(NamedSharding, "is_fully_addressable", False)
    monkeypatch.setattr(resident.jax, "device_put", None)
    found = resident.to_devices(array, place.batch)
    monkeypatch.undo()
    np.testing.assert_array_equal(found, array)
    assert found.sharding == place.batch


@pytest.mark.parametrize("n", [0, 1, 8, 21])
def test_evaluation_has_every_example_once(n):
    images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    labels = np.arange(n, dtype=np.int32)
    batches = resident.evaluation_batches(
        images, labels, batch_size=B, shardings=placement_on(8)
    )
    assert len(batches) == -(-n // B)
    assert all(batch.inputs.shape == (B, 1, 1, 1) for batch in batches)
    counted = [
        np.asarray(batch.labels)[np.asarray(batch.weights) == 1] for batch in batches
    ]
    np.testing.assert_array_equal(np.concatenate([[], *counted]), labels)
    assert sum(float(batch.weights.sum()) for batch in batches) == n


def test_examples_are_any_arrays(key):
    place = placement_on(1)
    examples = {"words": np.arange(24).reshape(12, 2), "rest": [np.arange(12.0)]}
    source = resident.training_batches(examples, key=key, batch_size=4, shardings=place)
    batch = source(1)
    found = jax.jit(resident.take)(batch)
    np.testing.assert_array_equal(found["words"][:, 0], 2 * batch.rows)
    np.testing.assert_array_equal(found["rest"][0], batch.rows)
