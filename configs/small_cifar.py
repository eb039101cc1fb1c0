r"""Sup-tickets where two cores can afford the paper's 250 epochs: a tenth of CIFAR-10.

5,000 training images of 16 x 16 pixels, so that a network has converged long before
phase 1 ends, which is what the gain of superposing depends on. Everything else is as in
configs/cifar10.py, but for smaller batches and crops, and for topology updates every
100 steps: 112 of them in phase 1, where there are 79.

    python -m experiments.prepare_data cifar10 --data_dir=DATA
    python -m experiments.main --workdir=runs/small_cifar --config.data.dir=DATA \
        --config=configs/small_cifar.py:method=rigl,sparsity=0.9

The studies of experiments/studies begin with it; docs/results has what they say.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """RigL at 90% sparsity on ResNet-14 for 226 epochs, then three cheap tickets of 8.

    Args:
      argument: "model=vgg16,sparsity=0.95", for example; see `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "cifar10"
    config.data.training_examples = 5000
    config.data.shrink = 2
    config.data.crop_padding = 2
    config.data.batch_size = 100

    config.model.name = "resnet20"
    config.method.sparsity = 0.9
    config.method.update_every_steps = 100
    config.train.validate_every_epochs = 50
    common.with_argument(config, argument)

    small = {
        "resnet20": {"blocks": (2, 2, 2)},  # ResNet-14
        "vgg16": {  # of half the width; 16 pixels cannot be halved five times
            "stages": ((32,) * 2, (64,) * 2, (128,) * 3, (256,) * 3, (256,) * 3),
            "hidden": (256,),
            "last_maximum": False,
        },
    }
    for name, value in small.get(config.model.name, {}).items():
        if name not in config.model.options:
            config.model.options[name] = value
    return config
