"""Prints the lowest versions that setup.py allows, as constraints for pip."""

import re
from pathlib import Path

text = (Path(__file__).parents[1] / "setup.py").read_text("utf-8")
lowest = dict(re.findall(r'"([\w-]+)>=([\d.]+)', text))
lowest["jaxlib"] = lowest["jax"]
for name, version in lowest.items():
    print(f"{name}=={version}")
