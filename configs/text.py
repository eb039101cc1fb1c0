"""Sup-tickets on the words of a text, in about two minutes on one core.

    python -m experiments.main --config=configs/text.py --workdir=runs/text

The text is that of Python's language reference, which comes with Python
(`pydoc_data.topics`, 460 kB); of another Python it is another text. Others:

    :data=text:book.txt                     a file of yours, plain or .xz
    :data=text:wikitext2,data.unit=spaced   a folder with train, valid and test .txt
    :data.unit=characters                   characters, not words
    :model=transformer                      a decoder-only Transformer
    :method=selfish-rnn                     Selfish-RNN, its gates grown alike
    :train.averaging=restart                SNT-ASGD, whose start validation decides

An example is a word, and a batch has ``data.sequence`` words of each of its rows.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str = "") -> ConfigDict:
    """RigL at 67% sparsity for 3/4 of the budget, then three cheap tickets.

    Args:
      argument: "method=static,sparsity=0.9", for example; see `common.with_argument`.
    """
    config: Any = common.with_argument(_lstm(), argument)
    if config.model.name == "transformer":
        config = common.with_argument(_transformer(), argument)
    return config


def _small() -> Any:
    """What differs from the defaults, whatever the model."""
    config: Any = common.default()
    config.data.name = "pydoc_topics"
    config.data.vocabulary = 2000
    config.data.validation_examples = 10000
    config.data.batch_size = 20

    config.method.sparsity = 0.67
    config.method.update_every_steps = 60
    config.method.update_end_fraction = 0.75
    config.method.drop_schedule = "cosine"

    config.train.epochs = 12
    config.train.schedule = "cosine"
    config.train.validate_every_epochs = 1
    config.sup.cycle_epochs = 1
    config.sup.explore_fraction = 0.1
    return config


def _lstm() -> Any:
    config = _small()
    config.model.name = "lstm"  # or "onlstm" or "rhn"
    config.model.options.embedding = 128
    config.model.options.features = (128, 128)
    config.model.options.dropout = 0.3
    config.model.options.dropout_input = 0.3
    config.model.options.dropout_between = 0.3
    config.train.learning_rate = 20.0
    config.train.momentum = 0.0
    config.train.weight_decay = 1.2e-6
    config.train.clip_norm = 0.25
    config.sup.lr_min = 0.5
    config.sup.lr_max = 5.0
    return config


def _transformer() -> Any:
    config = _small()
    config.model.name = "transformer"
    config.model.options.dropout = 0.1
    config.train.optimizer = "adamw"
    config.train.learning_rate = 0.003
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1.0
    config.sup.lr_min = 0.0001
    config.sup.lr_max = 0.001
    return config
