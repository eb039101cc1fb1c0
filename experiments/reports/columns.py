"""What the tables of reports show: a new column goes here, and nowhere else.

A score of a network is one line of `SCORES`: it is then in the table of a run, in the
tables of many runs and in their CSV file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite, isnan
from typing import Any, NamedTuple

from experiments.runs.stored import StoredRun
from sup_tickets.checks import check_one_of


class Column(NamedTuple):
    """A number, by its name in ``results.json``."""

    name: str
    title: str
    form: str  # as of `format`
    scale: float = 1
    unit: str = ""
    less_is_better: bool = False

    @property
    def heading(self) -> str:
        """The title with the unit, "accuracy, %"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def shown(self, value: Any) -> str:
        """A number with its unit, "97.87%"; "-" of what is no number."""
        return shown(value, self.form, self.scale, self.unit)


class Cost(NamedTuple):
    """What sparsity saves: two numbers of "cost" in ``results.json``."""

    dense: str
    sparse: str
    title: str  # of the numbers of a run
    share: str  # of sparse / dense, over many runs
    form: str
    scale: float = 1
    in_csv: bool = False


SCORES = (
    Column("perplexity", "perplexity", ".2f", less_is_better=True),  # of texts alone
    Column("accuracy", "accuracy", ".2f", 100, "%"),
    Column("nll", "NLL", ".4f", less_is_better=True),
    Column("ece", "ECE", ".4f", less_is_better=True),
    Column("brier", "Brier", ".4f", less_is_better=True),
)
COMPARED = SCORES[1:3]
"""Scores that have pictures, and tests of the method alone against Sup-tickets."""

DIVERSITY = (
    Column("disagreement", "different answers", ".2f", 100, "%"),
    Column("kl", "KL", ".4f", 1, "nats"),
    Column("overlap", "overlap of masks", ".1f", 100, "%"),
    Column("barrier", "largest barrier", ".4f", 1, "nats"),
)
COSTS = (
    Cost("parameters", "active_parameters", "parameters", "parameters", ",.0f"),
    Cost("bytes_dense", "bytes_sparse", "file, MB", "file", ".3f", 1e-6),
    Cost(
        *("dense_inference_flops", "inference_flops"),
        *("FLOPs of an example, forward", "FLOPs, inference", ".3g"),
        in_csv=True,
    ),
    Cost(
        *("dense_training_flops", "training_flops"),
        *("FLOPs of the training", "FLOPs, training", ".3g"),
        in_csv=True,
    ),
)

# Of the CSV file: what all networks of a run share, then what each has.
RUN_FIELDS: dict[str, Callable[[StoredRun], Any]] = {
    "run": lambda run: run.path,
    "data": lambda run: run.config.get("data.name"),
    "model": lambda run: run.config.get("model.name"),
    "method": lambda run: run.config.get("method.name"),
    "sparsity": lambda run: run.config.get("method.sparsity"),
    "sup": lambda run: run.superposes,
    "seed": lambda run: run.seed,
    "evaluated_on": lambda run: run.results.get("evaluated_on"),
}
CSV = (
    *RUN_FIELDS,
    "network",
    *(score.name for score in SCORES),
    *("examples", "active", "total"),
    *(name for cost in COSTS if cost.in_csv for name in (cost.sparse, cost.dense)),
)


def score(name: str) -> Column:
    """The score of a name.

    Raises:
      ValueError: if there is none.
    """
    check_one_of("score", name, tuple(column.name for column in SCORES))
    return next(column for column in SCORES if column.name == name)


def scores_in(rows: Iterable[Mapping[str, Any]]) -> Sequence[Column]:
    """`SCORES`, without the perplexity if no network has one."""
    texts = any(is_number(row.get(SCORES[0].name)) for row in rows)
    return SCORES if texts else SCORES[1:]


def score_titles(split: str, scores: Sequence[Column]) -> list[str]:
    """Scores of networks on a split, for the head of a table."""
    first, *more = (score.title for score in scores)
    return [f"{split} {first}", *more]


def score_cells(row: Mapping[str, Any], scores: Sequence[Column]) -> list[str]:
    """The scores of a network as texts."""
    return [score.shown(row.get(score.name)) for score in scores]


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, (int, float)) and isfinite(value)


def shown(value: Any, form: str, scale: float = 1, unit: str = "") -> str:
    """A number as text; "-" of what is none.

    Args:
      value: of JSON.
      form: as of `format`.
      scale: by which the number is multiplied.
      unit: that follows it.
    """
    return f"{scale * value:{form}}{unit}" if is_number(value) else "-"


def shown_spread(spread: Any, column: Column, sign: str = "") -> str:
    """A mean and its deviation, "97.87 ± 0.70"; "-" if there is none.

    Args:
      spread: "mean" and "std" of numbers.
      column: of which they are.
      sign: "+" for differences.
    """
    if isnan(spread["mean"]):
        return "-"
    mean = f"{column.scale * spread['mean']:{sign}{column.form}}"
    if isnan(spread["std"]):
        return mean
    return f"{mean} ± {column.scale * spread['std']:{column.form}}"
