"""Networks of one seed of a STAMP experiment: made, sliced, trained.

Whatever is random depends on the seed, a name and an index alone, so that every phase
can be gone on with from any of its steps.
"""

import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from experiments.build.domains import Domain
from experiments.build.stamp import Setup
from experiments.config.fields import Config
from experiments.runs.phases import Notes, Phases
from experiments.systems.stamp.programs import Programs
from experiments.systems.training import rows_by_step
from sup_tickets.channels import channel_flops, slice_channels
from sup_tickets.data.resident import steps_per_epoch
from sup_tickets.stamp import keep_within, minimal_flops
from sup_tickets.stamp.training import Trained, accuracy, first_trained
from sup_tickets.training.libraries.linen_channels import PARAMS, STATE, whole_tree
from sup_tickets.trees import map_named

Kept = Mapping[str, np.ndarray]
"""[C] booleans by group."""

_TRIES = 4
_BACK = 3  # operations of a training step to those of a forward pass


class Lab:
    """What one seed of an experiment works with."""

    def __init__(
        self, config: Config, setup: Setup, phases: Phases, programs: Programs
    ):
        self.config, self.setup = config, setup
        self.phases, self.programs = phases, programs
        self.groups, self.size = setup.wiring.groups, programs.size
        self._key = jax.random.key(config.seed)

    # --- What is random ---------------------------------------------------------------

    def key(self, name: str, index: int = 0) -> jax.Array:
        """The key of a step of something."""
        named = jax.random.fold_in(self._key, zlib.crc32(name.encode()))
        return jax.random.fold_in(named, index)

    def rng(self, name: str, index: int = 0) -> np.random.Generator:
        """NumPy's, likewise."""
        seed = (self.config.seed, zlib.crc32(name.encode()), index)
        return np.random.default_rng(seed)

    # --- Networks ---------------------------------------------------------------------

    def headed(self, params: Any, domain: Domain, name: str) -> Any:
        """Parameters with a new head for the classes of a domain."""
        new = self.programs.new_head(domain.classes)(self.key(f"head {name}"))
        return map_named(lambda leaf, old: new.get(leaf, old), params)

    def sliced(self, params: Any, state: Any, kept: Kept) -> tuple[Any, Any]:
        """The network without the channels that are not kept."""
        # On the host: every shape of a leaf would have a program of its own.
        tree = jax.device_get(whole_tree(params, state))
        tree = slice_channels(tree, self.groups, kept)
        return tree[PARAMS], tree[STATE]

    def kept(self, scores: Mapping[str, Any], domain: Domain) -> dict[str, np.ndarray]:
        """The channels that the budget pays for, as the compiler counts operations.

        That counts norms and activations too, and no padding. So the budget in kernels
        is moved until both agree as nearly as whole channels let them.
        """
        costs, wanted = self.setup.costs(domain.classes), self.config.stamp.flops_ratio
        least = minimal_flops(self.groups, **costs) / self.flops(domain)
        ratio, found = wanted, []
        for _ in range(_TRIES):
            kept = keep_within(scores, self.groups, ratio=ratio, **costs)
            share = self.programs.measured_share(domain.classes, kept)
            if share is None:  # this compiler does not count
                return kept
            found.append((abs(share / wanted - 1), len(found), kept))
            # Rounded up: least itself must stay within the budget.
            ratio = min(1.0, max(ratio * wanted / share, float(least) + 1e-9))
        return min(found)[2]

    def flops(self, domain: Domain, kept: Kept | None = None) -> int:
        """Operations of a forward pass, by the convention of papers; whole by None."""
        sizes = {} if kept is None else kept
        shares = {n: Fraction(int(k.sum()), k.size) for n, k in sizes.items()}
        costs = self.setup.costs(domain.classes)
        return int(channel_flops(**costs, groups=self.groups, shares=shares))

    def adapting_flops(self, domain: Domain, steps: int) -> int:
        """Operations of adapting to a set: to look at it, and so many steps."""
        examples = self.config.stamp.set_size + _BACK * steps * self.size
        return examples * self.flops(domain)

    # --- Training ---------------------------------------------------------------------

    def epoch_steps(self, domain: Domain) -> int:
        """Batches of an epoch."""
        return steps_per_epoch(len(domain.train.labels), self.size)

    def training_flops(self, domain: Domain, forward: int, epochs: int = 1) -> int:
        """Operations of so many epochs of a network."""
        return _BACK * forward * self.epoch_steps(domain) * self.size * epochs

    def train(
        self,
        name: str,
        domain: Domain,
        begin: Callable[[], tuple[Any, Any]],
        epochs: int,
        rate: Callable[[int], Any],
    ) -> tuple[Trained, Notes]:
        """Trains a network.

        Args:
          name: of the phase.
          domain: what to train on.
          begin: parameters and statistics before.
          epochs: how many.
          rate: of learning, by step.

        Returns:
          The network; notes have "loss" and "accuracy" of every epoch.
        """
        images, labels = domain.train
        # All networks of a domain see the same batches: they are paired by seed.
        key, per_epoch = self.key(f"{domain.name} rows"), self.epoch_steps(domain)
        rows_at = rows_by_step(key, len(labels), self.size)

        def step(state: Any, notes: Notes, i: int) -> Any:
            rows = rows_at(i)
            one, two = (
                self.key(f"{domain.name} {use}", i) for use in ("crops", "dropout")
            )
            x = self.programs.inputs(images[rows], domain, one)
            given = np.float32(rate(i)), x, labels[rows], two
            trained, total = self.programs.train(*state, *given)
            if (i + 1) % per_epoch:
                return (trained, total), notes
            score = self.score(trained.params, trained.model_state, domain)
            found = {"loss": float(total) / per_epoch, "accuracy": score}
            notes = {k: [*notes.get(k, []), value] for k, value in found.items()}
            return (trained, np.float32(0)), notes

        def start() -> Any:
            return first_trained(*begin()), np.float32(0)

        (state, _), notes = self.phases.run(name, start, epochs * per_epoch, step)
        return state, notes

    def score(self, params: Any, state: Any, domain: Domain) -> float:
        """Accuracy on the split that is evaluated."""
        counts = self.programs.counts(params, state, domain)
        return accuracy(counts, *domain.held, self.size)
