"""From a configuration to the devices of a run, and how its state lies on them."""

from collections.abc import Sequence
from typing import Any

import jax

from configs.common import default
from experiments.build.parts import section
from experiments.config.fields import Config
from sup_tickets.training.mesh import MODEL, data_mesh
from sup_tickets.training.sharding import Layout, names_in, parse_rule
from sup_tickets.training.state import TrainState
from sup_tickets.training.task import Task


def make_layout(config: Config, devices: Sequence[Any] | None = None) -> Layout:
    """How the state of a run is spread over the devices.

    Args:
      config: of the run.
      devices: by default all.

    Raises:
      ValueError: one line, if they cannot be laid out so, or a rule is none.
    """
    along = config.mesh.model
    with section("mesh"):
        mesh = data_mesh(devices, model=along)
        rules = tuple(map(parse_rule, config.mesh.rules))
        split = [text for text, spec in rules if MODEL in names_in(spec)]
        if along > 1 and not split:
            raise ValueError(
                f"model={along} would have no effect; no rule has the axis {MODEL!r}"
            )
        if along == 1 < mesh.size and split:
            raise ValueError(
                f"rule {split[0]!r} would have no effect; model=1 is one device along "
                f"{MODEL!r}"
            )
        return Layout(mesh, fsdp=config.mesh.fsdp, rules=rules)


def to_read(config: Config) -> Config:
    """The configuration of a stored run, to read its networks on whatever devices.

    Axes and rules are of the devices that trained it; a state that was spread over them
    is fully sharded here. Runs of versions without a mesh have the default.
    """
    given: Any = config.get("mesh", {})
    read: Any = config.copy_and_resolve_references()
    mesh: Any = default().mesh
    mesh.fsdp = bool(given.get("fsdp") or given.get("rules"))
    read.mesh = mesh
    return read


def check_layout(layout: Layout, task: Task) -> None:
    """Raises unless the parameters of a task can be laid out so.

    Raises:
      ValueError: one line, naming a rule or a leaf.
    """
    if not layout.is_replicated:
        params, _ = jax.eval_shape(task.init, jax.random.key(0))
        with section("mesh"):
            layout.specs(params)


def describe_layout(layout: Layout, state: TrainState) -> list[str]:
    """A line on what each device has, or none where each has all."""
    if layout.is_replicated:
        return []
    sizes = " x ".join(f"{n} {name}" for name, n in layout.mesh.shape.items())
    share = layout.share(state, state.params)
    return [f"devices: {sizes}; each has {share:.1%} of the state"]
