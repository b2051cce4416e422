"""What all tests share: this folder on the path, for `toy_envs`, and a compiler that does not linger."""

import os
from importlib import metadata

import pytest

QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    # The tests compile hundreds of programs that then run for milliseconds: unoptimised, that takes a fifth of the time.
    # The slow ones run long enough to want better. XLA aborts at a flag it does not know, hence the version.
    if config.getoption("markexpr") == "not slow" and metadata.version("jaxlib") == "0.10.2":
        os.environ.setdefault("XLA_FLAGS", QUICK_COMPILER)
