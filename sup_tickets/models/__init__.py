"""Flax Linen models. They know nothing of masks."""

from sup_tickets.models.conv import ConvNet
from sup_tickets.models.mlp import MLP
from sup_tickets.models.registry import MODELS, make_model

__all__ = ["MLP", "MODELS", "ConvNet", "make_model"]
