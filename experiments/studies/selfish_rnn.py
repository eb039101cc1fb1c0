"""Selfish-RNN and SNT-ASGD on WikiText-2: the reduced protocol in full, for a GPU.

Its data is a folder of the user's: --config.data.name=text:FOLDER.
"""

from configs.selfish_rnn import ARMS
from experiments.studies.values import Arm, Cell, Study

DENSE = ("dense SGD", "dense NT-ASGD")


def fields(text: str) -> dict[str, str]:
    """An argument of a configuration, "name=value,...", by names."""
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


_OURS = "Selfish, equal shares, SNT-ASGD"
_PERCENTS = (90, 67)


STUDY = Study(
    title="Selfish-RNN and SNT-ASGD, in full",
    question=(
        "Does averaging help, does an average that restarts where a weight grows "
        "anew help more, is a topology that changes better than one that does not, is "
        "random growth as good as growth by gradient, and what does sparsity cost?"
    ),
    mirrors="tables 1, 2 and 4 of Selfish Sparse RNN Training, at a reduced scale",
    config="configs/selfish_rnn.py",
    cells=tuple(
        Cell(
            f"dropout {rate}",
            {
                f"model.options.{name}": rate
                for name in ("dropout", "dropout_input", "dropout_between")
            },
        )
        for rate in ("0.4", "0.2", "0.6")
    ),
    choice="dropout",
    arms=(
        *(Arm(name, fields(ARMS[name])) for name in DENSE),
        *(
            Arm(f"{percent}% {name}", fields(text) | {"sparsity": f"0.{percent}"})
            for percent in _PERCENTS
            for name, text in ARMS.items()
            if name not in DENSE
        ),
    ),
    versus=(
        ("dense NT-ASGD", "dense SGD"),
        *(
            (f"{percent}% {_OURS}", f"{percent}% {other}")
            for other in ARMS
            if other not in (*DENSE, _OURS)
            for percent in _PERCENTS
        ),
        *((f"{percent}% {_OURS}", "dense NT-ASGD") for percent in _PERCENTS),
    ),
    score="perplexity",
    seeds=(0, 1, 2),
)
