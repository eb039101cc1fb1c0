"""Sup-tickets on language models, an LSTM and a Transformer, which the paper lacks."""

from experiments.studies.values import Arm, Cell, Study

STUDY = Study(
    title="Sup-tickets on language models",
    question=(
        "Is the superposed ticket of a language model better than its tickets, and "
        "than the base method trained for the same 12 epochs, with a cosine of its own "
        "over all of them?"
    ),
    mirrors="no table: the paper trains image classifiers only",
    config="configs/text.py",
    cells=tuple(
        Cell(f"{title}, RigL {percent}%", {"model": name, "sparsity": f"0.{percent}"})
        for percent in (80,)
        for name, title in (("lstm", "LSTM"), ("transformer", "Transformer"))
    ),
    arms=(
        Arm("phase 1", {"sup": "false", "epochs": "9"}),
        Arm("base", {"sup": "false"}),
        Arm("Sup-tickets", {}),
        Arm("one cycle of 3", {"sup.cycles": "1", "sup.cycle_epochs": "3"}),
    ),
    score="perplexity",
    versus=(
        ("Sup-tickets", "base"),
        ("Sup-tickets", "one cycle of 3"),
        ("Sup-tickets", "phase 1"),
    ),
    seeds=(0, 1, 2),
    remarks=(
        "Twelve epochs of 102,000 words are far from converged (perplexity falls to "
        "the end), which is where a quarter of the budget is best spent on training. "
        "The superposed ticket is a little "
        "better than the mean of its tickets in both cells, and not better than the "
        "best one."
    ),
)
