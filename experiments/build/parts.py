"""From the sections of a configuration to the plan, the method and the optimizer."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from experiments.build.tost import tost_parts
from experiments.config.fields import Config
from sup_tickets.checks import check_expression
from sup_tickets.counting import exact_portion
from sup_tickets.data.text import is_text
from sup_tickets.dynamic import Method
from sup_tickets.learning_rates import cheap_ticket_schedule, cosine_lr, step_lr
from sup_tickets.methods import BEYOND, example, make_method
from sup_tickets.models import make_model
from sup_tickets.structures import structure_of
from sup_tickets.superposition import Superposition, superposition
from sup_tickets.tickets import TicketBudget, TicketPlan, ticket_budget
from sup_tickets.training import optimizers
from sup_tickets.training.losses import Loss, smoothed_cross_entropy
from sup_tickets.training.plan import Plan, drop_steps, make_plan, ticket_plan
from sup_tickets.trees import map_named
from sup_tickets.types import Schedule
from sup_tickets.views.view import View


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Says which section of the configuration an argument at fault is from."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, re.error) as error:
        if str(error).startswith("config."):  # of a section within this one
            raise
        raise ValueError(f"config.{name}: {error}") from error


def make_parts(config: Config, *, epoch_steps: int) -> tuple[Plan, Method, Schedule]:
    """The phases, the method and the learning rate, all on the same steps.

    Args:
      config: of the run.
      epoch_steps: steps of an epoch.

    Raises:
      ValueError: naming the section at fault.
    """
    with section("sup"):
        budget = _budget(config)
    tickets = ticket_plan(
        budget, epoch_steps=epoch_steps, cycle_epochs=config.sup.cycle_epochs
    )
    with section("method"):
        method = _method(config.method, tickets)
    milestones = drops(config, tickets.phase1_steps, epoch_steps)
    rate = _learning_rate(config, tickets, milestones, epoch_steps)
    with section("method"):
        plan = make_plan(
            method, tickets, epoch_steps=epoch_steps, milestones=milestones
        )
    if method.prune_end_step is not None:
        _check_pruned(config.method, plan)
    return plan, method, rate


def make_network(config: Config, *, classes: int) -> nn.Module:
    """The model of the configuration."""
    with section("model"):
        return make_model(
            config.model.name,
            of_text=is_text(config.data.get("name", "")),
            classes=classes,
            dtype=jnp.dtype(config.model.dtype),
            **config.model.options.to_dict(),
        )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """The Optax chain, without the learning rate."""
    train = config.train
    with section("train"):
        return optimizers.make_optimizer(
            train.optimizer,
            weight_decay=train.weight_decay,
            decay=decayed(tuple(train.no_weight_decay)),
            momentum=train.momentum,
            nesterov=train.nesterov,
            clip_norm=train.clip_norm,
            averaging=train.averaging,
            patience=train.averaging_patience,
        )


def make_loss(config: Config) -> Loss:
    """The training loss."""
    if "labels" in tost_parts(config):
        with section("tost"):
            return smoothed_cross_entropy(config.tost.label_smoothing, over="others")
    with section("train"):
        return smoothed_cross_entropy(
            config.train.label_smoothing, over=config.train.label_smoothing_over
        )


def make_superposition(
    config: Config, method: Method, view: View | None = None
) -> Superposition | None:
    """The average of the tickets of a method, or ``None`` if there are none.

    With a view tickets are what the forward pass sees, and each leaf, or group of the
    view, of the average has as many weights as the latest of them.
    """
    sup, structure = config.sup, method.structure
    groups = None if structure is None else structure.groups
    if view is not None:
        groups = view.groups or groups or (lambda name, leaf: None)
    with section("sup"):
        # Dense tickets are averaged and never pruned.
        pruned = method.where is not None and groups is None
        ours = superposition(
            sup.kind,
            sparsity=method.sparsity if pruned else None,
            prune_each=sup.prune_each,
            decay=sup.decay,
            groups=groups,
            packed=not (config.mesh.fsdp or config.mesh.rules),
        )
    return ours if sup.enabled else None


def decayed(expressions: tuple[str, ...]) -> Any:
    """``params -> pytree of bool``: False where a name matches an expression."""
    if not expressions:
        return None
    patterns = [check_expression("no_weight_decay", e) for e in expressions]

    def decays(name: str, _: Any) -> bool:
        return not any(pattern.search(name) for pattern in patterns)

    return lambda params: map_named(decays, params)


# --- Plan -----------------------------------------------------------------------------


def _budget(config: Config) -> TicketBudget:
    sup, epochs = config.sup, config.train.epochs
    cycles = sup.cycles if sup.enabled else 0
    if sup.extend_budget:  # Without Sup-tickets too: the same total budget.
        epochs += sup.cycles * sup.cycle_epochs
    return ticket_budget(epochs, cycles=cycles, cycle_epochs=sup.cycle_epochs)


def drops(config: Config, phase1_steps: int, epoch_steps: int) -> tuple[int, ...]:
    """The steps at which the learning rate of schedule "step" drops."""
    if config.train.schedule != "step":
        return ()
    epochs = tuple(config.train.drop_epochs)
    if not epochs:
        return drop_steps(phase1_steps, epoch_steps=epoch_steps)
    last = phase1_steps // epoch_steps - 1
    name = f"config.train.drop_epochs={epochs}"
    for epoch in epochs:
        if not 1 <= epoch <= last:
            raise ValueError(
                f"{name}: epoch {epoch} is not within the {last + 1} epochs of phase "
                f"1; it must be from 1 to {last}"
            )
    if len(set(epochs)) < len(epochs):
        raise ValueError(f"{name}: an epoch is there twice")
    return tuple(epoch * epoch_steps for epoch in epochs)


def _learning_rate(
    config: Config, tickets: TicketPlan, milestones: tuple[int, ...], epoch_steps: int
) -> Schedule:
    train, sup = config.train, config.sup
    warmup = {
        "warmup_steps": train.warmup_epochs * epoch_steps,
        "warmup_every": epoch_steps,
    }
    with section("train"):
        if warmup["warmup_steps"] >= tickets.phase1_steps:
            raise ValueError(
                f"warmup_epochs={train.warmup_epochs} must be fewer than the "
                f"{tickets.phase1_steps // epoch_steps} epochs of phase 1"
            )
        base = base_rate(train, tickets.phase1_steps, milestones, **warmup)
    with section("sup"):
        return cheap_ticket_schedule(
            base,
            phase1_steps=tickets.phase1_steps,
            cycle_steps=tickets.cycle_steps,
            cycles=tickets.cycles,
            lr_min=sup.lr_min,
            lr_max=sup.lr_max,
            form=sup.form,
        )


def base_rate(
    train: Config, total_steps: int, milestones: tuple[int, ...], **warmup: int
) -> Schedule:
    """The learning rate of a training without tickets."""
    if train.schedule == "cosine":
        return cosine_lr(train.learning_rate, total_steps=total_steps, **warmup)
    return step_lr(train.learning_rate, milestones=milestones, **warmup)


# --- Method ---------------------------------------------------------------------------


def _method(config: Config, tickets: TicketPlan) -> Method:
    """The preset, with the numbers of the configuration, fractions turned into steps.

    Where a preset has stairs of its own they stay.
    """
    preset, total = example(config.name), tickets.phase1_steps
    given: dict[str, Any] = {}
    if preset.where is not None:
        given |= {"sparsity": config.sparsity}
    if not preset.fixed:
        given |= {"total_steps": total}
    if config.initial_sparsity is not None:
        given |= {"initial_sparsity": config.initial_sparsity}
    if preset.prune_end_step is not None:
        given |= {"prune_end_step": _prune_end(config, tickets)}
    if preset.update_every:
        end = max(exact_portion(total, config.update_end_fraction), 1)
        given |= {"update_every": config.update_every_steps}
        given |= {"end_step": _last_step(preset, end, given.get("prune_end_step"))}
        own = _drop_fields(config, end) if _drops(preset) else {}
    else:
        own = {}
    if preset.where is not None:
        # The share of weights ever active (ITOP's R_s) is reported.
        own |= {"distribution": config.distribution, "track_exploration": True}
        own |= {"keep_dense": tuple(config.keep_dense)}
    if config.structure:
        if preset.structure is not None:
            raise ValueError(
                f"structure={config.structure!r}: method {config.name!r} has its own, "
                f"{preset.structure}"
            )
        own |= {"structure": structure_of(config.structure)}
    for name in config.options:
        if name in given or name in own:
            raise ValueError(
                f"options.{name} is set by the other fields of this section"
            )
    options = config.options.to_dict()
    beyond = {name: options.pop(name) for name in BEYOND if name in options}
    return make_method(config.name, **given, **beyond).replace(**own, **options)


def _drops(preset: Method) -> bool:
    """Whether the drop fraction of a preset is a number, which a field replaces."""
    return preset.rewires and not isinstance(preset.drop_fraction, tuple)


def _last_step(preset: Method, end: int, pruned: int | None) -> int:
    if pruned is None:
        return end
    return max(end, pruned) if preset.rewires else pruned


def _drop_fields(config: Config, end_step: int) -> dict[str, Any]:
    return {
        "drop_fraction": config.drop_fraction,
        "drop_decay": config.drop_schedule,
        "drop_end_step": end_step,
        "drop_final": 0.0,
    }


def _prune_end(config: Config, tickets: TicketPlan) -> int:
    """A whole number of updates, so that the last one meets the sparsity."""
    every = config.update_every_steps
    end = exact_portion(tickets.phase1_steps, config.prune_end_fraction, "floor")
    return end // every * every


def _check_pruned(config: Config, plan: Plan) -> None:
    end = _prune_end(config, plan.tickets)
    if end not in plan.updates:
        raise ValueError(
            f"config.method.prune_end_fraction={config.prune_end_fraction} asks for "
            f"the last pruning at step {end}, where there is no topology update; the "
            f"last is at {plan.updates[-1] if plan.updates else None}"
        )
