"""S2 on LeNet-300-100."""

import dataclasses

from experiments.studies import begins

STUDY = dataclasses.replace(
    begins.STUDY,
    title="Where the gain of Sup-tickets begins, LeNet-300-100",
    config="configs/small_fashion.py",
)
