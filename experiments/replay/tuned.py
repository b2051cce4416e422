"""Softmax, clip and PPO without replay with equal freedom: each chooses its settings on each task from 32 configurations.

    python experiments/replay/tuned.py [tasks=cartpole,pendulum]

Learning rate, entropy, discount, lambda and the KL penalty are drawn alike for all three methods, beside each one's own bound.
Whichever configuration has the best mean curve over three seeds is trained with twenty others. What is stored in `tuned.json`
is not trained again, so the command can be stopped and started at any time. `settings/` holds what each method chose, for
`python -m haepo_jax.train --config`.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

import haepo_jax as hx
from haepo_jax.runner.run_dir import write_atomically

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "claims")]

from claims.catalogue import TASKS  # noqa: E402
from claims.report import scores  # noqa: E402
from replay.run import (  # noqa: E402
    DOCUMENT,
    POINTS,
    SEEDS,
    ClipAndKL,
    as_result,
    earlier,
    stored,
    summarised,
    tasks_named,
)
from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "tuned.json"
SETTINGS = Path(__file__).parent / "settings"
TUNING_SEEDS = range(300, 303)
CONFIGURATIONS = 32
ORDER = (
    "cartpole", "pendulum", "bandit", "acrobot", "catch", "four_rooms", "bandit_100", "random_walk", "mountain_car",
    "mountain_car_continuous", "random_walk_50", "inverted_pendulum",
)  # fmt: skip
"""Tasks in the order in which they are trained."""

REPLAY = {"num_envs": 8, "num_steps": 32, "replay_batches": 8, "num_epochs": 4, "num_minibatches": 16}
METHODS: dict[str, tuple[type, str, tuple[dict[str, Any], ...]]] = {
    "softmax": (hx.HAEPO, "temperature", ({**REPLAY, "group_size": 4},)),
    "clip": (ClipAndKL, "clip_eps", (REPLAY,)),
    "no replay": (
        ClipAndKL,
        "clip_eps",
        (
            {"num_envs": 8, "num_steps": 32, "num_epochs": 16, "num_minibatches": 4},
            {"num_envs": 8, "num_steps": 128, "num_epochs": 16, "num_minibatches": 8},
            {"num_envs": 8, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4},
            {"num_envs": 32, "num_steps": 128, "num_epochs": 10, "num_minibatches": 16},
        ),
    ),
}
"""The algorithm, the setting of its own bound, and the shapes among which the configurations are divided evenly."""
STALE = {**REPLAY, "replay_batches": 32, "num_epochs": 1, "num_minibatches": 64}
"""Four times as old on average, with as many gradient steps of as many environment steps, so every step is as often used."""
METHODS_OF: dict[int, dict[str, tuple[type, str, tuple[dict[str, Any], ...]]]] = {
    8: METHODS,
    32: {
        "softmax": (hx.HAEPO, "temperature", ({**STALE, "group_size": 4},)),
        "clip": (ClipAndKL, "clip_eps", (STALE,)),
        "clip, V-trace": (ClipAndKL, "clip_eps", ({**STALE, "advantage_estimator": "vtrace"},)),
    },
}
"""By the batches kept; `METHODS` has PPO without replay, too."""
FIRST = {"learning_rate": 2e-3, "entropy_coef": 0.01, "discount": 0.99, "gae_lambda": 0.95, "kl_coef": 0.3}
OWN = {"temperature": (0.1, 1.0, 0.3), "clip_eps": (0.05, 0.5, 0.2)}
"""Lowest value, highest value, and that of the first configuration."""


def draws(task: str, bound: str) -> dict[str, np.ndarray]:
    """The configurations of a task, as columns. Methods differ in the bound alone; the first configuration is HAEPO's defaults,
    or with `clip_eps` PPO's range."""
    generator = np.random.default_rng(zlib.crc32(task.encode()))
    size = CONFIGURATIONS
    kl = np.exp(generator.uniform(np.log(0.03), np.log(1.0), size))
    columns = {
        "learning_rate": np.exp(generator.uniform(np.log(3e-4), np.log(1e-2), size)),
        "entropy_coef": generator.choice([0.0, 0.003, 0.01, 0.03], size),
        "discount": generator.choice([0.95, 0.97, 0.99], size),
        "gae_lambda": generator.choice([0.8, 0.9, 0.95, 0.98], size),
        "kl_coef": np.where(generator.random(size) < 1 / 3, 0.0, kl),
    }
    low, high, usual = OWN[bound]
    columns[bound] = low * (high / low) ** generator.random(size)
    for name, value in {**FIRST, bound: usual}.items():
        columns[name][0] = value
    return {name: np.asarray(column, np.float32) for name, column in columns.items()}


def curves(
    task_name: str, kind: type, shape: dict[str, Any], columns: dict[str, np.ndarray], seeds: range, points: int
) -> Any:
    """Evaluation returns (configurations, seeds, points) and their steps, from one compiled program."""
    task = TASKS[task_name]
    algo = kind(
        hx.make_env(task.env, **task.env_kwargs), total_steps=task.total_steps, max_grad_norm=1.0, log_points=points,
        eval_episodes=16, **shape,
    )  # fmt: skip

    def run(values: dict[str, jax.Array], key: jax.Array) -> Any:
        return algo.replace(**values).train(key)[1]

    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    metrics = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(jax.tree.map(jnp.asarray, columns), keys)
    return np.asarray(metrics["eval_return"], np.float64), metrics["env_steps"].to_int()[0, 0].tolist()


def rounded(returns: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in returns]


def name_of(task: str, kept: int, method: str) -> str:
    return f"{task}, {method}" if kept == 8 else f"{task}, {kept} batches, {method}"


def tune(task: str, kept: int, method: str) -> dict[str, Any]:
    """Trains every configuration, then the best with the seeds of the table."""
    kind, bound, shapes = METHODS_OF[kept][method]
    columns = draws(task, bound)
    begin = time.perf_counter()
    each = CONFIGURATIONS // len(shapes)
    found: list[float] = []
    for number, shape in enumerate(shapes):
        part = {name: column[number * each : (number + 1) * each] for name, column in columns.items()}
        if number:  # the usual values in each shape
            part = {name: np.concatenate([column[:1], part[name][1:]]) for name, column in columns.items()}
        returns, steps = curves(task, kind, shape, part, TUNING_SEEDS, POINTS // 2)
        found += [
            float(scores(as_result(task, {"eval_return": rounded(rows), "env_steps": steps})).mean())
            for rows in returns
        ]
    best = int(np.argmax(found))
    shape = shapes[best // each]
    row = best if best % each else 0
    values = {name: column[row : row + 1] for name, column in columns.items()}
    returns, steps = curves(task, kind, shape, values, SEEDS, POINTS)
    return {
        "settings": {**shape, **{name: float(f"{column[0]:.4g}") for name, column in values.items()}},
        "scores": [round(score, 4) for score in found],
        "eval_return": rounded(returns[0]),
        "env_steps": steps,
        "seconds": round(time.perf_counter() - begin, 1),
        "date": datetime.date.today().isoformat(),
    }


def settings_file(task_name: str, kept: int, method: str, found: dict[str, Any]) -> tuple[str, str]:
    """The name and the content of a file of settings that `--config` reads."""
    task, kind = TASKS[task_name], METHODS_OF[kept][method][0]
    chosen = dict(found["settings"])
    if kind is ClipAndKL and not chosen["kl_coef"]:
        del chosen["kl_coef"]
        kind = hx.PPO
    name = {hx.HAEPO: "haepo", hx.PPO: "ppo", ClipAndKL: "replay.run:ClipAndKL"}[kind]
    content: dict[str, Any] = {"env": task.env, "total_steps": task.total_steps}
    content |= {"env_kwargs": task.env_kwargs} if task.env_kwargs else {}
    content["algo"] = {"name": name, **chosen, "max_grad_norm": 1.0}
    words = name_of(task_name, kept, method).replace(",", "").split()
    return f"{'-'.join(words)}.yaml", yaml.safe_dump(content, sort_keys=False)


def table(results: dict[str, Any], kept: int) -> str:
    """Thousands of steps to the threshold, seeds that arrived and mean score; and which of two methods is earlier."""
    methods, rows = METHODS_OF[kept], []
    others = [method for method in methods if method != "softmax"]
    for task in ORDER:
        cells, steps = [], {}
        for method in methods:
            if (found := results["runs"].get(name_of(task, kept, method))) is None:
                cells.append("")
                continue
            steps[method], cell = summarised(task, found)
            cells.append(cell)
        if steps:
            rows.append([task, *cells, *(earlier(steps, other) for other in others)])
    return markdown(["task", *methods, *(f"softmax or {other}" for other in others)], rows)


def main(argv: list[str]) -> int:
    """Trains what is missing and writes the tables; returns the exit status."""
    if (tasks := tasks_named(argv)) is None:
        return 2
    results = stored(RESULTS, "tuned.py") | {"tuning_seeds": list(TUNING_SEEDS)}
    jobs = [(task, kept, method) for kept, methods in METHODS_OF.items() for task in ORDER for method in methods]
    missing = [job for job in jobs if job[0] in tasks and name_of(*job) not in results["runs"]]
    for number, job in enumerate(missing, start=1):
        print(f"[{number}/{len(missing)}] {name_of(*job)}", flush=True)
        results["runs"][name_of(*job)] = tune(*job)
        write_atomically(RESULTS, json.dumps(results, separators=(",", ":")) + "\n")
    for job in jobs:
        if (found := results["runs"].get(name_of(*job))) is not None:
            name, content = settings_file(*job, found)
            (SETTINGS / name).write_text(content)
    for kept, name in ((8, "tuned"), (32, "stale")):
        fill_in(DOCUMENT, name, table(results, kept))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
