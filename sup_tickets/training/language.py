"""The task of predicting the next token of a text, whatever library the network is in.

    task = language_modelling(linen_language(Recurrent(), length=35), prepare=prepare)

Shapes: B rows, T tokens of each, V the size of the vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.training.losses import Loss, cross_entropy
from sup_tickets.training.predictions import (
    Predictions,
    PredictionSums,
    prediction_metrics,
    prediction_sums,
)
from sup_tickets.training.task import Carried, Carry, Metrics, Task
from sup_tickets.types import Number, Params


class LanguageNetwork(NamedTuple):
    """A network as pure functions; parameters are nested dicts of arrays."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""

    apply: Callable[..., tuple[jax.Array, Any]]
    """``(params, tokens, carry, train, key) -> (logits [B, T, V], carry)``.

    ``train`` is a Python bool, ``key`` for dropout."""

    start: Callable[[int], Any] | None = None
    """``(rows) -> carry`` before the first tokens; ``None`` if nothing is carried."""


def language_modelling(
    network: LanguageNetwork,
    *,
    prepare: Callable[[Any, jax.Array], Any],
    restarts: Callable[[Number], Any] = lambda step: False,
    loss: Loss = cross_entropy,
) -> Task:
    """Trains a network to predict the next token, by truncated back-propagation.

    The gradient ends where a batch begins; what is carried into it counts as given.

    Args:
      network: with logits [B, T, V].
      prepare: from a training batch and a key to what has ``tokens`` and ``labels``,
        [B, T] each.
      restarts: see `sup_tickets.training.task.Carry`.
      loss: ``(logits [N, V], labels [N]) -> [N]``; what is reported is `cross_entropy`
        all the same.

    Returns:
      A task whose batches to evaluate have ``weights`` besides, and whose metrics are
      those of `prediction_metrics` and the "perplexity" of all tokens, ``exp(nll)``.
    """

    def split(model_state: Any) -> tuple[Any, Callable[[Any], Any]]:
        """What is carried, and how it is given back."""
        if network.start is None:
            return None, lambda carry: model_state
        return model_state.carry, lambda carry: Carried(model_state.own, carry)

    def loss_of(
        params: Params, model_state: Any, batch: Any, key: jax.Array, step: Number
    ) -> Any:
        del step
        carry, joined = split(model_state)
        logits, carry = network.apply(params, batch.tokens, carry, True, key)
        logits = logits.reshape(-1, logits.shape[-1])
        labels = batch.labels.reshape(-1)
        plain = cross_entropy(logits, labels).mean()
        value = plain if loss is cross_entropy else loss(logits, labels).mean()
        return value, ({"loss": plain}, joined(carry))

    def predict(params: Params, model_state: Any, batch: Any, step: Number = 0) -> Any:
        del step
        key = jax.random.key(0)  # of dropout, which evaluation has none of
        before = split(model_state)[0]
        logits, carry = network.apply(params, batch.tokens, before, False, key)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        found = Predictions(log_p, batch.labels, batch.weights)
        return found if network.start is None else (found, carry)

    def metrics(*arguments: Any) -> Any:
        found = predict(*arguments)
        if network.start is None:
            return prediction_sums(found)
        return prediction_sums(found[0]), found[1]

    start = network.start
    return Task(
        init=lambda key: (network.init(key), {}),
        loss=loss_of,
        prepare=prepare,
        metrics=metrics,
        summarize=language_metrics,
        predict=predict,
        carry=None
        if start is None
        else Carry(start=lambda batch: start(batch.tokens.shape[0]), restarts=restarts),
        objective="perplexity",
    )


def language_metrics(sums: PredictionSums) -> Metrics:
    """`prediction_metrics`, and the perplexity: ``exp`` of the mean of all tokens.

    Raises:
      ValueError: if no token was counted.
    """
    metrics = prediction_metrics(sums)
    return {"perplexity": perplexity(metrics["nll"]), **metrics}


def perplexity(nll: float) -> float:
    """``exp(nll)``, infinite where that is beyond floating point."""
    return math.exp(nll) if nll < math.log(1e308) else math.inf
