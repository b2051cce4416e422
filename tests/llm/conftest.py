"""What the tests of this folder share, where Tunix is installed: a model's folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen 2 that has read some English."""
    from tests.llm.tiny_model import make_folder

    return make_folder(tmp_path_factory.mktemp("models") / "tiny", steps=60)
