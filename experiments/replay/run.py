"""Is it the softmax or the replay? HAEPO's softmax over histories beside PPO's clip, both on the same replay buffer.

    python experiments/replay/run.py [tasks=cartpole,pendulum]

Everything is equal but the bound: batches, replay, epochs, minibatches, learning rate, entropy, gradient clipping, networks and
evaluation. Nothing is tuned, on any task. What is stored in `results.json` is not trained again, so the command can be stopped
and started at any time.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import haepo_jax as hx
from haepo_jax.runner.comparison import machine
from haepo_jax.runner.run_dir import write_atomically
from haepo_jax.spaces import Box

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import difference_of_medians, mean_scores, median_interval, steps_to_threshold, without_noise  # noqa: E402
from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "results.json"
DOCUMENT = Path(__file__).parent / "README.md"
SEEDS = range(200, 220)
"""Apart from those that any default was chosen on."""
POINTS = 80

SHARED: dict[str, Any] = {
    "num_envs": 8, "num_steps": 32, "replay_batches": 8, "num_epochs": 4, "num_minibatches": 16, "learning_rate": 2e-3,
    "entropy_coef": 0.01, "max_grad_norm": 1.0, "gae_lambda": 0.95,
}  # fmt: skip
CLIP: dict[str, Any] = {"clip_around": "behaviour", "clip_eps": 0.2}
BOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("HAEPO", {"group_size": 4}),
    "softmax, no KL": ("HAEPO", {"group_size": 4, "kl_coef": 0.0}),
    "softmax, V-trace": ("HAEPO", {"group_size": 4, "advantage_estimator": "vtrace"}),
    "clip": ("PPO", CLIP),
    "clip and KL": ("PPO", {**CLIP, "kl_coef": 0.3}),
    "clip around current": ("PPO", {**CLIP, "clip_around": "current"}),
    "clip, V-trace": ("PPO", {**CLIP, "advantage_estimator": "vtrace"}),
}
"""What bounds an update. KL 0.3, temperature 0.3 and history decay 0.95 are HAEPO's defaults, a range of 0.2 is what PPO was
published with."""
NORMALISED = {f"{bound}, normalised": bound for bound in ("softmax", "clip")}
"""With observations standardised by running statistics, by what they are without. In all other comparisons only tasks with
continuous actions have them, as was the default until then."""
BOUNDS |= {
    name: (BOUNDS[bound][0], {**BOUNDS[bound][1], "normalize_observations": True}) for name, bound in NORMALISED.items()
}
DISCRETE = ("cartpole", "acrobot", "catch", "four_rooms", "mountain_car", "bandit", "bandit_100", "random_walk")
CLIPS = ("clip", "clip and KL")
"""Bounds that the table compares the softmax with."""


def name_of(task: str, bound: str) -> str:
    return f"{task}, 8 batches, {bound}"


def observations(env: Any) -> dict[str, bool]:
    """Whether a task's observations are standardised where that is not what is compared."""
    return {"normalize_observations": isinstance(env.action_space, Box)}


def algorithm(task_name: str, bound: str) -> hx.Algorithm:
    """What is trained on a task with a bound."""
    task, (kind, own) = TASKS[task_name], BOUNDS[bound]
    env = hx.make_env(task.env, **task.env_kwargs)
    made: hx.Algorithm = getattr(hx, kind)(
        env, total_steps=task.total_steps, log_points=POINTS, eval_episodes=16, **SHARED, **observations(env) | own
    )
    return made


def train(task_name: str, bound: str) -> dict[str, Any]:
    """All seeds in one compiled program."""
    algo = algorithm(task_name, bound)
    begin = time.perf_counter()
    _, metrics = jax.jit(jax.vmap(algo.train))(jax.vmap(jax.random.key)(np.array(SEEDS, np.uint32)))
    returns = np.asarray(metrics["eval_return"], np.float64)
    return {
        "eval_return": [[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in returns],
        "env_steps": metrics["env_steps"].to_int()[0].tolist(),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def as_result(task: str, found: dict[str, Any]) -> dict[str, Any]:
    """A stored job in the form that the functions of `claims/report.py` take."""
    rows = [found["env_steps"]] * len(found["eval_return"])
    returns = without_noise(task, found["eval_return"])
    return {"task": vars(TASKS[task]), "eval_return": returns, "env_steps": rows}


def table(results: dict[str, Any]) -> str:
    """Thousands of steps to the threshold, seeds that arrived and mean score; and where the softmax differs from the clips."""
    rows, bounds = [], [bound for bound in BOUNDS if bound not in NORMALISED]
    for task in TASKS:
        cells, steps = [], {}
        for bound in bounds:
            found = results["runs"].get(name_of(task, bound))
            if found is None:
                cells.append("")
                continue
            steps[bound], cell = summarised(as_result(task, found))
            cells.append(cell)
        rows.append([task, *cells, *(earlier(steps, clip) for clip in CLIPS)])
    return markdown(["task", *bounds, *(f"softmax or {clip}" for clip in CLIPS)], rows)


def normalised(results: dict[str, Any]) -> str:
    """What standardised observations change, in the form of `table`."""
    pairs = [name for name, bound in NORMALISED.items() for name in (bound, name)]
    found = [[as_result(task, results["runs"][name_of(task, bound)]) for bound in pairs] for task in DISCRETE]
    rows = [[task, *(summarised(result)[1] for result in some)] for task, some in zip(DISCRETE, found, strict=True)]
    means = np.array([[mean_scores(result).mean() for result in some] for some in found]).mean(axis=0)
    return markdown(["task", *pairs], [*rows, ["mean score", *(f"{mean:.2f}" for mean in means)]])


def summarised(result: dict[str, Any]) -> tuple[Any, str]:
    """The steps of each seed to the threshold, and the cell of the table that says so of a result."""
    steps = steps_to_threshold(result)
    median = median_interval(steps)[0]
    text = f"{median / 1000:.1f}" if np.isfinite(median) else f"> {result['task']['total_steps'] / 1000:.0f}"
    return steps, f"{text}, {int(np.isfinite(steps).sum())}/{len(steps)}, {mean_scores(result).mean():.2f}"


def earlier(steps: dict[str, Any], other: str) -> str:
    """Which of the softmax and another method reaches the threshold earlier, with the interval of the difference in thousands
    of steps."""
    if not {"softmax", other} <= steps.keys():
        return ""
    low, high = difference_of_medians(steps["softmax"], steps[other])
    winner = "softmax" if high < 0 else other if low > 0 else "neither"
    return f"{winner} ({low / 1000:+.1f} to {high / 1000:+.1f})"


def tasks_named(argv: list[str]) -> list[str] | None:
    """The tasks of a command line, all by default; None, with a line on stderr, where it cannot be read."""
    chosen = dict(argument.partition("=")[::2] for argument in argv)
    tasks = chosen.get("tasks", ",".join(TASKS)).split(",")
    if set(chosen) - {"tasks"} or set(tasks) - set(TASKS):
        print(f"error: {' '.join(argv)}: write tasks= and some of {','.join(TASKS)}, or nothing", file=sys.stderr)
        return None
    return tasks


def stored(file: Path, command: str) -> dict[str, Any]:
    """The results of a file, empty if there is none, with how more of them are made."""
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"runs": {}}
    return results | {
        "command": f"python experiments/replay/{command}",
        "seeds": list(SEEDS),
        "machine": machine(),
        "versions": {p.name: p.version for p in map(metadata.distribution, ("jax", "flax", "optax", "gymnax"))},
    }


def main(argv: list[str]) -> int:
    """Trains what is missing and writes the table; returns the exit status."""
    if (tasks := tasks_named(argv)) is None:
        return 2
    results = stored(RESULTS, "run.py")
    jobs = [(task, bound) for bound in BOUNDS for task in TASKS if task in tasks]
    jobs = [(task, bound) for task, bound in jobs if bound not in NORMALISED or task in DISCRETE]
    missing = [job for job in jobs if name_of(*job) not in results["runs"]]
    for number, job in enumerate(missing, start=1):
        print(f"[{number}/{len(missing)}] {name_of(*job)}", flush=True)
        results["runs"][name_of(*job)] = {**train(*job), "date": datetime.date.today().isoformat()}
        write_atomically(RESULTS, json.dumps(results, separators=(",", ":")) + "\n")
    fill_in(DOCUMENT, "replay", table(results))
    fill_in(DOCUMENT, "normalised", normalised(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
