"""Pruning to exact counts along a cubic schedule: half of GraNet, all of GMP."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_one_of, check_sparsity
from sup_tickets.counting import active_count, portion
from sup_tickets.masks import apply_masks, count, layer_counts, size
from sup_tickets.topology import prune_to_counts, share_out
from sup_tickets.trees import map_named, matching_names, named_leaves
from sup_tickets.types import Masks, Number, Params

Pruner = Callable[[Params, Masks, Number], tuple[Params, Masks]]
"""``(params, masks, step) -> (params, masks)``."""


def cubic_pruner(
    initial: float,
    final: float,
    *,
    begin_step: int,
    last_step: int,
    scope: str,
    dense: Sequence[str] | str = (),
) -> Pruner:
    """Prunes to the count that the cubic schedule asks for at a step.

    Args:
      initial: sparsity at ``begin_step`` and before, in [0, 1).
      final: sparsity at ``last_step`` and after, met exactly.
      begin_step: start of the schedule.
      last_step: the step of the last update that prunes, above ``begin_step``.
      scope: "global" compares the weights of all layers; "layer" gives every layer the
        same density as far as it has the weights, and the same exact total.
      dense: expressions of leaves that stay dense; the others pay for them.

    Raises:
      ValueError: naming the argument that is out of its range.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878
    """
    check_sparsity(initial, "initial_sparsity")
    check_one_of("prune_scope", scope, ("global", "layer"))
    if initial > final:
        raise ValueError(
            f"initial_sparsity must be at most sparsity={final}, got {initial}"
        )

    def target(total: int, step: Number) -> jax.Array:
        window = last_step - begin_step
        done = jnp.clip(jnp.asarray(step, jnp.int32) - begin_step, 0, window)
        left = (1 - done.astype(jnp.float32) / window) ** 3
        low, high = active_count(total, final), active_count(total, initial)
        # Both ends are exact integers; only the way between them is rounded.
        return low + portion(high - low, left, "nearest")

    def prune(params: Params, masks: Masks, step: Number) -> tuple[Params, Masks]:
        free = without(masks, dense)
        held = size(masks) - size(free)
        wanted = jnp.maximum(target(size(masks), step) - held, 0)

        def keep_largest(free: Masks) -> Masks:
            counts = wanted
            if scope == "layer":
                sizes = jax.tree.map(lambda mask: float(mask.size), free)
                counts = share_out(sizes, wanted, layer_counts(free))
            return prune_to_counts(params, free, counts)[1]

        kept = jax.lax.cond(count(free) > wanted, keep_largest, lambda m: m, free)
        masks = merged(params, masks, kept)
        return apply_masks(masks, params), masks

    return prune


def without(masks: Masks, expressions: Sequence[str] | str) -> Masks:
    """``masks`` with ``None`` at the leaves that the expressions match."""
    if not expressions:
        return masks
    names = [name for name, _ in named_leaves(masks)]
    held = matching_names(expressions, names, "dense: expression")
    return map_named(lambda name, mask: None if name in held else mask, masks)


def merged(params: Params, masks: Masks, changed: Masks) -> Masks:
    """``changed``, and ``masks`` where it is ``None``."""
    return jax.tree.map(
        lambda _, mask, new: mask if new is None else new, params, masks, changed
    )
