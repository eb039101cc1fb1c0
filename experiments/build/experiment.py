"""From a configuration to objects; what can be wrong is found before computing."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Sharding
from ml_collections import ConfigDict

from experiments.build.data_checks import checked_network
from experiments.build.inputs import Inputs, make_inputs
from experiments.build.mask_file import check_file
from experiments.build.mesh import check_layout, describe_layout, make_layout
from experiments.build.option_rules import check_options, unused_fields, without_unused
from experiments.build.parts import (
    make_loss,
    make_optimizer,
    make_parts,
    make_superposition,
    section,
)
from experiments.build.start import (
    Begin,
    check_start,
    describe_start,
    forget_masks,
    make_start,
    start_flops,
)
from experiments.build.tost import Young, with_tost
from experiments.build.view import checked_view, describe_view, view_of
from experiments.config.fields import Config, check_config
from sup_tickets.coverage import coverage
from sup_tickets.data.resident import Shardings
from sup_tickets.data.text import is_text
from sup_tickets.dynamic import Method
from sup_tickets.models.skips import without_ghosts
from sup_tickets.training.classification import image_classification
from sup_tickets.training.evaluation import evaluate, predictions, reestimate
from sup_tickets.training.experiment import Experiment, Stage
from sup_tickets.training.language import language_modelling
from sup_tickets.training.libraries.linen import Form, linen_language, linen_network
from sup_tickets.training.mesh import data_shardings
from sup_tickets.training.plan import Plan, describe
from sup_tickets.training.predictions import Predictions
from sup_tickets.training.processes import say
from sup_tickets.training.sharding import Layout
from sup_tickets.training.state import Network, RunState, TrainState
from sup_tickets.training.steps import Spec, Steps, compile_steps
from sup_tickets.training.task import Metrics, Task
from sup_tickets.types import Schedule
from sup_tickets.views.view import View


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run, ready to start."""

    experiment: Experiment
    plan_text: str
    model: nn.Module  # of the last stage
    young: Young | None  # the network of the first stage, if it differs
    inputs: Inputs
    shardings: Shardings  # of batches
    layout: Layout  # of the state
    learning_rate: Schedule
    begin: Begin  # what the run starts with
    reestimates: bool  # the superposed network's statistics ("BU"), or averages ("AV")

    @property
    def plan(self) -> Plan:
        """What happens when."""
        return self.experiment.plan

    @property
    def method(self) -> Method:
        """Of sparse training."""
        return self.experiment.method

    @property
    def steps(self) -> Steps:
        """Of the last stage."""
        return self.experiment.stages[-1].steps

    @property
    def ghost_steps(self) -> int:
        """Completed steps after which ghosts are gone; 0 without any."""
        return 0 if self.young is None else self.young.until

    @property
    def ghost_flops(self) -> int:
        """Operations of training the ghosts in all, by one example a step."""
        if self.young is None:
            return 0
        params = self.like(0).train.params
        return self.young.flops(params, self.inputs.example)

    def start_flops(self, *, dense: float, sparse: float) -> int:
        """Operations before the first step, see `experiments.build.start`."""
        return start_flops(self.begin, dense=dense, sparse=sparse)

    def check_files(self) -> None:
        """Checks the files that the run starts with, see `check_file`."""
        check_file(
            self.begin.config,
            self.like(self.plan.total_steps).train,
            phase1_steps=self.plan.phase1_steps,
            ghost_steps=self.ghost_steps,
            structure=self.method.structure,
        )

    def init(self) -> RunState:
        """The state before the first step; says what is not drawn."""
        self.check_files()
        start = make_start(self.begin)
        if start is not None:
            say(describe_start(start))
        return self.experiment.init(self.begin.key, start)

    def like(self, step: int) -> RunState:
        """The shapes of the state after ``step`` completed steps."""
        return self.experiment.like(step)

    def place(self, like: RunState) -> Any:
        """The shardings of a state."""
        return self.layout.of(like, like.train.params)

    def evaluate(self, network: Network, batches: Iterable[Any]) -> Metrics:
        """The metrics of a network on some batches."""
        return evaluate(self.experiment.task, network, batches)

    def predict(
        self, network: Network, batches: Iterable[Any]
    ) -> Iterable[Predictions]:
        """What a network thinks of each batch."""
        return predictions(self.experiment.task, network, batches)

    def score(self, network: Network, split: str) -> Metrics:
        """The metrics of a network on "validation" or "test"."""
        return self.evaluate(network, self.inputs.splits[split]())

    def finish(self, network: Network, state: TrainState) -> Network:
        """The superposed network with the statistics that were asked for."""
        if not self.reestimates:
            return network
        # The epoch after the last: an order that no step has seen.
        first = self.plan.total_steps
        batches = map(self.inputs.batches, range(first, first + self.plan.epoch_steps))
        return reestimate(self.experiment.task, network, batches, state.key)


def build(
    config: Config,
    *,
    devices: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
) -> Run:
    """The objects of a run.

    Args:
      config: checked here.
      devices: by default all.
      inputs: those of another run with the same data and seed; by default made anew.

    Raises:
      ValueError: one line, naming what is wrong.
      FileNotFoundError: if the data set is not prepared, saying how to.
    """
    check_config(config)
    check_options(config)
    check_start(config)
    layout = make_layout(config, devices)
    with section("data"):
        size = config.data.batch_size
        shardings = data_shardings(layout.mesh, batch_size=size)
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    with section("train"):
        _check_parts(config)
    for make in (make_loss, make_optimizer, view_of):  # errors before the data are read
        make(config)
    if inputs is None:
        inputs = make_inputs(config, key=data_key, shardings=shardings)
    plan, method, rate = make_parts(config, epoch_steps=inputs.epoch_steps)
    view = checked_view(config, method, plan)
    model, young = with_tost(
        config,
        checked_network(config, classes=inputs.classes, example=inputs.example),
        phase1_steps=plan.phase1_steps,
        epoch_steps=plan.epoch_steps,
    )
    steps_of = partial(
        make_steps,
        *(config, inputs, method, rate),
        sharding=shardings.replicated,
        layout=layout,
        view=view,
    )
    with section("train"):
        last = Stage(plan.total_steps, steps_of(model))
        stages = [last]
        if young is not None:
            first = Stage(young.until, steps_of(young.form), without_ghosts)
            stages = [first, last]
    more = [] if young is None else [young.text]
    if view is not None:
        drawn = jax.eval_shape(last.steps.begin, init_key)
        more.insert(0, describe_view(view, drawn.params))
    experiment = _experiment(config, plan, tuple(stages), inputs)
    with section("method"):
        # Allocates the layers, which may be impossible.
        shapes = [experiment.like(stage.until - 1).train for stage in stages][-1]
    more += describe_layout(layout, shapes)
    covered = str(coverage(shapes.method.masks, shapes.params))
    if unused := unused_fields(config):
        more.append(f"of no use to this run: {', '.join(unused)}")
    return Run(
        experiment=experiment,
        plan_text="\n".join([covered, describe(plan, method, rate), *more]),
        model=model,
        young=young,
        inputs=inputs,
        shardings=shardings,
        layout=layout,
        learning_rate=rate,
        begin=Begin(config, model, inputs, last.steps, init_key, method.structure),
        reestimates=config.sup.batch_norm != "av",
    )


def make_steps(
    config: Config,
    inputs: Inputs,
    method: Method,
    learning_rate: Schedule,
    form: nn.Module | Form,
    *,
    sharding: Sharding,
    layout: Layout | None = None,
    view: View | None = None,
) -> Steps:
    """The compiled steps of labelling images, or of predicting the words of a text.

    Args:
      config: of the run.
      inputs: its data.
      method: of sparse training.
      learning_rate: schedule of the step.
      form: the network, or the form of one.
      sharding: of the state.
      layout: of the state, where not all devices have all of it.
      view: what the forward pass sees of the weights.
    """
    spec = Spec(
        make_task(config, inputs, form),
        method,
        make_optimizer(config),
        learning_rate,
        accumulate=config.train.accumulate,
        block_steps=config.train.block_steps,
        block_at=inputs.block_at,
        view=view,
    )
    if layout is None or layout.is_replicated:
        return compile_steps(spec, sharding)
    check_layout(layout, spec.task)
    batch = None if spec.task.carry is None else inputs.batches(0)
    with section("method"):  # allocates the layers, which may be impossible
        return compile_steps(spec, layout=layout, batch=batch)


def make_task(config: Config, inputs: Inputs, form: Any) -> Task:
    """What is trained; arguments as of `make_steps`."""
    if is_text(config.data.name):
        return language_modelling(
            linen_language(form, length=config.data.sequence),
            prepare=inputs.prepare,
            restarts=lambda step: step % inputs.epoch_steps == 0,
            loss=make_loss(config),
        )
    return image_classification(
        linen_network(form, inputs.example),
        prepare=inputs.prepare,
        normalize=inputs.normalize,
        loss=make_loss(config),
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
    alone.branch_from = None  # its rate falls elsewhere
    dense: Config = ConfigDict(alone.to_dict())
    dense.method.name = "dense"
    dense.method.initial_sparsity = None
    dense.method.structure = ""
    dense.method.options = dense.view.options = ConfigDict()
    dense.view.name = ""
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


def validation_steps(epochs: float, epoch_steps: int) -> int:
    """Steps from validation to validation; 0 for none between phases."""
    return max(round(epochs * epoch_steps), 1) if epochs else 0


def _experiment(
    config: Config, plan: Plan, stages: tuple[Stage, ...], inputs: Inputs
) -> Experiment:
    spec = stages[-1].steps.spec
    validates = config.data.validation_examples != 0
    every = validation_steps(config.train.validate_every_epochs, plan.epoch_steps)
    return Experiment(
        plan=plan,
        stages=stages,
        batches=inputs.batches,
        validation=inputs.splits["validation"] if validates else None,
        superposition=make_superposition(config, spec.method, spec.view),
        include_phase1=config.sup.include_phase1,
        explore_fraction=config.sup.explore_fraction,
        validate_every_steps=every if validates else 0,
        check_every_steps=config.train.check_every_steps,
        keep_steps=tuple(e * plan.epoch_steps for e in config.checkpoint.keep_epochs),
    )
