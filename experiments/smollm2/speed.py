"""Seconds and memory of a step of our learner and of Tunix's own GRPO learner, on the same prompts and shapes.

    python experiments/smollm2/speed.py --model SmolLM2-135M [--tasks sums json] [--steps 5]

Both train all weights with GRPO: 4 prompts of 8 completions, one update, a KL penalty to the initial model, Adam, float32; ours
also with four updates a batch, and from four batches, as some runs of `run.py`. Each is a process of its own, in turns, twice;
the first two steps, in which programs are compiled, are apart. Nothing else should run. Writes speed.json beside this file,
which report.py shows.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tasks

HERE = Path(__file__).parent
RESULT = HERE / "speed.json"
PROMPTS, GROUP, KL, LEARNING_RATE = 4, 8, 0.001, 1e-5
WARM_UP = 2
REWARDS = {"sums": tasks.right_sum, "json": tasks.right_json}


def batches(task: str, steps: int) -> list[dict[str, list[Any]]]:
    """Prompts and answers of each step."""
    rows = list(itertools.islice(tasks.TASKS[task](), PROMPTS * steps))
    groups = [rows[n : n + PROMPTS] for n in range(0, len(rows), PROMPTS)]
    return [{name: [row[name] for row in some] for name in ("prompt", "answer")} for some in groups]


def ours(model: str, task: str, steps: int, updates: int = 1, replayed: int = 1) -> dict[str, Any]:
    """Seconds of each step, and of its parts, with some updates a batch and from so many batches: here the same one again."""
    import jax
    import numpy as np

    from haepo_jax import llm

    folder = llm.read_folder(model)
    tokenizer = llm.load_tokenizer(folder)
    config = llm.LearnerConfig(
        algo="grpo", prompts_per_step=PROMPTS, group_size=GROUP, max_new_tokens=tasks.MAX_NEW_TOKENS[task],
        kl_coef=KL, learning_rate=LEARNING_RATE, num_iterations=updates,
    )  # fmt: skip
    data = batches(task, steps)
    learner = llm.Learner(config, folder, tokenizer, prompt_length(tokenizer, data))
    parts: dict[str, list[float]] = {"sampling": [], "reference": [], "update": []}
    for step, batch in enumerate(data):
        prompts, answers = (np.repeat(np.array(batch[name], object), GROUP).tolist() for name in ("prompt", "answer"))
        times = [time.perf_counter()]
        completions = learner.sample(prompts, jax.random.key(step))
        times.append(time.perf_counter())
        rewards = np.array(REWARDS[task](prompts, completions.texts, answers))
        made = jax.block_until_ready(learner.batch(completions, rewards))
        times.append(time.perf_counter())
        learner.learn([made] * replayed)
        jax.block_until_ready(learner.state)
        times.append(time.perf_counter())
        for part, begin, end in zip(parts.values(), times, times[1:], strict=False):
            part.append(end - begin)
    return {"steps": [sum(some) for some in zip(*parts.values(), strict=True)], **parts}


def tunix(model: str, task: str, steps: int) -> dict[str, Any]:
    """Seconds of each step: from one call of the reward function to the next."""
    import jax
    import numpy as np
    import optax
    from tunix.rl import rl_cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout.base_rollout import RolloutConfig

    from haepo_jax import llm
    from haepo_jax.llm.folder import load_model

    folder = llm.read_folder(model)
    tokenizer = llm.load_tokenizer(folder)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1), ("fsdp", "tp"))
    data, tokens = batches(task, steps + 1), tasks.MAX_NEW_TOKENS[task]
    length = prompt_length(tokenizer, data)
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE)),
        eval_every_n_steps=10**6,
        max_steps=steps + 1,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=tokens, max_prompt_length=length, kv_cache_size=length + tokens, temperature=1.0
    )
    roles = {role: mesh for role in (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)}
    config = rl_cluster.ClusterConfig(role_to_mesh=roles, training_config=training, rollout_config=rollout)
    actor, reference = (load_model(folder, mesh) for _ in range(2))
    cluster = rl_cluster.RLCluster(actor=actor, reference=reference, tokenizer=tokenizer, cluster_config=config)
    times: list[float] = []

    def reward(prompts: list[str], completions: list[str], answer: list[Any], **_: Any) -> list[float]:
        times.append(time.perf_counter())
        return REWARDS[task](prompts, completions, answer)

    learner = GRPOLearner(cluster, GRPOConfig(num_generations=GROUP, beta=KL), reward)
    columns = [{"prompts": np.array(b["prompt"]), "answer": np.array(b["answer"], object)} for b in data]
    with mesh:
        learner.train(columns)
    return {"steps": [end - begin for begin, end in itertools.pairwise(times)]}


def prompt_length(tokenizer: Any, data: list[dict[str, list[Any]]]) -> int:
    """Of the longest prompt, in tokens."""
    return max(len(tokenizer.encode(prompt)) for batch in data for prompt in batch["prompt"])


SIDES: dict[str, Callable[[str, str, int], dict[str, Any]]] = {
    "haepo_jax": ours,
    "haepo_jax, 4 updates": functools.partial(ours, updates=4),
    "haepo_jax, 4 batches": functools.partial(ours, replayed=4),
    "tunix": tunix,
}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the steps after the warm-up, of both runs, and what the first steps took more."""
    names = [name for name in runs[0] if name != "peak_gb"]
    after = {name: [value for run in runs for value in run[name][WARM_UP:]] for name in names}
    medians = {name: round(statistics.median(values), 3) for name, values in after.items()}
    extra = statistics.mean(sum(run["steps"][:WARM_UP]) for run in runs) - WARM_UP * medians["steps"]
    return {
        "seconds": medians, "fastest": round(min(after["steps"]), 3), "slowest": round(max(after["steps"]), 3),
        "compiling": round(extra, 1), "peak_gb": round(max(run["peak_gb"] for run in runs), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="SmolLM2-135M", help="the folder of examples/smollm2.py")
    parser.add_argument("--tasks", nargs="+", choices=list(REWARDS), default=list(REWARDS))
    parser.add_argument("--steps", type=int, default=5, help="after the first two")
    parser.add_argument("--side", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (task,), (name, file) = options.tasks, options.side
        found = SIDES[name](options.model, task, WARM_UP + options.steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        Path(file).write_text(json.dumps({**found, "peak_gb": peak}))
        return
    results: dict[str, Any] = json.loads(RESULT.read_text())["tasks"] if RESULT.exists() else {}
    for task in options.tasks:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
        for name in [*SIDES, *SIDES]:
            print(f"== {task}: {name}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "side.json"
                shared = ["--model", options.model, "--tasks", task, "--steps", str(options.steps)]
                subprocess.run([sys.executable, __file__, *shared, "--side", name, str(file)], check=True)
                runs[name].append(json.loads(file.read_text()))
        results[task] = {name: summary(some) for name, some in runs.items()}
        print(json.dumps(results[task], indent=1))
    import jax

    kind, cores = jax.devices()[0].device_kind, len(os.sched_getaffinity(0))
    about = {
        "command": f"python experiments/smollm2/speed.py --steps {options.steps}", "date": datetime.date.today().isoformat(),
        "device": f"{cores} CPU {'core' if cores == 1 else 'cores'}" if kind == "cpu" else f"{len(jax.devices())} x {kind}",
        "machine": platform.machine(), "jax": jax.__version__,
    }  # fmt: skip
    RESULT.write_text(json.dumps({**about, "tasks": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
