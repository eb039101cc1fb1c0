"""Build script; the tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(
    r'^__version__ = "(.+)"$',
    (here / "sup_tickets/__init__.py").read_text("utf-8"),
    re.M,
)
if version is None:
    raise RuntimeError("sup_tickets/__init__.py has no __version__")

# Ranges whose lower and upper ends run; newer Pythons get a newer JAX. With jax 0.8.0
# XLA aborts the process where it compiles a selection over sharded arrays.
core = ["jax>=0.8.1", "numpy>=2.0", "optax>=0.2.6", "chex>=0.1.91"]
train = [
    "flax>=0.12.1",
    "ml-collections>=1.0.0",
    "absl-py>=2.3.1",
    "orbax-checkpoint>=0.11.28,<1.0",
    "tensorflow-datasets>=4.9.10",
    "array_record>=0.8.1",
    "grain>=0.2.16",
    "pillow>=11.0",
    "safetensors>=0.5",
    "tensorboardX>=2.6.4",
    "filelock>=3.12",
    "scipy>=1.13",
    "scikit-learn>=1.5",
    "matplotlib>=3.9",
    "jinja2>=3.1",
    "pandas>=2.2.2,<4.0",
]
test = [
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "equinox>=0.13",
    "dm-haiku>=0.0.15",
]

setup(
    name="sup-tickets",
    version=version[1],
    description="Sparse neural-network training in JAX: exact, functional, fast.",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sup_tickets", "sup_tickets.*"]),
    package_data={"sup_tickets": ["py.typed", "*.mplstyle"]},
    install_requires=core,
    extras_require={
        "train": train,
        "tf": ["tensorflow>=2.20"],
        "test": train + test,
        "dev": [*train, *test, "ruff>=0.14", "pyright>=1.1.400"],
        "docs": ["sphinx>=8.0", "myst-nb>=1.2"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
