"""Replicas that differ in numbers: rates, portions, counts. Each is its single run."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from sup_tickets.learning_rates import step_lr
from sup_tickets.methods import make_method
from sup_tickets.models import ConvNet
from sup_tickets.superposition import superposition
from sup_tickets.training.alike import Unlike
from sup_tickets.training.loop import train
from sup_tickets.training.losses import smoothed_cross_entropy
from sup_tickets.training.optimizers import make_optimizer
from sup_tickets.training.plan import make_plan
from sup_tickets.training.replicas import shared, together
from sup_tickets.training.steps import Spec, compile_steps
from tests.test_replicas import close, run_of
from tests.test_training import (
    TICKETS,
    Recorder,
    batches_of,
    counts,
    experiment_of,
    place_of,
    task_of,
)

SETTINGS: Any = (
    {"sparsity": 0.5, "rate": 0.1, "decay": 5e-4, "drop": 0.5, "smoothing": 0.1},
    {"sparsity": 0.75, "rate": 0.02, "decay": 0.01, "drop": 0.3, "smoothing": 0.2},
)


def setting(name, *, block_steps=1, model=None, devices=1, method=None, **numbers: Any):
    """An experiment with its own steps, of one setting."""
    given = {} if name == "gmp" else {"drop_fraction": numbers["drop"]}
    if name in ("gmp", "granet"):
        given |= {"initial_sparsity": 0.1, "prune_end_step": 8}
    ours = make_method(
        name, sparsity=numbers["sparsity"], update_every=4, **given
    ).replace(**(method or {}))
    loss = smoothed_cross_entropy(numbers["smoothing"])
    spec = Spec(
        task_of(model, loss=loss),
        ours,
        make_optimizer(
            "sgd",
            weight_decay=numbers["decay"],
            momentum=numbers.get("momentum", 0.9),
        ),
        step_lr(numbers["rate"], milestones=[6, 9]),
        block_steps=block_steps,
        block_at=batches_of().at,
    )
    made = experiment_of(
        "static",
        devices,
        steps=compile_steps(spec, place_of(devices).replicated),
        superposition=superposition("cia", sparsity=numbers["sparsity"]),
        explore_fraction=numbers["drop"],
        validate_every_steps=5,
    )
    plan = make_plan(ours, TICKETS, epoch_steps=3)
    return dataclasses.replace(made, plan=plan)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("granet", {"block_steps": 2}),
        pytest.param("rigl", {}, marks=pytest.mark.slow),
        pytest.param("gmp", {}, marks=pytest.mark.slow),
        pytest.param("set", {"model": ConvNet(features=(4,))}, marks=pytest.mark.slow),
        pytest.param("rigl", {"devices": 8}, marks=pytest.mark.slow),
    ],
)
def test_each_is_the_run_of_its_setting(name, options):
    each = [setting(name, **options, **numbers) for numbers in SETTINGS]
    devices = options.get("devices", 1)
    runs, told = [], []
    for i, ours in enumerate(shared([*each, each[0]])):
        ours = dataclasses.replace(each[0], stages=ours.stages, plan=ours.plan)
        ours = dataclasses.replace(ours, superposition=each[i % 2].superposition)
        ours = dataclasses.replace(ours, explore_fraction=each[i % 2].explore_fraction)
        told.append(Recorder())
        runs.append(run_of(ours, i, told[-1], devices=devices))
    found = together(runs)
    for i, (outcome, recorder) in enumerate(zip(found, told, strict=True)):
        if isinstance(outcome, Exception):
            raise outcome
        alone: Any = each[i % 2]
        record: Any = Recorder()
        alone = dataclasses.replace(alone, batches=batches_of(devices, i))
        wanted: Any = train(alone, alone.init(jax.random.key(i)), record)
        assert recorder.events == record.events
        for turned, other in zip(recorder.turnovers, record.turnovers, strict=True):
            assert (turned.active, turned.kept) == (other.active, other.kept)
        assert counts(outcome.network.masks) == counts(wanted.network.masks)
        assert counts(outcome.superposed.masks) == counts(wanted.superposed.masks)
        ours, theirs = (list(r.loss.values()) for r in (recorder, record))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        close(outcome.state, wanted.state, atol=1e-4)
    # What differs in sparsity has other counts.
    assert counts(found[0].network.masks) != counts(found[1].network.masks)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"update_every": 3}},  # at other steps
        {"method": {"rounding": "ceil"}},  # an operation
        {"model": ConvNet(features=(4,))},  # shapes
        {"block_steps": 2},
        {"momentum": 0.0},  # without it there is a slot less
        {"name": "set"},
    ],
)
def test_other_programs_are_refused(changes):
    numbers = {"name": "rigl", **SETTINGS[0]}
    with pytest.raises(Unlike):
        shared([setting(**numbers), setting(**numbers | changes)])
