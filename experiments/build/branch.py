"""Whether two runs compute the same at first, so that one can branch from the other.

What both configurations say in words is compared as it is. What a field says of steps
that depend on the length of phase 1 (when the rate falls, when the topology changes and
by how much) is compared by what it comes to in every step until then.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.build.experiment import validation_steps
from experiments.build.parts import make_parts
from experiments.build.tost import GHOSTS, tost_parts
from experiments.config.fields import Config, flat
from sup_tickets.dynamic import Method
from sup_tickets.training.plan import Plan
from sup_tickets.types import Schedule

_LATER = ("sup.", "checkpoint.", "mesh.", "report.")  # after phase 1, or of no step
_FREE = (
    *("evaluate", "compare", "branch_from", "data.dir", "data.workers"),
    *("train.validate_every_epochs", "train.check_every_steps"),
)
_BY_EFFECT = (
    *("train.epochs", "train.schedule", "train.drop_epochs", "train.learning_rate"),
    *("method.update_every_steps", "method.update_end_fraction"),
    *("method.drop_fraction", "method.drop_schedule", "method.prune_end_fraction"),
)
_OF_STEPS = (  # fields of a `Method` that matter at its updates alone
    *("update_every", "begin_step", "end_step"),
    *("drop_fraction", "drop_decay", "drop_end_step", "drop_final"),
)


class Course(NamedTuple):
    """What a run does when, as `make_parts` makes it."""

    config: Config
    plan: Plan
    method: Method
    learning_rate: Schedule


def course_of(config: Config, *, epoch_steps: int) -> Course:
    """The course of a run.

    Raises:
      ValueError: naming the section at fault.
    """
    return Course(config, *make_parts(config, epoch_steps=epoch_steps))


def words_of(config: Config) -> dict[str, Any]:
    """The fields that must be the same in two runs, whatever their phases are."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in sorted(flat(config).items())
        if not name.startswith(_LATER) and name not in (*_FREE, *_BY_EFFECT)
    }


def difference_before(theirs: Course, ours: Course) -> str | None:
    """In what our run differs from theirs before the end of their phase 1; or ``None``.

    Args:
      theirs: of the run whose state at the end of phase 1 is taken.
      ours: of the run that starts with it.
    """
    step, phase1 = theirs.plan.phase1_steps, ours.plan.phase1_steps
    there, here = words_of(theirs.config), words_of(ours.config)
    for name in sorted(there | here):
        if there.get(name) != here.get(name):
            return (
                f"config.{name} is {there.get(name)!r} there, {here.get(name)!r} here"
            )
    if step > phase1:
        return f"phase 1 ends at step {step} there, and at {phase1} here"
    if step == ours.plan.total_steps:
        return f"there is nothing left to train after its {step} steps"
    ghosts = GHOSTS & set(tost_parts(ours.config))
    if step != phase1 and ghosts and not ours.config.tost.released:  # these stay
        return (
            f"ghosts fade over a part of the {step} steps there, of the {phase1} here"
        )
    found = _of_rates(theirs, ours, step) or _of_updates(theirs, ours, step)
    return found or difference_of_blocks(theirs, ours)


def _of_rates(theirs: Course, ours: Course, step: int) -> str | None:
    there, here = (_values(c.learning_rate, jnp.arange(step)) for c in (theirs, ours))
    if (there == here).all():
        return None
    at = int(np.argmin(there == here))
    return (
        f"the learning rate of step {at} is {there[at]:.6g} there, {here[at]:.6g} here "
        "(see config.train.drop_epochs)"
    )


def _of_updates(theirs: Course, ours: Course, step: int) -> str | None:
    there, here = (tuple(u for u in c.plan.updates if u < step) for c in (theirs, ours))
    if there != here:
        at = min(set(there) ^ set(here))
        which = "there and not here" if at in there else "here and not there"
        return f"the topology is updated at step {at} {which}"
    for name in vars(theirs.method):
        old, new = getattr(theirs.method, name), getattr(ours.method, name)
        if name not in _OF_STEPS and old != new:
            return f"{name} of the method is {old!r} there, {new!r} here"
    if not there or not ours.method.rewires:
        return None
    steps = jnp.asarray(there)
    drops = [_values(c.method.drop_fraction_at, steps) for c in (theirs, ours)]
    if (drops[0] == drops[1]).all():
        return None
    at = int(np.argmin(drops[0] == drops[1]))
    return (
        f"the update at step {there[at]} drops {drops[0][at]:.6g} there, "
        f"{drops[1][at]:.6g} here"
    )


def difference_of_blocks(theirs: Course, ours: Course) -> str | None:
    """How the two divide phase 1 into calls differently; ``None`` if they do not.

    Several steps in one call round differently from the same steps one by one.
    """
    step = theirs.plan.phase1_steps
    if theirs.config.train.block_steps == 1:
        return None
    there, here = (_blocks(c, step) for c in (theirs, ours))
    if there == here:
        return None
    which = "there and not here" if min(there ^ here) in there else "here and not there"
    return (
        f"a block of config.train.block_steps begins at step {min(there ^ here)} "
        f"{which} (what ends it: updates, validations, ends of phases, "
        "config.checkpoint.keep_epochs)"
    )


def _blocks(course: Course, step: int) -> set[int]:
    """The steps before ``step`` at which steps are done several in a call."""
    config, plan = course.config, course.plan
    count, epochs = config.train.block_steps, config.checkpoint.keep_epochs
    met = {*plan.updates, *(e * plan.epoch_steps for e in epochs)}
    every = validation_steps(config.train.validate_every_epochs, plan.epoch_steps)
    if every and config.data.validation_examples:
        met |= set(range(0, plan.total_steps, every))
    met |= {plan.phase1_steps, plan.total_steps}
    return {
        start
        for start in range(0, step, count)
        if not met & set(range(start + 1, start + count))
    }


def _values(schedule: Any, steps: Any) -> np.ndarray:
    return np.broadcast_to(np.asarray(schedule(steps)), steps.shape)
