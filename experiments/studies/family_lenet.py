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
        "Fashion-MNIST, 5,000 training images, 100 epochs. Lottery tickets are better "
        "than all others at every sparsity and no worse than the dense network, for "
        "four times its operations. Of the rest at 90% none is surely better than "
        "fixed random masks by ERK, and RigL, RigL-ITOP, AC/DC, EOI and GraSP are "
        "surely worse; at 95% gradual pruning and MEST are better. At 98% whatever "
        "changes its topology is 1.3 to 2.3 points better than they, GraNet, which "
        "begins at half, 2.8, and gradual pruning, which begins dense, 4.0, for four "
        "and seven times the operations of training; AC/DC, which begins dense too, "
        "1.8. Of masks found before training EOI's and SynFlow's are better, SNIP's "
        "not surely, and GraSP's worse. SET is 0.7 better than RigL."
    ),
)
