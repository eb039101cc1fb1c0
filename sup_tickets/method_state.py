"""What a method carries from step to step, and what it starts with."""

from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sup_tickets.distributions import allocate
from sup_tickets.dynamic import Method
from sup_tickets.groups import splits_of
from sup_tickets.masks import check_masks, layer_counts, random_masks
from sup_tickets.pruning import without
from sup_tickets.structures import group_counts
from sup_tickets.trees import map_named, named_leaves, sparse_leaves
from sup_tickets.types import Counts, Masks, Params

_KEYS = {2: "threefry2x32", 4: "rbg"}  # implementation by the words of a raw key


class MethodState(NamedTuple):
    """What a method carries from step to step: plain arrays, no two the same buffer."""

    masks: Masks  # active weights
    key: jax.Array  # raw, uint32; an update at step t draws from fold_in(key, t)
    ever_active: Masks | None = None  # union of all masks so far (ITOP), if tracked
    momentum: Params | None = None  # running average of the dense gradients (SNFS)
    budgets: Counts | None = None  # int32 of each leaf: weights at the start (SRigL)


def init_topology(
    method: Method, key: jax.Array | np.ndarray | int, params: Params
) -> MethodState:
    """The state that a method starts with.

    Args:
      method: the method.
      key: a random key, typed or raw, consumed; or a seed.
      params: pytree of arrays, of which only names, shapes and dtypes are read.

    Raises:
      ValueError: if the sparsity cannot be met, at the start or at the end.
    """
    draw, keep = jax.random.split(typed_key(key))
    keep = jax.random.key_data(keep)
    if method.where is None:
        return MethodState(jax.tree.map(lambda _: None, params), keep)
    counts = _start_counts(method, params)
    groups = None if method.structure is None else method.structure.groups
    _check_groups(method, params, counts)
    state = MethodState(random_masks(draw, params, counts, groups=groups), keep)
    return _begun(
        state,
        params,
        tracks=method.tracks,
        observes=method.observes,
        ablates=method.structure is not None
        and method.structure.ablate_below is not None,
    )


def starting_from(state: MethodState, params: Params, masks: Masks) -> MethodState:
    """The state at the start, of a method that starts with given masks.

    Args:
      state: of `init_topology`.
      params: pytree of arrays.
      masks: nested like ``params``, of which leaves and whole branches without masks
        may be missing.

    Raises:
      ValueError: if a mask is of a leaf that ``params`` lacks, or has another shape.
    """
    given = {name: mask for name, mask in named_leaves(masks)}
    whole = map_named(lambda name, _: given.pop(name, None), params)
    if given:
        raise ValueError(f"masks has a leaf {min(given)!r} that params lacks")
    check_masks(params, whole)
    return _begun(
        state._replace(masks=whole),
        params,
        tracks=state.ever_active is not None,
        observes=state.momentum is not None,
        ablates=state.budgets is not None,
    )


# --- Parts ----------------------------------------------------------------------------


def _check_groups(method: Method, params: Params, counts: Counts) -> None:
    """Raises where updates would ask for what the leaves do not have."""
    if method.structure is not None:
        method.structure.check_neurons(params, counts)
    if method.grow_groups is None:
        return
    found = splits_of(method.grow_groups, params, counts, "grow_groups")
    if not jax.tree.leaves(found):
        raise ValueError(
            f"method {method.name!r} grows alike in the groups of a leaf, the gates of "
            "a recurrent matrix, and no leaf has any; give grow_groups= (gates= of "
            "selfish-rnn), or none (gate_growth='pooled')"
        )


def _start_counts(method: Method, params: Params) -> Counts:
    """Active weights of each leaf; with a structure, of each of its groups."""
    structure = method.structure
    assert method.where is not None
    shared: Any = {"where": method.where, "keep_dense": method.keep_dense}
    if structure is not None and structure.of is not None:
        sparse = sparse_leaves(params, where=method.where)
        left = round((1 - method.start_sparsity) * structure.of)
        counts = jax.tree.map(lambda is_sparse: left if is_sparse else None, sparse)
        counts = without(counts, method.keep_dense)
        structure.splits(params, counts)  # raises where a leaf cannot take it
        return counts
    if method.prunes:  # the end must be possible too
        allocate(params, sparsity=method.sparsity, distribution="uniform", **shared)
    counts = allocate(
        params,
        sparsity=method.start_sparsity,
        distribution=method.distribution,
        **shared,
        **(method.distribution_options or {}),
    )
    return counts if structure is None else group_counts(structure, params, counts)


def _begun(
    state: MethodState,
    params: Params,
    *,
    tracks: bool,
    observes: bool,
    ablates: bool,
) -> MethodState:
    # A copy: a step may donate the state, which no buffer may be in twice.
    ever = jax.tree.map(jnp.copy, state.masks) if tracks else None
    average = None
    if observes:
        average = jax.tree.map(
            lambda w, m: None if m is None else jnp.zeros_like(w), params, state.masks
        )
    budgets = layer_counts(state.masks) if ablates else None
    return state._replace(ever_active=ever, momentum=average, budgets=budgets)


def typed_key(key: Any) -> jax.Array:
    """A typed key, of one, of its raw words, or of a seed."""
    try:
        if isinstance(key, Integral):
            return jax.random.key(int(key))
        key = jnp.asarray(key)
    except (TypeError, ValueError, OverflowError):  # no array, or beyond 64 bits
        raise ValueError(f"key must be a random key or a seed, got {key!r}") from None
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if key.dtype == jnp.uint32 and key.shape in {(words,) for words in _KEYS}:
        return jax.random.wrap_key_data(key, impl=_KEYS[key.size])
    if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key)
    raise ValueError(
        f"key must be a random key or a seed, got {key.dtype} of shape {key.shape}"
    )
