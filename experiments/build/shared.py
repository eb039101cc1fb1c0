"""Runs of one program: those that differ in seeds, and in numbers that are no shapes.

Of runs with the same words and shapes whatever differs in numbers alone is looked at:
their steps are traced, and if all programs agree but for constants they go together.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.build.experiment import Run, build, comparisons
from experiments.build.inputs import Inputs
from experiments.config.fields import Config, flat
from sup_tickets.data.imagenet import IMAGENET
from sup_tickets.data.resident import Source, training_batches
from sup_tickets.data.text import is_text
from sup_tickets.training.alike import Unlike
from sup_tickets.training.replicas import shared

OWN = ("seed", "branch_from")
"""Fields that are in no program."""


def programs_of(config: Config) -> str | None:
    """What says which programs a run needs; ``None`` if it must be alone.

    Photos that are decoded on their way are so for one run, and several processes have
    parts of the data that only `build` can hand out.
    """
    if config.data.name == IMAGENET or jax.process_count() > 1:
        return None
    fields = {name: value for name, value in flat(config).items() if name not in OWN}
    return json.dumps(fields, sort_keys=True)


def kind_of(config: Config) -> str | None:
    """`programs_of` without numbers: what runs of one program have in common.

    All of the data counts, of which there is one copy for all.
    """
    programs = programs_of(config)
    if programs is None:
        return None
    fields = json.loads(programs)
    for name, value in fields.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not name.startswith("data."):
            fields[name] = "a number"
    return json.dumps(fields)


def weights_of(run: Run) -> int:
    """Parameters of the network that a run begins with."""
    return sum(leaf.size for leaf in jax.tree.leaves(run.like(0).train.params))


def classes(
    devices: Sequence[Any] | None = None, *, limit: int | None = None
) -> Callable[[Config], str | None]:
    """``config -> class``: runs of one class can be trained by one program.

    What they are compared with goes together too. Builds and traces each setting once.

    Args:
      devices: by default all.
      limit: weights of a network; a larger one has no class.
    """
    known: dict[str, str | None] = {}  # class by programs
    first: dict[str, list[tuple[str, list[Run]]]] = {}  # of each class, by kind

    def class_of(config: Config) -> str | None:
        programs, kind = programs_of(config), kind_of(config)
        if programs is None or kind is None or programs in known:
            return programs and known[programs]
        others = first.setdefault(kind, [])
        inputs = others[0][1][0].inputs if others else None
        ours = [build(config, devices=devices, inputs=inputs)]
        if limit is not None and weights_of(ours[0]) > limit:
            known[programs] = None
            return None
        for each in comparisons(config).values():
            ours.append(build(each, devices=devices, inputs=ours[0].inputs))
        for name, theirs in others:
            if _go_together(theirs, ours):
                known[programs] = name
                break
        else:
            known[programs] = programs
            others.append((programs, ours))
        return known[programs]

    return class_of


def _go_together(theirs: Sequence[Run], ours: Sequence[Run]) -> bool:
    try:
        for one, other in zip(theirs, ours, strict=True):
            shared([one.experiment, other.experiment])
    except Unlike:
        return False
    return True


def builder(
    devices: Sequence[Any] | None = None,
    *,
    keep: int = 1,
    beside: Sequence[Config] = (),
) -> Callable[[Config], Run]:
    """`build` for many runs, one after the other.

    Args:
      devices: by default all.
      keep: kinds of runs whose programs, and data on the devices, are kept.
      beside: of runs that are trained together, of one class. Their steps, and those of
        what they are compared with, are shared.

    Returns:
      ``config -> run``, raising as `build` does, and `Unlike` if some of ``beside`` do
      not go together. Runs for which `programs_of` is the same, or that are beside each
      other, share the examples on the devices.
    """
    settings: dict[str | None, dict[str, Config]] = {}  # by kind, then by programs
    for config in beside:
        for each in (config, *comparisons(config).values()):
            of_kind = settings.setdefault(kind_of(each), {})
            of_kind.setdefault(programs_of(each) or "", each)
    known: dict[str, dict[str, Run]] = {}  # likewise

    def one(config: Config) -> Run:
        programs, kind = programs_of(config), kind_of(config)
        if programs is None or kind is None:
            return build(config, devices=devices)
        if programs in known.get(kind, ()):
            return reseeded(known[kind][programs], config)
        known.pop(kind, None)
        group = settings.get(kind, {})
        group = group if programs in group else {programs: config}
        known[kind] = _built(group, devices)
        if len(known) > keep:
            del known[next(iter(known))]
        return reseeded(known[kind][programs], config)

    return one


def _built(group: dict[str, Config], devices: Sequence[Any] | None) -> dict[str, Run]:
    """Runs that share their steps, and the examples on the devices."""
    runs: list[Run] = []
    for config in group.values():
        inputs = runs[0].inputs if runs else None
        runs.append(build(config, devices=devices, inputs=inputs))
    if len(runs) > 1:
        together = shared([run.experiment for run in runs])
        runs = [
            dataclasses.replace(run, experiment=experiment)
            for run, experiment in zip(runs, together, strict=True)
        ]
    return dict(zip(group, runs, strict=True))


def reseeded(run: Run, config: Config) -> Run:
    """The run of a configuration that differs in `OWN` alone; its programs are shared.

    Args:
      run: of `build`.
      config: whose seed it is to have.
    """
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    inputs = _reseeded_inputs(run, config, data_key)
    return dataclasses.replace(
        run,
        experiment=dataclasses.replace(run.experiment, batches=inputs.batches),
        inputs=inputs,
        begin=run.begin._replace(config=config, inputs=inputs, key=init_key),
    )


def _reseeded_inputs(run: Run, config: Config, key: jax.Array) -> Inputs:
    """A text is read in its own order, whatever the seed."""
    if is_text(config.data.name):
        return run.inputs
    whole = run.inputs.batches(0).examples
    ours = training_batches(
        whole, key=key, batch_size=config.data.batch_size, shardings=run.shardings
    )
    # One array, not one more that looks into the same memory: what is the same of all
    # replicas is known by that.
    batches = Source(
        lambda step: ours.batch(step)._replace(examples=whole),
        lambda first, count: ours.block(first, count)._replace(examples=whole),
        ours.at,
    )
    return run.inputs._replace(batches=batches)
