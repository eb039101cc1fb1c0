"""Selfish-RNN and SNT-ASGD on WikiText-2: the reduced protocol in full, for a GPU.

Its data is a folder of the user's: --config.data.name=text:FOLDER.
"""

from configs.selfish_rnn import ARMS
from experiments.studies.values import Arm, Cell, Study

DENSE = ("dense SGD", "dense NT-ASGD")


def fields(text: str) -> dict[str, str]:
    """An argument of a configuration, "name=value,...", by names."""
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


def arms(*percents: int) -> tuple[Arm, ...]:
    """The dense ones, then those of each sparsity."""
    return (
        *(Arm(name, fields(ARMS[name])) for name in DENSE),
        *(
            Arm(f"{percent}% {name}", fields(text) | {"sparsity": f"0.{percent}"})
            for percent in percents
            for name, text in ARMS.items()
            if name not in DENSE
        ),
    )


def versus(*percents: int) -> tuple[tuple[str, str], ...]:
    """What the five expected signs are about."""
    ours = "Selfish, equal shares, SNT-ASGD"
    others = (name for name in ARMS if name not in (*DENSE, ours))
    return (
        ("dense NT-ASGD", "dense SGD"),
        *((f"{p}% {ours}", f"{p}% {other}") for other in others for p in percents),
        *((f"{p}% {ours}", "dense NT-ASGD") for p in percents),
    )


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
    arms=arms(90, 67),
    versus=versus(90, 67),
    score="perplexity",
    seeds=(0, 1, 2),
)
