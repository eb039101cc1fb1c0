"""The steps of a run: train, one or several a call, change the topology, explore.

Pure functions of a `Spec`, compiled by `compile_steps`, each once. The *learning rate*
is a schedule of ``state.step`` and multiplied on here, outside of the Optax chain: a
step that RigL's update consumes advances ``state.step``, and with it the rate, though
no weight and no slot moves, and Optax's own counters (the bias correction of Adam) go
on counting weight steps alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Sharding

from sup_tickets.checks import check_whole
from sup_tickets.dynamic import Method
from sup_tickets.iterate_averaging import after_validation, restart_averages
from sup_tickets.masks import apply_masks, count, difference, intersection
from sup_tickets.method_state import init_topology, starting_from
from sup_tickets.slots import reset_slots, step_with_slots
from sup_tickets.training.gradients import Told, unrolled
from sup_tickets.training.sharding import Layout
from sup_tickets.training.state import Start, TrainState, completed
from sup_tickets.training.task import Report, Task
from sup_tickets.training.viewed import (
    after_step,
    after_training,
    check_view,
    gradient_of_trained,
    gradient_of_weights,
    masks_of_trained,
    trained_of,
)
from sup_tickets.types import Masks, Number, Params, Schedule
from sup_tickets.updates import (
    Change,
    explore_topology,
    observe_gradients,
    update_topology,
)
from sup_tickets.views.view import View


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """What the steps of a run are made of.

    Raises:
      ValueError: if ``block_steps`` is above 1 without ``block_at``, or the parts of a
        batch would have to share what is carried from batch to batch, or the masks
        change in a way that the view does not take.
    """

    task: Task
    method: Method  # of sparse training; an update of RigL consumes its step
    tx: optax.GradientTransformation  # without a learning rate; subtracted
    learning_rate: Schedule  # of ``state.step``
    accumulate: int = 1
    """Parts in which a batch goes through the network one after the other, each with
    its own batch-norm statistics; the gradient is their mean."""
    block_steps: int = 1  # weight steps of a call of `train_block`, K
    block_at: Callable[[Any, jax.Array], Any] | None = None
    """``(block, i) -> batch`` of the i-th step in it; needed if K > 1."""
    view: View | None = None  # what the forward pass sees; None for the weights

    def __post_init__(self) -> None:
        """Checks what does not go together."""
        check_whole("accumulate", self.accumulate, 1)
        if check_whole("block_steps", self.block_steps, 1) > 1 and not self.block_at:
            raise ValueError(f"block_steps={self.block_steps} needs block_at")
        if self.accumulate > 1 and self.task.carry is not None:
            raise ValueError(
                f"accumulate={self.accumulate} cuts batches into parts, but the task "
                "carries state from each whole batch to the next"
            )
        check_view(self.view, self.method)


class Turnover(NamedTuple):
    """What a change of the topology did; all are scalars."""

    report: Report  # of the batch it looked at, before the change
    active: jax.Array  # int32, weights active now
    kept: jax.Array  # int32, of them those that were active before
    ever_active: jax.Array  # int32, weights active at any time so far; -1 if untracked
    size: jax.Array  # int32, weights that have a mask

    @property
    def loss(self) -> jax.Array:
        """Float32, as reported."""
        return self.report["loss"]


# --- The beginning --------------------------------------------------------------------


def begin(spec: Spec, key: jax.Array) -> Start:
    """What `init_state` starts with by itself."""
    params, model_state = spec.task.init(jax.random.split(key, 3)[0])
    return Start(params, model_state, None)


def init_state(
    spec: Spec, key: jax.Array, start: Start | None = None, batch: Any = None
) -> TrainState:
    """The state before the first step.

    Args:
      spec: of the steps.
      key: a random key, consumed.
      start: what not to draw.
      batch: any training batch; needed by a task that carries state.

    Raises:
      ValueError: without a batch that is needed.
    """
    drawn = begin(spec, key)
    _, method_key, key = jax.random.split(key, 3)
    state = init_topology(spec.method, method_key, drawn.params)
    own = drawn
    if start is not None:
        own = Start(
            completed(start.params, drawn.params),
            completed(start.model_state, drawn.model_state),
            None,
            start.step,
        )
        if start.masks is not None:
            state = starting_from(state, own.params, start.masks)
    params, extra = apply_masks(state.masks, own.params), None
    if spec.view is not None:
        params = spec.view.store(params)
        view_key = jax.random.fold_in(jax.random.split(method_key)[0], 0)
        extra = spec.view.init(view_key, params, state.masks)
    begun = TrainState(
        step=jnp.asarray(own.step, jnp.int32),
        params=params,
        model_state=own.model_state,
        opt_state=None,
        method=state,
        key=key,
        carry=_first_carry(spec.task, batch, key),
        view=extra,
    )
    return begun.replace(opt_state=spec.tx.init(trained_of(spec.view, begun)))


def _first_carry(task: Task, batch: Any, key: jax.Array) -> Any:
    if task.carry is None:
        return None
    if batch is None:
        raise ValueError("init needs a batch: the task carries state between them")
    return task.carry.start(task.prepare(batch, key))


# --- Weight steps ---------------------------------------------------------------------


def train_step(spec: Spec, state: TrainState, batch: Any) -> tuple[TrainState, Report]:
    """One weight step; the report is that of the weights before it."""
    # The parameters are masked already, so the gradient here is the dense one.
    dense, told = _gradient(spec, state, batch)
    view, weights = spec.view, gradient_of_weights(spec.view, state, dense)
    topology = observe_gradients(spec.method, state.method, weights)
    trained = trained_of(view, state)
    masks = masks_of_trained(view, state, topology.masks)
    updates, opt_state = step_with_slots(
        spec.tx, masks, apply_masks(masks, dense), state.opt_state, trained
    )
    trained = _descend(trained, updates, spec.learning_rate(state.step))
    state = after_training(view, state, apply_masks(masks, trained)).replace(
        step=state.step + 1,
        model_state=told.model_state,
        opt_state=opt_state,
        method=topology,
        carry=told.carry,
    )
    return state, told.report


def _gradient(spec: Spec, state: TrainState, batch: Any) -> tuple[Params, Told]:
    return gradient_of_trained(
        spec.task, spec.view, state, batch, accumulate=spec.accumulate
    )


def train_block(
    spec: Spec, state: TrainState, batches: Any
) -> tuple[TrainState, Report]:
    """Several weight steps, K; every entry of the report is [K]."""

    def one(state: TrainState, i: jax.Array) -> tuple[TrainState, Report]:
        assert spec.block_at is not None
        return train_step(spec, state, spec.block_at(batches, i))

    count = spec.block_steps
    unroll = unrolled(count, state.params)
    return jax.lax.scan(one, state, jnp.arange(count), unroll=unroll)


def _descend(params: Params, updates: Params, rate: Any) -> Params:
    return jax.tree.map(
        lambda p, u: p - (jnp.asarray(rate, jnp.float32) * u).astype(p.dtype),
        params,
        updates,
    )


# --- Changes of the topology ----------------------------------------------------------


def topology_step(
    spec: Spec, state: TrainState, batch: Any
) -> tuple[TrainState, Turnover]:
    """The method's update; it takes the dense gradient, and leaves statistics alone."""
    dense, told = _gradient(spec, state, batch)
    method, weights = spec.method, gradient_of_weights(spec.view, state, dense)
    change = update_topology(method, state.method, state.params, weights, state.step)
    state, turnover = _changed(spec, state, change, told.report)
    if not method.consumes_step:
        return state, turnover
    # Nothing else will look at this batch: what is carried has passed through it.
    state = after_step(spec.view, state)
    return state.replace(step=state.step + jnp.int32(1), carry=told.carry), turnover


def explore_step(
    spec: Spec, state: TrainState, batch: Any, fraction: Number
) -> tuple[TrainState, Turnover]:
    """The exploration that begins a cycle; as `topology_step`, and consumes nothing.

    Averages of the weights begin anew, so that a ticket is that of its own cycle.
    """
    dense, told = _gradient(spec, state, batch)
    weights = gradient_of_weights(spec.view, state, dense)
    change = explore_topology(
        spec.method, state.method, state.params, weights, state.step, fraction
    )
    state = state.replace(opt_state=restart_averages(state.opt_state))
    return _changed(spec, state, change, told.report)


def validated_step(spec: Spec, state: TrainState, loss: Number) -> TrainState:
    """The state once the optimizer has heard of a validation loss."""
    del spec
    return state.replace(opt_state=after_validation(state.opt_state, loss))


def _changed(
    spec: Spec, state: TrainState, change: Change, report: Report
) -> tuple[TrainState, Turnover]:
    # Slots of inactive weights are as new; of what was pruned and regrown, not yet.
    kept = difference(change.state.masks, change.grown)
    turnover = _turnover(report, state.method.masks, change)
    state = state.replace(params=change.params, method=change.state)
    masks = masks_of_trained(spec.view, state, kept)
    trained = trained_of(spec.view, state)
    slots = reset_slots(spec.tx, masks, state.opt_state, trained)
    return state.replace(opt_state=slots), turnover


def _turnover(report: Report, before: Masks, change: Change) -> Turnover:
    ever, masks = change.state.ever_active, change.state.masks
    return Turnover(
        report=report,
        active=count(masks),
        kept=count(intersection(before, masks)),
        ever_active=jnp.int32(-1) if ever is None else count(ever),
        size=count(jax.tree.map(jnp.ones_like, masks)),
    )


# --- Programs -------------------------------------------------------------------------


class Steps(NamedTuple):
    """The compiled steps of a spec.

    ``topology`` and ``explore`` take the dense gradient at the batch they are given,
    and leave the statistics of batch norm alone.
    """

    spec: Spec
    init: Callable[..., TrainState]  # (key[, Start, batch]); the key is consumed
    begin: Callable[[jax.Array], Start]  # (key): what `init` starts with by itself
    train: Callable[[TrainState, Any], tuple[TrainState, Report]]
    block: Callable[[TrainState, Any], tuple[TrainState, Report]]  # entries [K]
    topology: Callable[[TrainState, Any], tuple[TrainState, Turnover]]
    explore: Callable[[TrainState, Any, Number], tuple[TrainState, Turnover]]
    validated: Callable[[TrainState, Number], TrainState]


def compile_steps(
    spec: Spec,
    sharding: Sharding | None = None,
    *,
    layout: Layout | None = None,
    batch: Any = None,
) -> Steps:
    """The programs of a run, each compiled at its first call; they donate the state.

    Args:
      spec: what they do.
      sharding: where all that a step gives back lives. The state has that of the
        argument, so no second call compiles.
      layout: instead, how the state is spread; all devices have all of the rest.
      batch: any training batch; needed with a layout by a task that carries state.

    Raises:
      ValueError: if parameters cannot be laid out so.
    """
    if layout is not None:
        sharding = layout.replicated
    first = state = sharding  # pyright: ignore
    init, draw = init_state, begin
    if layout is not None and not layout.is_replicated:
        init, draw = (functools.partial(_on_mesh, sharding, f) for f in (init, draw))
        ours = functools.partial(init_state, spec)
        shapes = jax.eval_shape(ours, jax.random.key(0), None, batch)
        state = layout.of(shapes, shapes.params)
        first = Start(state.params, state.model_state, None, sharding)  # pyright: ignore

    def program(step: Callable[..., Any], out: Any, **options: Any) -> Any:
        return jax.jit(functools.partial(step, spec), out_shardings=out, **options)

    told = (state, sharding)
    return Steps(
        spec,
        program(init, state),
        program(draw, first),
        *(
            program(step, out, donate_argnums=0)
            for step, out in (
                *((train_step, told), (train_block, told), (topology_step, told)),
                *((explore_step, told), (validated_step, state)),
            )
        ),
    )


def _on_mesh(at: Any, draw: Any, spec: Spec, key: Any, *rest: Any, **more: Any) -> Any:
    """Each device draws its part: by a key on one device alone it would draw all."""
    return draw(spec, lax.with_sharding_constraint(key, at), *rest, **more)
