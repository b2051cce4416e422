"""Workers of one sweep started through Hydra's launcher for submitit, on this machine."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.jobs import run

FILE = Path(__file__).parents[1] / "examples" / "sweep_workers.py"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hydra_plugins.hydra_submitit_launcher") is None if find_spec("hydra_plugins") else True,
                    reason="needs hydra-submitit-launcher")  # fmt: skip
def test_two_workers_of_one_sweep(tmp_path: Path) -> None:
    sweep = (
        "env=haepo/random_walk algo.learning_rate=1e-3,3e-3,1e-2,3e-2 total_steps=600 algo.num_envs=8 algo.group_size=4 "
        f"algo.num_minibatches=2 algo.hidden_sizes=[4] final_eval_episodes=4 cohort=1 run_dir={tmp_path}/shared"
    )
    arguments = ["-m", "hydra/launcher=submitit_local", "worker=0,1", f'sweep="{sweep}"']
    done = run([str(FILE), *arguments], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "shared" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["0", "1", "2", "3"] and {row["state"] for row in rows} == {"complete"}
    logs = [file.read_text() for file in (tmp_path / "multirun").rglob("*_log.out")]
    assert sum("4 trials: 4 complete" in log for log in logs) == 2
