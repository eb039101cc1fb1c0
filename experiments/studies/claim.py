"""S1: the superposed ticket against its base method for the same budget."""

from experiments.studies.values import Arm, Cell, Study

PHASE1 = {"sup": "false", "epochs": "226"}
# The rate falls, and GraNet has pruned, where it does in the 226 epochs of phase 1.
ONWARDS = {
    "sup": "false",
    "train.drop_epochs": "113,169",
    "method.prune_end_fraction": "0.44025",
}
# Of `choice`, on validation images.
CHOSEN = {"sup.lr_max": "0.05", "sup.explore_fraction": "0.1"}

ARMS = (
    Arm("phase 1", PHASE1),
    Arm("base", ONWARDS),
    Arm("base, own schedule", {"sup": "false"}),
    Arm("Sup-tickets, paper", {}),
    Arm("Sup-tickets, chosen", CHOSEN),
)
VERSUS = (
    ("Sup-tickets, paper", "base"),
    ("Sup-tickets, chosen", "base"),
    ("Sup-tickets, paper", "base, own schedule"),
    ("Sup-tickets, chosen", "base, own schedule"),
    ("Sup-tickets, paper", "phase 1"),
)
REMARKS = (
    "Run in one lease of an H200, 26 processes side by side under CUDA MPS, with "
    "--config.train.block_steps=10; cells that are missing did not fit. Convolutions "
    "are in TF32 there, and their gradients not deterministic: the same run twice "
    "differs, which is part of the noise. The chosen recipe is the best of "
    "docs/results/choice.md on validation images and other seeds."
)

STUDY = Study(
    title="Sup-tickets against its base methods",
    question=(
        "Is the superposed ticket better than the base method trained for the same 250 "
        "epochs? The base goes on from the same phase 1, or is a run of its own whose "
        "rate falls at a half and three quarters of all 250 epochs."
    ),
    mirrors="tables 1 and 2 of the paper",
    config="configs/small_cifar.py:report.path_points=0",
    cells=tuple(
        Cell(
            f"{title} {100 * sparsity:g}%",
            {"method": method, "sparsity": str(sparsity)},
        )
        for method, title, sparsities in (
            ("rigl", "RigL", (0.9, 0.95, 0.8)),
            ("set", "SET", (0.9, 0.95, 0.8)),
            ("granet", "GraNet", (0.9, 0.95, 0.8)),
            ("static", "static", (0.9, 0.95, 0.8)),
        )
        for sparsity in sparsities
    ),
    arms=ARMS,
    versus=VERSUS,
    seeds=(0, 1, 2, 3, 4),
    remarks=REMARKS,
)
