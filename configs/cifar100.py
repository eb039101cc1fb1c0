r"""Sup-tickets on CIFAR-100, as in the paper.

Yin et al., Superposing Many Tickets into One: A Performance Booster for Sparse Neural
Network Training, 2022, https://arxiv.org/abs/2205.15322, section 4 and tables 1 and 2

    python -m experiments.prepare_data cifar100 --data_dir=DATA
    python -m experiments.main --config=configs/cifar100.py:model=vgg16,method=rigl \
        --config.data.dir=DATA --workdir=runs/cifar100

Test accuracy in percent that the paper reports for VGG-16 at 95% sparsity (three seeds,
trained on all 50,000 images: --config.data.validation_examples=0):

    base method      SET            RigL           GraNet
    alone            70.10 (0.33)   70.65 (0.16)   72.91 (0.39)
    + Sup-tickets    71.18 (0.29)   71.31 (0.21)   73.61 (0.11)
    dense            73.61 (0.45)

These 250 epochs are for an accelerator, and were not run by us: on two cores of a CPU
one epoch of VGG-16 takes about an hour.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """RigL at 95% sparsity on VGG-16 for 226 epochs, then three cheap tickets of 8.

    Args:
      argument: "model=resnet50,method=granet,sparsity=0.9,sup=false", for example; see
        `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "cifar100"
    return common.with_argument(config, argument)
