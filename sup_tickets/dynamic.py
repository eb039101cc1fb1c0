"""A method of sparse training as a value: which weights, which scores, when.

A `Method` is data. A distribution says how many weights each layer has, a drop and a
grow score which of them change, a few numbers of steps when, and how far the network is
pruned on the way. `updates` has the pure functions that take it; what else one may want
to know of a method are properties that follow from its fields. A new method is a value.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, get_args

from sup_tickets.checks import (
    check_fraction,
    check_one_of,
    check_options,
    check_sparsity,
    check_whole,
)
from sup_tickets.counting import MAX_COUNT, Rounding
from sup_tickets.distributions import distribution_of
from sup_tickets.groups import GroupsLike
from sup_tickets.pruning import Scope
from sup_tickets.saliency import ScoreFunction, by_gradient, by_magnitude, looks_at
from sup_tickets.schedules import (
    Stairs,
    check_stairs,
    cosine_fraction,
    last_update,
    linear_fraction,
    stairs,
)
from sup_tickets.structures import Structure, check_structured
from sup_tickets.trees import RuleLike, default_rule
from sup_tickets.types import Number, Schedule

_DECAYS = ("constant", "cosine", "linear")
_STEPS = (  # int32 where they are counted
    "prune_begin_step",
    "prune_end_step",
    "update_every",
    "begin_step",
    "end_step",
    "drop_end_step",
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of dynamic sparse training: its options, and nothing else.

    Methods compare by value, hash, and can be static arguments of ``jax.jit`` as far as
    what they are given can; `replace` makes another one. Where an update both prunes
    and rewires it prunes first. All steps are completed weight steps.

    Args:
      name: what to call it in reports.
      sparsity: in [0, 1), of all sparse leaves together, at the end.
      distribution: how the active weights are shared out between layers at the start,
        see `allocate`.
      distribution_options: further arguments of the distribution.
      where: which leaves are sparse, see `sparse_leaves`; ``None`` for none at all.
      keep_dense: expressions of sparse leaves that stay fully dense; they count in the
        sparsity and are never pruned by the method.
      update_every: steps between topology updates; 0 for none but those of
        ``sparsity_stairs``.
      begin_step: first step that may have an update; ``update_every`` by default.
      end_step: last step that may have an update; by default there is no end.
      drop_fraction: of each layer's active weights, in [0, 1]; stairs of it; or a
        schedule.
      drop_decay: how a number ``drop_fraction`` falls: "constant", "cosine" or
        "linear", from step 0 to ``drop_end_step``.
      drop_end_step: where it ends; ``end_step`` by default.
      drop_final: what it ends with, in [0, 1].
      drop_score, grow_score: score functions of `saliency.Signals`.
      grow_groups: groups that grow the same number, of leaves that drop as a whole, see
        `rewire`; an exploration does the same.
      rounding: of the number dropped, "floor" (RigL, SET) or "ceil" (ITOP, GraNet).
      regrow_dropped: whether weights just dropped may be grown again, as in the
        reference implementations; they keep their value and their slots.
      keep_pruned: whether a weight that is pruned and grown again in one update keeps
        them too; else it starts anew, as in GraNet's release.
      redistribute: whether layers grow in proportion to the mean magnitude of the
        gradient average over their active weights (SNFS); needs ``momentum_decay``.
      spare_dense: whether a layer above 80% density, whose share of the growth is above
        that of the average layer, drops no larger fraction than its sparsity, as in
        SNFS's release; needs ``redistribute``.
      track_exploration: whether to keep the union of all masks (ITOP).
      prefer_unexplored: whether never-active places grow first; implies tracking.
      momentum_decay: of a running average of the dense gradients, observed at every
        step; ``None`` keeps none.
      initial_sparsity: at the start, where the network is pruned on the way to
        ``sparsity`` along the cubic schedule; by default it starts at ``sparsity``.
      prune_begin_step, prune_end_step: the window of the cubic schedule; at the last
        update in it the target count is met exactly.
      sparsity_stairs: the sparsity by stairs instead, the first from step 0, the last
        at ``sparsity``. Each stair has an update: a rise prunes to the exact count, a
        fall must be to 0, where all weights return.
      prune_scope: "global" or "layer": what is compared when pruning, see
        `prune_to_total`.
      rewires: whether updates drop and grow at all; if not they only prune.
      consumes_step: whether an update replaces the weight step, as RigL's does, or
        comes before it.
      structure: what all sparse leaves keep: `structures.n_of_m`, whose sparsity must
        be ``sparsity`` (leaves of ``keep_dense`` then have no masks, and neither the
        distribution nor ``prune_scope`` says how many weights a leaf has), or
        `structures.fan_in`, with which the sparsity is met as nearly as whole neurons
        allow, and a leaf that is pruned keeps the fan-in nearest to its share.

    Raises:
      ValueError: naming an argument outside its range.
    """

    name: str
    _: dataclasses.KW_ONLY
    sparsity: float
    distribution: str | Callable[..., Any] = "erk"
    distribution_options: Mapping[str, Any] | None = dataclasses.field(
        default=None,
        hash=False,  # equal methods hash alike all the same
    )
    where: RuleLike | None = default_rule
    keep_dense: Sequence[str] | str = ()
    update_every: int = 100
    begin_step: int | None = None
    end_step: int | None = None
    drop_fraction: float | Stairs | Schedule = 0.3
    drop_decay: str = "constant"
    drop_end_step: int | None = None
    drop_final: float = 0.0
    drop_score: ScoreFunction = by_magnitude
    grow_score: ScoreFunction = by_gradient
    grow_groups: GroupsLike = None
    rounding: Rounding = "floor"
    regrow_dropped: bool = True
    keep_pruned: bool = False
    redistribute: bool = False
    spare_dense: bool = False
    track_exploration: bool = False
    prefer_unexplored: bool = False
    momentum_decay: float | None = None
    initial_sparsity: float | None = None
    prune_begin_step: int = 0
    prune_end_step: int | None = None
    sparsity_stairs: Stairs = ()
    prune_scope: Scope = "global"
    rewires: bool = True
    consumes_step: bool = False
    structure: Structure | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _frozen(value))
        check_sparsity(self.sparsity)
        distribution_of(self.distribution, self.distribution_options or {})
        if self.where is None and self.sparsity:
            raise ValueError(
                f"where=None leaves all weights dense; sparsity={self.sparsity} "
                "must be 0"
            )
        if isinstance(self.update_every, Integral) and self.update_every < 0:
            raise ValueError(
                f"update_every must be 0 (never) or more, got {self.update_every}"
            )
        for name in _STEPS:
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 0, MAX_COUNT)
        check_one_of("rounding", self.rounding, get_args(Rounding))
        check_one_of("prune_scope", self.prune_scope, get_args(Scope))
        self._check_drop()
        self._check_signals()
        if self.structure is not None:
            check_structured(self.structure, self)
        if self.sparsity_stairs:
            self._check_stairs()
        elif self.initial_sparsity is not None:
            check_sparsity(self.initial_sparsity, "initial_sparsity")
            if self.initial_sparsity > self.sparsity:
                raise ValueError(
                    f"initial_sparsity must be at most sparsity={self.sparsity}, got "
                    f"{self.initial_sparsity}"
                )
            _ = self.settled_step  # raises if the window has no update

    def replace(self, **fields: Any) -> "Method":
        """The method with other fields.

        Raises:
          ValueError: for a field that no method has, suggesting the nearest, and as
            `Method` does.
        """
        names = (field.name for field in dataclasses.fields(Method))
        check_options(f"method {self.name!r}", fields, names)
        return dataclasses.replace(self, **fields)

    # --- What follows from the fields ---

    @property
    def fixed(self) -> bool:
        """Whether the topology never changes by itself."""
        return self.where is None or not (self.update_every or self.sparsity_stairs)

    @property
    def prunes(self) -> bool:
        """Whether updates prune on the way to the sparsity."""
        return self.initial_sparsity is not None or len(self.sparsity_stairs) > 1

    @property
    def restarts(self) -> bool:
        """Whether an update may prune a weight and grow it again as a new one."""
        return self.prunes and self.rewires and not self.keep_pruned

    @property
    def start_sparsity(self) -> float:
        """The sparsity that `init_topology` draws."""
        if self.sparsity_stairs:
            return self.sparsity_stairs[0][1]
        return self.sparsity if self.initial_sparsity is None else self.initial_sparsity

    @property
    def starts_denser(self) -> bool:
        """Whether it starts with more weights than masks of the final sparsity."""
        return self.where is None or self.start_sparsity < self.sparsity

    @property
    def observes(self) -> bool:
        """Whether it looks at the dense gradient of every step."""
        return self.momentum_decay is not None

    @property
    def tracks(self) -> bool:
        """Whether it keeps the union of all masks."""
        return self.track_exploration or self.prefer_unexplored

    @property
    def explore_needs_gradients(self) -> bool:
        """Whether an exploration looks at the dense gradient."""
        seen = looks_at(self.drop_score) | looks_at(self.grow_score)
        return self.where is not None and bool(seen & {"gradients", "momentum"})

    @property
    def update_needs_gradients(self) -> bool:
        """Whether an update looks at the dense gradient, that of momentum included."""
        return not self.fixed and self.rewires and self.explore_needs_gradients

    @property
    def settled_step(self) -> int:
        """The step of the update that meets the sparsity; 0 if it does at the start."""
        if self.sparsity_stairs:
            return self.sparsity_stairs[-1][0]
        if self.initial_sparsity is None:
            return 0
        first = self.update_every if self.begin_step is None else self.begin_step
        ends = (self.prune_end_step, self.end_step)
        ends = [end for end in ends if end is not None]
        return last_update(self.update_every, first, self.prune_begin_step, ends)

    def drop_fraction_at(self, step: Number) -> Number:
        """The fraction that an update after ``step`` steps drops."""
        if callable(self.drop_fraction):
            return self.drop_fraction(step)
        if isinstance(self.drop_fraction, tuple):
            return stairs(self.drop_fraction)(step)
        if self.drop_decay == "constant":
            return self.drop_fraction
        decay = cosine_fraction if self.drop_decay == "cosine" else linear_fraction
        end = self.end_step if self.drop_end_step is None else self.drop_end_step
        assert end is not None
        return decay(self.drop_fraction, end_step=end, final=self.drop_final)(step)

    # --- Checks ---

    def _check_drop(self) -> None:
        check_one_of("drop_decay", self.drop_decay, _DECAYS)
        check_fraction(self.drop_final, "drop_final")
        if callable(self.drop_fraction) or isinstance(self.drop_fraction, tuple):
            if self.drop_decay != "constant":
                raise ValueError(
                    f"drop_decay={self.drop_decay!r} needs a number as drop_fraction, "
                    f"got {self.drop_fraction}"
                )
            if isinstance(self.drop_fraction, tuple):
                check_stairs("drop_fraction", self.drop_fraction, check_fraction)
            return
        check_fraction(self.drop_fraction, "drop_fraction")
        if self.drop_decay != "constant":
            if self.drop_end_step is None and self.end_step is None:
                raise ValueError(
                    f"drop_decay={self.drop_decay!r} needs drop_end_step or end_step"
                )
            self.drop_fraction_at(0)  # raises if the span is empty

    def _check_signals(self) -> None:
        if self.redistribute and self.momentum_decay is None:
            raise ValueError("redistribute=True needs momentum_decay, got None")
        if self.spare_dense and not self.redistribute:
            raise ValueError("spare_dense=True needs redistribute=True, got False")
        if self.momentum_decay is not None:
            check_fraction(self.momentum_decay, "momentum_decay")
        for name in ("drop_score", "grow_score"):
            seen = looks_at(getattr(self, name), otherwise=frozenset())
            if "momentum" in seen and self.momentum_decay is None:
                raise ValueError(
                    f"{name} looks at a running average of gradients; it needs "
                    "momentum_decay, got None"
                )

    def _check_stairs(self) -> None:
        pairs = self.sparsity_stairs
        check_stairs("sparsity_stairs", pairs, check_sparsity)
        for name in ("initial_sparsity", "prune_end_step"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} and sparsity_stairs are two ways to "
                    "say the same; give one"
                )
        if pairs[-1][1] != self.sparsity:
            raise ValueError(
                f"sparsity_stairs must end at sparsity={self.sparsity}, got {pairs[-1]}"
            )
        for (_, before), (step, after) in pairwise(pairs):
            if 0 < after < before:
                raise ValueError(
                    "sparsity_stairs may fall to 0 alone, where all weights return; "
                    f"got {before} to {after} at step {step}"
                )


def _frozen(value: Any) -> Any:
    """Lists as tuples, and a dictionary of its own."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(part) for part in value)
    return dict(value) if isinstance(value, Mapping) else value
