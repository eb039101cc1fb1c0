r"""Sup-tickets in the paper's 250 epochs on a network that two cores train in seconds.

LeNet-300-100 on 5,000 images of Fashion-MNIST, a dozenth of them, and everything else
as in configs/small_cifar.py. Convolutions are left out to afford many seeds and all
methods. It has not converged: in twice the epochs it gains half a point and more.

    python -m experiments.prepare_data fashion_mnist --data_dir=DATA
    python -m experiments.main --workdir=runs/small_fashion --config.data.dir=DATA \
        --config=configs/small_fashion.py:method=set,sparsity=0.95

The studies of experiments/studies whose names end in "lenet" begin with it.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """RigL at 95% sparsity for 226 epochs, then three cheap tickets of 8.

    Args:
      argument: "method=set,sparsity=0.9", for example; see `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "fashion_mnist"
    config.data.training_examples = 5000
    config.data.flip = False
    config.data.crop_padding = 2
    config.data.batch_size = 100

    config.model.name = "lenet300"
    config.method.sparsity = 0.95
    config.method.update_every_steps = 100
    config.train.block_steps = 50
    config.train.validate_every_epochs = 50
    config.report.path_points = 0
    return common.with_argument(config, argument)
