"""ToST and its parts on ResNet-8."""

from experiments.studies.tost_lenet import ARMS, VERSUS, cells
from experiments.studies.values import Study

STUDY = Study(
    title="ToST on ResNet-8",
    question="Which part of ToST trains which masks of a residual network better?",
    mirrors="tables 1 and 3 of ToST, at a small scale and for few epochs",
    config="configs/small_resnet.py",
    cells=cells("random", "snip", "lottery"),
    arms=ARMS,
    versus=VERSUS,
    seeds=(0, 1, 2),
    prune_fraction=0.36,
    remarks=(
        "10,000 images of Fashion-MNIST, shrunk to 14 x 14 pixels, and 8 epochs: this "
        "network is far from overfitting, which softened labels are for, and has skips "
        "of its own already. The paper's gains are on CIFAR with larger networks, "
        "trained for 182 epochs by its code: see `tost_long`. The 27 rounds of "
        "the lotteries took 0.13 hours more."
    ),
)
