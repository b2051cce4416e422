"""Runs of the command line in this process, of any algorithm and of one that compiles in no time."""

from __future__ import annotations

import pytest

from tests.runner.counting_algorithm import Counting
from tests.runner.surviving import Runs


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> Runs:
    """40 updates of 10 steps, a row every 50, where `total_steps=400`."""
    monkeypatch.setattr(
        "haepo_jax.runner.loop.build", lambda config: Counting(total_steps=config.total_steps, log_points=8)
    )
    return runs
