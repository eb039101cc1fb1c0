"""Gathers any number of finished runs into one report.

    python -m experiments.report RUN [RUN ...] --out=DIR

gathers all runs at or under the given folders into DIR: `report.md`, `results.csv`,
pictures, and `index.html`, which holds all of it in one file.
"""

from collections.abc import Sequence

from experiments.command import start
from experiments.config.flags import Parser, folder_path
from experiments.reports.runs import report


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.report", __doc__)
    parser.add_argument(
        "runs", nargs="+", type=folder_path, metavar="RUN", help="folders, looked into"
    )
    parser.add_argument(
        "--out", required=True, type=folder_path, metavar="DIR", help="for the report"
    )
    start(parser, lambda options: print(report(options.runs, options.out)), argv)


if __name__ == "__main__":
    main()
