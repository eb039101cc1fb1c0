"""Tests run strictly, on eight fake CPU devices.

With SUP_TICKETS_TEST_PLATFORMS=cuda,cpu they run on the first platform named, where
tests that need more devices than there are, or a CPU, are skipped.
"""

import atexit
import ctypes
import gc
import os
import shutil
import signal
import tempfile

# pytest imports it to tell what could not be raised: too late inside a lazy import.
import tracemalloc  # noqa: F401
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("SUP_TICKETS_TEST_PLATFORMS", "cpu")

# Compiling, not computing, takes the time of these tests, and half of it XLA's newer
# emitters, which a JAX without others keeps. `test_fused` compiles as by default.
if os.environ["SUP_TICKETS_TEST_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
        + " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    )

# By default XLA has one thread for each of the eight devices, and each of them waits in
# a collective: where another task takes one of the threads, none ever goes on.
os.environ.setdefault("NPROC", "32")

# A shell that starts the tests in the background has Ctrl-C ignored, in children too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Many tests compile the same small programs; once is enough for all workers and the
# commands that tests start. The controller makes the folder, and workers inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sup-tickets-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )

import chex
import jax
import pytest

# Tracing makes many objects that stay: collections that look at them all are a tenth of
# the time.
gc.set_threshold(100_000, 50, 50)

jax.config.update("jax_platforms", os.environ["SUP_TICKETS_TEST_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ["SUP_TICKETS_TEST_PLATFORMS"] != "cpu":
    # Otherwise matrices are multiplied in fewer bits than those of NumPy.
    jax.config.update("jax_default_matmul_precision", "highest")

# Bytes of resident memory above which compiled programs are dropped. The folder above
# gives them back quickly to whoever still needs them.
MEMORY = 1.5 * 2**30


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """JAX keeps every program it compiled: gigabytes, over all tests of a worker."""
    yield
    if _resident_memory() > MEMORY:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # the C library would keep what is freed


def _resident_memory() -> int:
    """In bytes; 0 where the system does not say (it is not Linux)."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def fresh_trace_counter() -> None:
    """`chex.assert_max_traces` counts through all tests, by a function's text."""
    chex.clear_trace_counter()


@pytest.fixture
def loose() -> Iterator[None]:
    """Optax mixes dtypes: its Adam multiplies floats by integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
