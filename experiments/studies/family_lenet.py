"""S6 on LeNet-300-100."""

import dataclasses

from experiments.studies import family
from experiments.studies.values import Cell

STUDY = dataclasses.replace(
    family.STUDY,
    title="The methods of the family on LeNet-300-100",
    config="configs/small_fashion.py:sup=false,epochs=100",
    cells=tuple(
        Cell(f"{percent}%", {"sparsity": f"0.{percent}"}) for percent in (90, 95, 98)
    ),
    seeds=(0, 1, 2, 3, 4),
)
