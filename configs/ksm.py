"""KSM on handwritten digits of 8 x 8 pixels: three tasks, in a minute or two.

Yang et al., KSM: Fast Multiple Task Adaption via Kernel-wise Soft Mask Learning, 2021,
https://arxiv.org/abs/2009.05668

    python -m experiments.ksm --config=configs/ksm.py --workdir=runs/ksm

The backbone is trained on the digits 0 to 3 and frozen; the tasks are 4 and 5, 6 and 7,
8 and 9. They are easy: the numbers show what the experiment does, not which method is
best. ``configs/ksm_cifar.py`` is the protocol that says something.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common

METHODS = (
    *("head", "norms", "kernel", "ksm", "element", "full", "scratch"),
    "sequential",
)


def get_config(argument: str = "") -> ConfigDict:
    """A backbone of four digits, and eight ways to learn three tasks on it.

    Args:
      argument: "ksm.epochs=5,seed=3", for example; see `common.with_argument`.
    """
    return common.with_argument(default(), argument)


def default() -> ConfigDict:
    """Every field; those that are not of ``ksm`` are of the backbone's run."""
    config: Any = common.default()
    config.data.name = "digits:0-3"
    config.data.validation_examples = 180
    config.data.batch_size = 64
    config.data.crop_padding = 1
    config.data.flip = False
    config.model.name = "conv"
    config.model.options.features = (16, 16, 32, 32)
    config.method.name = "dense"
    config.sup.enabled = False
    config.train.epochs = 12
    config.train.schedule = "cosine"
    config.train.learning_rate = 0.05
    config.train.validate_every_epochs = 4.0
    config.report.path_points = 0

    config.ksm = ConfigDict()
    ours: Any = config.ksm
    ours.data = "digits"  # data set of the tasks; shrunk and split as config.data says
    ours.tasks = ("4-5", "6-7", "8-9")  # classes of each; or "coarse", of cifar100
    ours.first_tasks = 0  # of them, to leave out the others; 0: all
    ours.methods = METHODS  # of experiments.build.ksm.METHODS
    ours.backbone = placeholder(str)  # network file; by default one is trained
    ours.epochs = 10  # of each task [release: 30]
    ours.batch_size = 32  # [release]
    ours.learning_rate = 2e-3  # of scores and norms, Adam [release: 2e-4]; cosine
    ours.head_rate = 2e-3  # likewise of the head
    ours.weights_rate = 2e-3  # likewise, of all, where the weights are trained
    ours.start = 0.01  # scores at first [release]
    ours.threshold = 0.005  # of scores that are on [release]
    ours.steepness = 1200.0  # beta [release]
    ours.temperature = 100.0  # [release]
    ours.scale = 0.5  # of the largest score that is off [release]
    return config
