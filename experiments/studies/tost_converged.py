"""S5: ToST on a residual network that has converged."""

from experiments.studies.tost_lenet import ARMS, VERSUS, cells
from experiments.studies.values import Arm, Study

STUDY = Study(
    title="ToST in the converged regime",
    question=(
        "Which part of ToST gains where a network trains for the 182 epochs of the "
        "release? As released nothing fades: soft neurons and skips stay to the end."
    ),
    mirrors="table 2 of ToST",
    config="configs/small_cifar.py:sup=false,epochs=182",
    cells=cells("random", "snip"),
    arms=(*ARMS, Arm("all, as released", {"tost": "released"})),
    versus=(*VERSUS, ("all, as released", "all of ToST")),
    seeds=(0, 1, 2, 3, 4),
)
