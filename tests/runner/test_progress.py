"""What a run shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.loop import run
from haepo_jax.runner.progress import PLAIN_LINES, Progress, duration, number
from tests.runner.counting_algorithm import Counting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *arguments: str, **keywords: Any) -> list[str]:
    config = compose(read_arguments(["env=CartPole-v1", *arguments]).overrides, RunConfig)
    monkeypatch.setattr(
        "haepo_jax.runner.loop.build", lambda config: Counting(total_steps=config.total_steps, **keywords)
    )
    run(config, Path("the/directory"), [Progress(stream)])
    return stream.getvalue().splitlines()


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO(), "total_steps=2000", "num_seeds=3", log_points=200)
    assert lines[0].startswith("training haepo on CartPole-v1, 3 seeds, on ") and "(JAX " in lines[0]
    assert lines[1].startswith("compiled in ")
    # The share done is of one seed, the speed of all: each says so.
    rows = [line for line in lines if "/2,000 steps per seed  " in line and " steps/s over 3 seeds  return" in line]
    assert 5 <= len(rows) <= PLAIN_LINES and all("ESS 0.50" in row and row.endswith(" left") for row in rows)
    assert lines[-3].startswith("final return ") and "(seeds 2,000 to 2,004)" in lines[-3]
    assert lines[-1] == "results in the/directory"
    assert not any("\x1b" in line for line in lines)


def test_a_preset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO(), "total_steps=20", "algo=haepo_paper")
    assert lines[0].startswith("training haepo_paper on CartPole-v1, on ")


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    lines = shown(monkeypatch, Terminal(), "total_steps=2000")
    assert lines[0].startswith("training haepo")
    assert any("\x1b" in line and "steps/s" in line and "left" in line for line in lines)
    assert lines[-1] == "results in the/directory"


def test_a_seed_that_diverged_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO(), "total_steps=100", "num_seeds=2", sick=(1,))
    assert lines[-3] == "seed 1 diverged: not finite in update 4: the loss, the gradients; it stayed as it was before"


def test_numbers_and_durations() -> None:
    assert [number(x) for x in (float("nan"), 0.12345, 12.3456, -181.27, 999.96, 12345.6)] == [
        "-",
        "0.1235",
        "12.35",
        "-181.3",
        "1,000",
        "12,346",
    ]
    assert [duration(x) for x in (0.4, 59, 200, 7500)] == ["0s", "59s", "3m20s", "2h05m"]
