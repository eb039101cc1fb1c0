"""Runs an experiment.

python -m experiments.main --config=configs/digits.py --workdir=/tmp/digits

This file is kept short; see `run.py` for what happens.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.config.reading import parse
from experiments.run import run
from experiments.runs.stopping import Stopped

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The file of the configuration, FILE.py or FILE.py:name=value,name=value.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for everything written.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Whether this is one of several processes, as on a TPU pod, each started alike.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Where no cluster says so: ADDRESS:PORT of the first process."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Likewise: how many there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Likewise: which one this is, from 0.")


def main(argv: list[str]) -> None:
    """Runs the experiment of the flags; errors of the user's end in one line."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        if _DISTRIBUTED.value:
            jax.distributed.initialize(
                _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
            )
        run(_CONFIG.value, str(_WORKDIR.value))
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
