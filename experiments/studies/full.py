"""S7: the paper's own setting, VGG-16 on all of CIFAR; for an accelerator."""

import dataclasses

from experiments.studies import claim
from experiments.studies.values import Cell

_OWN = "base, own schedule"  # last: what is stopped early has those of one phase 1

STUDY = dataclasses.replace(
    claim.STUDY,
    title="Sup-tickets on VGG-16 and all of CIFAR",
    question="Does the superposed ticket reach what the paper reports?",
    mirrors=(
        "tables 1 and 2 of the paper: VGG-16 at 95%, CIFAR-10: RigL 92.70 (0.16), with "
        "Sup-tickets 93.20 (0.13)"
    ),
    config=(
        "configs/cifar10.py:model=vgg16,method=rigl,sparsity=0.95,"
        "data.validation_examples=0,train.validate_every_epochs=0,report.path_points=0"
    ),
    cells=(
        Cell("CIFAR-10", {}),
        Cell("CIFAR-100", {"data.name": "cifar100"}),
    ),
    arms=tuple(sorted(claim.ARMS, key=lambda arm: arm.name == _OWN)),
    seeds=(0, 1, 2),
    remarks="",
)
