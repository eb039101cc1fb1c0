"""What a study is: cells, in each of which some arms are compared over seeds."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

Fields = Mapping[str, str]
"""Fields of a configuration by their names, with texts as in the grid of a sweep."""


LOTTERY = "lottery"
"""A mask that fields may name besides those of a configuration: the ticket that
`experiments.lottery` finds for the seed and the sparsity, with its weights."""


class Cell(NamedTuple):
    """A setting in which the arms are compared."""

    name: str
    fields: Fields


class Arm(NamedTuple):
    """A way to train; arms that begin alike train their phase 1 once."""

    name: str
    fields: Fields
    network: str | None = None
    """The network of the run that counts, by the name in its table; by default the
    superposed ticket, or the last."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A study, ready to run.

    Raises:
      ValueError: if it compares arms that it does not have, or names are there twice.
    """

    title: str
    question: str
    mirrors: str  # the tables of which papers
    config: str  # "FILE.py:name=value,...", what all runs share
    cells: tuple[Cell, ...]
    arms: tuple[Arm, ...]
    versus: tuple[tuple[str, str], ...]  # an arm, and the one it is compared with
    seeds: tuple[int, ...]
    score: str = "accuracy"  # what is compared, of the scores of a network
    choice: str | None = None
    """What the cells differ in, if it is to be chosen, as "dropout". Arms are compared
    each in the cell that is best for it on validation data then."""
    prune_fraction: float = 0.2  # of a round of the lottery, where a mask is `LOTTERY`
    remarks: str = ""  # how the committed page was made, and what else one must know

    def __post_init__(self) -> None:
        """Checks the names."""
        for kind, values in (("cell", self.cells), ("arm", self.arms)):
            names = [value.name for value in values]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{kind} {name!r} is there twice")
        arms = [arm.name for arm in self.arms]
        for name in (name for pair in self.versus for name in pair):
            if name not in arms:
                raise ValueError(f"versus names {name!r}; the arms are {arms}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be some and all different, got {self.seeds}")
