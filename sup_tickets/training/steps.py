"""The jitted steps: train, one or several a call, change the topology, explore.

Each is compiled once and donates the state. The *learning rate* is a schedule of
``state.step`` and multiplied on here, outside of the Optax chain: a step that RigL's
update consumes advances ``state.step``, and with it the rate, though no weight and no
slot moves, and Optax's own counters (the bias correction of Adam) go on counting weight
steps alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sup_tickets.checks import check_whole
from sup_tickets.data.resident import Placement
from sup_tickets.dynamic import Method
from sup_tickets.masks import apply_masks, count, difference, intersection
from sup_tickets.models.skips import with_ghosts
from sup_tickets.slots import reset_slots
from sup_tickets.training.losses import Loss, cross_entropy
from sup_tickets.training.state import TrainState
from sup_tickets.types import Masks, Number, Params, Schedule
from sup_tickets.updates import (
    Change,
    explore_topology,
    init_topology,
    observe_gradients,
    starting_from,
    update_topology,
)

Prepare = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
"""``(batch, key) -> (inputs, labels)``: gather and augment, inside the step."""


Form = Callable[[Number], nn.Module]
"""``step -> model``: a network that changes on its way, as ghosts fade."""


def form_of(model: nn.Module | Form) -> Form:
    """The form of a model that does not change; a form itself."""
    return (lambda step: model) if isinstance(model, nn.Module) else model


class Start(NamedTuple):
    """What a run starts with, where that is not all drawn from its key."""

    params: Params  # dense; what a form adds to them is drawn
    batch_stats: Any
    masks: Masks | None  # by default the method's own
    step: Number = 0  # completed already


class Turnover(NamedTuple):
    """What a change of the topology did; all are scalars."""

    loss: jax.Array  # float32, nats, before the change
    active: jax.Array  # int32, weights active now
    kept: jax.Array  # int32, of them those that were active before
    ever_active: jax.Array  # int32, weights active at any time so far; -1 if untracked


class Steps(NamedTuple):
    """The compiled programs of a run; losses are means of plain cross-entropy.

    ``topology`` and ``explore`` take the dense gradient at the batch they are given,
    and leave the statistics of batch norm alone.
    """

    init: Callable[..., TrainState]  # (key[, Start]); the key is consumed
    begin: Callable[[jax.Array], Start]  # (key): what `init` starts with by itself
    train: Callable[[TrainState, Any], tuple[TrainState, jax.Array]]  # -> state, loss
    block: Callable[[TrainState, Any], tuple[TrainState, jax.Array]]  # losses, [K]
    topology: Callable[[TrainState, Any], tuple[TrainState, Turnover]]
    explore: Callable[[TrainState, Any, Number], tuple[TrainState, Turnover]]


def make_steps(
    model: nn.Module | Form,
    method: Method,
    tx: optax.GradientTransformation,
    *,
    learning_rate: Schedule,
    prepare: Prepare,
    example: jax.Array,
    placement: Placement,
    loss: Loss = cross_entropy,
    accumulate: int = 1,
    block_steps: int = 1,
    block_at: Callable[[Any, jax.Array], Any] | None = None,
) -> Steps:
    """The steps of training a model sparsely.

    Args:
      model: Linen module, called as ``model(inputs, train=...)``, with class scores; or
        the form of one, which has the same parameters at every step.
      method: of sparse training. An update of RigL consumes its step; of others not.
      tx: Optax chain *without* a learning rate, whose updates are subtracted.
      learning_rate: schedule of ``state.step``.
      prepare: from a batch and a key to inputs and labels.
      example: inputs of any batch size, for the shapes of the parameters.
      placement: where state and batches live.
      loss: ``(scores, labels) -> [B]``; what is reported is `cross_entropy` all the
        same.
      accumulate: parts in which a batch goes through the network one after the other,
        each with its own batch-norm statistics; the gradient is their mean.
      block_steps: steps of a call of ``block``, K.
      block_at: ``(block, i) -> batch`` of the i-th step in it; needed if K > 1.

    Raises:
      ValueError: if the batch cannot be cut into ``accumulate`` equal parts (when
        traced), or ``block_steps`` is above 1 without ``block_at``.
    """
    check_whole("accumulate", accumulate, 1)
    if check_whole("block_steps", block_steps, 1) > 1 and block_at is None:
        raise ValueError(f"block_steps={block_steps} needs block_at")
    form = form_of(model)
    gradient = _gradient(form, prepare, loss, accumulate)

    def begin(key: jax.Array) -> Start:
        variables = form(0).init(jax.random.split(key, 3)[0], example, train=False)
        return Start(variables["params"], variables.get("batch_stats", {}), None)

    def init(key: jax.Array, start: Start | None = None) -> TrainState:
        own = begin(key)
        _, method_key, key = jax.random.split(key, 3)
        state = init_topology(method, method_key, own.params)
        if start is not None:
            own = Start(
                with_ghosts(start.params, own.params),
                with_ghosts(start.batch_stats, own.batch_stats),
                None,
                start.step,
            )
            if start.masks is not None:
                state = starting_from(state, own.params, start.masks)
        params = apply_masks(state.masks, own.params)
        return TrainState(
            step=jnp.asarray(own.step, jnp.int32),
            params=params,
            batch_stats=own.batch_stats,
            opt_state=tx.init(params),
            method=state,
            key=key,
        )

    def train(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        # The parameters are masked already, so the gradient here is the dense one.
        dense, (value, batch_stats) = gradient(state, batch)
        topology = observe_gradients(method, state.method, dense)
        masks = topology.masks
        updates, opt_state = tx.update(
            apply_masks(masks, dense), state.opt_state, state.params
        )
        params = _descend(state.params, updates, learning_rate(state.step))
        state = state.replace(
            step=state.step + 1,
            params=apply_masks(masks, params),
            batch_stats=batch_stats,
            opt_state=reset_slots(tx, masks, opt_state, params),
            method=topology,
        )
        return state, value

    def block(state: TrainState, batches: Any) -> tuple[TrainState, jax.Array]:
        def one(state: TrainState, i: jax.Array) -> tuple[TrainState, jax.Array]:
            assert block_at is not None
            return train(state, block_at(batches, i))

        return jax.lax.scan(
            one,
            state,
            jnp.arange(block_steps),
            unroll=_unroll(block_steps, state.params),
        )

    def changed(
        state: TrainState, change: Change, loss: jax.Array
    ) -> tuple[TrainState, Turnover]:
        # Slots of inactive weights are as new; of what was pruned and regrown, not yet.
        kept = difference(change.state.masks, change.grown)
        turnover = _turnover(loss, state.method.masks, change)
        state = state.replace(
            params=change.params,
            method=change.state,
            opt_state=reset_slots(tx, kept, state.opt_state, change.params),
        )
        return state, turnover

    def topology(state: TrainState, batch: Any) -> tuple[TrainState, Turnover]:
        dense, (value, _) = gradient(state, batch)
        change = update_topology(method, state.method, state.params, dense, state.step)
        consumed = jnp.int32(1 if method.consumes_step else 0)
        state, turnover = changed(state, change, value)
        return state.replace(step=state.step + consumed), turnover

    def explore(
        state: TrainState, batch: Any, fraction: Number
    ) -> tuple[TrainState, Turnover]:
        dense, (value, _) = gradient(state, batch)
        change = explore_topology(
            method, state.method, state.params, dense, state.step, fraction
        )
        return changed(state, change, value)

    return _compiled(Steps(init, begin, train, block, topology, explore), placement)


def direction(
    name: str,
    *,
    weight_decay: float = 0.0,
    decay: Callable[[Params], Any] | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """An Optax chain without a learning rate, for `make_steps`.

    Args:
      name: "sgd" (momentum as in PyTorch, weight decay added to the gradient) or
        "adamw" (weight decay added to the update).
      weight_decay: strength.
      decay: ``params -> pytree of bool``, which leaves have weight decay; by default
        every parameter, biases and norms included, as in the release.
      momentum: of SGD.
      nesterov: of SGD.
      clip_norm: largest global norm of the gradient of the active weights, before the
        weight decay; ``None`` for no limit.

    Raises:
      ValueError: for another name, or a number out of its range.
    """
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    decayed = optax.add_decayed_weights(weight_decay, mask=decay)
    if name == "sgd":
        trace = optax.trace(decay=momentum, nesterov=nesterov)
        return optax.chain(*clip, decayed, trace)
    if name == "adamw":
        return optax.chain(*clip, optax.scale_by_adam(), decayed)
    raise ValueError(f"optimizer must be 'sgd' or 'adamw', got {name!r}")


# --- Parts ----------------------------------------------------------------------------


def _gradient(
    form: Form, prepare: Prepare, loss: Loss, accumulate: int
) -> Callable[[TrainState, Any], tuple[Params, tuple[jax.Array, Any]]]:
    """``(state, batch) -> (dense gradient, (cross-entropy, batch statistics))``."""

    def loss_of(
        params: Params, batch_stats: Any, inputs: Any, labels: Any, step: jax.Array
    ) -> Any:
        scores, changed = form(step).apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        plain = cross_entropy(scores, labels).mean()
        value = plain if loss is cross_entropy else loss(scores, labels).mean()
        return value, (plain, changed.get("batch_stats", {}))

    one = jax.grad(loss_of, has_aux=True)

    def gradient(state: TrainState, batch: Any) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        inputs, labels = prepare(batch, key)
        if accumulate == 1:
            return one(state.params, state.batch_stats, inputs, labels, state.step)

        def add(carry: Any, part: Any) -> Any:
            total, batch_stats = carry
            new, (value, batch_stats) = one(
                state.params, batch_stats, *part, state.step
            )
            return (jax.tree.map(jnp.add, total, new), batch_stats), value

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, batch_stats), values = jax.lax.scan(
            add,
            (zeros, state.batch_stats),
            (_cut(inputs, accumulate), _cut(labels, accumulate)),
            unroll=_unroll(accumulate, state.params),
        )
        mean = jax.tree.map(lambda leaf: leaf / accumulate, total)
        return mean, (values.mean(), batch_stats)

    return gradient


def _cut(array: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...], every device's examples staying on it."""
    if array.shape[0] % parts:
        raise ValueError(
            f"accumulate={parts} does not divide the batch of {array.shape[0]}"
        )
    # Part i has the examples i, i + parts, ...: a slice of what each device holds.
    return jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)


def _unroll(steps: int, params: Params) -> int:
    """How far to unroll a loop over steps.

    On a CPU a convolution within a loop is 38 times slower than outside; matrix
    products are not, and neither are convolutions on accelerators.
    """
    convolves = any(leaf.ndim > 2 for leaf in jax.tree.leaves(params))
    return steps if convolves and jax.default_backend() == "cpu" else 1


def _turnover(loss: jax.Array, before: Masks, change: Change) -> Turnover:
    ever, masks = change.state.ever_active, change.state.masks
    return Turnover(
        loss=loss,
        active=count(masks),
        kept=count(intersection(before, masks)),
        ever_active=jnp.int32(-1) if ever is None else count(ever),
    )


def _descend(params: Params, updates: Params, rate: Any) -> Params:
    return jax.tree.map(
        lambda p, u: p - (jnp.asarray(rate, jnp.float32) * u).astype(p.dtype),
        params,
        updates,
    )


def _compiled(steps: Steps, placement: Placement) -> Steps:
    """The result has the sharding of the argument, so no second call compiles."""
    everywhere = placement.everywhere
    return Steps(
        jax.jit(steps.init, out_shardings=everywhere),
        jax.jit(steps.begin, out_shardings=everywhere),
        *(
            jax.jit(step, donate_argnums=0, out_shardings=everywhere)
            for step in (steps.train, steps.block, steps.topology, steps.explore)
        ),
    )
