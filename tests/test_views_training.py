"""Views in runs: trained, resumed, superposed and exported as the forward pass sees."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sup_tickets as st
from experiments import export, run
from experiments.build.experiment import build, comparisons
from experiments.config.values import set_field
from sup_tickets.training.checkpoint import Checkpoints
from sup_tickets.training.loop import TrainingStopped, train
from sup_tickets.training.network_files import load_dense, load_sparse
from sup_tickets.training.state import RunState
from sup_tickets.trees import named_leaves
from tests.test_experiments import config_of, one

NETS = {
    "edge-popup": {"density": 0.5},
    "softnet": {"density": 0.5, "redraw_every": 2, "where": "conv.*kernel"},
    "ksm": {},
    "sr-ste": {"keep_dense": "conv1"},
    "top-kast": {"density": 0.3, "backward_density": 0.6, "refresh_every": 3},
}
