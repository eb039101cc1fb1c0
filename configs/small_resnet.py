r"""ToST on a residual network that trains in half a minute on one core.

Jaiswal et al., Training Your Sparse Neural Network Better with Any Mask, 2022,
https://arxiv.org/abs/2206.12755 (which has no such experiment)

    python -m experiments.prepare_data fashion_mnist --data_dir=DATA
    python -m experiments.main --workdir=runs/small_resnet --config.data.dir=DATA \
        --config=configs/small_resnet.py:mask=snip,sparsity=0.95,tost=true

docs/results/tost_resnet.md compares masks and ways to train them.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """ResNet-8 on 10,000 images of Fashion-MNIST, shrunk to 14 x 14 pixels.

    Args:
      argument: "mask=synflow,tost=soft+labels", for example; see
        `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "fashion_mnist"
    config.data.flip = False
    config.data.crop_padding = 0
    config.data.training_examples = 10000
    config.data.shrink = 2
    config.data.batch_size = 64

    config.model.name = "resnet20"
    config.model.options.blocks = (1, 1, 1)  # ResNet-8

    config.train.epochs = 8
    config.train.validate_every_epochs = 2
    config.method.update_every_steps = 100
    config.method.drop_fraction = 0.3
    config.method.drop_schedule = "cosine"

    config.sup.cycle_epochs = 1
    return common.with_argument(config, argument)
