"""Runs that differ in their seed alone, built once: their programs are the same."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.build.experiment import Run, build
from experiments.build.inputs import Inputs
from experiments.config.fields import Config, flat
from sup_tickets.data.imagenet import IMAGENET
from sup_tickets.data.resident import Source, training_batches
from sup_tickets.data.text import is_text

OWN = ("seed", "branch_from")
"""Fields in which runs of one program may differ: none is in a program."""


def programs_of(config: Config) -> str | None:
    """What says which programs a run needs; ``None`` if it must be alone.

    Photos that are decoded on their way are so for one run, and several processes have
    parts of the data that only `build` can hand out.
    """
    if config.data.name == IMAGENET or jax.process_count() > 1:
        return None
    fields = {name: value for name, value in flat(config).items() if name not in OWN}
    return json.dumps(fields, sort_keys=True)


def builder(
    devices: Sequence[Any] | None = None, *, keep: int = 1
) -> Callable[[Config], Run]:
    """`build` for many runs, one after the other.

    Args:
      devices: by default all.
      keep: kinds of runs whose programs, and data on the devices, are kept.

    Returns:
      ``config -> run``, raising as `build` does. Runs for which `programs_of` is the
      same share their stages, and the examples on the devices.
    """
    known: dict[str, Run] = {}

    def one(config: Config) -> Run:
        programs = programs_of(config)
        if programs in known:
            return reseeded(known[programs], config)
        run = build(config, devices=devices)
        if programs is not None:
            known[programs] = run
            if len(known) > keep:
                del known[next(iter(known))]
        return run

    return one


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
