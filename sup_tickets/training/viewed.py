"""How a step trains a network that is seen through a view.

Without a view what is trained are the parameters; with one, a `Trainable`: the weights
that are not frozen, and what the view keeps beside them. Masks are of weights alone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.dynamic import Method
from sup_tickets.training.gradients import Told, dense_gradient
from sup_tickets.training.state import TrainState
from sup_tickets.training.task import Task
from sup_tickets.types import Masks, Params
from sup_tickets.views.view import View, trainable, trainable_masks, with_trained


def check_view(view: View | None, method: Method, *, explores: bool = False) -> None:
    """Raises where masks would change in a way that a view does not take.

    Args:
      view: of the network, or none.
      method: of sparse training.
      explores: whether the masks, if there are any, explore for cheap tickets.

    Raises:
      ValueError: naming the view and the method.
    """
    if view is None or view.masks_may == "change" or method.where is None:
        return
    grows = not method.fixed and (method.rewires or len(method.sparsity_stairs) > 1)
    shrinks = not method.fixed and method.prunes
    if explores:
        how = "are explored for each cheap ticket"
    elif grows:
        how = "change"
    elif shrinks and view.masks_may == "stay":
        how = "shrink"
    else:
        return
    may = "must stay as they are" if view.masks_may == "stay" else "may only shrink"
    raise ValueError(
        f"with view {view.name!r} masks {may}, but those of method {method.name!r} "
        f"{how}; take 'static' or 'dense', and no cheap tickets of masks"
    )


def trained_of(view: View | None, state: TrainState) -> Any:
    """What the optimizer trains."""
    if view is None:
        return state.params
    return trainable(view, state.params, state.view)


def masks_of_trained(view: View | None, state: TrainState, masks: Masks) -> Any:
    """Masks of the weights as those of what is trained."""
    if view is None:
        return masks
    return trainable_masks(view, state.params, state.view, masks)


def gradient_of_weights(view: View | None, state: TrainState, gradient: Any) -> Params:
    """Of the gradient of what is trained that of the weights, 0 where frozen."""
    if view is None:
        return gradient
    return jax.tree.map(
        lambda p, g: jnp.zeros_like(p) if g is None else g,
        state.params,
        gradient.weights,
    )


def after_training(view: View | None, state: TrainState, trained: Any) -> TrainState:
    """The state with new values of what is trained; ``step`` is the last one's."""
    if view is None:
        return state.replace(params=trained)
    params, extra = with_trained(state.params, state.view, trained)
    return after_step(view, state.replace(params=params, view=extra))


def after_step(view: View | None, state: TrainState) -> TrainState:
    """The state whose view has heard of a completed step, the one after ``step``."""
    if view is None:
        return state
    _, key = jax.random.split(_view_key(state))
    done = state.step + 1
    return state.replace(view=view.after_step(state.params, state.view, key, done))


def gradient_of_trained(
    task: Task, view: View | None, state: TrainState, batch: Any, *, accumulate: int
) -> tuple[Any, Told]:
    """`dense_gradient` of what is trained.

    The view is applied once, whatever the number of parts of the batch, and the
    gradient of what is seen goes through it once.
    """
    if view is None:
        return dense_gradient(task, state, batch, accumulate=accumulate)
    key, _ = jax.random.split(_view_key(state))

    def see(trained: Any) -> Params:
        ours = with_trained(state.params, state.view, trained)
        return view.apply(*ours, key, True)

    seen, pull = jax.vjp(see, trained_of(view, state))
    gradient, told = dense_gradient(
        task, state.replace(params=seen), batch, accumulate=accumulate
    )
    return pull(gradient)[0], told


def _view_key(state: TrainState) -> jax.Array:
    """Of the step; the task draws from 1 and from the key of the step itself."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), 2)
