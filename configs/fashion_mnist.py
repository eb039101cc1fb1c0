r"""Sup-tickets on Fashion-MNIST, for a machine without an accelerator.

Yin et al., Superposing Many Tickets into One: A Performance Booster for Sparse Neural
Network Training, 2022, https://arxiv.org/abs/2205.15322 (which has no such experiment)

    python -m experiments.prepare_data fashion_mnist --data_dir=DATA
    python -m experiments.main --config=configs/fashion_mnist.py \
        --config.data.dir=DATA --workdir=runs/fashion_mnist

TIMES_AND_RESULTS
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """RigL at 95% sparsity on LeNet-300-100, then three cheap tickets.

    Args:
      argument: "model=lenet5,sparsity=0.9", for example; see `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "fashion_mnist"
    config.data.flip = False
    config.data.crop_padding = 2
    config.model.name = "lenet300"

    config.train.epochs = 30
    config.train.block_steps = 10
    config.train.validate_every_epochs = 2

    config.method.update_every_steps = 200
    config.method.update_end_fraction = 0.75  # [RigL]
    config.method.drop_fraction = 0.3  # [RigL]
    config.method.drop_schedule = "cosine"  # [RigL]
    config.method.prune_end_fraction = 0.5

    config.sup.cycle_epochs = 2
    config.sup.explore_fraction = 0.1
    config.sup.lr_max = 0.02
    return common.with_argument(config, argument)
