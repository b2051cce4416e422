"""PPO beside rejax 0.1.3 on CPU at equal hyperparameters: environment steps per second, and learning curves.

Each library runs in a process of its own, under its own interpreter, because they need different versions of gymnax.
The two processes are measured in turns, and each round gives one ratio: whatever else the machine is doing then slows
both. Processor time, which hardly notices others, is compared too. Compilation is left out, evaluation is off while
speed is measured, and each side counts its own steps.

    python -m venv rejax-venv && rejax-venv/bin/pip install "rejax==0.1.3" "gymnax<1" six
    python experiments/benchmark_rejax.py --rejax-python rejax-venv/bin/python

What cannot be made equal: rejax clips gradients element by element (ours by their global norm), treats truncation as
termination, initialises with LeCun normals (ours orthogonal) and uses Adam with eps 1e-8 (ours 1e-5).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # a checkout that is not installed

from haepo_jax.training.statistics import bootstrap_interval, interquartile_mean  # noqa: E402

SIDES = ("haepo_jax", "rejax")

SETTINGS: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_envs": 32,
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "hidden_sizes": [64, 64],
    "activation": "tanh",
    "learning_rate": 1e-3,
    "max_grad_norm": 0.5,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "value_coef": 0.5,
    "entropy_coef": 0.01,
}
BATCH = SETTINGS["num_envs"] * SETTINGS["num_steps"]


class Worker:
    """A process of one side; `ask` sends a request and waits for the answer."""

    def __init__(self, python: str, side: str) -> None:
        # The JAX backend is fixed, and the repository importable without being installed.
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")] if side == "haepo_jax" else []
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [python, str(HERE / "_rejax_worker.py"), side, json.dumps(SETTINGS)]
        self.side = side
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.side} process ended with exit status {self.process.wait()}")
        return json.loads(line)


def measure_speed(workers: dict[str, Worker], seeds: int, rounds: int, total_steps: int) -> dict[str, Any]:
    """Trains in turns, `rounds` times after one warm-up call that compiles."""
    request = {"seeds": seeds, "total_steps": total_steps, "points": 1, "episodes": 0}
    compile_seconds = {side: worker.ask(seed=0, **request)["compile_seconds"] for side, worker in workers.items()}
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    processor_seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    steps = {}
    for turn in range(rounds):
        # The order alternates, so that neither side always runs after the other.
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            result = workers[side].ask(seed=turn + 1, **request)
            rates[side].append(result["steps"] / result["seconds"])
            processor_seconds[side].append(result["cpu_seconds"] / result["steps"])
            steps[side] = result["steps"]
    ratios = np.divide(rates["haepo_jax"], rates["rejax"])
    quartiles = np.percentile(ratios, [25, 50, 75])
    work = np.divide(processor_seconds["rejax"], processor_seconds["haepo_jax"])
    return {
        "seeds": seeds,
        "rounds": rounds,
        "steps_per_run": steps,
        "steps_per_second": rates,
        "median_steps_per_second": {side: float(np.median(rates[side])) for side in SIDES},
        "compile_seconds": compile_seconds,
        "ratio_median": float(quartiles[1]),
        "ratio_quartiles": [float(quartiles[0]), float(quartiles[2])],
        "rounds_ahead": int(np.sum(ratios > 1)),
        "processor_seconds_per_step": processor_seconds,
        "processor_ratio_median": float(np.median(work)),
    }


def measure_learning(workers: dict[str, Worker], seeds: int, points: int, total_steps: int) -> dict[str, Any]:
    """Curves of the mean return of 128 evaluation episodes with sampled actions: interquartile mean over seeds."""
    every = BATCH * -(-total_steps // (BATCH * points))
    curves: dict[str, Any] = {"seeds": seeds, "env_steps": [every * (point + 1) for point in range(points)]}
    for side in SIDES:
        answer = workers[side].ask(seed=2025, seeds=seeds, total_steps=every * points, points=points, episodes=128)
        returns = np.asarray(answer["returns"])  # (seeds, points)
        low, high = bootstrap_interval(returns.T)
        curves[side] = {
            "returns": returns.tolist(),
            "interquartile_mean": interquartile_mean(returns.T).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "steps_per_seed": answer["steps"] // seeds,
        }
    ours, theirs = (curves[side] for side in SIDES)
    apart = [not (ours["low"][i] <= theirs["high"][i] and theirs["low"][i] <= ours["high"][i]) for i in range(points)]
    curves["points_where_bands_overlap"] = points - sum(apart)
    return curves


def draw(learning: dict[str, Any], path: Path) -> None:
    """Both curves with their 95% bootstrap bands."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for side in SIDES:
        curve = learning[side]
        axes.plot(learning["env_steps"], curve["interquartile_mean"], label=side)
        axes.fill_between(learning["env_steps"], curve["low"], curve["high"], alpha=0.25)
    axes.set_xlabel("environment steps")
    axes.set_ylabel(f"return, interquartile mean of {learning['seeds']} seeds")
    axes.set_title(f"PPO on {SETTINGS['env']}: equal hyperparameters, 95% bootstrap bands")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def table(speed: list[dict[str, Any]], learning: dict[str, Any] | None) -> str:
    lines = ["seeds   haepo_jax        rejax   ratio: median [quartiles]   rounds ahead   by processor time"]
    for row in speed:
        ours, theirs = (row["median_steps_per_second"][side] for side in SIDES)
        low, high = row["ratio_quartiles"]
        lines.append(
            f"{row['seeds']:5d}  {ours:8,.0f}/s  {theirs:9,.0f}/s   {row['ratio_median']:6.2f} [{low:.2f}, {high:.2f}]"
            f"       {row['rounds_ahead']:2d} of {row['rounds']:2d}"
            f"               {row['processor_ratio_median']:5.2f}"
        )
    if learning:
        lines += ["", f"return, interquartile mean of {learning['seeds']} seeds [95% bootstrap]"]
        lines.append(f"{'env steps':>10}  {SIDES[0]:>22}  {SIDES[1]:>22}")
        for i, steps in enumerate(learning["env_steps"]):
            curves = [learning[side] for side in SIDES]
            cells = [f"{c['interquartile_mean'][i]:6.1f} [{c['low'][i]:5.1f}, {c['high'][i]:5.1f}]" for c in curves]
            lines.append(f"{steps:>10,}  " + "  ".join(cells))
        overlapping = learning["points_where_bands_overlap"]
        lines.append(f"bands overlap at {overlapping} of {len(learning['env_steps'])} points")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejax-python", required=True, help="interpreter of a virtual environment with rejax 0.1.3")
    parser.add_argument("--python", default=sys.executable, help="interpreter of our side (default: this one)")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 8], help="numbers of vmapped seeds to time")
    parser.add_argument("--total-steps", type=int, default=500_000, help="environment steps of one timed run")
    parser.add_argument("--learning-steps", type=int, default=500_000, help="environment steps of a learning curve")
    parser.add_argument("--learning-seeds", type=int, default=16, help="seeds of the learning curves; 0: none")
    parser.add_argument("--points", type=int, default=25, help="evaluations on a learning curve")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the JSON file and the figure")
    options = parser.parse_args()

    pythons = {"haepo_jax": options.python, "rejax": options.rejax_python}
    workers = {side: Worker(pythons[side], side) for side in SIDES}
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "settings": SETTINGS,
        "total_steps": options.total_steps,
        "versions": {side: worker.about["versions"] for side, worker in workers.items()},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "speed": [],
        "learning": None,
    }

    def save() -> None:
        (options.output / "benchmark_rejax.json").write_text(json.dumps(results, indent=1) + "\n")

    for seeds in options.seeds:
        results["speed"].append(measure_speed(workers, seeds, options.rounds, options.total_steps))
        save()
    if options.learning_seeds:
        results["learning"] = measure_learning(workers, options.learning_seeds, options.points, options.learning_steps)
        save()
        draw(results["learning"], options.output / "benchmark_rejax.png")
    for worker in workers.values():
        worker.close()
    print(table(results["speed"], results["learning"]))


if __name__ == "__main__":
    main()
