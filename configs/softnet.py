"""SoftNet on handwritten digits of 8 x 8 pixels: two sessions, in a minute or two.

Kang et al., On the Soft-Subnetwork for Few-Shot Class Incremental Learning, 2023,
https://arxiv.org/abs/2209.07529

    python -m experiments.softnet --config=configs/softnet.py --workdir=runs/softnet

Six digits at first, then two sessions of two digits with five images each, drawn three
times. The numbers are too small to say which is best: they show what the experiment
does. ``configs/softnet_cifar.py`` is the protocol that says something.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """Three base networks and four rules of sessions.

    Args:
      argument: "softnet.epochs=5,seed=3", for example; see `common.with_argument`.
    """
    return common.with_argument(default(), argument)


def default() -> ConfigDict:
    """Every field, for the digits."""
    config: Any = ConfigDict()
    config.seed = 0
    config.evaluate = "test"  # or "validation", to choose anything by looking

    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.dir = placeholder(str)  # by default $TFDS_DATA_DIR
    config.data.split_seed = 0
    config.data.validation_examples = 0  # as many of each class, held out of training
    config.data.shrink = 1  # pixels, side of the squares that are averaged into one
    config.data.batch_size = 64
    config.data.crop_padding = 1  # of the base session; few shots are shown as they are
    config.data.crop_mode = "zero"
    config.data.flip = False
    config.data.cutout = 0

    config.model = ConfigDict()
    config.model.name = "conv"
    config.model.dtype = "float32"
    config.model.options = ConfigDict()
    config.model.options.features = (16, 16, 32, 32)

    config.train = ConfigDict()  # the base session: SGD
    config.train.epochs = 15
    config.train.learning_rate = 0.05
    config.train.schedule = "cosine"  # "step" or "constant"
    config.train.drop_epochs = ()  # of "step"; by default 1/2 and 3/4
    config.train.momentum = 0.9
    config.train.nesterov = False
    config.train.weight_decay = 5e-4

    config.softnet = _softnet()

    config.checkpoint = ConfigDict()
    config.checkpoint.every_minutes = 2.0  # 0: not by the clock
    config.checkpoint.every_steps = 0  # 0: not by steps
    return config


def _softnet() -> ConfigDict:
    ours: Any = ConfigDict()
    ours.base_classes = 6  # the first ones
    ours.ways = 2  # new classes of a session
    ours.shots = 5  # examples of each
    ours.split = "drawn"  # which: "topic" (of CIFAR-100), or those in a "file"
    ours.rows = placeholder(str)  # that file: a line of positions a session
    ours.draws = 3  # of "drawn", whose results are averaged [F2M: 10]
    ours.draw_seed = 1997  # [F2M]
    ours.bases = ("dense", "hard-0.5", "soft-0.5")  # with the share of major weights
    ours.soft_epoch = 10  # after which there are masks
    ours.rules = ("frozen", "minor-block", "minor", "all")  # what sessions train
    ours.block = "^conv4/"  # expression of the leaves of "minor-block"
    ours.epochs = 6  # of a session, each one step with all its examples [paper]
    ours.learning_rate = 0.02  # of a session [paper]
    ours.metric = "cosine"  # to the means [release]; or "euclidean" [paper's text]
    return ours
