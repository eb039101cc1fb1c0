"""S5: ToST on a residual network for as long as its code trains."""

from experiments.studies.tost_lenet import ARMS, VERSUS, cells
from experiments.studies.values import Arm, Study

STUDY = Study(
    title="ToST for the epochs of its code",
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
