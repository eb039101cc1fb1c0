"""Sparse neural-network training in JAX: exact, functional, fast.

A sparse network is two pytrees: ``params``, and ``masks`` with a boolean array at every
sparse leaf and ``None`` at every leaf that is never pruned. Everything here is a pure
function of that pair.
"""

from sup_tickets.averaging import (
    after_validation,
    averaged_params,
    iterate_averaging,
    restart_averages,
    start_averaging,
)
from sup_tickets.channels import (
    ChannelAxis,
    ChannelGroup,
    channel_flops,
    gate_channels,
    slice_channels,
)
from sup_tickets.condensed import (
    Condensed,
    condense,
    condense_params,
    condensed_matmul,
)
from sup_tickets.counting import active_count
from sup_tickets.coverage import Coverage, Description, coverage, describe
from sup_tickets.distributions import (
    allocate,
    erdos_renyi,
    erk,
    erk_plus,
    uniform,
    uniform_plus,
)
from sup_tickets.dynamic import Method
from sup_tickets.foresight import (
    classification_loss,
    grasp,
    snip,
    synflow,
    total_gradient,
)
from sup_tickets.gradinit import Rescaled, rescaled_init
from sup_tickets.groups import Groups, Part, per_block, per_output, per_part
from sup_tickets.learning_rates import cheap_ticket_schedule, cosine_lr, step_lr
from sup_tickets.masks import (
    apply_masks,
    check_masks,
    choose,
    count,
    density,
    difference,
    full_masks,
    hamming,
    intersection,
    layer_counts,
    layer_densities,
    layer_table,
    overlap,
    pack,
    random_masks,
    size,
    sparsity,
    union,
    unpack,
)
from sup_tickets.method_state import MethodState, init_topology
from sup_tickets.methods import (
    METHODS,
    acdc,
    dense,
    gradual_magnitude,
    granet,
    granet_dense,
    make_method,
    mest,
    rigl,
    rigl_itop,
    selfish_rnn,
    set_itop,
    sparse_evolutionary,
    sparse_momentum,
    srigl,
    static,
)
from sup_tickets.orthogonal import exact_orthogonal, orthogonality_error
from sup_tickets.pruning import prune_to, prune_to_counts
from sup_tickets.rotations import expected_density
from sup_tickets.rounds import dead_layers, prune_in_rounds, resample
from sup_tickets.rules import default_rule
from sup_tickets.saliency import (
    Signals,
    by_gradient,
    by_magnitude,
    by_magnitude_and_gradient,
    by_momentum,
    by_random,
    by_taylor,
    declare,
    gradient,
    magnitude,
    momentum,
    random_scores,
    taylor,
)
from sup_tickets.schedules import (
    constant,
    cosine_fraction,
    cubic_sparsity,
    inverse_power_fraction,
    linear_fraction,
    stairs,
    update_due,
)
from sup_tickets.selection import select, select_globally
from sup_tickets.slots import reset_slots
from sup_tickets.softening import fading, mish, sharpening, softened, swish
from sup_tickets.sparse_state import keep_sparse, masks_of, method_state_of
from sup_tickets.statistics import reestimate_statistics
from sup_tickets.structured import select_blocks, select_n_m
from sup_tickets.structures import Structure, fan_in, n_of_m
from sup_tickets.superposition import Superposition, superposition
from sup_tickets.tickets import TicketPlan, ticket_budget
from sup_tickets.timing import scheduled, topology_due
from sup_tickets.topology import (
    Rewired,
    drop,
    grow,
    rewire,
)
from sup_tickets.transforms import sparse_training
from sup_tickets.trees import leaf_keys, sparse_leaves
from sup_tickets.updates import (
    Change,
    exploration_rate,
    explore_topology,
    observe_gradients,
    update_topology,
)
from sup_tickets.wiring import Wiring, channel_groups

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Change",
    "ChannelAxis",
    "ChannelGroup",
    "Condensed",
    "Coverage",
    "Description",
    "Groups",
    "Method",
    "MethodState",
    "Part",
    "Rescaled",
    "Rewired",
    "Signals",
    "Structure",
    "Superposition",
    "TicketPlan",
    "Wiring",
    "acdc",
    "active_count",
    "after_validation",
    "allocate",
    "apply_masks",
    "averaged_params",
    "by_gradient",
    "by_magnitude",
    "by_magnitude_and_gradient",
    "by_momentum",
    "by_random",
    "by_taylor",
    "channel_flops",
    "channel_groups",
    "cheap_ticket_schedule",
    "check_masks",
    "choose",
    "classification_loss",
    "condense",
    "condense_params",
    "condensed_matmul",
    "constant",
    "cosine_fraction",
    "cosine_lr",
    "count",
    "coverage",
    "cubic_sparsity",
    "dead_layers",
    "declare",
    "default_rule",
    "dense",
    "density",
    "describe",
    "difference",
    "drop",
    "erdos_renyi",
    "erk",
    "erk_plus",
    "exact_orthogonal",
    "expected_density",
    "exploration_rate",
    "explore_topology",
    "fading",
    "fan_in",
    "full_masks",
    "gate_channels",
    "gradient",
    "gradual_magnitude",
    "granet",
    "granet_dense",
    "grasp",
    "grow",
    "hamming",
    "init_topology",
    "intersection",
    "inverse_power_fraction",
    "iterate_averaging",
    "keep_sparse",
    "layer_counts",
    "layer_densities",
    "layer_table",
    "leaf_keys",
    "linear_fraction",
    "magnitude",
    "make_method",
    "masks_of",
    "mest",
    "method_state_of",
    "mish",
    "momentum",
    "n_of_m",
    "observe_gradients",
    "orthogonality_error",
    "overlap",
    "pack",
    "per_block",
    "per_output",
    "per_part",
    "prune_in_rounds",
    "prune_to",
    "prune_to_counts",
    "random_masks",
    "random_scores",
    "reestimate_statistics",
    "resample",
    "rescaled_init",
    "reset_slots",
    "restart_averages",
    "rewire",
    "rigl",
    "rigl_itop",
    "scheduled",
    "select",
    "select_blocks",
    "select_globally",
    "select_n_m",
    "selfish_rnn",
    "set_itop",
    "sharpening",
    "size",
    "slice_channels",
    "snip",
    "softened",
    "sparse_evolutionary",
    "sparse_leaves",
    "sparse_momentum",
    "sparse_training",
    "sparsity",
    "srigl",
    "stairs",
    "start_averaging",
    "static",
    "step_lr",
    "superposition",
    "swish",
    "synflow",
    "taylor",
    "ticket_budget",
    "topology_due",
    "total_gradient",
    "uniform",
    "uniform_plus",
    "union",
    "unpack",
    "update_due",
    "update_topology",
]
