"""The family of views, each a value of `View`, and their registry.

A new view is a preset in a file of its own, or beside those of its kind, and a line in
`VIEWS`; nothing else knows of it.
"""

import inspect
from collections.abc import Callable
from typing import Any

from sup_tickets.checks import did_you_mean
from sup_tickets.views.kernels import ksm
from sup_tickets.views.magnitude import sr_ste, top_kast
from sup_tickets.views.power import powerpropagation
from sup_tickets.views.scores import edge_popup, piggyback, softnet
from sup_tickets.views.spartan import spartan
from sup_tickets.views.view import View

VIEWS: dict[str, Callable[..., View]] = {
    "edge-popup": edge_popup,
    "piggyback": piggyback,
    "softnet": softnet,
    "ksm": ksm,
    "sr-ste": sr_ste,
    "top-kast": top_kast,
    "powerpropagation": powerpropagation,
    "spartan": spartan,
}
"""Every preset by its short name."""


def make_view(name: str, **options: Any) -> View:
    """The view with a short name, `VIEWS`.

    Args:
      name: "sr-ste", for example.
      **options: of the preset.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest; and as the
        preset does.
    """
    if name not in VIEWS:
        full = {preset.__name__: short for short, preset in VIEWS.items()}
        hint = did_you_mean(full.get(name, name), VIEWS)
        raise ValueError(f"unknown view {name!r}{hint}")
    known = inspect.signature(VIEWS[name]).parameters
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"view {name!r} has no option {option!r}{hint}")
    try:
        return VIEWS[name](**options)
    except TypeError as error:
        raise ValueError(f"view {name!r}: {error}") from None
