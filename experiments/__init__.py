"""Experiments: the only readers of configurations."""
