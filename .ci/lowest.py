"""Prints the lowest versions that setup.py allows, as constraints for pip."""

import re
from pathlib import Path

# What belongs to JAX; of others the lowest may need an older Python or NumPy.
NAMES = ("jax", "optax", "chex", "flax")

text = (Path(__file__).parents[1] / "setup.py").read_text("utf-8")
lowest = dict(reversed(re.findall(r'"([a-z-]+)>=([\d.]+)', text)))
for name in NAMES:
    print(f"{name}=={lowest[name]}")
print(f"jaxlib=={lowest['jax']}")
