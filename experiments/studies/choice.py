"""The rate and the exploration of a cheap ticket, chosen on the validation split."""

from experiments.studies.claim import PHASE1
from experiments.studies.values import Arm, Cell, Study

STUDY = Study(
    title="Which cheap tickets",
    question=(
        "Which highest rate of a cycle, and how much exploration before it, give the "
        "best superposed ticket on the validation images? With seeds that no other "
        "study has."
    ),
    mirrors="the paper takes 0.005 and the release explores half of each layer",
    config="configs/small_cifar.py:evaluate=validation,report.path_points=0",
    cells=(
        Cell("RigL 90%", {"method": "rigl", "sparsity": "0.9"}),
        Cell("SET 95%", {"method": "set", "sparsity": "0.95"}),
    ),
    arms=(
        Arm("phase 1", PHASE1),
        *(
            Arm(
                f"to {rate}, explore {share}",
                {"sup.lr_max": rate, "sup.explore_fraction": share},
            )
            for rate in ("0.005", "0.02", "0.05", "0.1")
            for share in ("0", "0.1", "0.5")
        ),
    ),
    versus=(),
    seeds=(100, 101, 102),
    remarks="Run beside `claim`. To 0.05, explore 0.1 is the best in the mean.",
)
