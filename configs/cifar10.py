r"""Sup-tickets on CIFAR-10, as in the paper.

Yin et al., Superposing Many Tickets into One: A Performance Booster for Sparse Neural
Network Training, 2022, https://arxiv.org/abs/2205.15322, section 4 and tables 1 and 2

    python -m experiments.prepare_data cifar10 --data_dir=DATA
    python -m experiments.main --config=configs/cifar10.py:model=vgg16,method=rigl \
        --config.data.dir=DATA --workdir=runs/cifar10

Test accuracy in percent that the paper reports for VGG-16 at 95% sparsity (three seeds,
trained on all 50,000 images: --config.data.validation_examples=0):

    base method      SET            RigL           GraNet
    alone            92.96 (0.18)   92.70 (0.16)   93.87 (0.19)
    + Sup-tickets    93.22 (0.09)   93.20 (0.13)   94.10 (0.06)
    dense            93.91 (0.26)

These 250 epochs are for an accelerator: an H100 did 650 steps of VGG-16 a second, in
bfloat16, two runs together; two cores of a CPU take an hour for an epoch. Our results
so far are in docs/evidence.md. For short runs take RigL's own schedule of
drops: half of each layer replaced every 100 steps to the end of a short phase 1 ruins a
small network. This was run, 36 min on two busy cores (one seed):

    python -m experiments.main --workdir=runs/small --config.data.dir=DATA \
        --config=configs/cifar10.py:model=conv,sparsity=0.8,epochs=14,cycle_epochs=1 \
        --config.train.learning_rate=0.05 --config.method.update_every_steps=100 \
        --config.method.drop_schedule=cosine --config.method.drop_fraction=0.3 \
        --config.method.update_end_fraction=0.75 --config.sup.explore_fraction=0.1

and gave 56.87 after phase 1, 57.46 in the mean of the tickets, 57.64 superposed. At 95%
sparsity, rate 0.02 and explore_fraction=0.5, in 10 epochs, exploring cost more than a
cycle of one epoch mends: 50.45 after phase 1, 45.13 in the mean, 41.95 superposed.

ToST (arXiv 2206.12755, table 2; ResNet-32 of double width, C10 98%: SNIP 87.78, with
ToST 88.12; not run by us):

    python -m experiments.main --workdir=runs/snip --config.data.dir=DATA \
        --config=configs/cifar10.py:model=resnet32x2,mask=snip,sparsity=0.98,tost=true
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """RigL at 95% sparsity on VGG-16 for 226 epochs, then three cheap tickets of 8.

    Args:
      argument: "model=resnet50,method=granet,sparsity=0.9,sup=false", for example; see
        `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "cifar10"
    return common.with_argument(config, argument)
