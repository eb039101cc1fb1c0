"""S3: the parts of Sup-tickets, one changed at a time."""

from experiments.studies.claim import CHOSEN, ONWARDS, PHASE1, REMARKS
from experiments.studies.values import Arm, Cell, Study


def _chosen(**fields: str) -> dict[str, str]:
    """The chosen recipe with other fields of the section "sup"."""
    return CHOSEN | {f"sup.{name}": value for name, value in fields.items()}


_CHANGED = (
    *("base", "base, topology rests", "one cycle of 24", "two of 12"),
    *("four of 6", "eight of 3", "six cycles"),
    *("explore 0", "explore 0.1", "explore 0.5"),
    *("CAA", "CIMA 0.5", "CIMA 0.9", "pruned once", "statistics anew"),
    *("phase 1 is a ticket", "constant rate", "falling rate", "large restarts"),
)

STUDY = Study(
    title="The parts of Sup-tickets",
    question=(
        "What does each part do? Arms differ from the chosen recipe in what their name "
        "says. The number and the length of cycles keep the budget of 24 epochs, but "
        "for 'six cycles', which has 24 more."
    ),
    mirrors="figures 3 and 4, tables 5, 7, S2 to S4 and S14 of the paper",
    config="configs/small_cifar.py:report.path_points=0",
    cells=(
        Cell("RigL 90%", {"method": "rigl", "sparsity": "0.9"}),
        Cell("SET 95%", {"method": "set", "sparsity": "0.95"}),
    ),
    arms=(
        Arm("phase 1", PHASE1),
        Arm("base", ONWARDS),
        Arm("base, topology rests", ONWARDS | {"method.update_end_fraction": "0.75"}),
        Arm("Sup-tickets, paper", {}),
        Arm("Sup-tickets, chosen", CHOSEN),
        Arm("one cycle of 24", _chosen(cycles="1", cycle_epochs="24")),
        Arm("two of 12", _chosen(cycles="2", cycle_epochs="12")),
        Arm("four of 6", _chosen(cycles="4", cycle_epochs="6")),
        Arm("eight of 3", _chosen(cycles="8", cycle_epochs="3")),
        Arm("six cycles", _chosen(cycles="6") | {"epochs": "274"}),
        Arm("explore 0", _chosen(explore_fraction="0")),
        Arm("explore 0.1", _chosen(explore_fraction="0.1")),
        Arm("explore 0.5", _chosen(explore_fraction="0.5")),
        Arm("CAA", _chosen(kind="caa")),
        Arm("CIMA 0.5", _chosen(kind="cima", decay="0.5")),
        Arm("CIMA 0.9", _chosen(kind="cima", decay="0.9")),
        Arm("pruned once", _chosen(prune_each="false")),
        Arm("statistics anew", _chosen(batch_norm="bu")),
        Arm("phase 1 is a ticket", _chosen(include_phase1="true")),
        Arm("constant rate", _chosen(form="constant")),
        Arm("falling rate", _chosen(form="restart")),
        Arm("large restarts", _chosen(lr_max="0.5")),
    ),
    versus=(
        ("base, topology rests", "base"),
        ("one cycle of 24", "base"),
        *((arm, "Sup-tickets, chosen") for arm in _CHANGED),
    ),
    seeds=(0, 1, 2, 3, 4),
    remarks=(
        f"{REMARKS} 'explore 0.1' is the chosen recipe itself, run a second time: its "
        "difference is the noise of the machine alone. 'base, topology rests' has a "
        "phase 1 of its own, whose updates end at 75% of its 250 epochs, and so the "
        "noise of another training. 'falling rate' is the cycle of SWA, from the "
        "highest rate to the lowest."
    ),
)
