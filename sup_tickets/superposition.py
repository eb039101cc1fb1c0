"""Superposition: many cheap tickets averaged into one, at the sparsity asked for.

A *ticket* is a sparse network ``(params, masks)`` taken from a training run. The
superposed ticket S is a running average of them, so that it costs one extra copy of the
parameters however many there are. Nothing here feeds back into training.

Three averages, by the paper's definitions; T_t is the t-th ticket, 0 where inactive:

* ``"cia"``, connection independent: ``S_t = ((t - 1) S_{t-1} + T_t) / t`` (eq. 4), the
  zeros of inactive weights included. The paper's results use it. (The release calls
  this one CAA.)
* ``"caa"``, connection aware: the mean over those tickets in which the weight is
  active, by their masks and not by value; 0 where it is active in none.
* ``"cima"``, connection independent moving: ``S_t = decay S_{t-1} + (1 - decay) T_t``
  and ``S_1 = T_1``. The decay weights the past. (The release weights the new ticket.)

Leaves without a mask (biases, norms) are averaged with the same factors, with CAA by
the plain mean, and never pruned. **Batch-norm statistics** are averaged (the paper's
default, "AV") by handing them over as one more part of the tree, without masks. Means
and variances are averaged as they are, like in the release:

>>> import jax, jax.numpy as jnp
>>> params, masks = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([True, False])}
>>> statistics = {"mean": jnp.array(1.0), "var": jnp.array(4.0)}
>>> network = {"params": params, "batch_stats": statistics}
>>> no_masks = jax.tree.map(lambda _: None, statistics)
>>> network_masks = {"params": masks, "batch_stats": no_masks}
>>> tickets = superposition("cia", sparsity=0.5)
>>> state = tickets.init(network, network_masks)
>>> state = tickets.update(state, network, network_masks)
>>> superposed, superposed_masks = tickets.result(state)
>>> float(superposed["batch_stats"]["var"]), superposed_masks["params"]["w"].tolist()
(4.0, [True, False])

The alternative, a pass over training data with S ("BU"), is `reestimate_statistics`.

References:
  Yin et al., Superposing Many Tickets into One: A Performance Booster for Sparse Neural
  Network Training, 2022, https://arxiv.org/abs/2205.15322
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp

from sup_tickets.checks import check_fraction, check_one_of, check_sparsity
from sup_tickets.counting import active_count
from sup_tickets.groups import GroupsLike
from sup_tickets.masks import apply_masks, check_masks, layer_counts, pack, size, unpack
from sup_tickets.pruning import prune_to_counts
from sup_tickets.running_averages import (
    Rule,
    averaged,
    is_inexact,
    moving_mean,
    running_mean,
)
from sup_tickets.saliency import magnitude
from sup_tickets.selection import select_globally
from sup_tickets.tree_checks import (
    check_auto_axes,
    check_same_dtypes,
    check_same_leaves,
)
from sup_tickets.trees import named_leaves
from sup_tickets.types import Masks, Params

Kind = Literal["cia", "caa", "cima"]

_MOST_COUNTED = 255  # what a uint8 holds


class SuperpositionState(NamedTuple):
    """What is kept between tickets: arrays only, to be jitted, donated or saved.

    Either ``masks`` or ``counts`` is None: a weight of S is active where its bit is set
    or where its count is above 0.
    """

    tickets: jax.Array  # [] int32, how many were added
    average: Params  # S, shapes and dtypes of params, +0 where inactive
    masks: Any  # "cia", "cima": of S, packed [ceil(size / 8)] uint8 a leaf, or bools
    counts: Any  # "caa": uint8 shaped as the sparse leaves, tickets averaged in a place
    kept: Any = None  # with groups: int32, active weights of each in the latest ticket


class _Init(Protocol):
    def __call__(
        self, params: Params, masks: Masks, as_ticket: bool = False
    ) -> SuperpositionState: ...


class Superposition(NamedTuple):
    """Three pure functions, see `superposition`."""

    init: _Init
    update: Callable[[SuperpositionState, Params, Masks], SuperpositionState]
    result: Callable[[SuperpositionState], tuple[Params, Masks]]


def superposition(
    kind: Kind,
    *,
    sparsity: float | None,
    prune_each: bool = True,
    decay: float | None = None,
    groups: GroupsLike = None,
    packed: bool = True,
) -> Superposition:
    """The running average of tickets, pruned globally by magnitude to an exact count.

    * ``init(params, masks, as_ticket=False)``: the state before any ticket. The paper's
      first ticket is that of the first cycle. ``as_ticket=True`` (a Python bool) makes
      this network, the result of phase 1, a ticket too, as the release does.
    * ``update(state, params, masks)``: the state with one more ticket. What
      ``params`` holds at inactive places is ignored.
    * ``result(state)``: the superposed ``(params, masks)``, exactly 0 where inactive,
      in buffers of its own: the state may be donated afterwards.

    Jit all three, best with the state donated to ``update``: called as they are, they
    compile the selection anew every time.

    Candidates are the active weights of S and of the tickets, whatever their values, so
    S has exactly ``(1 - sparsity) * size`` active weights over all sparse leaves, to
    the nearest integer (the release truncates), or all of them if the tickets have
    fewer. Ties go to the lower index.

    A weight that is pruned from S leaves the average. In "cia" and "cima" it goes on as
    a 0, and the tickets before still count as such. In "caa" its sum *and* its count
    restart: the next ticket that has the weight active gives its value alone. In one
    place at most 255 tickets are counted; from then on, each new one has weight 1/255.

    Every leaf keeps its dtype: the average is computed in at least float32, and rounded
    to the dtype of the leaf once per ticket. Leaves that are not floating point
    (counters) have the value of the latest ticket.

    Args:
      kind: "cia", "caa" or "cima", see the head of this module.
      sparsity: in [0, 1), of all sparse leaves together; ``None`` never prunes: S then
        is active wherever a ticket was, which without masks is plain weight averaging.
      prune_each: whether S is pruned after every ticket (the paper's Algorithm 1), or
        only in ``result``. These differ: a weight that only later tickets have can lose
        against an early one again and again.
      decay: for "cima" only: the weight of the past, in [0, 1].
      groups: who competes with whom, see `select`, where the sparsity is ``None``: each
        group of S has as many active weights as that of the latest ticket, and so has
        every leaf without groups. S keeps the structure of its tickets.
      packed: whether the masks of S are kept in bits. As bools, eight times as large,
        each lies as its leaf does: packing would gather masks that are sharded.

    Returns:
      The three functions. ``init`` and ``update`` raise a ValueError for trees whose
      structure, shapes or sparse leaves differ, and a TypeError for dtypes that do;
      ``result`` a ValueError if there was no ticket, unless it is being traced.

    Raises:
      ValueError: if an argument is not among what is allowed.
      TypeError: if the sparsity or the decay is a traced value.

    Example:
      >>> tickets = superposition("cia", sparsity=0.5)
      >>> masks = {"w": jnp.array([True, False])}
      >>> state = tickets.init({"w": jnp.zeros(2)}, masks)
      >>> for value in (1.0, 3.0):
      ...     state = tickets.update(state, {"w": jnp.array([value, 0.0])}, masks)
      >>> tickets.result(state)[0]["w"].tolist()
      [2.0, 0.0]
    """
    _check_arguments(kind, sparsity, decay, groups)
    rule = running_mean if decay is None else moving_mean(decay)
    counted = kind == "caa"

    def init(
        params: Params, masks: Masks, as_ticket: bool = False
    ) -> SuperpositionState:
        check_masks(params, masks)
        check_auto_axes("params", params)
        state = _no_tickets(params, masks, counted, groups, packed)
        return update(state, params, masks) if as_ticket else state

    def update(
        state: SuperpositionState, params: Params, masks: Masks
    ) -> SuperpositionState:
        _check_ticket(state, params, masks)
        add = _add_counted if counted else _add
        state = add(state, apply_masks(masks, params), masks, rule)
        if groups is not None:
            state = state._replace(kept=layer_counts(masks, groups=groups))
        return _pruned_state(state, sparsity, groups) if prune_each else state

    def result(state: SuperpositionState) -> tuple[Params, Masks]:
        _check_any_ticket(state)
        average, masks = state.average, _active(state)
        if not prune_each:
            average, masks = _pruned(average, masks, sparsity, groups, state.kept)
        # Otherwise a donated update of the state would take the result with it.
        return jax.tree.map(jnp.copy, average), masks

    return Superposition(init, update, result)


# --- Adding a ticket ------------------------------------------------------------------


def _no_tickets(
    params: Params, masks: Masks, counted: bool, groups: GroupsLike, packed: bool
) -> SuperpositionState:
    average = jax.tree.map(
        lambda p: jnp.zeros_like(p) if is_inexact(p) else jnp.array(p), params
    )
    kind = jnp.uint8 if counted else bool
    none = jax.tree.map(lambda mask: jnp.zeros_like(mask, kind), masks)
    return SuperpositionState(
        tickets=jnp.int32(0),
        average=average,
        masks=None if counted else _stored(none, packed),
        counts=none if counted else None,
        kept=None if groups is None else layer_counts(masks, groups=groups),
    )


def _add(
    state: SuperpositionState, ticket: Params, masks: Masks, rule: Rule
) -> SuperpositionState:
    """Connection independent: the same rule everywhere. ``ticket`` is masked."""
    tickets, new_masks = state.tickets + 1, _stored(masks, _is_packed(state))
    # Both are +0 outside of their masks, and so is their average: no mask is unpacked.
    return state._replace(
        tickets=tickets,
        average=jax.tree.map(
            lambda old, new: averaged(rule, old, new, tickets), state.average, ticket
        ),
        masks=jax.tree.map(jnp.bitwise_or, state.masks, new_masks),
    )


def _add_counted(
    state: SuperpositionState, ticket: Params, masks: Masks, rule: Rule
) -> SuperpositionState:
    """Connection aware: an active weight by its own count. ``ticket`` is masked."""
    tickets = state.tickets + 1
    counts = jax.tree.map(
        lambda mask, n: n + (mask & (n < _MOST_COUNTED)).astype(n.dtype),
        masks,
        state.counts,
    )

    def average(old: jax.Array, new: jax.Array, mask: Any, count: Any) -> jax.Array:
        if mask is None:
            return averaged(rule, old, new, tickets)
        # The count of an active weight is at least 1, and the others' is not used.
        return jnp.where(mask, averaged(rule, old, new, jnp.maximum(count, 1)), old)

    return state._replace(
        tickets=tickets,
        average=jax.tree.map(average, state.average, ticket, masks, counts),
        counts=counts,
    )


# --- Pruning the average --------------------------------------------------------------


def _pruned(
    average: Params, masks: Masks, sparsity: float | None, groups: Any, kept: Any
) -> tuple[Params, Masks]:
    """S pruned to the count for its sparsity, or of its groups, among ``masks``."""
    if groups is not None:
        return prune_to_counts(average, masks, kept, groups=groups)
    if sparsity is None:
        return average, masks
    sparse = jax.tree.map(lambda s, m: None if m is None else s, average, masks)
    target = active_count(size(masks), sparsity)
    kept = select_globally(magnitude(sparse), target, among=masks)
    return apply_masks(kept, average), kept


def _pruned_state(
    state: SuperpositionState, sparsity: float | None, groups: GroupsLike
) -> SuperpositionState:
    if sparsity is None and groups is None:
        return state
    active = _active(state)
    average, kept = _pruned(state.average, active, sparsity, groups, state.kept)
    if state.counts is None:
        return state._replace(average=average, masks=_stored(kept, _is_packed(state)))
    return state._replace(average=average, counts=apply_masks(kept, state.counts))


def _active(state: SuperpositionState) -> Masks:
    if state.counts is not None:
        return jax.tree.map(lambda count: count > 0, state.counts)
    return unpack(state.masks, state.average) if _is_packed(state) else state.masks


def _stored(masks: Masks, packed: bool) -> Any:
    return pack(masks) if packed else masks


def _is_packed(state: SuperpositionState) -> bool:
    return any(leaf.dtype != bool for leaf in jax.tree.leaves(state.masks))


# --- Checks ---------------------------------------------------------------------------


def _check_arguments(kind: Any, sparsity: Any, decay: Any, groups: Any) -> None:
    check_one_of("kind", kind, get_args(Kind))
    for name, value in (("sparsity", sparsity), ("decay", decay)):
        if isinstance(value, jax.core.Tracer):
            raise TypeError(f"{name} must be known before tracing, got {value}")
    if sparsity is not None:
        check_sparsity(sparsity)
        if groups is not None:
            raise ValueError(f"sparsity must be None with groups=, got {sparsity}")
    if kind == "cima" and decay is None:
        raise ValueError(
            "decay must be in [0, 1] for kind 'cima', the weight of the past, got None"
        )
    if kind != "cima" and decay is not None:
        raise ValueError(f"decay must be None for kind {kind!r}, got {decay}")
    if decay is not None:
        check_fraction(decay, "decay")


def _check_ticket(state: SuperpositionState, params: Params, masks: Masks) -> None:
    """Raises unless the ticket fits the state, naming the first leaf that does not."""
    check_masks(params, masks)
    ours = "params", params, "state.average", state.average
    check_same_leaves(*ours)
    # The other way round too, for a None on the left agrees with anything.
    check_same_leaves(*ours[2:], *ours[:2])
    check_same_dtypes(*ours)
    before = state.masks if state.counts is None else state.counts
    given, sparse = (dict(named_leaves(tree)).keys() for tree in (masks, before))
    for name in sorted(given ^ sparse):
        now, then = ("an array", "None") if name in given else ("None", "an array")
        raise ValueError(f"masks has {now} at leaf {name!r}, where init got {then}")


def _check_any_ticket(state: SuperpositionState) -> None:
    if not isinstance(state.tickets, jax.core.Tracer) and int(state.tickets) == 0:
        raise ValueError(
            "state must hold at least 1 ticket, got 0; call update first, or init with "
            "as_ticket=True"
        )
