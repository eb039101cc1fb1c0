r"""SoftNet on TOPIC's split of CIFAR-100, at 16 x 16 pixels: a reduced protocol.

Kang et al., On the Soft-Subnetwork for Few-Shot Class Incremental Learning, 2023,
https://arxiv.org/abs/2209.07529, table 2: there ResNet-18 at 32 x 32, and 240 epochs;
the numbers are not comparable.

    python -m experiments.prepare_data cifar100 --data_dir=DATA
    python -m experiments.softnet --workdir=runs/softnet_cifar --seeds=0,1,2 \
        --config=configs/softnet_cifar.py --config.data.dir=DATA

ResNet-14 of width 16 learns 60 classes in 25 epochs, the last five with masks, then
eight sessions bring five classes of five images each. A base network would take 17
minutes of processor time; the 20 epochs before the masks are shared by all five, so
that a seed takes 30 minutes for them and some ten for the sessions.
``softnet.soft_epoch=0`` has masks from the beginning, and takes 85. F2M's protocol is
``softnet.split=drawn,softnet.draws=10``; its draws are ours. Choose anything by
``evaluate=validation,data.validation_examples=5000``, 50 of each class.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, softnet


def get_config(argument: str = "") -> ConfigDict:
    """Five base networks and four rules of sessions.

    Args:
      argument: as of `configs.softnet`.
    """
    config: Any = softnet.default()
    config.data.name = "cifar100"
    config.data.shrink = 2
    config.data.batch_size = 256
    config.data.crop_padding = 2
    config.data.flip = True
    config.model.name = "resnet20"
    config.model.options = ConfigDict({"blocks": (2, 2, 2)})  # ResNet-14
    config.train.epochs = 25
    config.train.learning_rate = 0.1

    config.softnet.base_classes = 60
    config.softnet.ways = 5
    config.softnet.split = "topic"
    config.softnet.draws = 1
    config.softnet.bases = ("dense", "hard-0.5", "soft-0.5", "hard-0.8", "soft-0.8")
    config.softnet.soft_epoch = 20
    config.softnet.block = "^stage3/"
    return common.with_argument(config, argument)
