"""What a run is worth: how its tickets differ, and what all of it costs."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.build.experiment import Run
from experiments.config.fields import Config
from experiments.runs.analysis import analyse
from experiments.runs.folder import RunFolder
from experiments.runs.layout import ticket_file, ticket_name
from sup_tickets.data.resident import Weighted
from sup_tickets.training.flops import (
    Stretch,
    active_counts,
    dense_flops,
    flops_of,
    measured_flops,
    training_flops,
)
from sup_tickets.training.libraries.linen import kernel_uses
from sup_tickets.training.network_files import sparse_size
from sup_tickets.training.processes import on_host, placed
from sup_tickets.training.state import Network
from sup_tickets.trees import named_leaves


def analysis_of(
    config: Config, ours: Run, folder: RunFolder, final: Network
) -> dict[str, Any]:
    """How the tickets of a run differ from each other, see `analyse`.

    Args:
      config: of the run.
      ours: the run.
      folder: where its tickets are.
      final: the superposed ticket, if there are tickets.
    """
    cycles = len(ours.plan.collections)
    if cycles < 2:
        return {}
    names = [ticket_name(i) for i in range(1, cycles + 1)]
    tickets = {}
    for name in names:
        ticket = folder.load_network(ticket_file(name))
        tickets[name] = placed(ticket, ours.layout.of(ticket, ticket.params))
    batches = _first(ours.inputs.splits[config.evaluate](), config.report.examples)
    return analyse(
        tickets,
        final,
        predict=ours.predict,
        evaluate=lambda network: ours.evaluate(network, batches),
        batches=ours.inputs.splits[config.evaluate](),
        summarize=ours.experiment.task.summarize,
        path_points=config.report.path_points,
        plane_points=config.report.plane_points,
    )


def cost_of(
    config: Config,
    ours: Run,
    final: Network,
    changes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Parameters, bytes and operations of the run and of its last network.

    Args:
      config: of the run.
      ours: the run.
      final: the last network.
      changes: of the topology, see `experiments.runs.progress.Progress.changes`.
    """
    uses = kernel_uses(ours.model, ours.inputs.example)
    params = final.params
    dense = dense_flops(uses, params)
    active = active_counts(final.masks, params)
    size = config.data.batch_size
    weights = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    steps = ours.plan.total_steps
    return {
        "parameters": weights,
        "active_parameters": sum(active.values()),
        "bytes_dense": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "bytes_sparse": sparse_size(on_host(final)),
        "inference_flops": flops_of(uses, active),
        "dense_inference_flops": dense,
        "training_flops": training_flops(
            _history(ours, uses, active, changes),
            dense=dense,
            batch_size=size,
            # Most views train what the forward pass does not see, too.
            all_gradients=ours.method.observes or ours.experiment.view is not None,
        )
        + ours.ghost_flops * size
        + ours.start_flops(dense=dense, sparse=flops_of(uses, active)),
        "dense_training_flops": 3 * dense * size * steps,
        "measured_step_flops": _measured(ours),
    }


def rate_curve(ours: Run) -> list[tuple[int, float]]:
    """The learning rate of some steps, enough of each cycle to show its form.

    Counted as in the log: the first step is 1.
    """
    ends = [0, ours.plan.phase1_steps, *ours.plan.collections]
    steps = np.unique(
        np.concatenate(
            [
                np.linspace(begin, end - 1, 100 if begin == 0 else 25).astype(int)
                for begin, end in pairwise(ends)
            ]
        )
    )
    rates = np.broadcast_to(ours.learning_rate(jnp.asarray(steps)), steps.shape)
    return [(int(s) + 1, float(r)) for s, r in zip(steps, rates, strict=True)]


def _history(
    ours: Run,
    uses: dict[str, int],
    active: dict[str, int],
    changes: Sequence[Mapping[str, Any]],
) -> list[Stretch]:
    """The stretches between changes of the topology."""
    last = ours.like(ours.plan.total_steps).train
    seen = jax.eval_shape(ours.experiment.network, last)
    names = [name for name, _ in named_leaves(seen.masks)]
    method = ours.method
    looks_at_all = {
        "update": method.update_needs_gradients,
        "explore": method.explore_needs_gradients,
    }
    ends = [*(e["step"] for e in changes), ours.plan.total_steps]
    stretches, layers = [], []
    for i, (event, (begin, end)) in enumerate(
        zip(changes, pairwise(ends), strict=True)
    ):
        layers = event.get("layers", layers)
        counts = active | dict(zip(names, layers, strict=True))
        replaced = int(event["event"] == "update" and method.consumes_step)
        # The gradient of the next change is taken with the weights that are active now.
        after = changes[i + 1]["event"] if i + 1 < len(changes) else None
        looks = int(after is not None and looks_at_all[after])
        stretches.append(Stretch(flops_of(uses, counts), end - begin - replaced, looks))
    return stretches


def _measured(ours: Run) -> float | None:
    step: Any = ours.steps.train
    return measured_flops(
        step.lower(ours.like(ours.plan.total_steps).train, ours.inputs.batches(0))
    )


def _first(batches: Iterable[Weighted], examples: int) -> list[Weighted]:
    """Whole batches with at least so many examples; all of them for 0."""
    taken: list[Weighted] = []
    seen = 0
    for batch in batches:
        if examples and seen >= examples:
            break
        taken.append(batch)
        seen += len(batch.labels)
    return taken
