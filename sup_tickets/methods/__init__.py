"""The family of methods, each a value of `Method`, and their registry.

A preset is the method it is named after, with the schedule of its release or paper laid
over ``total_steps``, the steps of the training (of phase 1, with cheap tickets). What a
preset has no argument for, `Method.replace` sets.

A new method is a preset beside those of its kind (`fixed`, `rewiring`, `pruning`,
`structured`) and a line in `METHODS`; nothing else knows of it.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_args

from sup_tickets.checks import did_you_mean
from sup_tickets.dynamic import Method
from sup_tickets.methods.fixed import dense, static
from sup_tickets.methods.pruning import (
    acdc,
    gradual_magnitude,
    granet,
    granet_dense,
)
from sup_tickets.methods.rewiring import (
    mest,
    rigl,
    rigl_itop,
    set_itop,
    sparse_evolutionary,
    sparse_momentum,
)
from sup_tickets.methods.selfish import selfish_rnn
from sup_tickets.methods.shared import check_known
from sup_tickets.methods.structured import srigl

BEYOND = (
    "total_steps",
    "extra_density",
    "gradient_weight",
    "ablate_below",
    "keep_neurons",
    "outputs",
    "gate_growth",
    "gates",
)
"""What presets take that is no field of `Method`."""


METHODS: dict[str, Callable[..., Method]] = {
    "dense": dense,
    "static": static,
    "set": sparse_evolutionary,
    "rigl": rigl,
    "srigl": srigl,
    "set-itop": set_itop,
    "rigl-itop": rigl_itop,
    "granet": granet,
    "granet-dense": granet_dense,
    "gmp": gradual_magnitude,
    "snfs": sparse_momentum,
    "acdc": acdc,
    "mest": mest,
    "selfish-rnn": selfish_rnn,
}
"""Every preset by its short name."""


def make_method(name: str, **options: Any) -> Method:
    """The method with a short name, `METHODS`.

    Args:
      name: "rigl", for example.
      **options: of the preset.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest; for an option
        that is missing; and as the preset does.
    """
    if name not in METHODS:
        full = {preset.__name__: short for short, preset in METHODS.items()}
        hint = did_you_mean(full.get(name, name), METHODS)
        raise ValueError(f"unknown method {name!r}{hint}")
    known, needed = _arguments(METHODS[name])
    check_known(name, options, known)
    if missing := [argument for argument in needed if argument not in options]:
        raise ValueError(f"method {name!r} needs {' and '.join(missing)}")
    return METHODS[name](**options)


def _arguments(preset: Callable[..., Method]) -> tuple[set[str], list[str]]:
    """The names of all that a preset takes, and of those that have no default."""
    known, needed = set(), []
    for name, parameter in inspect.signature(preset).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (shared,) = get_args(parameter.annotation)
            known |= shared.__optional_keys__
            continue
        known.add(name)
        if parameter.default is inspect.Parameter.empty:
            needed.append(name)
    return known, needed


def example(name: str) -> Method:
    """A method with a short name, for questions that its numbers do not answer.

    Raises:
      ValueError: for an unknown name, suggesting the nearest.
    """
    if METHODS.get(name) is dense:
        return dense()
    return make_method(name, sparsity=0.5, total_steps=10**6)
