"""The task of labelling images, whatever library the network is written in.

    task = image_classification(linen_network(MLP(), example), prepare=prepare)

Shapes: B examples of a batch, C classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.training.losses import Loss, cross_entropy
from sup_tickets.training.predictions import (
    Predictions,
    prediction_metrics,
    prediction_sums,
)
from sup_tickets.training.task import Task
from sup_tickets.types import Number, Params

Prepare = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
"""``(batch, key) -> (inputs, labels)``: gather and augment, inside the step."""


class PureNetwork(NamedTuple):
    """A network as pure functions; made by hand, or by the module for its library.

    Parameters and model state are nested dicts of arrays, so that files and reports can
    name every leaf.
    """

    init: Callable[[jax.Array], tuple[Params, Any]]
    """``(key) -> (params, model_state)``."""

    apply: Callable[..., tuple[jax.Array, Any]]
    """``(params, model_state, inputs, train, key, step) -> (logits, model_state)``.

    ``train`` is a Python bool, ``key`` for dropout, ``step`` for networks that change
    on their way.
    """

    statistics: Callable[..., Any] | None = None
    """``(params, model_state, inputs, key) -> model_state`` by this batch alone, or
    ``None`` if there is no way."""

    annotated: Any = None
    """Where the module says that parameters lie, `jax.sharding.PartitionSpec` by names,
    for `sharding.Layout`; ``None`` if it cannot say."""


def image_classification(
    network: PureNetwork,
    *,
    prepare: Prepare,
    normalize: Callable[[jax.Array], jax.Array] = lambda images: images,
    loss: Loss = cross_entropy,
) -> Task:
    """Trains a network to label images.

    Args:
      network: with logits [B, C].
      prepare: from a training batch and a key to inputs and labels.
      normalize: from ``inputs`` of a batch to evaluate to those of the network.
      loss: ``(logits, labels) -> [B]``; what is reported is `cross_entropy` all the
        same.

    Returns:
      A task whose batches to evaluate have ``inputs``, ``labels`` and ``weights``, and
      whose metrics are those of `prediction_metrics`.
    """

    def loss_of(
        params: Params, model_state: Any, batch: Any, key: jax.Array, step: Number
    ) -> Any:
        inputs, labels = batch
        logits, changed = network.apply(params, model_state, inputs, True, key, step)
        plain = cross_entropy(logits, labels).mean()
        value = plain if loss is cross_entropy else loss(logits, labels).mean()
        return value, ({"loss": plain}, changed)

    def predict(
        params: Params, model_state: Any, batch: Any, step: Number = 0
    ) -> Predictions:
        inputs = normalize(batch.inputs)
        key = jax.random.key(0)  # of dropout, which evaluation has none of
        logits, _ = network.apply(params, model_state, inputs, False, key, step)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        return Predictions(log_p, batch.labels, batch.weights)

    def statistics(params: Params, model_state: Any, batch: Any, key: jax.Array) -> Any:
        assert network.statistics is not None
        inputs, _ = batch
        found = network.statistics(params, model_state, inputs, key)
        return found, inputs.shape[0]

    return Task(
        init=network.init,
        loss=loss_of,
        prepare=prepare,
        metrics=lambda *arguments: prediction_sums(predict(*arguments)),
        summarize=prediction_metrics,
        statistics=None if network.statistics is None else statistics,
        predict=predict,
        objective="nll",
        headline="accuracy",
    )
