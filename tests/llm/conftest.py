"""What the tests of this folder share, where Tunix is installed: a model's folder, and a cache of compiled programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Most tests compile the same programs, in this process and in those that they start."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each worker a folder in one that they share.
    folder = (base.parent if base.name.startswith("popen-") else base) / "compiled"
    settings = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
    for name, old in before.items():
        jax.config.update(name, old)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen 2 that has read some English."""
    from tests.llm.tiny_model import make_folder

    return make_folder(tmp_path_factory.mktemp("models") / "tiny", steps=60)
