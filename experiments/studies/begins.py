"""S2: how long one must train before Sup-tickets gains, and on how much."""

from experiments.studies.claim import CHOSEN
from experiments.studies.values import Arm, Cell, Study

# A tenth of the budget is for tickets, as in the paper's 24 of 250 epochs.
_TICKETS = {25: (1, 2), 50: (3, 2), 100: (3, 3), 250: (3, 8), 500: (3, 16)}


def _cell(epochs: int, examples: int) -> Cell:
    cycles, length = _TICKETS[epochs]
    return Cell(
        f"{epochs} epochs, {examples} images",
        {
            "epochs": str(epochs),
            "cycles": str(cycles),
            "cycle_epochs": str(length),
            "data.training_examples": str(examples),
        },
    )


STUDY = Study(
    title="Where the gain of Sup-tickets begins",
    question="From how many epochs on, and with how many images, does it gain?",
    mirrors="the paper trains for 250 epochs on 45,000 or 50,000 images",
    config="configs/small_cifar.py:report.path_points=0",
    cells=(
        *(_cell(epochs, 5000) for epochs in _TICKETS),
        *(_cell(epochs, 20000) for epochs in (25, 50, 100)),
    ),
    arms=(
        Arm("base, own schedule", {"sup": "false"}),
        Arm("Sup-tickets, paper", {}),
        Arm("Sup-tickets, chosen", CHOSEN),
    ),
    versus=(
        ("Sup-tickets, paper", "base, own schedule"),
        ("Sup-tickets, chosen", "base, own schedule"),
    ),
    seeds=(0, 1, 2, 3, 4),
)
