"""Networks of which a task sees or trains a part: views and frozen leaves, as networks.

Both take a `PureNetwork` and give one, so that any task, optimizer and evaluation has
them without knowing:

    net = seen_through(linen_network(model, example), ksm())
    net = frozen(net, trained=lambda name: "classifier" in name)
"""

from collections.abc import Callable
from typing import Any

import jax

from sup_tickets.training.classification import PureNetwork
from sup_tickets.training.state import completed
from sup_tickets.trees import is_none, leaf_name
from sup_tickets.types import Number, Params
from sup_tickets.views.view import Extra, View

Rule = Callable[[str], bool]
"""``name -> whether`` a leaf is trained; names as of `named_leaves`."""


def seen_through(network: PureNetwork, view: View | None) -> PureNetwork:
    """The same network, whose forward pass sees its weights through a view.

    Args:
      network: of plain weights.
      view: or none.

    Returns:
      A network with parameters ``{"weights", "scores"}``, the latter what the view
      trains, and model state ``{"statistics", "kept"}``, the latter what the view
      changes by itself, once a training step.
    """

    def init(key: jax.Array) -> tuple[Params, Any]:
        weights, statistics = network.init(jax.random.fold_in(key, 0))
        return viewed(view, weights, statistics, jax.random.fold_in(key, 1))

    def apply(
        params: Params, state: Any, inputs: Any, train: bool, key: Any, step: Number
    ) -> tuple[jax.Array, Any]:
        weights, extra = params["weights"], Extra(params["scores"], state["kept"])
        draw, renew = jax.random.fold_in(key, 2), jax.random.fold_in(key, 3)
        seen = weights if view is None else view.apply(weights, extra, draw, train)
        logits, statistics = network.apply(
            seen, state["statistics"], inputs, train, key, step
        )
        if train and view is not None:
            extra = view.after_step(weights, extra, renew, step + 1)
        return logits, {"statistics": statistics, "kept": extra.untrained}

    return PureNetwork(init, apply)


def viewed(
    view: View | None, weights: Params, statistics: Any, key: jax.Array
) -> tuple[Params, Any]:
    """Parameters and model state of `seen_through` at given weights.

    Args:
      view: or none.
      weights: that are stored; changed to what the view wants stored.
      statistics: of the plain network.
      key: consumed by the view.
    """
    extra = Extra()
    if view is not None:
        weights = view.store(weights)
        extra = view.init(key, weights)
    params = {"weights": weights, "scores": extra.trained}
    return params, {"statistics": statistics, "kept": extra.untrained}


def frozen(
    network: PureNetwork, *, trained: Rule, statistics: bool = True
) -> PureNetwork:
    """A network of the leaves that are trained; all others stay as they are.

    Args:
      network: whose parameters are nested dicts.
      trained: which leaves.
      statistics: whether the network trains in its training mode, and its model state
        moves; if not, batch norm uses the statistics that are given.

    Returns:
      A network whose parameters and model state are those of `frozen_parts`.
    """

    def apply(
        own: Params, state: Any, inputs: Any, train: bool, key: Any, step: Number
    ) -> tuple[jax.Array, Any]:
        whole = completed(own, state["frozen"])
        logits, moved = network.apply(
            whole, state["state"], inputs, train and statistics, key, step
        )
        return logits, {**state, "state": moved}

    return PureNetwork(lambda key: frozen_parts(*network.init(key), trained), apply)


def frozen_parts(
    params: Params, model_state: Any, trained: Rule
) -> tuple[Params, dict[str, Any]]:
    """The leaves that are trained; and ``{"frozen", "state"}``: the others, the rest.

    The others are arguments of what is compiled, so that tasks of one shape share it.

    Raises:
      ValueError: if no leaf is trained.
    """
    own = chosen(params, trained)
    if not jax.tree.leaves(own):
        raise ValueError("trained chooses no leaf")
    rest = chosen(params, lambda name: not trained(name))
    return own, {"frozen": rest, "state": model_state}


def chosen(tree: Any, rule: Rule) -> dict[str, Any]:
    """The leaves of nested dicts that a rule chooses, in dicts of these alone.

    Example:
      >>> chosen({"a": {"b": 1, "c": None}, "d": 3}, lambda name: name != "a/b")
      {'a': {'c': None}, 'd': 3}
    """
    found: dict[str, Any] = {}
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)[0]
    for path, leaf in leaves:
        if rule(leaf_name(path)):
            *sections, last = (step.key for step in path)
            place = found
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = leaf
    return found
