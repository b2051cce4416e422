"""HAEPO, GRPO, GSPO and DPO with one or four updates a batch, or replay of the last batches, on SmolLM2-135M and two tasks.

    python examples/smollm2.py SmolLM2-135M
    python experiments/smollm2/run.py --model SmolLM2-135M [--hours 8] [--only sums-grpo,sums-haepo] [--parallel 8]
    python experiments/smollm2/report.py

Every method gets the same number of completions, the same settings and three seeds. With `_4` it makes four updates on each
batch, with `_replay` one on each of the last four, as many once the buffer is full. The learning rate is 1e-5, or with `_2e-5`
twice that. DPO prefers the better of any two completions of a prompt. With `_pairs` nothing is sampled: of 16 prompts a step
there are a right and a wrong answer. Every run is a process of its own (6 GB), and what is
done is not run again. Results: results/<task>-<method>-<seed>.json beside this file; of a run's directory in --runs the
metrics are kept, the weights are not. On one core a run takes four to ten minutes; on a GPU several are trained at a time
(--parallel).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import tasks

from haepo_jax.runner.comparison import machine
from haepo_jax.runner.run_dir import rows_of

HERE = Path(__file__).parent
RESULTS = HERE / "results"
LOSSES: dict[str, list[str]] = {
    "haepo": ["algo=haepo"],
    "haepo_paper": ["algo=haepo", "score=likelihood", "temperature=auto"],
    "grpo": ["algo=grpo"],
    "gspo": ["algo=gspo", "clip_eps=0.02"],
    "dpo": ["algo=dpo", "beta=0.1"],
}
UPDATES = {"": "num_iterations=1", "_4": "num_iterations=4", "_replay": "replay_batches=4"}
RATES = {"": "learning_rate=1e-5", "_2e-5": "learning_rate=2e-5"}
METHODS = {
    f"{loss}{end}{rate}": [*settings, updates, rates]
    for loss, settings in LOSSES.items()
    for end, updates in UPDATES.items()
    for rate, rates in RATES.items()
}
OF_PAIRS = {
    "dpo_pairs": ["algo=dpo", "beta=0.1"],
    "dpo_pairs_beta_1": ["algo=dpo", "beta=1"],
    "haepo_pairs": ["algo=haepo"],
    "haepo_pairs_temperature_3": ["algo=haepo", "temperature=3"],
}
METHODS |= {name: [*settings, UPDATES[""], RATES[""]] for name, settings in OF_PAIRS.items()}
METHODS["haepo_replay_lora"] = [*LOSSES["haepo"], UPDATES["_replay"], "lora_rank=16", "learning_rate=2e-4"]
REWARDS = {"sums": "tasks:right_sum", "json": "tasks:right_json"}
KINDS = {
    f"{task}-{method}": (task, method)
    for task in tasks.TASKS
    for method in METHODS
    if task == "sums" or method not in OF_PAIRS
}
SEEDS = (0, 1, 2)
SHARED = [
    "kl_coef=0.001",
    "checkpoint_steps=24",
    "tensorboard=false",
]


class Job(NamedTuple):
    """One run."""

    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its directory and its results."""
        return f"{self.task}-{self.method}-{self.seed}"

    def arguments(self) -> list[str]:
        """Of the command, without those that name files."""
        return [
            *METHODS[self.method],
            f"reward={REWARDS[self.task]}",
            f"max_new_tokens={tasks.MAX_NEW_TOKENS[self.task]}",
            f"steps={tasks.STEPS[self.task]}",
            f"eval_steps={tasks.EVAL_STEPS[self.task]}",
            f"seed={self.seed}",
            *(["prompts_per_step=16"] if self.has_pairs else ["prompts_per_step=4", "group_size=8"]),
            *SHARED,
        ]

    def data(self, runs: Path) -> list[str]:
        """Arguments that name the files of `tasks.write`."""
        train = f"pairs={runs / self.task}_pairs.jsonl" if self.has_pairs else f"data={runs / self.task}.jsonl"
        return [train, f"eval_data={runs / self.task}_held_out.jsonl"]

    @property
    def has_pairs(self) -> bool:
        """Whether completions are given, two for each prompt."""
        return self.method in OF_PAIRS


def run(job: Job, model: Path, runs: Path) -> dict[str, Any]:
    """Trains and returns what is reported."""
    directory = runs / job.name
    paths = [f"model={model}", *job.data(runs), f"run_dir={directory}"]
    command = [sys.executable, "-m", "haepo_jax.llm", *paths, *job.arguments()]
    path = os.pathsep.join(filter(None, (str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    shutil.rmtree(directory, ignore_errors=True)  # of a run that did not end
    subprocess.run(
        command, check=True, env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, "PYTHONPATH": path}
    )
    found = {
        "command": " ".join(["python -m haepo_jax.llm", *job.arguments()]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "google-tunix")},
        **collected(directory),
    }
    for weights in ("checkpoints", "model"):
        shutil.rmtree(directory / weights)
    return found


def collected(directory: Path) -> dict[str, Any]:
    """The curves of a run, and its best and worst held-out completions."""

    def read(name: str) -> list[dict[str, Any]]:
        return rows_of((directory / f"{name}.jsonl").read_text(encoding="utf-8"))

    metrics, evaluated = read("metrics"), read("eval")
    points = []
    for step in sorted({row["step"] for row in evaluated}):
        rewards = [row["reward"] for row in evaluated if row["step"] == step]
        before = metrics[:step]
        seconds = ("seconds_sampling", "seconds_reward", "seconds_learning")
        points.append(
            {
                "step": step,
                "reward": sum(rewards) / len(rewards),
                "solved": sum(reward == 1 for reward in rewards) / len(rewards),
                "tokens": sum(row["tokens"] for row in before),
                "seconds": sum(row[name] for row in before for name in seconds),
                "kl": before[-1]["kl"] if before else 0.0,
                "entropy": before[-1]["entropy"] if before else None,
                "distinct": before[-1]["distinct"] if before else None,
            }
        )
    last = sorted((row for row in evaluated if row["step"] == points[-1]["step"]), key=lambda row: row["reward"])
    chosen = {"worst": last[:3], "best": last[-3:]}
    steps = [{key: row.get(key) for key in ("reward", "tokens", "kl", "entropy", "distinct")} for row in metrics]
    return {"eval": points, "steps": steps, "completions": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("SmolLM2-135M"), help="the folder of examples/smollm2.py")
    parser.add_argument("--runs", type=Path, default=Path("runs/smollm2"), help="where the runs' directories go")
    parser.add_argument("--hours", type=float, default=1e9, help="start no run after so many hours")
    parser.add_argument("--only", default=",".join(KINDS), help="<task>-<method>, some of them, in this order")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    tasks.write(arguments.runs)
    end = time.monotonic() + 3600 * arguments.hours

    def train(job: Job) -> None:
        file = RESULTS / f"{job.name}.json"
        if file.exists():
            return
        if time.monotonic() > end:
            print(f"{arguments.hours} hours are over; start again to go on with {job.name}")
            return
        print(f"== {job.name}", flush=True)
        result = run(job, arguments.model, arguments.runs)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({**job._asdict(), **result}, indent=1) + "\n")
        temporary.replace(file)

    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(train, [Job(*KINDS[name], seed) for seed in SEEDS for name in arguments.only.split(",")]))


if __name__ == "__main__":
    main()
