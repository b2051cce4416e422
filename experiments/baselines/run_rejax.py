"""rejax's PPO, PQN and SAC at the settings that rejax publishes for each task.

    python3 -m venv .venv-rejax
    .venv-rejax/bin/python -m pip install -r experiments/baselines/requirements-rejax.txt
    .venv-rejax/bin/python experiments/baselines/run_rejax.py [cartpole-ppo pendulum-sac ...]

Five seeds each, in one compiled call. What has results is not trained again; they are in rejax.json, in the form of
results.json. Networks, normalisation and exploration are rejax's. Steps are those of our own runs on the task, where rejax
often trains for longer, so its exploration, which falls with the run, falls faster here.
"""

from __future__ import annotations

import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rejax
import storage
from rejax.evaluate import evaluate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "claims"))

from catalogue import TASKS

RESULTS = Path(__file__).parent / "rejax.json"
SEEDS, POINTS, EPISODES = 5, 80, 16

TANH, SWISH, RELU = ({"agent_kwargs": {"activation": name}} for name in ("tanh", "swish", "relu"))
PQN: dict[str, Any] = {
    "num_envs": 16, "num_steps": 128, "num_minibatches": 16, "max_grad_norm": 10, "learning_rate": 3e-4, "num_epochs": 5,
    "eps_start": 1, "eps_end": 0.05, "exploration_fraction": 0.5, "gamma": 0.99, "td_lambda": 0.9,
    "normalize_observations": False,
}  # fmt: skip
SMALL_PPO: dict[str, Any] = {
    "num_envs": 5, "num_steps": 100, "num_epochs": 5, "num_minibatches": 5, "learning_rate": 7.5e-4, "max_grad_norm": 0.5,
    "gamma": 0.99, "gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.01, "vf_coef": 0.5, **TANH,
}  # fmt: skip
SMALL_SAC: dict[str, Any] = {
    "num_envs": 5, "buffer_size": 10_000, "fill_buffer": 1000, "batch_size": 256, "learning_rate": 1e-3, "num_epochs": 2,
    "gamma": 0.99, "polyak": 0.95, **TANH,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "cartpole-ppo": SMALL_PPO,
    "acrobot-ppo": {**SMALL_PPO, "normalize_observations": True},
    "pendulum-ppo": {
        "num_envs": 100, "num_steps": 100, "num_epochs": 10, "num_minibatches": 10, "learning_rate": 1e-3, "max_grad_norm": 10,
        "gamma": 0.995, "gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.0, "vf_coef": 0.5,
        "normalize_observations": True, **SWISH,
    },
    "mountain_car-ppo": {
        "num_envs": 10, "num_steps": 20, "num_epochs": 5, "num_minibatches": 5, "learning_rate": 2.5e-4, "max_grad_norm": 0.5,
        "gamma": 0.99, "gae_lambda": 0.98, "clip_eps": 0.2, "ent_coef": 0.0, "vf_coef": 0.5, **TANH,
    },
    "mountain_car_continuous-ppo": {
        "num_envs": 5, "num_steps": 100, "num_epochs": 10, "num_minibatches": 10, "learning_rate": 3e-4, "max_grad_norm": 10,
        "gamma": 0.9, "gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.0, "vf_coef": 0.5, **RELU,
    },
    "cartpole-pqn": PQN,
    "acrobot-pqn": PQN,
    "mountain_car-pqn": PQN,
    "cartpole-sac": {**SMALL_SAC, "target_entropy_ratio": 0.7},
    "acrobot-sac": {**SMALL_SAC, "target_entropy_ratio": 0.1, "normalize_observations": False},
    "pendulum-sac": {
        "num_envs": 1, "buffer_size": 10_000, "fill_buffer": 256, "batch_size": 256, "learning_rate": 1e-2, "num_epochs": 1,
        "gamma": 0.99, "polyak": 0.98, "target_entropy_ratio": None, "normalize_observations": True, **SWISH,
    },
    "mountain_car-sac": {
        "num_envs": 5, "buffer_size": 10_000, "fill_buffer": 1000, "batch_size": 100, "learning_rate": 5e-3, "num_epochs": 5,
        "gamma": 1.0, "polyak": 0.8, "target_entropy_ratio": 0.5, **TANH,
    },
    "mountain_car_continuous-sac": {
        "num_envs": 32, "buffer_size": 10_000, "fill_buffer": 256, "batch_size": 256, "learning_rate": 5e-3, "num_epochs": 32,
        "gamma": 0.99, "polyak": 0.99, "target_entropy_ratio": None, **SWISH,
    },
}  # fmt: skip
"""By task and method: those of `configs/gymnax` in rejax's repository."""
STEPS = {"pendulum-sac": 20_000, "mountain_car_continuous-sac": 50_000}
"""Where they are fewer than on our own runs."""


def train(name: str) -> dict[str, dict[str, Any]]:
    """All seeds: their returns and steps, by run. Actions of PPO and SAC are sampled, as in our evaluation."""
    task, method = name.split("-")
    steps = STEPS.get(name, TASKS[task].total_steps)
    settings = SETTINGS[name]
    batch = settings["num_envs"] * settings.get("num_steps", 1)
    every = max(round(steps / POINTS / batch), 1) * batch
    algo = rejax.get_algo(method).create(
        env=TASKS[task].env,
        total_timesteps=-(-steps // every) * every,
        eval_freq=every,
        skip_initial_evaluation=True,
        **settings,
    )

    def judge(algo: Any, state: Any, key: jax.Array) -> jax.Array:
        limit = algo.env_params.max_steps_in_episode
        return evaluate(algo.make_act(state), key, algo.env, algo.env_params, EPISODES, limit)[1].mean()

    algo = algo.replace(eval_callback=judge)
    began = time.perf_counter()
    _, returns = jax.jit(jax.vmap(algo.train))(jax.vmap(jax.random.PRNGKey)(np.arange(SEEDS)))
    seconds = round(time.perf_counter() - began, 1)
    return {
        f"{name}-{seed}": {
            "eval_return": [float(f"{value:.4g}") for value in curve],
            "env_steps": [every * (point + 1) for point in range(len(curve))],
            "seconds": seconds,
        }
        for seed, curve in enumerate(np.asarray(returns, np.float64))
    }


def main(names: list[str]) -> int:
    """Trains what is missing."""
    if unknown := set(names) - SETTINGS.keys():
        print(f"error: {', '.join(unknown)}: choose from {', '.join(SETTINGS)}", file=sys.stderr)
        return 2
    for name in names or SETTINGS:
        if f"{name}-0" in storage.runs_of(RESULTS):
            continue
        found = train(name)
        final = " ".join(f"{run['eval_return'][-1]:g}" for run in found.values())
        print(f"{name}: {final}", flush=True)
        versions = {package: metadata.version(package) for package in ("rejax", "jax", "gymnax")}
        storage.add(RESULTS, found, "python experiments/baselines/run_rejax.py", versions)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
