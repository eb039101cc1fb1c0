"""Masks found before training, by looking at data once: SNIP, GraSP, SynFlow, Taylor.

Scores are pure functions of a loss and of the parameters: no statistics of batch norm,
no optimizer and no weight changes. `prune_in_rounds` turns any of them into masks, and
`resample` keeps of masks only how many weights each layer has.

    loss = st.classification_loss(apply)
    scores = lambda params, masks: st.snip(loss, params, batches, masks=masks)
    masks = st.prune_in_rounds(scores, params, sparsity=0.98)
"""

from collections.abc import Callable, Sequence, Sized
from fractions import Fraction
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sup_tickets.checks import (
    check_number,
    check_one_of,
    check_sparsity,
    check_whole,
)
from sup_tickets.counting import active_count, exact, share_out
from sup_tickets.distributions import uniform
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    full_masks,
    layer_counts,
    random_masks,
    size,
)
from sup_tickets.saliency import taylor
from sup_tickets.topology import merged, prune_to_counts, without
from sup_tickets.trees import (
    RuleLike,
    check_same_leaves,
    default_rule,
    is_none,
    named_leaves,
)
from sup_tickets.types import Counts, Masks, Params, Scores

Loss = Callable[[Params, Any], jax.Array]
"""``(params, batch) -> scalar``."""

Apply = Callable[[Params, Any], jax.Array]
"""``(params, inputs) -> outputs``."""

ScoreOfMasks = Callable[[Params, Masks], Scores]
"""``(params, masks) -> scores``; pruned weights are exactly 0 in ``params``."""


# --- Scores ---------------------------------------------------------------------------


def classification_loss(apply: Apply, *, temperature: float = 1.0) -> Loss:
    """Mean cross-entropy of a batch ``(inputs, labels)``, in nats.

    Args:
      apply: ``(params, inputs) -> [B, classes]`` scores before the softmax; with batch
        norm by the statistics of the batch, which it must not keep.
      temperature: divides the scores; GraSP's is 200.

    Returns:
      A `Loss`, which raises a ValueError for a batch without integer labels [B].
    """
    check_number("temperature", temperature, 0, above=True)

    def loss(params: Params, batch: Any) -> jax.Array:
        inputs, labels = _labelled(batch)
        scores = apply(params, inputs)
        if scores.dtype != jnp.float64:
            scores = scores.astype(jnp.float32)
        if scores.shape[:-1] != labels.shape:
            raise ValueError(
                f"labels must have shape {scores.shape[:-1]}, one for each row of the "
                f"scores, got {labels.shape}"
            )
        each = optax.softmax_cross_entropy_with_integer_labels(
            scores / temperature, labels
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
    products = [
        product(batch, together if pairing == "all" else jax.grad(loss)(params, batch))
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


# --- Masks ----------------------------------------------------------------------------


def prune_in_rounds(
    score: ScoreOfMasks,
    params: Params,
    *,
    sparsity: float,
    rounds: int = 1,
    spacing: str = "exponential",
    scope: str = "global",
    where: RuleLike = default_rule,
    dense: Sequence[str] | str = (),
    masks: Masks | None = None,
) -> Masks:
    """Masks of the weights with the largest scores, computed anew in every round.

    After round i of n the density is ``d ** (i / n)`` ("exponential") or
    ``1 - (1 - d) i / n`` ("linear"), in exact counts; what was pruned stays pruned.

    Args:
      score: computes the scores; compiled if it is the caller's ``jax.jit``.
      params: pytree of arrays.
      sparsity: in [0, 1), of all sparse leaves together, met exactly.
      rounds: at least 1; 100 for SynFlow, 1 for the others.
      spacing: "exponential" or "linear".
      scope: "global" compares all leaves; "layer" gives each the same density.
      where: which leaves are sparse, see `sparse_leaves`.
      dense: expressions of sparse leaves that are never pruned; the others pay. They
        are dense if ``masks`` is not given.
      masks: to begin with; by default all weights of the sparse leaves. What has a mask
        is sparse then, and ``where`` is not used. With ``scope="layer"`` a leaf that
        has too few active weights for the common density keeps them all, and the
        others share out what it lacks.

    Raises:
      ValueError: naming the argument out of its range; if the count cannot be met,
        because the leaves of ``dense`` have more active weights, or ``masks`` has
        fewer; or the leaf and the round whose scores are NaN or infinite; or the round
        in which all of them are 0.
    """
    check_sparsity(sparsity)
    check_whole("rounds", rounds, 1)
    check_one_of("scope", scope, ("global", "layer"))
    check_one_of("spacing", spacing, ("exponential", "linear"))
    masks = full_masks(params, where=where) if masks is None else masks
    check_masks(params, masks)
    held = sum(_active(masks)) - sum(_active(without(masks, dense)))
    _check_reachable(masks, sparsity, held)
    for number in range(1, rounds + 1):
        pruned = apply_masks(masks, params)
        scores = score(pruned, masks)
        _check_scores(scores, masks, number)
        at = _sparsity_after(number, rounds, sparsity, spacing)
        free = without(masks, dense)
        # Early rounds may ask for more than masks of one's own have.
        counts: Any = min(active_count(size(masks), at) - held, sum(_active(free)))
        if scope == "layer":
            counts = _layer_counts(params, masks, at, dense, counts)
        _, kept = prune_to_counts(pruned, free, counts, scores=scores)
        masks = merged(params, masks, kept)
    return masks


def resample(key: jax.Array, masks: Masks) -> Masks:
    """As many active weights in each leaf, at random places: "ratios only".

    Args:
      key: a random key, consumed; the draw of a leaf depends on its name alone.
      masks: of which only the counts matter.

    References:
      Su et al., Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot,
      2020, https://arxiv.org/abs/2009.11094
    """
    return random_masks(key, masks, layer_counts(masks))


def dead_layers(masks: Masks) -> list[str]:
    """The names of the leaves that have no active weight; masks must be concrete."""
    return [name for name, mask in named_leaves(masks) if not mask.any()]


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


def _active(masks: Masks) -> list[int]:
    """Active weights of each leaf, on the host: nothing is compiled for it."""
    return [int(np.count_nonzero(mask)) for mask in jax.tree.leaves(masks)]


def _check_reachable(masks: Masks, sparsity: float, held: int) -> None:
    target, active = active_count(size(masks), sparsity), sum(_active(masks))
    wanted = f"sparsity={sparsity} of {size(masks)} weights leaves {target} active"
    if held > target:
        raise ValueError(f"{wanted}, but the leaves of dense= have {held}")
    if active < target:
        raise ValueError(f"{wanted}, but masks has only {active}")


def _layer_counts(
    params: Params, masks: Masks, sparsity: float, dense: Any, total: int
) -> Counts:
    """Of the free leaves, the same density as far as they have the weights."""
    free = without(masks, dense)
    active_leaves = _active(free)
    active = jax.tree.unflatten(jax.tree.structure(free), active_leaves)
    sizes = jax.tree.map(lambda mask: float(mask.size), free)
    held = size(masks) - size(free)
    if sum(_active(masks)) - sum(active_leaves) != held:  # dense, but not full
        return share_out(sizes, jnp.int32(total), active)
    sparse = {name for name, _ in named_leaves(masks)}
    counts = uniform(
        params, sparsity=sparsity, where=lambda name, _: name in sparse, dense=dense
    )
    counts = jax.tree.map(
        lambda mask, n: None if mask is None else n, free, counts, is_leaf=is_none
    )
    has_them = jax.tree.map(lambda wanted, n: wanted <= n, counts, active)
    if all(jax.tree.leaves(has_them)) and sum(jax.tree.leaves(counts)) == total:
        return counts
    return share_out(sizes, jnp.int32(total), active)


def _sparsity_after(number: int, rounds: int, sparsity: float, spacing: str) -> float:
    if number == rounds:
        return sparsity
    density = 1 - exact(sparsity)
    if spacing == "linear":
        return float((1 - density) * Fraction(number, rounds))
    return 1 - float(density) ** (number / rounds)


def _check_scores(scores: Scores, masks: Masks, number: int) -> None:
    check_same_leaves("masks", masks, "scores", scores)
    largest = 0.0
    for (name, mask), (_, score) in zip(
        named_leaves(masks, keep_none=True), named_leaves(scores), strict=True
    ):
        if mask is None:
            continue
        most = float(jnp.abs(score).max(initial=0.0, where=mask).astype(jnp.float32))
        if not np.isfinite(most):
            raise ValueError(f"round {number}: the scores of leaf {name!r} have {most}")
        largest = max(largest, float(jnp.abs(score).max(initial=0.0, where=mask)))
    if largest == 0 and sum(_active(masks)):
        raise ValueError(
            f"round {number}: the scores of all weights are 0; nothing tells them apart"
        )
