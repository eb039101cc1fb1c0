"""Files of masks that runs start from: what they are is counted, never believed."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.build.data_checks import text_digest
from experiments.build.parts import section
from experiments.config.fields import Config
from sup_tickets.counting import active_count
from sup_tickets.models.skips import without_ghosts
from sup_tickets.structures import Structure, check_structure
from sup_tickets.training.network_files import load_sparse, provenance_of
from sup_tickets.training.state import Network, Start, TrainState, completed
from sup_tickets.trees import named_leaves
from sup_tickets.types import Masks


def check_file(
    config: Config,
    shapes: TrainState,
    *,
    phase1_steps: int,
    ghost_steps: int,
    structure: Structure | None = None,
) -> None:
    """Raises where the file of masks is not what the run is said to train.

    What the file is, is counted: its label may be that of a run that ended otherwise.

    Args:
      config: of the run; without ``masks`` nothing is looked at.
      shapes: of the network that is trained, arrays or shapes.
      phase1_steps: steps of phase 1.
      ghost_steps: steps after which ghosts are gone; 0 without.
      structure: of the method.

    Raises:
      ValueError: one line, naming what is wrong with the file.
      OSError: if it cannot be read.
    """
    if config.masks is None:
        return
    path, name = Path(config.masks), f"config.masks={config.masks!r}"
    if not path.is_file():
        raise ValueError(f"config.masks: there is no file {config.masks!r}")
    origin, network = provenance_of(path), load_sparse(path)
    for field in ("data", "model"):
        if origin.get(field) != config[field].name:
            raise ValueError(
                f"{name} is of {field} {origin.get(field)!r}, and this run has "
                f"{config[field].name!r}"
            )
    if "text" in origin and origin["text"] != text_digest(config):
        raise ValueError(
            f"{name} was trained on another text than {config.data.name!r} is now, "
            "with another vocabulary"
        )
    _check_shapes(name, "masks", network.masks, shapes.method.masks)
    if structure is not None:
        with section(f"masks={config.masks!r}"):
            check_structure(structure, network.masks)
    if structure is None or structure.of is not None:
        _check_active(name, network.masks, config.method.sparsity)
    if config.mask.weights == "init" and origin.get("seed") != config.seed:
        raise ValueError(
            f"{name} was found with seed {origin.get('seed')}, and this run begins "
            f"with the weights of seed {config.seed}; give "
            "--config.mask.weights=file or new, or that seed"
        )
    if config.mask.weights == "file":
        for part in ("params", "model_state"):
            there, here = getattr(network, part), getattr(shapes, part)
            if not _has_ghosts(there):  # those that stay, as released, are drawn
                here = without_ghosts(here)
            _check_shapes(name, part, there, here)
        step = origin.get("rewind_step", 0)
        _check_step(name, step, phase1_steps, ghost_steps)


def _has_ghosts(tree: Any) -> bool:
    return jax.tree.structure(tree) != jax.tree.structure(without_ghosts(tree))


def _check_shapes(name: str, what: str, found: Any, wanted: Any) -> None:
    """Raises unless two trees have the same leaves, of the same shapes."""
    there, here = (
        {leaf_name: tuple(leaf.shape) for leaf_name, leaf in named_leaves(tree)}
        for tree in (found, wanted)
    )
    if what == "masks" and here and not there:
        raise ValueError(f"{name} is of a dense network; it has no masks")
    for leaf in sorted(there.keys() | here.keys()):
        if there.get(leaf) != here.get(leaf):
            raise ValueError(
                f"{name}: {what} of leaf {leaf!r} "
                f"{_shape(there.get(leaf))} in the file, and "
                f"{_shape(here.get(leaf))} in this run"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "is not there" if shape is None else f"has shape {shape}"


def _check_active(name: str, masks: Masks, sparsity: float) -> None:
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    active, total = sum(int(m.sum()) for m in leaves), sum(m.size for m in leaves)
    wanted = active_count(total, sparsity)
    if active != wanted:
        raise ValueError(
            f"{name} has {active} of {total} weights active, sparsity "
            f"{1 - active / total:.4g}; config.method.sparsity={sparsity} asks for "
            f"{wanted}"
        )


def _check_step(name: str, step: int, phase1_steps: int, ghost_steps: int) -> None:
    if step >= phase1_steps:
        raise ValueError(
            f"{name} is rewound to step {step}, and phase 1 of this run ends at step "
            f"{phase1_steps}"
        )
    if 0 < ghost_steps <= step:
        raise ValueError(
            f"{name} is rewound to step {step}, and the ghosts of this run are gone "
            f"after step {ghost_steps}; leave soft and skips out of config.tost.parts"
        )


def from_file(config: Config, drawn: Start) -> Start:
    """The network of the file, with the ghosts that it lacks."""
    network: Network = load_sparse(config.masks)
    return Start(
        completed(network.params, drawn.params),
        completed(network.model_state, drawn.model_state),
        network.masks,
        provenance_of(config.masks).get("rewind_step", 0),
    )
