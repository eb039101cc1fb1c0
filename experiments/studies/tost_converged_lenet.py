"""S5 on a network that is cheap enough to train until it has converged."""

import dataclasses

from experiments.studies import tost_converged

STUDY = dataclasses.replace(
    tost_converged.STUDY,
    title="ToST in the converged regime, LeNet-300-100",
    mirrors="table 2 of ToST, which has no such network",
    config="configs/small_fashion.py:sup=false,epochs=182",
)
