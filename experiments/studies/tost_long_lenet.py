"""S5 on a network that two cores train for so long in seconds."""

import dataclasses

from experiments.studies import tost_long

STUDY = dataclasses.replace(
    tost_long.STUDY,
    title="ToST for the epochs of its code, LeNet-300-100",
    mirrors="table 2 of ToST, which has no such network",
    config="configs/small_fashion.py:sup=false,epochs=182",
    remarks=(
        "Fashion-MNIST, 5,000 training images. Soft neurons gain 0.05 to 0.35 points "
        "for no operations, none decided; skips 0.20 to 1.21 with three masks of four, "
        "decided with random ones at 98%; rescaling up to 0.65, none decided. Smoothed "
        "labels lose in every cell, for sure in two, and their calibration error is 8 "
        "to 10%, where it is 1 to 2% without. All of it together is within a point of "
        "plain training, decided nowhere. As released it is far better because it is "
        "no sparse network then: its skips are dense layers that stay, half of the "
        "dense operations in inference."
    ),
)
