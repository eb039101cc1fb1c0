"""S3 on LeNet-300-100, which has no batch norm whose statistics could be found anew."""

import dataclasses

from experiments.studies import ablations
from experiments.studies.values import Cell

_LEFT_OUT = "statistics anew", "explore 0.1"  # which is the chosen recipe itself

STUDY = dataclasses.replace(
    ablations.STUDY,
    title="The parts of Sup-tickets, LeNet-300-100",
    config="configs/small_fashion.py",
    cells=(
        Cell("RigL 95%", {"method": "rigl", "sparsity": "0.95"}),
        Cell("SET 98%", {"method": "set", "sparsity": "0.98"}),
    ),
    arms=tuple(arm for arm in ablations.STUDY.arms if arm.name not in _LEFT_OUT),
    versus=tuple(pair for pair in ablations.STUDY.versus if pair[0] not in _LEFT_OUT),
    remarks=(
        "'base, topology rests' has a phase 1 of its own, and so the noise of another "
        "training. 'falling rate' is the cycle of SWA, from the highest rate to the "
        "lowest. Where little is to be gained little is lost: three more cycles add "
        "0.15 (decided) and 0.14; a constant rate costs 0.24 and 0.20, undecided; "
        "large restarts ruin the network. No other part, exploration included, is "
        "decided in both cells; exploring half, CAA and CIMA 0.9 are worse in one each."
    ),
)
