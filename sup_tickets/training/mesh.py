"""The devices of a run: a mesh over ``data`` and ``model``.

One program for all machines: a laptop is a mesh of 1 x 1. The batch is shared out along
``data``, so means over it, batch norm's too, are those of the whole batch on any number
of devices. What is split along ``model`` is said by `sharding.Layout`. (``jax.jit``
with shardings is what used to be called pjit.)
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sup_tickets.data.resident import Shardings
from sup_tickets.data.resident import stacked as stacked  # for modules beside this one

DATA, MODEL = "data", "model"


def data_mesh(devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
    """A mesh with the axes ``data`` and ``model``.

    Args:
      devices: by default all.
      model: devices along ``model``; neighbours, which are connected best.

    Raises:
      ValueError: if it does not divide the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise ValueError(f"model={model} must divide the {len(devices)} devices")
    # Auto must be asked for: with Explicit axes Flax models fail.
    return jax.make_mesh(
        (len(devices) // model, model),
        (DATA, MODEL),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


def data_shardings(mesh: Mesh, *, batch_size: int) -> Shardings:
    """The shardings of a batch, and of what all devices have.

    Args:
      mesh: of `data_mesh`, or any other with an axis "data".
      batch_size: examples of a batch on all devices together.

    Raises:
      ValueError: if there is no such axis, or the batch cannot be shared out evenly.
    """
    if DATA not in mesh.axis_names:
        names = ", ".join(map(repr, mesh.axis_names))
        raise ValueError(f"mesh must have an axis {DATA!r} for batches, has {names}")
    parts = mesh.shape[DATA]
    if batch_size % parts:
        along = "devices" if parts == mesh.size else "devices along data"
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of the {parts} {along}"
        )
    return Shardings(
        replicated=NamedSharding(mesh, PartitionSpec()),
        batch=NamedSharding(mesh, PartitionSpec(DATA)),
    )
