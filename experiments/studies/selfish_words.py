"""Selfish-RNN and SNT-ASGD on WikiText-2 at 67% and one dropout: 1.5 core-hours.

Its data is a folder of the user's: --config.data.name=text:FOLDER.
"""

import dataclasses

from configs.selfish_rnn import DROPOUTS
from experiments.studies import selfish_rnn
from experiments.studies.values import Cell

_ARMS = tuple(
    arm
    for arm in selfish_rnn.STUDY.arms
    if not arm.name.startswith("90%")
    and "pooled" not in arm.name
    and "no averages" not in arm.name
)
_NAMES = [arm.name for arm in _ARMS]

STUDY = dataclasses.replace(
    selfish_rnn.STUDY,
    title="Selfish-RNN and SNT-ASGD on WikiText-2, in twelve epochs",
    config="configs/selfish_rnn.py:epochs=12,train.averaging_patience=3",
    cells=(
        Cell(
            "dropout 0.2",
            dict.fromkeys(map("model.options.{}".format, DROPOUTS), "0.2"),
        ),
    ),
    choice=None,
    arms=_ARMS,
    versus=tuple(p for p in selfish_rnn.STUDY.versus if {*p} <= {*_NAMES}),
    remarks=(
        "The first 150,000 words of WikiText-2, 5,000 different ones, twelve epochs "
        "instead of the thirty of `selfish_rnn`, dropout 0.2 for all, so that "
        "regularization may be part of any difference; averaging begins when a "
        "validation is no better than the best before the last three. Averaging helps "
        "the dense network, and an average that restarts is the same as a plain one "
        "here, where it begins late. A topology that changes is better than a fixed "
        "one, random growth is not told apart from growth by gradient, and 67% is "
        "10% worse than dense, not within 2%. At 90%, which is left out, four runs of "
        "fixed and of changing masks were at 237 to 239 on validation from the second "
        "epoch to the end, the perplexity of word frequencies alone."
    ),
)
