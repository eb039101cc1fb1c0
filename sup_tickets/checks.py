"""Checks of arguments: one line names the argument, its value and what is allowed."""

import difflib
from collections.abc import Iterable
from math import isfinite
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp


def check_sparsity(sparsity: Any, name: str = "sparsity") -> None:
    """Raises unless a concrete sparsity is a number in [0, 1); lets a traced one pass.

    Raises:
      ValueError: naming the argument and its value.
    """
    if isinstance(sparsity, jax.core.Tracer):
        return
    if not (_is_number(sparsity) and 0 <= sparsity < 1):
        raise ValueError(f"{name} must be in [0, 1), got {sparsity!r}")


def check_fraction(fraction: Any, name: str = "fraction") -> None:
    """Raises unless a concrete fraction is in [0, 1]; lets a traced one pass.

    Raises:
      ValueError: naming the argument and its value.
    """
    if isinstance(fraction, jax.core.Tracer):
        return
    if not (_is_number(fraction) and 0 <= fraction <= 1):
        raise ValueError(f"{name} must be in [0, 1], got {fraction!r}")


def check_whole(name: str, value: Any, least: int) -> int:
    """The value, if it is a whole number of at least ``least``.

    Raises:
      ValueError: naming the argument and its value.
    """
    if not isinstance(value, Integral) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )
    return int(value)


def check_one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises unless the value is one of the allowed words.

    Raises:
      ValueError: naming the argument and its value, and the nearest allowed word.
    """
    allowed = list(allowed)
    if value not in allowed:
        words, hint = ", ".join(map(repr, allowed)), did_you_mean(value, allowed)
        raise ValueError(f"{name} must be one of {words}, got {value!r}{hint}")


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """A hint at the known word nearest to ``value``, to end an error message with."""
    near = difflib.get_close_matches(str(value).lower(), list(known), 1, 0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, jax.Array):
        return value.ndim == 0 and bool(jnp.isfinite(value))
    return isinstance(value, Real) and isfinite(value)
