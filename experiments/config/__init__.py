"""Configurations: reading them, and every field with its type and range."""
