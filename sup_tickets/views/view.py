"""What the forward pass sees, where that is not the stored weights themselves.

In half of the field's methods a network uses a *function* of its weights, which has a
gradient of its own: a learned score thresholded into a mask, N of M weights chosen anew
at every step, a wider set of weights in the backward pass than in the forward pass. A
`View` is such a function as a value. It acts on the tree of parameters, outside of the
model, so that any network takes it. The family, and how to add to it, is in
`sup_tickets.views`. In a loop of one's own:

    view = sr_ste(2, 4)
    extra = view.init(key, params)

    def loss(params):
        return model_loss(view.apply(params, extra, key, True), batch)

Where a view has values that are trained (scores), or weights that are not, `trainable`
is what the optimizer trains:

    view = edge_popup(density=0.5)
    extra = view.init(key, params)
    trained = trainable(view, params, extra)
    opt_state = tx.init(trained)

    def loss(trained):
        ours = with_trained(params, extra, trained)
        return model_loss(view.apply(*ours, key, True), batch)

    gradient = jax.grad(loss)(trained)
    ...  # the step of the optimizer, to new ``trained``
    params, extra = with_trained(params, extra, trained)
    extra = view.after_step(params, extra, key, step)

Weights that are not in ``trained`` are constants: no gradient of theirs is computed, no
slot is kept and no weight decay moves them. The stored weights may be masked, which
`sparse_training` does as ever: a view maps 0 to 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax

from sup_tickets.checks import check_one_of
from sup_tickets.groups import GroupsLike
from sup_tickets.masks import apply_masks
from sup_tickets.types import Masks, Params

MasksMay = Literal["change", "shrink", "stay"]


class Extra(NamedTuple):
    """What a view keeps beside the weights.

    Either is nested like the parameters, with a dict of arrays at the leaves that the
    view is of and ``None`` elsewhere, or ``None`` as a whole.
    """

    trained: Any = None  # by the optimizer: {"score": [...]}, say
    untrained: Any = None  # by `View.after_step` alone: random draws, sets, counts


class Trainable(NamedTuple):
    """What an optimizer trains; masks of it and gradients have the same form."""

    weights: Params  # None where the stored weight stays as it is
    extra: Any  # `Extra.trained`


def _stays(params: Params, extra: Extra, key: Any, step: Any) -> Extra:
    del params, key, step
    return extra


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """What the forward pass sees of the stored weights, and the gradient of that.

    All functions are pure and traceable. ``apply`` keeps shapes and dtypes, gives 0
    where the stored weight is 0, and leaves alone what is not in ``covers``. Two views
    are the same if they are one object.

    Raises:
      TypeError: naming the first field that is not a function.
      ValueError: if ``masks_may`` is none of its words.
    """

    name: str  # with its options, as reports call it

    covers: Callable[[Params], Any]
    """``(params) -> pytree of Python bools``: the leaves that the view is of; of names,
    shapes and dtypes alone.

    Raises a ValueError where a leaf cannot be seen so.
    """

    init: Callable[..., Extra]
    """``(key, params, masks=None) -> extra``, at the beginning.

    With masks, shares of a leaf are those of its active weights.
    """

    apply: Callable[..., Params]
    """``(params, extra, key=None, train=False) -> params of the forward pass``.

    Differentiable in ``params`` and ``extra.trained``. The key is for views that draw
    while they train; ``train`` is a Python bool.
    """

    after_step: Callable[..., Extra] = _stays
    """``(params, extra, key, step) -> extra`` once ``step`` steps are completed; what
    is trained stays."""

    store: Callable[[Params], Params] = lambda params: params
    """``(params) -> params to store``, of which these are what the forward pass sees at
    the beginning."""

    freezes: bool = False
    """Whether the weights of the covered leaves are never trained."""

    masks_may: MasksMay = "change"
    """What masks may do on the way: "change"; "shrink", where a weight that grows at 0
    would not learn; or "stay", where shares are counted at the beginning."""

    groups: GroupsLike = None
    """Of what is seen, see `select`: all have as many weights that are not 0."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ("covers", "init", "apply", "after_step", "store"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"{name} of a view must be a function, got {getattr(self, name)!r}"
                )
        check_one_of("masks_may", self.masks_may, get_args(MasksMay))

    def __str__(self) -> str:
        return self.name


def trainable(view: View, params: Params, extra: Extra) -> Trainable:
    """What of a network an optimizer trains.

    Args:
      view: of the network.
      params: stored.
      extra: of the view.
    """
    return Trainable(_unfrozen(view, params, params), extra.trained)


def trainable_masks(
    view: View, params: Params, extra: Extra, masks: Masks
) -> Trainable:
    """The masks of `trainable`: those of the weights; what is extra has none.

    Args:
      view: of the network.
      params: stored.
      extra: of the view.
      masks: of the stored weights.
    """
    none = jax.tree.map(lambda _: None, extra.trained)
    return Trainable(_unfrozen(view, params, masks), none)


def with_trained(params: Params, extra: Extra, trained: Any) -> tuple[Params, Extra]:
    """The network with other values of what is trained; the inverse of `trainable`.

    Args:
      params: stored; those that are not trained stay.
      extra: of the view.
      trained: a `Trainable` of new values.
    """
    weights = jax.tree.map(lambda p, t: p if t is None else t, params, trained.weights)
    return weights, extra._replace(trained=trained.extra)


def seen_network(
    view: View, params: Params, extra: Extra, masks: Masks
) -> tuple[Params, Masks]:
    """The network that the forward pass sees, as a sparse network of its own.

    It is what is evaluated, saved and superposed: nothing of the view is left in it.

    Args:
      view: of the network.
      params: stored.
      extra: of the view.
      masks: of the stored weights.

    Returns:
      Parameters, exactly +0 where inactive; masks of all leaves that the view covers,
      True where the weight is not 0, and the given ones of other leaves.
    """
    weights = view.apply(params, extra)
    found = jax.tree.map(
        lambda w, covered, mask: w != 0 if covered else mask,
        weights,
        view.covers(params),
        masks,
    )
    return apply_masks(found, weights), found


def _unfrozen(view: View, params: Params, tree: Any) -> Any:
    """``tree`` with ``None`` at the leaves of ``params`` that are not trained."""
    if not view.freezes:
        return tree
    return jax.tree.map(
        lambda _, covered, leaf: None if covered else leaf,
        params,
        view.covers(params),
        tree,
    )
