"""Selfish-RNN on a slice of WikiText-2: a reduced protocol, not the paper's.

Liu et al., Selfish Sparse RNN Training, 2021, https://arxiv.org/abs/2101.09048

    python -m experiments.main --config=configs/selfish_rnn.py:data=text:FOLDER \
        --workdir=runs/selfish

FOLDER has train, valid and test .txt of WikiText-2, or the same with .xz. Its first
150,000 words are trained on, 5,000 of them different, by an LSTM of 2 x 128. What is
compared is in `ARMS`, each an argument of this configuration; for every arm take the
best of the three `DROPOUTS` at 0.2, 0.4 and 0.6 by validation, or "sparse beats dense"
is only regularisation.

Two small things differ from the release: the drop fraction falls to 0, there to 0.005;
and the topology is updated in the epoch in which averaging begins, too.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

ARMS = {
    "dense SGD": "method=dense,train.averaging=none",
    "dense NT-ASGD": "method=dense",
    "static, SNT-ASGD": "method=static",
    "Selfish, equal shares, SNT-ASGD": "",
    "Selfish, pooled, SNT-ASGD": "method.options.gate_growth=pooled",
    "Selfish, plain averages": "train.averaging=plain",
    "Selfish, no averages": "train.averaging=none",
    "growth by gradient, SNT-ASGD": "method=rigl-itop",
}
"""What is compared, at sparsities of 0.67 and 0.9."""

DROPOUTS = ("dropout", "dropout_input", "dropout_between")


def get_config(argument: str = "") -> ConfigDict:
    """Selfish-RNN at 67% sparsity with SNT-ASGD, 30 epochs, no cheap tickets.

    Args:
      argument: of `ARMS`, and more; see `common.with_argument`.
    """
    config: Any = common.default()
    config.data.name = "text:wikitext2"
    config.data.unit = "spaced"
    config.data.vocabulary = 5000
    config.data.training_examples = 150000
    config.data.validation_examples = 30000
    config.data.batch_size = 20
    config.model.name = "lstm"
    config.model.options.embedding = 128
    config.model.options.features = (128, 128)
    for name in DROPOUTS:
        config.model.options[name] = 0.4

    config.method.name = "selfish-rnn"
    config.method.sparsity = 0.67
    config.method.distribution = "uniform"
    config.method.update_every_steps = 214  # an epoch
    config.method.drop_schedule = "cosine"

    config.train.epochs = 30
    config.train.learning_rate = 20.0
    config.train.schedule = "constant"
    config.train.momentum = 0.0
    config.train.weight_decay = 1.2e-6
    config.train.clip_norm = 0.25
    config.train.averaging = "restart"
    config.train.validate_every_epochs = 0.5
    config.sup.enabled = False
    common.with_argument(config, argument)
    if config.method.name == "dense":
        config.method.distribution = "erk"  # of no use to it
    return config
