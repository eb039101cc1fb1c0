"""ToST and its parts on LeNet-300-100, over six kinds of masks."""

from experiments.studies.values import Arm, Cell, Study

ARMS = (
    Arm("plain", {"tost": "false"}),
    Arm("all of ToST", {"tost": "true"}),
    Arm("soft", {"tost": "soft"}),
    Arm("skips", {"tost": "skips"}),
    Arm("rescale", {"tost": "rescale"}),
    Arm("labels", {"tost": "labels"}),
)
VERSUS = tuple((arm.name, "plain") for arm in ARMS[1:])


def cells(*masks: str) -> tuple[Cell, ...]:
    """Masks at sparsities of 95% and 98%."""
    return tuple(
        Cell(f"{mask} {percent}%", {"mask": mask, "sparsity": f"0.{percent}"})
        for percent in (95, 98)
        for mask in masks
    )


STUDY = Study(
    title="ToST on LeNet-300-100",
    question="Which part of ToST trains which masks better?",
    mirrors="tables 1 and 3 of ToST, which have no such network",
    config="configs/fashion_mnist.py:epochs=10,data.crop_padding=0,train.block_steps=43",
    cells=cells("random", "magnitude", "snip", "grasp", "synflow", "lottery"),
    arms=ARMS,
    versus=VERSUS,
    seeds=tuple(range(10)),
    remarks=(
        "Fashion-MNIST, 5,000 of its training images kept for validation, and ten "
        "epochs, which is short. Lottery tickets are of iterative magnitude pruning "
        "without ToST, rewound to the start; their 180 rounds took 0.24 hours more. "
        "Skips gain with masks found before training (not with GraSP at 98% and "
        "magnitude), re-scaling with random masks; softened labels make NLL worse: the "
        "network learns 0.9 where it could be surer, and has no time to overfit. "
        "Lottery tickets beat every other mask by 2 to 6 points, and magnitude's at "
        "98% by 79, for 15 and 19 times the budget. Magnitude at 98%, counted over "
        "the whole network, leaves no "
        "weight in the first layer, whose weights are drawn smallest: that network is "
        "a constant, as a run says when it starts. Of so many comparisons some leave "
        "out 0 by chance."
    ),
)
