"""A reconstruction of STAMP, set-based task-adaptive meta-pruning.

Song et al., STAMP: Set-based Task-Adaptive Meta-Pruning, 2020,
https://arxiv.org/abs/2006.12139

**This is our reconstruction, not the authors' method**: no code of it was found, and of
the paper only the abstract and the introduction were at hand. What these say is kept: a
generator makes the mask of whole channels from a *set* of examples of the target data,
the generator is meta-learned over subsets of a reference data set, so that it adapts
within a few steps, and training, not only inference, gets cheaper. Everything else is
ours:

* the code of a layer is a mean over the set of an MLP of the layer's mean activations;
* gates are concrete, or the beta-Bernoulli gates of the same group (bbdrop), straight
  through;
* a term in the FLOPs of the gated network in place of a tuned prior;
* Reptile over class subsets, on generator and weights;
* channels are chosen at an exact budget of FLOPs, and removed
  (`sup_tickets.channels.slice_channels`).

No number made with it may be set beside the paper's.
"""

from sup_tickets.stamp.budget import keep_within, kernel_norms, minimal_flops, ranked
from sup_tickets.stamp.gates import CONCRETE, GATES, KUMARASWAMY, Gate
from sup_tickets.stamp.generator import generate, init_generator
from sup_tickets.stamp.learning import (
    Learner,
    Objective,
    Rates,
    adapt_step,
    first_slots,
    reptile,
)

__all__ = [
    "CONCRETE",
    "GATES",
    "KUMARASWAMY",
    "Gate",
    "Learner",
    "Objective",
    "Rates",
    "adapt_step",
    "first_slots",
    "generate",
    "init_generator",
    "keep_within",
    "kernel_norms",
    "minimal_flops",
    "ranked",
    "reptile",
]
