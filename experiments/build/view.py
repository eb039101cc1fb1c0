"""From the section ``view`` of a configuration to a view, and what is said of it."""

import jax

from experiments.build.parts import section
from experiments.config.fields import Config
from sup_tickets.dynamic import Method
from sup_tickets.training.plan import Plan
from sup_tickets.training.viewed import check_view
from sup_tickets.types import Params
from sup_tickets.views import make_view
from sup_tickets.views.view import View


def view_of(config: Config) -> View | None:
    """The view of a configuration; ``None`` if the weights are seen as they are.

    Raises:
      ValueError: for an unknown view or option, or options of none.
    """
    options = config.view.options.to_dict()
    with section("view"):
        if config.view.name:
            return make_view(config.view.name, **options)
        if options:
            raise ValueError(
                f"options has {min(options)!r}, but name is '', which has no options"
            )
    return None


def checked_view(config: Config, method: Method, plan: Plan) -> View | None:
    """`view_of`, of masks that the plan changes.

    Raises:
      ValueError: if the view does not take that.
    """
    view = view_of(config)
    with section("view"):
        check_view(view, method, explores=bool(plan.explorations))
    return view


def describe_view(view: View, params: Params) -> str:
    """A line of the plan.

    Args:
      view: of the run.
      params: of the network, of which names, shapes and dtypes are read.

    Raises:
      ValueError: if a leaf cannot be seen so.
    """
    with section("view"):
        covered = jax.tree.leaves(view.covers(params))
    frozen = ", whose weights are frozen" if view.freezes else ""
    return f"view: {view}; {sum(covered)} of {len(covered)} leaves{frozen}"
