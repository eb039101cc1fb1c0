"""The slots that an optimizer keeps for each weight: which they are, and as new.

A slot is per-weight by what it means, not by its shape: Shampoo's factor of a 12 x 12
kernel is 12 x 12 as well, and no weight has an entry of its own in it. The optimizer is
asked: a slot is per-weight if its path in the state has the path of its parameter in it
and if, when the parameter is given other shapes nearby, it takes just those.
Factors, rows, columns and norms of layers do not; several weights share them, and they
stay as they are.

"As new" is what ``tx.init`` gives at the masked parameters: 0 for most slots, a step
size for Rprop, 1e-6 for Yogi, and 0 again where a copy of the parameters is kept.
Within a jitted step nothing is computed for it that does not vary.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sup_tickets.inside import confined, run_changed
from sup_tickets.masks import apply_masks, choose
from sup_tickets.schedule_counts import tells_time
from sup_tickets.types import Masks, Params
from sup_tickets.unfit import unfit_parts
from sup_tickets.zeros import EVERYWHERE, stays_zero, zeros_of

Path = tuple[Any, ...]
Shape = tuple[int, ...]


def reset_slots(
    tx: Any,
    masks: Masks,
    opt_state: Any,
    params: Params,
) -> Any:
    """``opt_state`` with the slots of inactive weights as ``tx.init`` gives them.

    Args:
      tx: the Optax optimizer that the state belongs to.
      masks: the active weights.
      opt_state: its state; slots that are not per-weight stay as they are.
      params: pytree of arrays; what stands at inactive weights is ignored.

    Raises:
      ValueError: if the state is of another optimizer or other parameters.
    """
    start = tx.init(apply_masks(masks, params))
    slots, structure = jax.tree.flatten(opt_state)
    new = jax.tree.leaves(start)
    if len(slots) != len(new):
        raise ValueError(
            f"opt_state has {len(slots)} arrays, where tx.init gives {len(new)} for "
            "these params: it is the state of another optimizer or network"
        )
    owners = slot_masks(tx, masks, params, start)
    fresh = [
        slot if mask is None else choose(mask, slot, begin.astype(slot.dtype))
        for slot, mask, begin in zip(slots, owners, new, strict=True)
    ]
    return structure.unflatten(fresh)


def step_with_slots(
    tx: Any,
    masks: Masks,
    gradients: Params,
    opt_state: Any,
    params: Params,
    *,
    replaced: jax.Array | None = None,
    **extra: Any,
) -> tuple[Any, Any]:
    """``tx.update``, after which the slots of inactive weights are as new.

    Slots that the optimizer itself keeps at 0 there are not touched. The others become
    as new inside its program, and there it is chosen whether they stay: see `inside`
    for what it costs to do so afterwards.

    Args:
      tx: the Optax optimizer.
      masks: the active weights.
      gradients: pytree of arrays, 0 at inactive weights.
      opt_state: its state, slots of inactive weights as new.
      params: pytree of arrays, 0 at inactive weights.
      replaced: bool scalar; where it is true time goes on, but the updates are 0 and
        all else in the state stays. ``None`` if that is never so.
      **extra: what ``tx.update`` asks for besides.

    Returns:
      Updates and the new state.
    """
    places = _leaf_marks(params, masks)
    began = stays_zero(tx.init, (params,), places)
    owners = slot_masks(tx, masks, params, opt_state)
    zero_at = [
        id(mask) if mask is not None and mark in (id(mask), EVERYWHERE) else None
        for mask, mark in zip(owners, began, strict=True)
    ]

    def update(gradients: Params, opt_state: Any, params: Params) -> tuple[Any, Any]:
        return tx.update(gradients, opt_state, params, **extra)

    arguments = gradients, opt_state, params
    program, form = jax.make_jaxpr(update, return_shape=True)(*arguments)
    marks = zeros_of(program, [*places, *zero_at, *places])
    number = len(marks) - len(owners)  # of updates
    new = jax.tree.leaves(tx.init(params))
    resets = [
        partial(_as_new, mask, begin)
        if mask is not None and (place is None or mark not in (place, EVERYWHERE))
        else None
        for mask, place, mark, begin in zip(
            owners, zero_at, marks[number:], new, strict=True
        )
    ]
    stays, exact = _replacement(replaced, program.out_avals[:number], opt_state)
    if not any((*stays, *resets)):
        return update(*arguments)
    never: list[Any] = [None] * number
    here = [None if mask is None else id(mask) for mask in owners]
    reset_at = [at if do else None for at, do in zip(here, resets, strict=True)]
    later: list[Any] = [None] * len(resets)
    if not confined(program, [*never, *reset_at], [*places, *here]):
        resets, later = later, resets
    changes = [_then(*both) for both in zip(stays, [*never, *resets], strict=True)]
    found = run_changed(program, jax.tree.leaves(arguments), changes, exact)
    found = [do(x) if do else x for do, x in zip([*never, *later], found, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(form), found)


def _replacement(
    replaced: jax.Array | None, updates: Any, opt_state: Any
) -> tuple[list[Any], list[bool]]:
    """What a replaced step makes of updates and slots; which of them tell the time."""
    slots = jax.tree.leaves(opt_state)
    if replaced is None:
        number = len(updates) + len(slots)
        return [None] * number, [False] * number

    def stay(old: Any) -> Any:
        return lambda new: jnp.where(replaced, old, new)

    ticks = tells_time(opt_state)
    zeros = [stay(jnp.zeros(u.shape, u.dtype)) for u in updates]
    stays = [
        None if tick else stay(old) for tick, old in zip(ticks, slots, strict=True)
    ]
    return [*zeros, *stays], [*[False] * len(zeros), *ticks]


def _as_new(mask: jax.Array, begin: jax.Array, slot: jax.Array) -> jax.Array:
    """The slot with its first value at inactive weights.

    By a select: chosen by the bits it would be computed twice, hence copied.
    """
    return jnp.where(mask, slot, begin.astype(slot.dtype))


def _then(first: Any, second: Any) -> Any:
    """One change after another, either of which may be ``None``."""
    if first is None or second is None:
        return first or second
    return lambda value: second(first(value))


def _leaf_marks(params: Params, masks: Masks) -> list[int | None]:
    owners = _masks_of_leaves(params, masks)
    return [None if mask is None else id(mask) for mask in owners]


def _masks_of_leaves(params: Params, masks: Masks) -> list[Any]:
    """The mask of each leaf of ``params``, ``None`` where it has none."""
    found: list[Any] = []
    jax.tree.map(lambda _, mask: found.append(mask), params, masks)
    return found


def slot_masks(tx: Any, masks: Masks, params: Params, opt_state: Any) -> list[Any]:
    """For each leaf of the state the mask of its parameter; ``None`` if it has none.

    Args:
      tx: the Optax optimizer.
      masks: the active weights.
      params: pytree of arrays, of which only shapes and dtypes are read.
      opt_state: the optimizer's state, of which only the shapes are read.

    Returns:
      List in the order of ``jax.tree.leaves(opt_state)``: a mask at a per-weight slot
      of a sparse leaf, ``None`` at all other leaves.
    """
    slots = jax.tree_util.tree_flatten_with_path(opt_state)[0]
    probe = _probed(tx, masks, params)
    owners = [_owner(path, slot, probe) for path, slot in slots]
    return [None if leaf is None else leaf.mask for leaf in owners]


class _SparseLeaf(NamedTuple):
    mask: jax.Array
    shape: Shape
    nearby: tuple[Shape, Shape]  # a little larger, a little smaller


class _Probed(NamedTuple):
    sparse: Mapping[Path, _SparseLeaf]
    states: list[Mapping[Path, Shape]]  # shapes at the larger and the smaller params


def _probed(tx: Any, masks: Masks, params: Params) -> _Probed:
    sparse = _sparse_leaves(params, masks)
    if not sparse:
        return _Probed({}, [])
    nearby = [{path: leaf.nearby[i] for path, leaf in sparse.items()} for i in range(2)]
    return _Probed(sparse, [_shapes_of_state(tx, params, shapes) for shapes in nearby])


def _owner(path: Path, slot: Any, probe: _Probed) -> _SparseLeaf | None:
    """The leaf of whose weights this is a slot, if there is one.

    Runs of the path that end with it come first, the longest before the others: then
    those of optimizers that keep a structure of its own for each parameter.
    """
    shapes = [state.get(path) for state in probe.states]
    for end in range(len(path), -1, -1):
        for start in range(end + 1):
            leaf = probe.sparse.get(path[start:end])
            if leaf and _is_per_weight(leaf, slot, shapes):
                return leaf
    return None


def _sparse_leaves(params: Params, masks: Masks) -> dict[Path, _SparseLeaf]:
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    owners = _masks_of_leaves(params, masks)
    return {
        path: _SparseLeaf(mask, leaf.shape, _nearby(leaf.shape, len(path)))
        for (path, leaf), mask in zip(flat, owners, strict=True)
        if mask is not None
    }


def _nearby(shape: Shape, depth: int) -> tuple[Shape, Shape]:
    """Two shapes whose sizes all differ, one larger and one smaller where possible.

    Near, so that an optimizer that treats large leaves in another way stays on the same
    side at least once. They depend on the depth of the leaf, so that of two leaves
    ``kernel`` and ``layer/kernel`` of one shape each follows its own.
    """
    larger: list[int] = []
    for size in shape:
        size += 1 + depth
        while size in larger:
            size += 1
        larger.append(size)
    smaller: list[int] = []
    for size in shape:
        size -= 1 + depth
        while size in smaller:
            size -= 1
        smaller.append(size)
    return tuple(larger), tuple(smaller) if min(smaller, default=1) > 0 else shape


def _shapes_of_state(
    tx: Any, params: Params, shapes: Mapping[Path, Shape]
) -> dict[Path, Shape]:
    """The shapes in the optimizer's state, were the parameters of other shapes."""

    def given(path: Path, leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(shapes.get(path, leaf.shape), leaf.dtype)

    probe = jax.tree_util.tree_map_with_path(given, params)
    try:
        state = jax.eval_shape(tx.init, probe)
    except Exception:  # an optimizer made for certain shapes: nothing can be learnt
        return {}
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return {path: slot.shape for path, slot in flat}


def _is_per_weight(leaf: _SparseLeaf, slot: Any, probed: list[Any]) -> bool:
    if getattr(slot, "shape", None) != leaf.shape:
        return False
    seen = [
        (shape, near)
        for shape, near in zip(probed, leaf.nearby, strict=True)
        if shape is not None and near != leaf.shape
    ]
    return not seen or any(shape == near for shape, near in seen)


# --- What cannot be trained sparsely --------------------------------------------------


def check_optimizer(tx: Any, masks: Masks, opt_state: Any, params: Params) -> None:
    """Raises if the optimizer cannot keep its promises within `sparse_training`.

    Args:
      tx: the Optax optimizer.
      masks: the active weights.
      opt_state: of ``tx.init``.
      params: pytree of arrays.

    Raises:
      ValueError: naming the part of the optimizer and what to do instead.
    """
    for reason in unfit_parts(tx, opt_state):
        raise ValueError(f"sparse_training cannot wrap {reason}")
    leaves = jax.tree.leaves(params)
    vector = (sum(leaf.size for leaf in leaves),)
    if vector not in {leaf.shape for leaf in leaves} and any(
        getattr(slot, "shape", None) == vector for slot in jax.tree.leaves(opt_state)
    ):
        raise ValueError(
            "sparse_training cannot wrap optax.flatten, which makes one vector of all "
            "leaves; leave it out, it changes no number"
        )
    probe = _probed(tx, masks, params)
    for path, slot in jax.tree_util.tree_flatten_with_path(opt_state)[0]:
        if _owner(path, slot, probe) is None and _is_stray(path, slot, probe):
            raise ValueError(
                "sparse_training cannot wrap an optimizer whose state"
                f"{jax.tree_util.keystr(path)} is a slot of the weights but does not "
                "say of which parameter; its state must be nested as the parameters are"
            )


def _is_stray(path: Path, slot: Any, probe: _Probed) -> bool:
    """Whether an array has the shape of some sparse leaf, at all shapes nearby too."""
    shapes = (getattr(slot, "shape", None), *(s.get(path) for s in probe.states))
    return any(
        shapes == (leaf.shape, *leaf.nearby) and len(set(shapes)) == 3
        for leaf in probe.sparse.values()
    )
