"""Which channels stay, at an exact budget of operations.

All ways to choose channels end here, so that the networks that they make cost the same
but for less than one channel.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from sup_tickets.channels import ChannelGroup, channel_flops
from sup_tickets.checks import check_density
from sup_tickets.training.flops import Uses
from sup_tickets.trees import named_leaves

Shapes = Mapping[str, tuple[int, ...]]


def keep_within(
    scores: Mapping[str, Any],
    groups: Sequence[ChannelGroup],
    *,
    uses: Uses,
    shapes: Shapes,
    ratio: float,
) -> dict[str, np.ndarray]:
    """The best channels of all groups that a share of the operations pays for.

    The best of every group stays. Then, from the best to the worst of all groups
    together, ties by the order of the groups and the index, every channel stays that
    the rest of the budget pays for.

    Args:
      scores: [C] by the name of a group, the higher the better; NaN is the worst.
      groups: of channels.
      uses: of kernels, see `sup_tickets.channels.channel_flops`.
      shapes: of kernels.
      ratio: of the operations of a forward pass to those of the whole network, (0, 1].

    Returns:
      [C] booleans by group; of each group one or more.

    Raises:
      ValueError: if the ratio is not in (0, 1], or does not pay for one channel of
        every group.
    """
    check_density(ratio, "flops_ratio")
    whole = channel_flops(uses, shapes, groups, {})
    budget = Fraction(str(float(ratio))) * whole
    least = minimal_flops(groups, uses=uses, shapes=shapes)
    if least > budget:
        raise ValueError(
            f"flops_ratio must be at least {float(least / whole):.4g} to keep one "
            f"channel of every layer, got {ratio}"
        )
    ordered = []
    for place, group in enumerate(groups):
        score = np.asarray(scores[group.name], np.float64)
        score = np.where(np.isnan(score), -np.inf, score)
        ordered += [(-value, place, i) for i, value in enumerate(score)]
    ordered.sort()
    kept = {group.name: np.zeros(group.size, bool) for group in groups}
    for _, place, i in ordered:
        one = kept[groups[place].name]
        if not one.any():
            one[i] = True
    counts = {name: 1 for name in kept}
    sizes = {group.name: group.size for group in groups}
    for _, place, i in ordered:
        name = groups[place].name
        if kept[name][i]:
            continue
        shares = {n: Fraction(k + (n == name), sizes[n]) for n, k in counts.items()}
        if channel_flops(uses, shapes, groups, shares) <= budget:
            kept[name][i] = True
            counts[name] += 1
    return kept


def minimal_flops(
    groups: Sequence[ChannelGroup], *, uses: Uses, shapes: Shapes
) -> Fraction:
    """Operations of a forward pass of one example with one channel of every group."""
    shares = {group.name: Fraction(1, group.size) for group in groups}
    return Fraction(channel_flops(uses, shapes, groups, shares))


def ranked(scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Scores by which every group keeps the same share of its channels.

    Args:
      scores: [C] by group, compared within it alone.

    Returns:
      [C] float64 in (0, 1): the share of the group that is worse, ties by index.

    Example:
      >>> ranked({"a": [3.0, 9.0], "b": [0.1, 0.2, 0.0, 0.1]})["b"]
      array([0.625, 0.875, 0.125, 0.375])
    """
    found = {}
    for name, score in scores.items():
        order = np.argsort(-np.asarray(score, np.float64), kind="stable")
        places = np.empty(order.size)
        places[order] = np.arange(order.size)
        found[name] = 1 - (places + 0.5) / order.size
    return found


def kernel_norms(tree: Any, groups: Sequence[ChannelGroup]) -> dict[str, np.ndarray]:
    """Sum of the absolute weights that make each channel, [C] by group.

    Li et al., Pruning Filters for Efficient ConvNets, 2017,
    https://arxiv.org/abs/1608.08710

    Args:
      tree: of the groups' leaves.
      groups: of channels; kernels, of rank 2 or more, count alone.
    """
    leaves, found = dict(named_leaves(tree)), {}
    for group in groups:
        total = np.zeros(group.size)
        for leaf, axis, outer, inner in group.made:
            kernel = np.abs(np.asarray(leaves[leaf], np.float64))
            if kernel.ndim < 2:
                continue
            flat = np.moveaxis(kernel, axis, 0).reshape(outer, group.size, inner, -1)
            total += flat.sum((0, 2, 3))
        found[group.name] = total
    return found
