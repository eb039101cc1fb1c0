"""The page of `experiments.benchmarks.rates`."""

from typing import NamedTuple

from experiments.benchmarks.table import machine, markdown, wrapped

BACK = 3  # a backward pass costs twice the forward pass


class Ceilings(NamedTuple):
    """What the device did in this run; per second."""

    size: int  # rows and columns of the matrices
    flops: float  # of a product of two
    nbytes: float  # read and written by ``x + c``


class Rate(NamedTuple):
    """Training steps of a network; of each kind, "dense" and "sparse"."""

    model: str
    batch_size: int
    forward: int  # operations of a forward pass of one image, dense
    steps_ms: dict[str, float]
    temporary: dict[str, int]  # bytes beyond arguments and results, of a block

    def images(self, kind: str) -> float:
        """Images per second."""
        return 1e3 * self.batch_size / self.steps_ms[kind]

    def flops(self, kind: str) -> float:
        """Model operations per second: those of the dense network, and no others."""
        return self.images(kind) * BACK * self.forward


class Change(NamedTuple):
    """What happens between training steps, alone."""

    model: str
    what: str
    weights: int  # elements of all parameters
    ms: float
    passes: float  # times of ``x + c`` over the parameters
    nbytes: int  # that have to be read and written once


class Found(NamedTuple):
    """All that was measured so far."""

    ceilings: Ceilings
    rates: list[Rate]
    changes: list[Change]
    failed: dict[str, str]  # why, by what


_ABOUT = """`{}`: RigL at 95% (ERK) and the dense network, SGD with momentum, {} compute
and float32 parameters, random images that live on the device and are augmented within
the step, {} steps a call. Medians of wall time of one device, the programs in turns."""
_STEPS = """Operations are those of the dense network for both, three times the
multiplications and additions of a forward pass (no norms, activations, masks or
optimizer): zeros are computed with. Shares are of the matrix rate above."""
_CHANGES = """A rewire drops, grows and resets the optimizer's slots of every leaf,
given the gradients; then a ticket is superposed and the average pruned. A pass is
`x + c` over the parameters, in turns with them. GB are those of all arguments read once
and of all that changes written once; the share is the time that the bandwidth above
would take for them, over the time taken."""


def page(command: str, dtype: str, block_steps: int, found: Found) -> str:
    """The tables as Markdown."""
    parts = [
        "# Rates of training, against the matrix rate and the bandwidth",
        wrapped(_ABOUT.format(command, dtype, block_steps)),
        "\n".join(f"- {line}" for line in (*machine(), *_ceilings(found, dtype))),
        _rates(found),
        wrapped(_STEPS),
        _changes(found),
        wrapped(_CHANGES),
        "\n".join(f"- Left out: {what}: {why}" for what, why in found.failed.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _ceilings(found: Found, dtype: str) -> tuple[str, str]:
    size, flops, nbytes = found.ceilings
    return (
        f"matrix rate: {flops / 1e12:.4g} TFLOP/s, of a product {size} x {size} x "
        f"{size} in {dtype}",
        f"memory bandwidth: {nbytes / 1e9:.4g} GB/s, read and written by `x + c`",
    )


def _rates(found: Found) -> str:
    head = (
        *("model", "batch", "images/s dense", "sparse", "sparse / dense"),
        *("GFLOP an image", "TFLOP/s dense", "sparse", "share dense", "sparse"),
        *("temporary GB dense", "sparse"),
    )

    def cells(rate: Rate) -> tuple[str, ...]:
        images = [rate.images(kind) for kind in ("dense", "sparse")]
        flops = [rate.flops(kind) for kind in ("dense", "sparse")]
        return (
            *(rate.model, str(rate.batch_size)),
            *(f"{each:.5g}" for each in images),
            f"{images[1] / images[0]:.3f}",
            f"{BACK * rate.forward / 1e9:.4g}",
            *(f"{each / 1e12:.4g}" for each in flops),
            *(f"{each / found.ceilings.flops:.1%}" for each in flops),
            *(f"{rate.temporary[kind] / 1e9:.3g}" for kind in ("dense", "sparse")),
        )

    return markdown(head, map(cells, found.rates))


def _changes(found: Found) -> str:
    head = ("model", "what", "weights", "ms", "passes", "GB", "share of bandwidth")

    def cells(change: Change) -> tuple[str, ...]:
        share = change.nbytes / found.ceilings.nbytes / (change.ms / 1e3)
        return (
            *(change.model, change.what, f"{change.weights:,}"),
            *(f"{change.ms:.4g}", f"{change.passes:.3g}"),
            *(f"{change.nbytes / 1e9:.3g}", f"{share:.1%}"),
        )

    return markdown(head, map(cells, found.changes))
