"""Every task trains from the command line: one update or two, finite metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from haepo_jax.envs import list_envs
from haepo_jax.runner.commands.train import main

TASKS = [name for name in list_envs() if not name.startswith("playground/")]
SMALL = [
    "algo=haepo_episodic",
    "total_steps=2",
    "final_eval_episodes=2",
    "tensorboard=false",
    "algo.num_envs=4",
    "algo.group_size=2",
]
SMALL += ["algo.num_minibatches=1", "algo.num_epochs=1", "algo.log_points=1", "algo.eval_episodes=1"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_an_update_from_the_command_line(task: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["env_kwargs.episode_length=4"] if task.startswith("brax/") else []
    assert main([f"env={task}", *SMALL, *settings, f"run_dir={run}"]) == 0
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert row["invalid_episodes"] == 0
    for name in ("loss", "objective", "entropy", "kl", "grad_norm", "ess", "episode_return", "eval_return"):
        assert isinstance(row[name], float) and math.isfinite(row[name]), name
    assert math.isfinite(json.loads((run / "summary.json").read_text())["final_return_mean"])
