"""Masks found before training, by looking at data once: SNIP, GraSP, SynFlow, Taylor.

Scores are pure functions of a loss and of the parameters: no statistics of batch norm,
no optimizer and no weight changes. `prune_in_rounds` turns any of them into masks, and
`resample` keeps of masks only how many weights each layer has.

    loss = st.classification_loss(apply)
    scores = lambda params, masks: st.snip(loss, params, batches, masks=masks)
    masks = st.prune_in_rounds(scores, params, sparsity=0.98)
"""

from collections.abc import Callable, Sequence, Sized
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sup_tickets.checks import (
    check_number,
    check_one_of,
    check_whole,
)
from sup_tickets.masks import (
    apply_masks,
    full_masks,
)
from sup_tickets.saliency import taylor
from sup_tickets.tree_checks import check_same_leaves
from sup_tickets.trees import named_leaves
from sup_tickets.types import Masks, Params, Scores

Loss = Callable[[Params, Any], jax.Array]
"""``(params, batch) -> scalar``."""

Apply = Callable[[Params, Any], jax.Array]
"""``(params, inputs) -> outputs``."""

# Accelerators by default multiply float32 in fewer bits, and scores are compared.
_PRECISION = "highest"


# --- Scores ---------------------------------------------------------------------------


def classification_loss(apply: Apply, *, temperature: float = 1.0) -> Loss:
    """Mean cross-entropy of a batch ``(inputs, labels)``, in nats.

    Args:
      apply: ``(params, inputs) -> [B, classes]`` logits; with batch
        norm by the statistics of the batch, which it must not keep.
      temperature: divides the logits; GraSP's is 200.

    Returns:
      A `Loss`, which raises a ValueError for a batch without integer labels [B].
    """
    check_number("temperature", temperature, 0, above=True)

    def loss(params: Params, batch: Any) -> jax.Array:
        inputs, labels = _labelled(batch)
        logits = apply(params, inputs)
        if logits.dtype != jnp.float64:
            logits = logits.astype(jnp.float32)
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"labels must have shape {logits.shape[:-1]}, one for each row of the "
                f"logits, got {labels.shape}"
            )
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits / temperature, labels
        )
        return each.mean()

    return loss


def total_gradient(loss: Loss, params: Params, batches: Sequence[Any]) -> Params:
    """The sum of the gradients of batches.

    Args:
      loss: of one batch.
      params: pytree of floating point arrays.
      batches: at least one.

    Raises:
      ValueError: if there is no batch.

    Example:
      Taylor's scores: ``taylor(params, total_gradient(loss, params, batches))``.
    """
    _check_batches(batches)
    with jax.default_matmul_precision(_PRECISION):
        gradients = [jax.grad(loss)(params, batch) for batch in batches]
    return reduce(partial(jax.tree.map, jnp.add), gradients)


def snip(
    loss: Loss, params: Params, batches: Sequence[Any], *, masks: Masks | None = None
) -> Scores:
    """``|w dL/dw|`` of all batches together, divided by its sum over the sparse leaves.

    How much the loss depends on whether a connection is there: ``dL/dm`` at ``m = 1``.

    Args:
      loss: of one batch.
      params: pytree of floating point arrays.
      batches: at least one; gradients are added up before the absolute value is taken.
      masks: of which the leaves that are ``None`` take no part and score 0; by default
        the leaves of `default_rule` are sparse.

    References:
      Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity,
      2019, https://arxiv.org/abs/1810.02340
    """
    masks = _masks(params, masks)
    gradient = _sparse_part(masks, total_gradient(loss, params, batches))
    scores = taylor(params, gradient)
    total = _sum(scores)
    return jax.tree.map(lambda s: s / jnp.where(total > 0, total, 1), scores)


def grasp(
    loss: Loss,
    params: Params,
    batches: Sequence[Any],
    *,
    pairing: str = "all",
    masks: Masks | None = None,
) -> Scores:
    """``w (H g)``, divided by the magnitude of its sum: the largest are kept.

    Removing a weight with a small score lowers the norm of the gradient least, or
    raises it. One Hessian-vector product a batch; the Hessian itself is never made.

    Args:
      loss: of one batch; see `classification_loss`, with ``temperature=200``.
      params: pytree of floating point arrays.
      batches: at least one.
      pairing: "all": H and g are both sums over all batches, as in the references;
        "each": the sum of every batch's own product.
      masks: of which the leaves that are ``None`` take no part and score 0; by default
        the leaves of `default_rule` are sparse.

    References:
      Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow,
      2020, https://arxiv.org/abs/2002.07376
    """
    check_one_of("pairing", pairing, ("all", "each"))
    _check_batches(batches)
    masks = _masks(params, masks)

    def product(batch: Any, along: Params) -> Params:
        tangent = _sparse_part(masks, along)
        return jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (tangent,))[1]

    together = total_gradient(loss, params, batches)
    with jax.default_matmul_precision(_PRECISION):
        products = [
            product(
                batch, together if pairing == "all" else jax.grad(loss)(params, batch)
            )
            for batch in batches
        ]
    flow = _sparse_part(masks, reduce(partial(jax.tree.map, jnp.add), products))
    scores = jax.tree.map(jnp.multiply, params, flow)
    total = jnp.abs(_sum(scores)) + 1e-10
    return jax.tree.map(lambda s: s / total.astype(s.dtype), scores)


def synflow(apply: Apply, params: Params, shape: Sequence[int]) -> Scores:
    """``|w dR/d|w||`` of ``R = sum(apply(|params|, ones))``, divided by the mean layer.

    What flows through a weight if all weights were positive; no data is looked at. The
    scores of each layer of a chain without biases add up to R, so that no layer dies
    before the others if scores are computed anew in many rounds.

    R grows with every layer beyond what float32 can hold, so concrete parameters are
    computed with in float64 on the CPU. A traced call computes in their own dtype.

    Args:
      apply: of one batch, with batch norm by its statistics of the beginning (mean 0,
        variance 1); it must compute in the dtype of its inputs.
      params: pytree of floating point arrays; all of them are made positive, biases
        too, as in the reference.
      shape: of the inputs.

    Returns:
      Scores in the dtypes of ``params``.

    Raises:
      ValueError: if concrete scores are not finite.

    References:
      Tanaka et al., Pruning neural networks without any data by iteratively conserving
      synaptic flow, 2020, https://arxiv.org/abs/2006.05467
    """
    for side in shape:
        check_whole("shape", side, 1)
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        inputs = jnp.ones(tuple(shape), jnp.result_type(leaves[0]))
        flows = _flow(apply, params, inputs)
        return _by_mean_layer(flows, _masks(params, None))
    with jax.enable_x64(True), jax.default_device(_own_cpu()):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        flows = _compiled_flow(apply, wide, np.ones(tuple(shape)))
        flows = _by_mean_layer(flows, _masks(params, None))
        scores = jax.tree.map(
            lambda flow, leaf: np.asarray(flow).astype(leaf.dtype), flows, params
        )
    for name, leaf in named_leaves(scores):
        if not np.isfinite(leaf).all():
            raise ValueError(
                f"the synaptic flow of leaf {name!r} is not finite; apply must compute "
                "in the dtype of its inputs, float64"
            )
    return jax.tree.map(jnp.asarray, scores)


# --- Parts ----------------------------------------------------------------------------


def _labelled(batch: Any) -> tuple[Any, jax.Array]:
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    labels = batch[1] if pair else None
    if not pair or not jnp.issubdtype(getattr(labels, "dtype", object), jnp.integer):
        what = (
            type(batch).__name__ if not pair else f"labels of {type(labels).__name__}"
        )
        kind = getattr(labels, "dtype", None)
        raise ValueError(
            "a batch must be (inputs, labels) with integer labels, got "
            f"{what if kind is None else f'labels of {kind}'}"
        )
    return batch[0], jnp.asarray(labels)


def _masks(params: Params, masks: Masks | None) -> Masks:
    if masks is None:
        return full_masks(params)
    check_same_leaves("masks", masks, "params", params)
    return masks


def _sparse_part(masks: Masks, tree: Params) -> Params:
    """0 at dense leaves and at inactive places."""
    return jax.tree.map(
        lambda leaf, mask: jnp.zeros_like(leaf) if mask is None else leaf,
        apply_masks(masks, tree),
        masks,
    )


def _sum(tree: Params) -> jax.Array:
    return reduce(jnp.add, [leaf.sum() for leaf in jax.tree.leaves(tree)])


def _flow(apply: Apply, params: Params, inputs: Any) -> Params:
    positive = jax.tree.map(jnp.abs, params)
    gradient = jax.grad(lambda p: apply(p, inputs).sum())(positive)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), positive, gradient)


# One program for all rounds of the same function.
_compiled_flow = jax.jit(_flow, static_argnums=0)


def _own_cpu() -> Any:
    """A processor of this very process; where there is none, its first device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names others alone
        return jax.local_devices()[0]


def _by_mean_layer(flows: Scores, masks: Masks) -> Scores:
    """Of an order that every dtype can hold."""
    sparse = jax.tree.leaves(
        jax.tree.map(lambda flow, m: None if m is None else flow.sum(), flows, masks)
    )
    # Each of them may be as large as the dtype can hold.
    mean = reduce(jnp.add, [total / len(sparse) for total in sparse])
    return jax.tree.map(lambda flow: flow / jnp.where(mean > 0, mean, 1), flows)


def _check_batches(batches: Any) -> None:
    if not isinstance(batches, Sized):
        raise ValueError(
            "batches must be a sequence of batches, which are gone through more than "
            f"once, got {type(batches).__name__}"
        )
    if not len(batches):
        raise ValueError("batches must hold at least 1 batch, got none")
