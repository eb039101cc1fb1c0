r"""Runs an experiment, or goes on with one; at the end there is a report.

    python -m experiments.main --config=configs/digits.py --workdir=runs/digits
    python -m experiments.main --config=configs/digits.py:method=set,sparsity=0.9 \
        --config.train.epochs=30 --workdir=runs/set

What stands after the colon, and --config.FIELD=VALUE, change the configuration; every
field has a comment in configs/common.py, and docs/experiments.md says what a run leaves
in its folder.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence

# Read when JAX is imported, which sets it to 1, for processes that it starts too. Of a
# lost process we say ourselves, in one line.
if (
    any(word.lstrip("-").startswith("distributed") for word in sys.argv[1:])
    and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1"
):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax

from experiments.command import check_devices, start
from experiments.config.fields import check_config
from experiments.config.flags import Parser
from experiments.run import run
from experiments.runs.lost import filter_errors


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("experiments.main", __doc__)
    parser.add_config()
    parser.add_workdir()
    parser.add_switch("--distributed", "one of several processes, each started alike")
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of the first process, where no cluster says so",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="likewise, how many")
    parser.add_argument(
        "--process", type=int, metavar="I", help="likewise, which one, from 0"
    )
    start(parser, _main, argv)


def _main(options: argparse.Namespace) -> None:
    config = options.config.make()
    check_config(config)
    _join(options)
    check_devices()
    if options.distributed:
        filter_errors(options.workdir)
    run(config, options.workdir)


def _join(options: argparse.Namespace) -> None:
    """Joins the other processes, if there are any."""
    address, count, index = options.coordinator, options.processes, options.process
    _check_processes(options.distributed, address, count, index)
    if not options.distributed:
        return
    try:
        jax.distributed.initialize(address, count, index, _local_devices(os.environ))
    except RuntimeError as error:
        raise ValueError(f"--distributed: {error}") from None


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this process under SLURM, or ``None`` where JAX knows them.

    JAX gives the n-th task of a node the n-th GPU that it sees. But a task may see its
    own GPU alone, as of --gpus-per-task=1, or be the only one of its node.
    """
    seen, tasks = (
        environment.get(name, "")
        for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_TASKS_PER_NODE")
    )
    if not seen or not tasks or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    number = len(seen.split(","))
    alone = re.fullmatch(r"1(\(x\d+\))?", tasks)  # "8(x4)": 8 on each of 4 nodes
    return list(range(number)) if alone or number == 1 else None


def _check_processes(
    distributed: bool, address: str | None, count: int | None, index: int | None
) -> None:
    if not distributed and (address, count, index) != (None, None, None):
        raise ValueError("--coordinator, --processes and --process need --distributed")
    port = re.fullmatch(r"[^\s:/]+:(\d+)|\[[\da-fA-F:]+\]:(\d+)", address or "")
    if address is not None and not (port and 0 < int(port[1] or port[2]) < 2**16):
        raise ValueError(f"--coordinator must be HOST:PORT, got {address!r}")
    if count is not None and count < 1:
        raise ValueError(f"--processes must be at least 1, got {count}")
    if index is not None and not 0 <= index < (count or index + 1):
        raise ValueError(f"--process must be from 0 and below {count}, got {index}")


if __name__ == "__main__":
    main()
