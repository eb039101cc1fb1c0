"""The devices of a run: a mesh over ``data``, the state on all of them.

One program for all machines: a laptop is a mesh of 1. The batch is shared out, so means
over it, batch norm's too, are those of the whole batch on any number of devices.
(``jax.jit`` with shardings is what used to be called pjit.)
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sup_tickets.data.resident import Shardings


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the one axis ``data`` over the devices, by default over all."""
    devices = list(jax.devices() if devices is None else devices)
    # Auto must be asked for: with Explicit axes Flax models fail.
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def data_shardings(mesh: Mesh, *, batch_size: int) -> Shardings:
    """The shardings of state and batch.

    Args:
      mesh: of `data_mesh`.
      batch_size: examples of a batch on all devices together.

    Raises:
      ValueError: if the batch cannot be shared out evenly.
    """
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of the {mesh.size} devices"
        )
    return Shardings(
        replicated=NamedSharding(mesh, PartitionSpec()),
        batch=NamedSharding(mesh, PartitionSpec("data")),
    )
