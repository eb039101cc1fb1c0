"""Names for the trees that everything here passes around.

All of them are pytrees with the structure of ``params``. A sparse network is the
pair ``(params, masks)``: ``masks`` has a boolean array at every sparse leaf and
``None`` at every leaf that is never pruned. (They are no ``chex.ArrayTree``: modules
of Equinox and states of NNX are trees here too, and ``None`` is a leaf.)
"""

from collections.abc import Callable
from typing import Any

import jax

Params = Any
"""Pytree of arrays: weights, or anything shaped like them."""

Masks = Any
"""Pytree of bool arrays shaped like the weights; ``None`` at dense leaves."""

Scores = Any
"""Pytree of real arrays shaped like the weights; the largest are kept."""

Counts = Any
"""Pytree of integers, the active weights of each leaf; ``None`` at dense leaves."""

Number = int | float | jax.Array
"""A Python number or a (possibly traced) scalar array."""

Schedule = Callable[[Number], Number]
"""``step -> value``; accepts a traced step, so that no value recompiles."""
