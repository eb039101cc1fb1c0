r"""Sup-tickets on ImageNet with ResNet-50, as in the paper.

Yin et al., Superposing Many Tickets into One: A Performance Booster for Sparse Neural
Network Training, 2022, https://arxiv.org/abs/2205.15322, section 4 and table 3

    python -m experiments.prepare_data imagenet2012 --data_dir=DATA
    python -m experiments.main --config=configs/imagenet.py:method=rigl,sparsity=0.9 \
        --config.data.dir=DATA --workdir=runs/imagenet

Top-1 accuracy in percent that the paper reports, one run; dense has 76.8 (0.09):

    base method      RigL 80%       RigL 90%       GraNet 80%     GraNet 90%
    alone            75.1 (0.05)    73.0 (0.04)    75.9           74.4
    + Sup-tickets    76.0           74.0           76.2           74.6

Never run by us: it needs the data set and days of an accelerator.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """RigL at 90% sparsity on ResNet-50 for 92 epochs, then four cheap tickets of 2.

    Args:
      argument: "method=granet,sparsity=0.8", for example; see `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "imagenet2012"
    config.data.validation_examples = 10000
    config.data.workers = 16
    config.data.crop_padding = 0  # photos have random resized crops instead
    config.model.name = "resnet50_imagenet"

    config.method.sparsity = 0.9  # [paper: 0.8, 0.9]
    config.method.update_every_steps = 4000  # [release]
    config.method.drop_schedule = "cosine"  # to 0 [release: to 0.005]
    config.method.prune_end_fraction = 0.326  # granet: epochs 0 to 30 [release]

    config.train.epochs = 100  # [paper]
    config.train.drop_epochs = (30, 60, 85)  # [paper]
    config.train.warmup_epochs = 5  # [release]
    config.train.weight_decay = 1e-4  # [paper]
    config.train.no_weight_decay = ("bn",)  # batch norm [release, less down-sampling]
    config.train.label_smoothing = 0.1  # [release]
    config.train.validate_every_epochs = 1

    config.sup.cycles = 4  # [paper]
    config.sup.cycle_epochs = 2  # [paper]
    config.sup.lr_min = 0.0001  # [paper]
    config.sup.lr_max = 0.0005  # [paper]
    return common.with_argument(config, argument)
