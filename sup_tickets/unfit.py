"""Which of Optax's optimizers cannot be made sparse, why, and what to do instead."""

import inspect
from typing import Any

import jax
import optax


def unfit_parts(tx: Any, opt_state: Any) -> list[str]:
    """The parts of an optimizer that cannot be wrapped, and what to do instead.

    Args:
      tx: the Optax optimizer.
      opt_state: of ``tx.init``.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: _reason(node) is not None)
    found = [reason for node in nodes if (reason := _reason(node)) is not None]
    return found + [_ACPROP] * ("scale_by_acprop" in _makers(tx))


def _reason(node: Any) -> str | None:
    """Why no optimizer with this node in its state can be wrapped, if it cannot."""
    if isinstance(node, optax.contrib.SAMState):
        return None if node.cache is None else _SAM
    stores = (
        optax.ScaleByBacktrackingLinesearchState,
        optax.ScaleByZoomLinesearchState,
    )
    if isinstance(node, stores):
        return None if node.grad is None else _LINE_SEARCH
    for kind, reason in _UNFIT.items():
        if isinstance(node, kind):
            return reason
    return None


def _makers(tx: Any) -> set[str]:
    """Names of the functions that made an optimizer and what is inside of it."""
    names, seen, left = set(), set(), [tx]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (tuple, list)):
            left += value
        elif isinstance(value, dict):
            left += value.values()
        elif inspect.isfunction(value):
            names.add(value.__qualname__.split(".")[0])
            left += [cell.cell_contents for cell in value.__closure__ or ()]
    return names


_SAM = (
    "optax.contrib.sam, whose every other gradient is that of a perturbed network; "
    "use sam(..., opaque_mode=True)"
)
_LINE_SEARCH = (
    "a line search that stores its gradient, which would not be dense; "
    "use scale_by_backtracking_linesearch(..., store_grad=False)"
)
_ACPROP = (
    "optax.contrib.acprop, which divides by the slot of before, 0 for a grown weight; "
    "use optax.adabelief"
)
_ACCUMULATES = (
    ", which would rewire at the gradient of a part of the batch; put it outside: "
    "optax.MultiSteps(sparse_training(tx, method), every_k_schedule)"
)
_UNFIT: dict[type, str] = {
    optax.MultiStepsState: "optax.MultiSteps" + _ACCUMULATES,
    optax.ApplyEvery: "optax.apply_every" + _ACCUMULATES,
    optax.ScaleByLBFGSState: (
        "optax.lbfgs, whose memory is of steps of another topology; use an optimizer "
        "of the first order"
    ),
    optax.LookaheadState: (
        "optax.lookahead, which has two copies of every parameter; put it outside: "
        "optax.lookahead(sparse_training(tx, method), sync_period, slow_step_size)"
    ),
    optax.contrib.DifferentiallyPrivateAggregateState: (
        "optax.contrib.differentially_private_aggregate, which needs the gradient of "
        "every example; put it before: "
        "optax.chain(differentially_private_aggregate(...), sparse_training(...))"
    ),
}
