"""Puts the table of what `run.py` and `run_rejax.py` have stored into README.md: `python experiments/baselines/report.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import median_interval, steps_to_threshold  # noqa: E402
from tables import fill_in, markdown  # noqa: E402

HERE = Path(__file__).parent
DOCUMENT = HERE / "README.md"
OURS = {"haepo_default": "HAEPO", "ppo": "PPO, tuned", "ppo_replay_tuned": "PPO with replay, tuned"}
"""Of experiments/claims."""
OTHERS = {"SB3": ("results.json", ("ppo", "dqn", "sac")), "rejax": ("rejax.json", ("ppo", "pqn", "sac"))}


def cell(task: str, runs: list[dict[str, Any]]) -> str:
    """Thousands of steps to the threshold by the median, and how many runs arrived, of how many."""
    result = {"task": vars(TASKS[task]), **{key: [run[key] for run in runs] for key in ("eval_return", "env_steps")}}
    steps = steps_to_threshold(result)
    median = median_interval(steps)[0]
    text = f"{median / 1000:.1f}" if np.isfinite(median) else f"> {result['env_steps'][0][-1] / 1000:.0f}"
    return f"{text}, {int(np.isfinite(steps).sum())}/{len(steps)}"


def table() -> str:
    """A row for each task; nothing where a method was not run. In parentheses, ours with greedy actions."""
    stored = {name: json.loads((HERE / file).read_text())["runs"] for name, (file, _) in OTHERS.items()}
    rows = []
    for task in ("cartpole", "acrobot", "pendulum", "mountain_car", "mountain_car_continuous"):
        cells = [f"{cell(task, ours(task, method))} ({cell(task, ours(task, method, '_greedy'))})" for method in OURS]
        for name, (_, methods) in OTHERS.items():
            for method in methods:
                runs = [run for key, run in stored[name].items() if key.rpartition("-")[0] == f"{task}-{method}"]
                cells.append(cell(task, runs) if runs else "")
        rows.append([task, *cells])
    others = [f"{name} {method.upper()}" for name, (_, methods) in OTHERS.items() for method in methods]
    return markdown(["task", *OURS.values(), *others], rows)


def ours(task: str, method: str, actions: str = "") -> list[dict[str, Any]]:
    """The runs of a method of experiments/claims, evaluated with sampled or with `_greedy` actions."""
    found = json.loads((HERE.parent / "claims" / "results" / "methods" / f"{task}.{method}.json").read_text())
    curves = zip(found[f"eval_return{actions}"], found["env_steps"], strict=True)
    return [{"eval_return": curve, "env_steps": steps} for curve, steps in curves]


if __name__ == "__main__":
    fill_in(DOCUMENT, "baselines", table())
