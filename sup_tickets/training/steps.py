"""The jitted steps: train, change the topology, explore.

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

from sup_tickets.data.resident import Placement
from sup_tickets.dynamic import Change, Method
from sup_tickets.masks import apply_masks
from sup_tickets.training.state import TrainState
from sup_tickets.transforms import mask_slots
from sup_tickets.types import Number, Params, Schedule

Prepare = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
"""``(batch, key) -> (inputs, labels)``: gather and augment, inside the step."""


class Steps(NamedTuple):
    """The compiled programs of a run; ``loss`` is the mean over the batch.

    ``topology`` and ``explore`` take the dense gradient at the batch they are given,
    and leave the statistics of batch norm alone.
    """

    init: Callable[[jax.Array], TrainState]  # (key), consumed
    train: Callable[[TrainState, Any], tuple[TrainState, jax.Array]]  # -> state, loss
    topology: Callable[[TrainState, Any], tuple[TrainState, jax.Array]]
    explore: Callable[[TrainState, Any, Number], tuple[TrainState, jax.Array]]


def make_steps(
    model: nn.Module,
    method: Method,
    tx: optax.GradientTransformation,
    *,
    learning_rate: Schedule,
    prepare: Prepare,
    example: jax.Array,
    placement: Placement,
    label_smoothing: float = 0.0,
) -> Steps:
    """The steps of training a model sparsely.

    Args:
      model: Linen module, called as ``model(inputs, train=...)``, with class scores.
      method: of sparse training. An update of RigL consumes its step; of others not.
      tx: Optax chain *without* a learning rate, whose updates are subtracted.
      learning_rate: schedule of ``state.step``.
      prepare: from a batch and a key to inputs and labels.
      example: inputs of any batch size, for the shapes of the parameters.
      placement: where state and batches live.
      label_smoothing: share of the target spread over all classes, in [0, 1).
    """

    def init(key: jax.Array) -> TrainState:
        init_key, method_key, key = jax.random.split(key, 3)
        variables = model.init(init_key, example, train=False)
        state = method.init(method_key, variables["params"])
        params = apply_masks(state.masks, variables["params"])
        return TrainState(
            step=jnp.int32(0),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
            method=state,
            key=key,
        )

    def loss_of(params: Params, state: TrainState, batch: Any) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        inputs, labels = prepare(batch, key)
        scores, changed = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        loss = cross_entropy(scores, labels, label_smoothing).mean()
        return loss, changed.get("batch_stats", {})

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def train(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        # The parameters are masked already, so the gradient here is the dense one.
        (loss, batch_stats), dense = gradient(state.params, state, batch)
        topology = method.observe(state.method, dense)
        masks = topology.masks
        updates, opt_state = tx.update(
            apply_masks(masks, dense), state.opt_state, state.params
        )
        params = _descend(state.params, updates, learning_rate(state.step))
        state = state.replace(
            step=state.step + 1,
            params=apply_masks(masks, params),
            batch_stats=batch_stats,
            opt_state=mask_slots(tx, masks, opt_state),
            method=topology,
        )
        return state, loss

    def changed(state: TrainState, change: Change) -> TrainState:
        # Slots of inactive weights are always 0, those of grown ones therefore too.
        return state.replace(
            params=change.params,
            method=change.state,
            opt_state=mask_slots(tx, change.state.masks, state.opt_state),
        )

    def topology(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        (loss, _), dense = gradient(state.params, state, batch)
        change = method.update(state.method, state.params, dense, state.step)
        consumed = jnp.int32(1 if method.consumes_step else 0)
        return changed(state, change).replace(step=state.step + consumed), loss

    def explore(
        state: TrainState, batch: Any, fraction: Number
    ) -> tuple[TrainState, jax.Array]:
        (loss, _), dense = gradient(state.params, state, batch)
        change = method.explore(state.method, state.params, dense, state.step, fraction)
        return changed(state, change), loss

    return _compiled(Steps(init, train, topology, explore), placement)


def cross_entropy(
    scores: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Negative log-likelihood in nats, [B] float32.

    Args:
      scores: [B, classes] before the softmax.
      labels: [B] integers.
      label_smoothing: share of the target spread over all classes, in [0, 1).
    """
    log_p = jax.nn.log_softmax(scores.astype(jnp.float32))
    of_label = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return (1 - label_smoothing) * of_label - label_smoothing * log_p.mean(axis=1)


def direction(
    name: str, *, weight_decay: float = 0.0, momentum: float = 0.9
) -> optax.GradientTransformation:
    """An Optax chain without a learning rate, for `make_steps`.

    Args:
      name: "sgd" (momentum as in PyTorch, weight decay added to the gradient) or
        "adamw" (weight decay added to the update).
      weight_decay: of every parameter, biases and norms included, as in the release.
      momentum: of SGD.

    Raises:
      ValueError: for another name.
    """
    if name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum)
        )
    if name == "adamw":
        return optax.chain(
            optax.scale_by_adam(), optax.add_decayed_weights(weight_decay)
        )
    raise ValueError(f"optimizer must be 'sgd' or 'adamw', got {name!r}")


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
        *(
            jax.jit(step, donate_argnums=0, out_shardings=everywhere)
            for step in (steps.train, steps.topology, steps.explore)
        ),
    )
