"""What an update costs, and so the wall-clock time to the threshold.

    python experiments/claims/seconds.py

Run it on an otherwise idle machine: the updates of the methods, with the settings that `run.py` stored, are timed in turns on each
task. `report.py` makes the table and the figure, with the steps that the stored runs took. Evaluation and compilation are not
counted.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import statistics
import time
from importlib import metadata
from typing import Any

import jax
from catalogue import TASKS
from run import RESULTS, build

from haepo_jax.runner.comparison import machine
from haepo_jax.runner.run_dir import write_atomically

TIMED = ("haepo_default", "haepo", "ppo", "ppo_replay_tuned")
ROUNDS = 20


def measure(task_name: str, settings: dict[str, tuple[str, dict[str, Any]]], rounds: int = ROUNDS) -> dict[str, Any]:
    """Median seconds, and the environment steps, of an update of each method: its algorithm and hyperparameters, by its name."""
    programs, steps = {}, {}
    for name, (kind, hyperparameters) in settings.items():
        algo: Any = build(TASKS[task_name], kind, hyperparameters)
        state = jax.jit(algo.init)(jax.random.key(0))
        step = jax.jit(lambda state, algo=algo: algo.train_step(state)[0], donate_argnums=0).lower(state).compile()
        programs[name], steps[name] = (step, jax.block_until_ready(step(state))), algo.num_envs * algo.num_steps
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (step, state) in programs.items():
            begin = time.perf_counter()
            programs[name] = (step, jax.block_until_ready(step(state)))
            seconds[name].append(time.perf_counter() - begin)
    return {
        name: {"seconds": round(statistics.median(values), 6), "steps": steps[name]} for name, values in seconds.items()
    }


def main() -> None:
    """Times every task and stores it."""
    (RESULTS / "seconds").mkdir(exist_ok=True)
    for task in TASKS:
        stored = {name: json.loads((RESULTS / "methods" / f"{task}.{name}.json").read_text()) for name in TIMED}
        settings = {name: (result["algo"], result["hyperparameters"]) for name, result in stored.items()}
        found: dict[str, Any] = {
            "task": dataclasses.asdict(TASKS[task]), "updates": measure(task, settings), "machine": machine(),
            "versions": {name: metadata.version(name) for name in ("jax", "gymnax", "brax")},
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        write_atomically(RESULTS / "seconds" / f"{task}.json", json.dumps(found, separators=(",", ":")) + "\n")
        print(task, {name: update["seconds"] for name, update in found["updates"].items()}, flush=True)


if __name__ == "__main__":
    main()
