"""Views by magnitude: SR-STE (N of M anew at every step) and Top-KAST.

The stored weights are dense; the forward pass sees the largest of them, and weights
that it does not see are trained as well, by a rule of their own.

References:
  Zhou et al., Learning N:M Fine-Grained Structured Sparse Neural Networks From Scratch,
  2021, https://arxiv.org/abs/2102.04010
  Jayakumar et al., Top-KAST: Top-K Always Sparse Training, 2021,
  https://arxiv.org/abs/2106.03517
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_density, check_number, check_whole
from sup_tickets.groups import splits_of
from sup_tickets.structures import n_of_m
from sup_tickets.trees import RuleLike, default_rule
from sup_tickets.types import Masks, Params
from sup_tickets.views.leaves import (
    KeepDense,
    applied,
    covering,
    largest,
    masked,
    none_like,
    over,
    share,
)
from sup_tickets.views.view import Extra, View


def sr_ste(
    n: int = 2,
    m: int = 4,
    *,
    decay: float = 2e-4,
    axis: int = -2,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """SR-STE: of every m consecutive weights the n largest are seen.

    All weights get the gradient of what is seen ("straight through"), and those that
    are not seen ``decay * weight`` besides, which pulls them to 0 and keeps the choice
    from swinging. At ``decay=0`` it is plain STE.

    Args:
      n: at least 1.
      m: more than n.
      decay: lambda_W of the paper, at least 0; as if of the loss, so the learning rate
        applies to it.
      axis: along which m are consecutive, see `n_of_m`.
      where: the leaves, see `sparse_leaves`.
      keep_dense: expressions of the leaves that are left alone, such as those that m
        does not divide.

    Raises:
      ValueError: if n is not in [1, m), or the decay is below 0; by ``covers`` for a
        leaf whose axis m does not divide.
    """
    structure = n_of_m(n, m, axis=axis)
    check_number("decay", decay, 0)
    chosen = covering(where, keep_dense)

    def splits(params: Params) -> Any:
        like = over(chosen, lambda p: p, params)
        try:
            return splits_of(structure.groups, params, like, f"{n}:{m}")
        except ValueError as error:
            raise ValueError(f"{error}; keep_dense= or where= leave it out") from None

    def blocks_of(name: str, leaf: Any) -> Any:
        """Of a leaf that is covered, and of others that m divides."""
        divides = leaf.ndim >= 2 and not leaf.shape[axis] % m
        return structure.groups if divides else None

    def covers(params: Params) -> Any:
        splits(params)  # raises where a leaf cannot take it
        return chosen(params)

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        del key, masks
        covers(params)
        return Extra()

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del extra, key, train
        ranks = over(chosen, jnp.abs, params)
        counts = over(chosen, lambda _: n, params)
        masks = largest(params, ranks, counts, splits(params))
        return applied(lambda w, mask: _sr_ste(w, mask, decay), params, masks)

    return View(
        f"SR-STE {n}:{m}, decay {decay:g}",
        covers,
        init,
        apply,
        groups=blocks_of,
    )


def top_kast(
    *,
    density: float,
    backward_density: float,
    decay: float = 1e-4,
    refresh_every: int = 1,
    end_step: int | None = None,
    where: RuleLike = default_rule,
    keep_dense: KeepDense = (),
) -> View:
    """Top-KAST: the largest weights are seen, and a wider set of them is trained.

    In each leaf the forward pass sees the set A of the largest weights in magnitude;
    the gradient of what is seen goes to the weights of a larger set B, and nothing to
    the rest. ``decay * weight`` is added in A, and ``decay * weight / density`` in B
    alone, the gradient of half the squared norms of the paper's penalty, so that new
    weights must earn their place. An optimizer's own weight decay would move the rest
    as well.

    Args:
      density: share D of the weights of each leaf in A, in (0, 1]; see `edge_popup`.
      backward_density: share of those in B, from ``density`` to 1.
      decay: at least 0.
      refresh_every: steps after which both sets are chosen anew.
      end_step: last step at which they are; by default there is no end.
      where, keep_dense: see `sr_ste`.

    Raises:
      ValueError: if an argument is out of its range.
    """
    check_density(density)
    check_number("backward_density", backward_density, density, 1)
    check_number("decay", decay, 0)
    check_whole("refresh_every", refresh_every, 1)
    if end_step is not None:
        check_whole("end_step", end_step, 0)
    covers = covering(where, keep_dense)
    shares = {"forward": density, "backward": backward_density}

    def init(key: jax.Array, params: Params, masks: Masks | None = None) -> Extra:
        del key
        masks = none_like(params) if masks is None else masks

        def counts(of: float) -> Any:
            return over(covers, lambda p, m: share(p, m, of), params, masks)

        return Extra(None, _kast_sets(covers, params, *map(counts, shares.values())))

    def see(weight: jax.Array, sets: dict[str, jax.Array]) -> jax.Array:
        return _kast(weight, sets["forward"], sets["backward"], decay, density)

    def apply(params: Params, extra: Extra, key: Any = None, train: bool = False):
        del key, train
        return applied(see, params, extra.untrained)

    def after_step(params: Params, extra: Extra, key: Any, step: Any) -> Extra:
        del key
        due = jnp.asarray(step) % refresh_every == 0
        if end_step is not None:
            due &= jnp.asarray(step) <= end_step

        def anew(sets: Any) -> Any:
            sizes = (_sizes(params, sets, name) for name in shares)
            return _kast_sets(covers, params, *sizes)

        return Extra(None, jax.lax.cond(due, anew, lambda s: s, extra.untrained))

    return View(
        f"Top-KAST, {density:g} forward, {backward_density:g} backward",
        covers,
        init,
        apply,
        after_step,
        masks_may="stay",
    )


# --- Parts ----------------------------------------------------------------------------


def _kast_sets(covers: Any, params: Params, forward: Any, backward: Any) -> Any:
    ranks = over(covers, jnp.abs, params)
    both = (largest(params, ranks, counts) for counts in (forward, backward))
    return over(covers, lambda _, a, b: {"forward": a, "backward": b}, params, *both)


def _sizes(params: Params, sets: Any, name: str) -> Any:
    """Each set keeps its size; the smaller one is within the larger."""
    return jax.tree.map(
        lambda _, own: None if own is None else jnp.sum(own[name], dtype=jnp.int32),
        params,
        sets,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sr_ste(weight: jax.Array, mask: jax.Array, decay: float) -> jax.Array:
    """The masked weight; the gradient is ``g + decay * (1 - mask) * weight``."""
    del decay
    return masked(weight, mask)


def _sr_ste_forward(weight: jax.Array, mask: jax.Array, decay: float) -> Any:
    del decay
    return masked(weight, mask), (weight, mask)


def _sr_ste_backward(decay: float, kept: Any, gradient: jax.Array) -> Any:
    weight, mask = kept
    return gradient + jnp.asarray(decay, weight.dtype) * masked(weight, ~mask), None


_sr_ste.defvjp(_sr_ste_forward, _sr_ste_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _kast(
    weight: jax.Array,
    forward: jax.Array,
    backward: jax.Array,
    decay: float,
    density: float,
) -> jax.Array:
    """The weights of A; the gradient is that of B, with its penalty."""
    del backward, decay, density
    return masked(weight, forward)


def _kast_forward(weight: Any, forward: Any, backward: Any, decay: Any, density: Any):
    del decay, density
    return masked(weight, forward), (weight, forward, backward)


def _kast_backward(decay: float, density: float, kept: Any, gradient: Any) -> Any:
    weight, forward, backward = kept
    dtype = weight.dtype
    inside, between = jnp.asarray(decay, dtype), jnp.asarray(decay / density, dtype)
    pulled = gradient + jnp.where(forward, inside, between) * weight
    return masked(pulled, backward), None, None


_kast.defvjp(_kast_forward, _kast_backward)
