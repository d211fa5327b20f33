"""Set-up of every test: eight forced CPU devices, strict promotion, a compile cache shared by all runs.

The environment is set before JAX is imported, and child processes inherit it.
"""

import os
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")

import jax
import pytest


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "slow: takes more than some seconds; left out by -m 'not slow'",
        "chaos: full numbers of the faults that a run must survive; make chaos",
        "gpu: needs a GPU",
        "tpu: needs a TPU",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of an accelerator that is not there are skipped, and say so."""
    for item in items:
        for kind in ("gpu", "tpu"):
            if kind in item.keywords and jax.default_backend() != kind:
                item.add_marker(pytest.mark.skip(reason=f"needs a {kind.upper()}"))
