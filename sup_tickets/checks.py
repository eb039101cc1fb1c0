"""Checks of arguments: one line names the argument, its value and what is allowed.

A number is a Python, NumPy or JAX scalar, never a bool or a string. A traced one has no
value yet and passes.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_sparsity(sparsity: Any, name: str = "sparsity") -> None:
    """Raises unless a concrete sparsity is a number in [0, 1); lets a traced one pass.

    Raises:
      ValueError: naming the argument and its value.
    """
    if isinstance(sparsity, jax.core.Tracer):
        return
    if not (is_number(sparsity) and 0 <= sparsity < 1):
        hint = percent_hint(sparsity)
        raise ValueError(f"{name} must be in [0, 1), got {sparsity!r}{hint}")


def check_fraction(fraction: Any, name: str = "fraction") -> None:
    """Raises unless a concrete fraction is in [0, 1]; lets a traced one pass.

    Raises:
      ValueError: naming the argument and its value.
    """
    if isinstance(fraction, jax.core.Tracer):
        return
    if not (is_number(fraction) and 0 <= fraction <= 1):
        hint = percent_hint(fraction)
        raise ValueError(f"{name} must be in [0, 1], got {fraction!r}{hint}")


def check_density(density: Any, name: str = "density") -> None:
    """Raises unless a density is a number in (0, 1].

    Raises:
      ValueError: naming the argument and its value.
    """
    if not (is_number(density) and 0 < density <= 1):
        hint = percent_hint(density)
        raise ValueError(f"{name} must be in (0, 1], got {density!r}{hint}")


def check_number(
    name: str,
    value: Any,
    least: float = -inf,
    most: float = inf,
    *,
    above: bool = False,
) -> None:
    """Raises unless a value is a finite number in [least, most].

    Args:
      name: of the argument.
      value: concrete.
      least: smallest value allowed.
      most: largest.
      above: whether ``least`` itself is refused.

    Raises:
      ValueError: naming the argument and its value.
    """
    low_enough = is_number(value) and value <= most
    if low_enough and (value > least if above else value >= least):
        return
    if most < inf:
        allowed = f"in {'(' if above else '['}{least:g}, {most:g}]"
    elif above and least == 0:
        allowed = "positive and finite"
    elif least > -inf:
        allowed = f"a finite number {'above' if above else 'of at least'} {least:g}"
    else:
        allowed = "finite"
    raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value, if it is a whole number in [least, most].

    Raises:
      ValueError: naming the argument and its value.
    """
    if not _is_whole(value) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}")
    return int(value)


def check_count(name: str, value: Any, size: int) -> None:
    """Raises unless a count of weights is a whole number in [0, size].

    The value of a JAX array is not looked at, traced or not: it would have to be
    waited for. Its users clip it.

    Raises:
      ValueError: naming the argument and its value.
    """
    if isinstance(value, jax.Array):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(
                f"{name} must be an integer scalar, got {value.dtype} of shape "
                f"{value.shape}"
            )
    elif not _is_whole(value) or not 0 <= value <= size:
        raise ValueError(f"{name} must be a whole number in [0, {size}], got {value!r}")


def check_expression(name: str, value: Any) -> re.Pattern[str]:
    """The compiled regular expression.

    Raises:
      ValueError: naming the argument and the expression, if it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a regular expression, got {value!r}")
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{name} {value!r} is not a regular expression: {error}"
        ) from None


def check_one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises unless the value is one of the allowed words.

    Raises:
      ValueError: naming the argument and its value, and the nearest allowed word.
    """
    allowed = list(allowed)
    if value not in allowed:
        words, hint = ", ".join(map(repr, allowed)), did_you_mean(value, allowed)
        raise ValueError(f"{name} must be one of {words}, got {value!r}{hint}")


def check_options(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises unless all options are known.

    Raises:
      ValueError: naming the first that is not, what has no such option, and the
        nearest that it has.
    """
    known = sorted(known)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"{what} has no option {option!r}{hint}")


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """A hint at the known word nearest to ``value``, to end an error message with."""
    near = difflib.get_close_matches(str(value).lower(), list(known), 1, 0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_number(value: Any) -> bool:
    """Whether a concrete value is one finite real number, and no bool."""
    if isinstance(value, (jax.Array, np.ndarray)):
        real = value.dtype != np.bool_ and not jnp.issubdtype(
            value.dtype, jnp.complexfloating
        )
        return (
            value.ndim == 0
            and real
            and not isinstance(value, jax.core.Tracer)
            and bool(jnp.isfinite(value))
        )
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, Real) and isfinite(value)


def _is_whole(value: Any) -> bool:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def percent_hint(value: Any) -> str:
    """A hint at what a number above 1 was probably meant to be, to end a message."""
    if not (is_number(value) and 1 < value <= 100):
        return ""
    return f"; in percent? {value:g}% is {float(value) / 100:g}"


def check_installed(what: str, *packages: str) -> None:
    """Raises unless packages of the extra "train" are installed; imports none.

    Raises:
      ModuleNotFoundError: naming those that are missing and how to install them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{what} needs {' and '.join(missing)}; in a clone of the repository, "
            'install the extra "train": pip install -e ".[train]"',
            name=missing[0],
        )
