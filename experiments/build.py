"""From a configuration to objects: the one reader of its values.

Everything that can be wrong is found here, before anything is computed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.check import Config, check_config
from sup_tickets.data import digits, resident
from sup_tickets.dynamic import Method
from sup_tickets.methods import make_method
from sup_tickets.models import make_model
from sup_tickets.schedules import (
    cheap_ticket_schedule,
    constant,
    cosine_fraction,
    linear_fraction,
    step_lr,
)
from sup_tickets.superposition import Superposition, superposition
from sup_tickets.tickets import TicketPlan, ticket_budget
from sup_tickets.training.evaluation import Scores, make_evaluate, make_reestimate
from sup_tickets.training.loop import Job, Listener
from sup_tickets.training.mesh import data_mesh, placement
from sup_tickets.training.plan import Plan, describe, make_plan, ticket_plan
from sup_tickets.training.state import Network, TrainState
from sup_tickets.training.steps import Steps, direction, make_steps
from sup_tickets.types import Schedule

_PRUNE = ("granet", "granet-dense", "gmp")


class Run(NamedTuple):
    """A run, ready to start."""

    plan: Plan
    plan_text: str
    init: Callable[[], TrainState]
    job: Callable[[Listener], Job]
    evaluate: Callable[[Network], Scores]  # on the split that the config names
    finish: Callable[[Network, TrainState], Network]  # batch norm of the superposed


def build(config: Config, *, devices: Sequence[Any] | None = None) -> Run:
    """The objects of a run.

    Args:
      config: checked here.
      devices: by default all.

    Raises:
      ValueError: one line, naming what is wrong.
    """
    check_config(config)
    with _section("data"):
        place = placement(data_mesh(devices), batch_size=config.data.batch_size)
    data = digits.load_digits(split_seed=config.data.split_seed)
    plan, method, rate = _plan(config, examples=len(data.train.labels))
    with _section("model"):
        model = make_model(config.model.name, features=tuple(config.model.features))
    prepare = _prepare(config.data.shift_pixels)
    steps = make_steps(
        model,
        method,
        direction(
            config.train.optimizer,
            weight_decay=config.train.weight_decay,
            momentum=config.train.momentum,
        ),
        learning_rate=rate,
        prepare=prepare,
        example=jnp.zeros((1, *data.train.images.shape[1:])),
        placement=place,
        label_smoothing=config.train.label_smoothing,
    )
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    with _section("method"):
        jax.eval_shape(steps.init, init_key)  # allocates the layers: may be impossible
    batch = resident.training_batches(
        *data.train,
        key=data_key,
        batch_size=config.data.batch_size,
        placement=place,
    )
    scores = _evaluators(model, data, config.data.batch_size, place)
    return Run(
        plan=plan,
        plan_text=describe(plan, method, rate),
        init=lambda: steps.init(init_key),
        job=_job(config, plan, method, steps, batch, scores["validation"]),
        evaluate=scores[config.evaluate],
        finish=_finish(config, model, prepare, plan, batch),
    )


def comparisons(config: Config) -> dict[str, Config]:
    """Baselines for the same total budget: the dense network, and the method alone."""
    if not config.compare or not config.sup.enabled:
        return {}
    alone: Config = ConfigDict(config.to_dict())
    dense: Config = ConfigDict(config.to_dict())
    alone.sup.enabled = dense.sup.enabled = False
    dense.method.name = "dense"
    name = f"{config.method.name} without Sup-tickets"
    return {name: alone} | ({} if config.method.name == "dense" else {"dense": dense})


# --- Parts ----------------------------------------------------------------------------


def _plan(config: Config, *, examples: int) -> tuple[Plan, Method, Schedule]:
    """The phases, the method and the learning rate, all on the same steps."""
    train, sup = config.train, config.sup
    epoch_steps = resident.steps_per_epoch(examples, config.data.batch_size)
    with _section("sup"):
        budget = ticket_budget(
            train.epochs,
            cycles=sup.cycles if sup.enabled else 0,
            cycle_epochs=sup.cycle_epochs,
        )
    tickets = ticket_plan(
        budget, epoch_steps=epoch_steps, cycle_epochs=sup.cycle_epochs
    )
    with _section("method"):
        method = _method(config.method, tickets)
    milestones = tuple(epoch * epoch_steps for epoch in budget.milestones)
    with _section("train"):
        rate = step_lr(train.learning_rate, milestones=milestones)
    with _section("sup"):
        rate = cheap_ticket_schedule(
            rate,
            phase1_steps=tickets.phase1_steps,
            cycle_steps=tickets.cycle_steps,
            cycles=tickets.cycles,
            lr_min=sup.lr_min,
            lr_max=sup.lr_max,
            form=sup.form,
        )
    with _section("method"):
        plan = make_plan(
            method, tickets, epoch_steps=epoch_steps, milestones=milestones
        )
    if config.method.name in _PRUNE:
        _check_pruned(config.method, plan)
    return plan, method, rate


def _method(config: Config, tickets: TicketPlan) -> Method:
    """The method, with fractions of phase 1 turned into steps."""
    options: dict[str, Any] = {}
    if config.name != "dense":
        options |= {"sparsity": config.sparsity, "distribution": config.distribution}
    if config.name not in ("dense", "static"):
        options |= {"update_every": config.update_every_steps}
        options |= _update_options(config, tickets)
    return make_method(config.name, **options)


def _update_options(config: Config, tickets: TicketPlan) -> dict[str, Any]:
    end = max(round(config.update_end_fraction * tickets.phase1_steps), 1)
    pruned = _prune_end(config, tickets)
    if config.name == "gmp":
        return {"prune_end_step": pruned}
    prunes = config.name in _PRUNE
    return {
        "drop_fraction": _drop_schedule(config, end),
        "end_step": max(end, pruned) if prunes else end,
        **({"prune_end_step": pruned} if prunes else {}),
    }


def _prune_end(config: Config, tickets: TicketPlan) -> int:
    """A whole number of updates, so that the last one meets the sparsity."""
    every = config.update_every_steps
    return int(config.prune_end_fraction * tickets.phase1_steps) // every * every


def _check_pruned(config: Config, plan: Plan) -> None:
    end = _prune_end(config, plan.tickets)
    if end not in plan.updates:
        raise ValueError(
            f"config.method.prune_end_fraction={config.prune_end_fraction} asks for "
            f"the last pruning at step {end}, where there is no topology update; the "
            f"last is at {plan.updates[-1] if plan.updates else None}"
        )


def _drop_schedule(config: Config, end_step: int) -> Schedule:
    match config.drop_schedule:
        case "cosine":
            return cosine_fraction(config.drop_fraction, end_step=end_step)
        case "linear":
            return linear_fraction(config.drop_fraction, end_step=end_step)
    return constant(config.drop_fraction)


def _superposition(config: Config) -> Superposition | None:
    sup = config.sup
    with _section("sup"):
        # Dense tickets are averaged and never pruned.
        dense = config.method.name == "dense"
        ours = superposition(
            sup.kind,
            sparsity=None if dense else config.method.sparsity,
            prune_each=sup.prune_each,
            decay=sup.decay,
        )
    return ours if sup.enabled else None


def _prepare(shift_pixels: int) -> Any:
    def prepare(batch: resident.Rows, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = resident.take(batch)
        images = digits.random_shift(key, images, pixels=shift_pixels)
        return digits.normalise(images), labels

    return prepare


def _evaluators(
    model: nn.Module, data: digits.Digits, batch_size: int, place: resident.Placement
) -> dict[str, Callable[[Network], Scores]]:
    evaluate = make_evaluate(model, digits.normalise)

    def on(split: digits.Split) -> Callable[[Network], Scores]:
        batches = resident.evaluation_batches(
            *split, batch_size=batch_size, placement=place
        )
        return lambda network: evaluate(network, batches)

    return {"validation": on(data.validation), "test": on(data.test)}


def _job(
    config: Config,
    plan: Plan,
    method: Method,
    steps: Steps,
    batch: Callable[[int], Any],
    validate: Callable[[Network], Scores],
) -> Callable[[Listener], Job]:
    ours = _superposition(config)
    return lambda listener: Job(
        plan=plan,
        steps=steps,
        batch=batch,
        validate=validate,
        listener=listener,
        consumes_step=method.consumes_step,
        explore_fraction=config.sup.explore_fraction,
        superposition=ours,
        include_phase1=config.sup.include_phase1,
        validate_every_steps=config.train.validate_every_epochs * plan.epoch_steps,
        check_every_steps=config.train.check_every_steps,
    )


def _finish(
    config: Config,
    model: nn.Module,
    prepare: Any,
    plan: Plan,
    batch: Callable[[int], Any],
) -> Callable[[Network, TrainState], Network]:
    if config.sup.batch_norm == "av":
        return lambda network, _: network
    reestimate = make_reestimate(model, prepare)

    def finish(network: Network, state: TrainState) -> Network:
        # The epoch after the last: an order that no step has seen.
        first = plan.total_steps
        steps = range(first, first + plan.epoch_steps)
        return reestimate(network, map(batch, steps), state.key)

    return finish


@contextlib.contextmanager
def _section(name: str) -> Iterator[None]:
    """Says which section of the configuration an argument at fault is from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"config.{name}: {error}") from error
