"""HAEPO, GRPO and GSPO, each with and without replay of the last batches, on SmolLM2-135M and two tasks.

    python examples/smollm2.py SmolLM2-135M
    nice python experiments/smollm2/run.py --model SmolLM2-135M [--hours 8] [--only json]
    python experiments/smollm2/report.py

Every method gets the same number of completions and the same search, on a seed that is not reported: two learning rates by two
numbers of updates on each batch. What did best on held-out prompts is trained on three more seeds. One run goes on at a
time, in a process of its own (10 GB); whatever ends this script, the next start resumes where it was, and what is done is not
run again. Results: results/<task>-<method>-<seed>-<learning rate>-<updates>.json beside this file; the run's directory is
kept in --runs. In all it takes about 15 hours on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tasks

HERE = Path(__file__).parent
RESULTS = HERE / "results"
REPLAY = 4
METHODS: dict[str, list[str]] = {
    "haepo": ["algo=haepo"],
    "haepo_paper": ["algo=haepo", "score=likelihood", "temperature=auto"],
    "grpo": ["algo=grpo"],
    "gspo": ["algo=gspo", "clip_eps=0.02"],
}
METHODS |= {f"{name}_replay": [*settings, f"replay_batches={REPLAY}"] for name, settings in list(METHODS.items())}
REWARDS = {"sums": "tasks:right_sum", "json": "tasks:right_json"}
SEARCH_SEED, SEEDS = 1000, (0, 1, 2)
LEARNING_RATES = (1e-5, 3e-5)
UPDATES = {False: (1, 4), True: (1, 2)}
"""`num_iterations`: without replay 1 or 4 updates on each batch; with it 4 or 8, spread over the four steps that it is kept."""
SHARED = ["steps=24", "prompts_per_step=4", "group_size=8", "kl_coef=0.001", "eval_steps=4", "checkpoint_steps=4"]
SHARED += ["keep_checkpoints=1", "tensorboard=false"]


class Job(NamedTuple):
    """One run."""

    task: str
    method: str
    seed: int
    learning_rate: float
    updates: int

    @property
    def name(self) -> str:
        """Of its directory and its results."""
        return f"{self.task}-{self.method}-{self.seed}-{self.learning_rate:g}-{self.updates}"

    def arguments(self) -> list[str]:
        """Of the command, without those that name files of this machine."""
        return [
            *METHODS[self.method],
            f"reward={REWARDS[self.task]}",
            f"max_new_tokens={tasks.MAX_NEW_TOKENS[self.task]}",
            f"learning_rate={self.learning_rate:g}",
            f"num_iterations={self.updates}",
            f"seed={self.seed}",
            *SHARED,
        ]


def jobs() -> Iterator[Job]:
    """What there is to run next, in order; the last ones depend on the results of those before."""
    for task in tasks.TASKS:
        for method in METHODS:
            updates = UPDATES[method.endswith("_replay")]
            search = [Job(task, method, SEARCH_SEED, rate, n) for rate in LEARNING_RATES for n in updates]
            yield from search
            scores = [score(json.loads((RESULTS / f"{job.name}.json").read_text())) for job in search]
            best = search[scores.index(max(scores))]
            yield from (best._replace(seed=seed) for seed in SEEDS)


def score(result: dict[str, Any]) -> float:
    """What the search compares: the mean of the held-out reward over the evaluations after the first."""
    values = [point["reward"] for point in result["eval"][1:]]
    return sum(values) / len(values)


def run(job: Job, model: Path, runs: Path) -> dict[str, Any]:
    """Trains, or resumes, and returns what is reported."""
    directory = runs / job.name
    paths = [f"model={model}", f"data={runs / job.task}.jsonl", f"eval_data={runs / job.task}_held_out.jsonl"]
    command = [sys.executable, "-m", "haepo_jax.llm", *paths, *job.arguments(), f"run_dir={directory}", "resume=auto"]
    path = os.pathsep.join(filter(None, (str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    return {"command": " ".join(["python -m haepo_jax.llm", *job.arguments()]), **collected(directory)}


def collected(directory: Path) -> dict[str, Any]:
    """The curves of a run, and its best and worst held-out completions."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]

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
    steps = [{key: row[key] for key in ("reward", "tokens", "kl", "entropy", "distinct")} for row in metrics]
    return {"eval": points, "steps": steps, "completions": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("SmolLM2-135M"), help="the folder of examples/smollm2.py")
    parser.add_argument("--runs", type=Path, default=Path("runs/smollm2"), help="where the runs' directories go")
    parser.add_argument("--hours", type=float, default=1e9, help="start no run after so many hours")
    parser.add_argument("--only", default="", help="only runs whose name begins so; the others must have results")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    tasks.write(arguments.runs)
    began = time.monotonic()
    for job in jobs():
        file = RESULTS / f"{job.name}.json"
        if file.exists() or not job.name.startswith(arguments.only):
            continue
        if time.monotonic() - began > arguments.hours * 3600:
            print(f"{arguments.hours} hours are over; start again to go on with {job.name}")
            return
        print(f"== {job.name}", flush=True)
        result = run(job, arguments.model, arguments.runs)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({**job._asdict(), **result}, indent=1) + "\n")
        temporary.replace(file)


if __name__ == "__main__":
    main()
