"""STAMP, a reconstruction, on handwritten digits of 8 x 8 pixels: about a minute.

Song et al., STAMP: Set-based Task-Adaptive Meta-Pruning, 2020,
https://arxiv.org/abs/2006.12139: of which the abstract alone was at hand, so that what
is here is ours, see `sup_tickets.stamp`.

    python -m experiments.stamp --config=configs/stamp.py --workdir=runs/stamp

A generator of channel gates is meta-learned on the digits 0 to 4; the targets, 5 to 7
and 7 to 9, each get a network of three tenths of the operations: 72 CPU-seconds, most
of them to compile. 108 test images a target are too few to say which way is best; they
show what the experiment does.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common

ARMS = (
    *("generator", "wrong set", "untrained", "random", "l1", "free", "dense-prune"),
    "small",
)


def get_config(argument: str = "") -> ConfigDict:
    """Eight ways to get a small network for a target, at equal operations.

    Args:
      argument: "stamp.episodes=50,seed=3", for example; see `common.with_argument`.
    """
    return common.with_argument(default(), argument)


def default() -> ConfigDict:
    """Every field, for the digits."""
    config: Any = ConfigDict()
    config.seed = 0
    config.evaluate = "test"  # or "validation", to choose anything by looking

    config.data = ConfigDict()
    config.data.dir = placeholder(str)  # by default $TFDS_DATA_DIR
    config.data.split_seed = 0
    config.data.validation_examples = 180
    config.data.training_examples = 0  # of a target; 0: all
    config.data.shrink = 1  # pixels, side of the squares that are averaged into one
    config.data.batch_size = 64
    config.data.crop_padding = 1  # largest random shift of an image
    config.data.flip = False

    config.model = ConfigDict()
    config.model.name = "conv"
    config.model.dtype = "float32"
    config.model.options = ConfigDict()
    config.model.options.features = (16, 16, 32, 32)

    config.train = ConfigDict()  # of the reference network
    config.train.learning_rate = 0.1  # falls along a cosine
    config.train.momentum = 0.9  # of all training but within episodes
    config.train.weight_decay = 5e-4  # likewise

    config.stamp = _stamp()

    config.checkpoint = ConfigDict()
    config.checkpoint.every_minutes = 2.0  # 0: not by the clock
    config.checkpoint.every_steps = 0  # steps or episodes; 0: not by them
    return config


def _stamp() -> ConfigDict:
    stamp: Any = ConfigDict()
    stamp.reference = "digits:0-4"  # data set, and its first and last class
    stamp.targets = ("digits:5-7", "digits:7-9")
    stamp.pretrain_epochs = 8
    stamp.episodes = 60
    stamp.episode_classes = 3
    stamp.set_size = 50  # images that gates are made from
    stamp.inner_steps = 5  # of an episode
    stamp.inner_rate = 1e-3  # of the weights, within an episode
    stamp.gate_rate = 0.01  # of the generator, within an episode; and of free gates
    stamp.meta_rate = 0.5  # share of the way to what an episode led to
    stamp.adapt_steps = 5  # of the generator on a target, before it gives its gates
    stamp.hidden = 32  # units of the generator
    stamp.gate = "concrete"  # or "kumaraswamy"
    stamp.temperature = 0.5  # of the gates that are drawn
    stamp.flops_ratio = 0.3  # of a forward pass, to the whole network's
    stamp.flops_weight = 5.0  # of |share - ratio| in the loss
    stamp.kl_weight = 0.0  # of the gates' divergence from their prior
    stamp.kl_prior = 0.3  # probability of an open gate; of "kumaraswamy" alpha, 1e-4
    stamp.arms = ARMS  # what is compared, see experiments.build.stamp
    stamp.free_epochs = 1  # in which "free" trains its gates
    stamp.dense_epochs = 3  # in which "dense-prune" trains the whole network
    stamp.finetune_epochs = 6  # of the small networks
    stamp.finetune_rate = 0.02  # constant
    stamp.report_epochs = (1, 3, 6)  # after which the table has the accuracy
    return stamp
