"""Sparse neural-network training in JAX: exact, functional, fast."""

__version__ = "0.1.0"
