"""S6: the methods of the family on one network."""

from experiments.studies.values import Arm, Cell, Study

_DYNAMIC = {
    "RigL": "rigl",
    "SET": "set",
    "RigL-ITOP": "rigl-itop",
    "SET-ITOP": "set-itop",
    "SNFS": "snfs",
    "MEST": "mest",
    "GraNet": "granet",
    "GMP": "gmp",
    "AC/DC": "acdc",
    "static, ERK": "static",
}
_MASKS = {
    "SNIP": {"mask": "snip"},
    "GraSP": {"mask": "grasp"},
    "SynFlow": {"mask": "synflow"},
    "EOI": {"mask": "random", "mask.orthogonal": "true"},
    "lottery": {"mask": "lottery"},
}

STUDY = Study(
    title="The methods of the family",
    question="Which method trains the best network of a sparsity, and at what cost?",
    mirrors="no table of one paper; each method with its own defaults of the library",
    config="configs/small_cifar.py:sup=false",
    cells=tuple(
        Cell(f"{percent}%", {"sparsity": f"0.{percent}"}) for percent in (80, 90, 95)
    ),
    arms=(
        Arm("dense", {"method": "dense"}),
        *(Arm(title, {"method": name}) for title, name in _DYNAMIC.items()),
        *(Arm(title, fields) for title, fields in _MASKS.items()),
    ),
    versus=tuple(
        (title, "static, ERK")
        for title in (*_DYNAMIC, *_MASKS)
        if title != "static, ERK"
    ),
    seeds=(0, 1, 2),
)
