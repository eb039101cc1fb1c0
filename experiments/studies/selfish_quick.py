"""Selfish-RNN and SNT-ASGD on a text that comes with Python: two core-hours."""

import dataclasses

from experiments.studies import selfish_rnn
from experiments.studies.values import Cell

_EPOCH_STEPS = 146

STUDY = dataclasses.replace(
    selfish_rnn.STUDY,
    title="Selfish-RNN and SNT-ASGD, quick",
    config=(
        "configs/selfish_rnn.py:data=pydoc_topics,data.unit=words,data.vocabulary=2000,"
        "data.training_examples=0,data.validation_examples=10000,epochs=12,"
        f"method.update_every_steps={_EPOCH_STEPS},train.averaging_patience=2"
    ),
    cells=(Cell("LSTM 2 x 128", {}),),
)
