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
    remarks=(
        "Fashion-MNIST, 5,000 training images, 100 epochs; the committed page is of "
        "three seeds, without the lottery. At 90% fixed random masks by ERK are as "
        "good as any, RigL and EOI surely worse. At 98% what changes its topology is "
        "1.4 to 2.2 points better than they, and what begins denser than it ends "
        "better still: GraNet by 2.8, gradual pruning by 3.7, for four and seven times "
        "the operations of training. Of masks found before training those of SNIP, "
        "SynFlow and EOI are better on average, none surely, and GraSP's are worse."
    ),
)
