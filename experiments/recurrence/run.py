"""Tasks that cannot be done without a memory: PPO with each network on MemoryChain and on CartPole without velocities.

    python experiments/recurrence/run.py

Each network is trained on 5 seeds with the same settings; what was trained before is not trained again. Results:
experiments/recurrence/results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from tables import fill_in, markdown  # noqa: E402

RESULTS = Path(__file__).parent / "results.json"
DOCUMENT = Path(__file__).parent / "README.md"
NETWORKS = ("mlp", "gru", "transformer")
TASKS: dict[str, list[str]] = {
    "MemoryChain-bsuite": ["total_steps=100_000", "algo.num_envs=32"],
    "haepo/hidden_cartpole": ["total_steps=250_000", "algo.num_envs=16", "algo.context=16"],
}
SHARED = [
    "algo=ppo", "algo.num_steps=128", "algo.num_epochs=4", "algo.num_minibatches=4", "algo.learning_rate=1e-3",
    "algo.entropy_coef=[0.01,0.0]", "algo.gae_lambda=0.95", "algo.clip_eps=0.2", "algo.normalize_observations=false",
    "algo.hidden_sizes=[32,32]", "num_seeds=5", "tensorboard=false", "checkpoint_minutes=null",
]  # fmt: skip
"""Those up to the networks were PPO's defaults when the stored results were made, so their commands do not name them."""


def train(task: str, network: str) -> dict[str, Any]:
    """One task and network, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        arguments = [f"env={task}", f"algo.network={network}", *SHARED, *TASKS[task]]
        subprocess.run([sys.executable, "-m", "haepo_jax.train", *arguments, f"run_dir={run}"], check=True)
        summary = json.loads((run / "summary.json").read_text())
    names = ("final_return_mean", "final_return_per_seed", "env_steps", "run_seconds", "compile_seconds", "versions")
    return {"command": " ".join(["python -m haepo_jax.train", *arguments]), **{name: summary[name] for name in names}}


def table(results: dict[str, Any]) -> str:
    """Mean final returns, and the worst and the best seed's."""
    rows = []
    for task, settings in TASKS.items():
        steps = int(settings[0].partition("=")[2])
        cells = []
        for network in NETWORKS:
            found = results[f"{task} {network}"]
            returns = found["final_return_mean"], *(f(found["final_return_per_seed"]) for f in (min, max))
            mean, low, high = (f"{x:.0f}" if abs(x) > 10 else f"{x:.2f}" for x in returns)
            cells.append(f"{mean} ({low} to {high})")
        rows.append([f"{task}, {steps:,} steps", *cells])
    return markdown(["mean (worst to best seed)", *NETWORKS], rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for task in TASKS:
        for network in NETWORKS:
            name = f"{task} {network}"
            if name not in results:
                results[name] = train(task, network)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            returns = results[name]["final_return_per_seed"]
            print(f"{name:34} mean {results[name]['final_return_mean']:7.2f}, seeds", *(f"{x:.2f}" for x in returns))
    fill_in(DOCUMENT, "recurrence", table(results))


if __name__ == "__main__":
    main()
