"""From a configuration to objects; what can be wrong is found before computing."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from experiments.build.checks import checked_network
from experiments.build.inputs import Inputs, make_inputs
from experiments.build.parts import (
    make_loss,
    make_optimizer,
    make_parts,
    make_superposition,
    section,
)
from experiments.build.rules import check_options, unused_fields, without_unused
from experiments.build.start import (
    Begin,
    check_file,
    check_start,
    describe_start,
    forget_masks,
    make_start,
)
from experiments.build.tost import Young, with_tost
from experiments.config.fields import Config, check_config
from experiments.runs.progress import say
from sup_tickets.coverage import coverage
from sup_tickets.data.resident import Placement, Weighted
from sup_tickets.dynamic import Method
from sup_tickets.models.skips import without_ghosts
from sup_tickets.training.evaluation import (
    Scores,
    make_evaluate,
    make_predict,
    make_reestimate,
)
from sup_tickets.training.loop import Ghosts, Job, Keeper, Listener, average_like
from sup_tickets.training.mesh import data_mesh, placement
from sup_tickets.training.plan import Plan, describe
from sup_tickets.training.state import Network, RunState, TrainState
from sup_tickets.training.steps import Form, Steps, make_steps
from sup_tickets.types import Schedule


class Run(NamedTuple):
    """A run, ready to start."""

    plan: Plan
    plan_text: str
    method: Method
    model: nn.Module
    steps: Steps
    inputs: Inputs
    placement: Placement
    learning_rate: Schedule
    young: Young | None  # the network at first, if it has ghosts
    check_files: Callable[[], None]  # those that the run starts with, see `check_file`
    init: Callable[[], RunState]
    like: Callable[[int], RunState]  # shapes of the state after so many steps
    job: Callable[[Listener, Keeper | None], Job]
    evaluate: Callable[[Network, Iterable[Weighted]], Scores]
    predict: Callable[[Network, Weighted], jax.Array]
    finish: Callable[[Network, TrainState], Network]  # batch norm of the superposed

    def score(self, network: Network, split: str) -> Scores:
        """The scores of a network on "validation" or "test"."""
        return self.evaluate(network, self.inputs.splits[split]())


def build(config: Config, *, devices: Sequence[Any] | None = None) -> Run:
    """The objects of a run.

    Args:
      config: checked here.
      devices: by default all.

    Raises:
      ValueError: one line, naming what is wrong.
      FileNotFoundError: if the data set is not prepared, saying how to.
    """
    check_config(config)
    check_options(config)
    check_start(config)
    with section("data"):
        place = placement(data_mesh(devices), batch_size=config.data.batch_size)
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    with section("train"):
        _check_parts(config)
    loss, tx = make_loss(config), make_optimizer(config)
    inputs = make_inputs(config, key=data_key, placement=place)
    plan, method, rate = make_parts(config, epoch_steps=inputs.epoch_steps)
    ours = make_superposition(config)
    model, young = with_tost(
        config,
        checked_network(config, classes=inputs.classes, example=inputs.example),
        phase1_steps=plan.phase1_steps,
        epoch_steps=plan.epoch_steps,
    )

    def steps_of(form: nn.Module | Form) -> Steps:
        return make_steps(
            form,
            method,
            tx,
            learning_rate=rate,
            prepare=inputs.prepare,
            example=inputs.example,
            placement=place,
            loss=loss,
            accumulate=config.train.accumulate,
            block_steps=config.train.block_steps,
            block_at=inputs.block_at,
        )

    with section("train"):
        steps = steps_of(model)
    first = steps if young is None else steps_of(young.form)
    with section("method"):
        # Allocates the layers, which may be impossible.
        shapes = jax.eval_shape(steps.init, init_key)
        first_shapes = jax.eval_shape(first.init, init_key)
    evaluate = make_evaluate(model, inputs.normalize)
    job = _job(config, plan, method, steps, inputs, evaluate, ours, young, first)

    def check_files() -> None:
        check_file(
            config,
            shapes,
            phase1_steps=plan.phase1_steps,
            ghost_steps=0 if young is None else young.until,
        )

    def init() -> RunState:
        check_files()
        start = make_start(Begin(config, model, inputs, steps, init_key))
        if start is not None:
            say(describe_start(start))
        return RunState(first.init(init_key, start))

    def like(step: int) -> RunState:
        if young is not None and step < young.until:
            return RunState(first_shapes)
        average = average_like(job(None, None), shapes, step)  # pyright: ignore
        return RunState(shapes, average)

    covered = str(coverage(shapes.method.masks, shapes.params))
    more = [] if young is None else [young.text]
    if unused := unused_fields(config):
        more.append(f"of no use to this run: {', '.join(unused)}")
    return Run(
        plan=plan,
        plan_text="\n".join([covered, describe(plan, method, rate), *more]),
        method=method,
        model=model,
        steps=steps,
        inputs=inputs,
        placement=place,
        learning_rate=rate,
        young=young,
        check_files=check_files,
        init=init,
        like=like,
        job=job,
        evaluate=evaluate,
        predict=make_predict(model, inputs.normalize),
        finish=_finish(config, model, inputs, plan),
    )


def comparisons(config: Config) -> dict[str, Config]:
    """Baselines for the same total budget: the dense network, and the method alone.

    The dense network is trained plainly: from its own weights and without ToST, which
    is a recipe for sparse networks. Batches, optimizer and learning rates are the same.
    """
    if not config.compare:
        return {}
    alone: Config = ConfigDict(config.to_dict())
    alone.compare = alone.sup.enabled = False
    dense: Config = ConfigDict(alone.to_dict())
    dense.method.name = "dense"
    dense.method.initial_sparsity = None
    dense.method.options = ConfigDict()
    dense.tost.parts = ""
    forget_masks(dense)
    others: dict[str, Config] = {}
    if config.sup.enabled:
        others[f"{config.method.name} without Sup-tickets"] = without_unused(alone)
    if config.method.name != "dense":
        others["dense"] = without_unused(dense)
    return others


# --- Parts ----------------------------------------------------------------------------


def _check_parts(config: Config) -> None:
    size, parts = config.data.batch_size, config.train.accumulate
    if size % parts:
        raise ValueError(f"accumulate={parts} does not divide the batch of {size}")


def _job(
    config: Config,
    plan: Plan,
    method: Method,
    steps: Steps,
    inputs: Inputs,
    evaluate: Callable[..., Scores],
    ours: Any,
    young: Young | None,
    first: Steps,
) -> Callable[[Listener, Keeper | None], Job]:
    every = config.train.validate_every_epochs * plan.epoch_steps
    validates = config.data.validation_examples != 0
    ghosts = None
    if young is not None:
        look = make_evaluate(young.form, inputs.normalize)
        ghosts = Ghosts(
            until=young.until,
            steps=first,
            remove=without_ghosts,
            validate=lambda network, step: look(
                network, inputs.splits["validation"](), step
            ),
        )
    return lambda listener, keeper: Job(
        plan=plan,
        steps=steps,
        batches=inputs.batches,
        validate=(
            (lambda network: evaluate(network, inputs.splits["validation"]()))
            if validates
            else None
        ),
        listener=listener,
        consumes_step=method.consumes_step,
        explore_fraction=config.sup.explore_fraction,
        superposition=ours,
        include_phase1=config.sup.include_phase1,
        validate_every_steps=every if validates else 0,
        check_every_steps=config.train.check_every_steps,
        block_steps=config.train.block_steps,
        keeper=keeper,
        ghosts=ghosts,
        keep_steps=tuple(e * plan.epoch_steps for e in config.checkpoint.keep_epochs),
    )


def _finish(
    config: Config, model: nn.Module, inputs: Inputs, plan: Plan
) -> Callable[[Network, TrainState], Network]:
    if config.sup.batch_norm == "av":
        return lambda network, _: network
    reestimate = make_reestimate(model, inputs.prepare)

    def finish(network: Network, state: TrainState) -> Network:
        # The epoch after the last: an order that no step has seen.
        first = plan.total_steps
        steps = range(first, first + plan.epoch_steps)
        return reestimate(network, map(inputs.batches, steps), state.key)

    return finish
