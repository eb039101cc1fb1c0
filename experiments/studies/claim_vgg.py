"""S1 on a second network: VGG-16 of half the width."""

from experiments.studies import claim
from experiments.studies.values import Cell, Study

STUDY = Study(
    title="Sup-tickets against its base methods, VGG-16",
    question=claim.STUDY.question,
    mirrors=claim.STUDY.mirrors,
    config="configs/small_cifar.py:model=vgg16,report.path_points=0",
    cells=tuple(
        Cell(f"{title} {percent}%", {"method": method, "sparsity": f"0.{percent}"})
        for percent in (95, 90)
        for method, title in (("rigl", "RigL"), ("set", "SET"))
    ),
    arms=claim.ARMS,
    versus=claim.VERSUS,
    seeds=claim.STUDY.seeds,
)
