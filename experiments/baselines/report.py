"""Puts the table of what `run.py` has stored into README.md: `python experiments/baselines/report.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import median_interval, steps_to_threshold  # noqa: E402
from replay import run as replay  # noqa: E402
from replay import tuned  # noqa: E402
from tables import fill_in, markdown  # noqa: E402

DOCUMENT, RESULTS = (Path(__file__).parent / name for name in ("README.md", "results.json"))
OURS = ("softmax", "softmax, normalised", "clip, normalised")
"""Of `replay/run.py`: HAEPO's defaults, these with standardised observations, and PPO's clip on the same buffer."""


def cell(task: str, runs: list[dict[str, Any]]) -> str:
    """Thousands of steps to the threshold by the median, and how many runs arrived, of how many."""
    result = {"task": vars(TASKS[task]), **{key: [run[key] for run in runs] for key in ("eval_return", "env_steps")}}
    steps = steps_to_threshold(result)
    median = median_interval(steps)[0]
    text = f"{median / 1000:.1f}" if np.isfinite(median) else f"> {result['env_steps'][0][-1] / 1000:.0f}"
    return f"{text}, {int(np.isfinite(steps).sum())}/{len(steps)}"


def table(results: dict[str, Any]) -> str:
    """A row for each task; ours from the results of experiments/replay."""
    ours, best = (json.loads(module.RESULTS.read_text())["runs"] for module in (replay, tuned))
    rows = []
    for task in ("cartpole", "acrobot", "pendulum", "mountain_car", "mountain_car_continuous"):
        found = [ours.get(replay.name_of(task, bound)) for bound in OURS]
        found.append(best.get(tuned.name_of(task, "8 batches", "no replay")))
        cells = ["" if one is None else cell(task, replay_runs(one)) for one in found]
        for method in ("ppo", "dqn", "sac"):
            some = [run for name, run in results["runs"].items() if name.rpartition("-")[0] == f"{task}-{method}"]
            cells.append(cell(task, some) if some else "")
        rows.append([task, *cells])
    head = ["HAEPO", "HAEPO, normalised", "clip with replay, normalised", "PPO, tuned", "SB3 PPO", "SB3 DQN", "SB3 SAC"]
    return markdown(["task", *head], rows)


def replay_runs(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A stored job of experiments/replay as single runs."""
    return [{"eval_return": row, "env_steps": found["env_steps"]} for row in found["eval_return"]]


if __name__ == "__main__":
    fill_in(DOCUMENT, "baselines", table(json.loads(RESULTS.read_text())))
