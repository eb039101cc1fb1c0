r"""STAMP, a reconstruction, from half of CIFAR-100 to three targets, at 16 x 16 pixels.

A reduced protocol of our own: no number is comparable with the paper's.

    python -m experiments.stamp --config=configs/stamp_cifar.py --seeds=0,1,2,3,4 \
        --workdir=runs/stamp_cifar --config.data.dir=DATA

The reference is CIFAR-100's classes 0 to 49; the targets are CIFAR-10, the other half
of CIFAR-100, and Fashion-MNIST in colour, 10,000 images of each. See configs/stamp.py.

27 CPU-minutes a seed, by rates measured on a loaded CPU (2,200 images a CPU-second of
the whole network in training, 3,200 of the small ones, 0.16 CPU-seconds an episode): 6
for the reference, 1 for the episodes, 6 for the arms of each target, 2 to compile; five
seeds 2.3 CPU-hours. What three say is in docs/results/stamp_cifar.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, stamp


def get_config(argument: str = "") -> ConfigDict:
    """A VGG-like network of 16-16-32-32-64-64 features at 0.3 of its operations.

    Args:
      argument: see `common.with_argument`.
    """
    config: Any = stamp.default()
    config.data.validation_examples = 5000
    config.data.training_examples = 10000
    config.data.shrink = 2
    config.data.crop_padding = 2
    config.data.flip = True

    config.model.name = "vgg16"
    config.model.options = ConfigDict()
    config.model.options.stages = ((16, 16), (32, 32), (64, 64))
    config.model.options.hidden = ()
    config.model.options.last_maximum = False

    config.stamp.reference = "cifar100:0-49"
    config.stamp.targets = ("cifar10", "cifar100:50-99", "fashion_mnist")
    config.stamp.pretrain_epochs = 30
    config.stamp.episodes = 400
    config.stamp.episode_classes = 10
    config.stamp.set_size = 100
    config.stamp.finetune_epochs = 10
    config.stamp.report_epochs = (1, 3, 10)
    return common.with_argument(config, argument)
