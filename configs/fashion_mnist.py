r"""Sup-tickets on Fashion-MNIST, for a machine without an accelerator.

Yin et al., Superposing Many Tickets into One: A Performance Booster for Sparse Neural
Network Training, 2022, https://arxiv.org/abs/2205.15322 (which has no such experiment)

    python -m experiments.prepare_data fashion_mnist --data_dir=DATA
    python -m experiments.main --config=configs/fashion_mnist.py \
        --config.data.dir=DATA --workdir=runs/fashion_mnist

One run takes 35 s on two cores. Test accuracy in percent and NLL in nats, mean and
standard deviation over seeds 0 to 4 (docs/results/fashion_mnist.csv), by

    python -m experiments.sweep --config=configs/fashion_mnist.py --out=OUT \
        --grid 'method=rigl,set sup=true,false seed=0..4'

    network                    rigl                    set
    phase 1                    86.94 (0.17), 0.3605    87.06 (0.09), 0.3574
    mean of the tickets        87.05 (0.15), 0.3579    87.10 (0.19), 0.3551
    superposed ticket          87.16 (0.12), 0.3559    87.17 (0.21), 0.3536
    alone, for the same budget 87.15 (0.23), 0.3551    87.38 (0.18), 0.3503

So superposing improves on the tickets, and not on spending the whole budget on one
network: +0.01 (0.27) points for RigL and -0.21 (0.09, p = 0.008 in a paired t-test) for
SET. 24 of 30 epochs are few for phase 1, and the tickets come out of its shortening.

The cycle was chosen on the validation split, 2 seeds of RigL: lr_max 0.005, 0.02, 0.05
gave the superposed ticket 87.36, 87.58, 87.42 with explore_fraction 0.1, and 87.03,
87.13, 87.24 with 0.5.
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

    config.sup.cycle_epochs = 2
    config.sup.explore_fraction = 0.1
    config.sup.lr_max = 0.02
    return common.with_argument(config, argument)
