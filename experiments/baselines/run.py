"""Stable-Baselines3's PPO, DQN and SAC at the settings that RL Baselines3 Zoo publishes for each task.

    python3 -m venv .venv-sb3
    .venv-sb3/bin/python -m pip install -r experiments/baselines/requirements.txt
    .venv-sb3/bin/python experiments/baselines/run.py [cartpole-ppo pendulum-sac ...]

Five seeds each. A run that has results is not trained again; they are in results.json, in the form of experiments/replay.
Networks, normalisation and exploration are the zoo's. Steps are those of our own runs on the task; the zoo often trains for
longer, so schedules that end with the run end earlier here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3 as sb3
import storage
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "claims"))

from catalogue import TASKS

RESULTS = Path(__file__).parent / "results.json"
SEEDS, POINTS, EPISODES = range(5), 80, 16


def falling(start: float) -> Callable[[float], float]:
    """Linear to 0 over the run."""
    return lambda left: start * left


LARGE = {"policy_kwargs": {"net_arch": [256, 256]}}
SETTINGS: dict[str, dict[str, Any]] = {
    "cartpole-ppo": {
        "num_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
        "learning_rate": falling(1e-3), "clip_range": falling(0.2),
    },
    "acrobot-ppo": {
        "num_envs": 16, "normalize": True, "n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0,
    },
    "pendulum-ppo": {
        "num_envs": 4, "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0,
        "learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4,
    },
    "mountain_car-ppo": {
        "num_envs": 16, "normalize": True, "n_steps": 16, "gae_lambda": 0.98, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0,
    },
    "mountain_car_continuous-ppo": {
        "steps": 20_000, "num_envs": 1, "normalize": True, "batch_size": 256, "n_steps": 8, "gamma": 0.9999, "learning_rate": 7.77e-5,
        "ent_coef": 0.00429, "clip_range": 0.1, "n_epochs": 10, "gae_lambda": 0.9, "max_grad_norm": 5, "vf_coef": 0.19,
        "use_sde": True, "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False},
    },
    "cartpole-dqn": {
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000, "gamma": 0.99,
        "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04, **LARGE,
    },
    "acrobot-dqn": {
        "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0, "gamma": 0.99,
        "target_update_interval": 250, "train_freq": 4, "gradient_steps": -1, "exploration_fraction": 0.12,
        "exploration_final_eps": 0.1, **LARGE,
    },
    "mountain_car-dqn": {
        "learning_rate": 4e-3, "batch_size": 128, "buffer_size": 10_000, "learning_starts": 1000, "gamma": 0.98,
        "target_update_interval": 600, "train_freq": 16, "gradient_steps": 8, "exploration_fraction": 0.2,
        "exploration_final_eps": 0.07, **LARGE,
    },
    "pendulum-sac": {"steps": 20_000, "learning_rate": 1e-3},
    "mountain_car_continuous-sac": {
        "steps": 50_000, "learning_rate": 3e-4, "buffer_size": 50_000, "batch_size": 512, "ent_coef": 0.1, "train_freq": 32,
        "gradient_steps": 32, "gamma": 0.9999, "tau": 0.01, "learning_starts": 0, "use_sde": True,
        "policy_kwargs": {"log_std_init": -3.67, "net_arch": [64, 64]},
    },
}  # fmt: skip
"""By task and method: the zoo's, with the number of environments, whether observations and rewards are normalised, and how many
steps if fewer than on our own runs."""


class Curve(BaseCallback):
    """Mean return of 16 episodes, whose actions are not sampled, as Stable-Baselines3 evaluates, at 80 points of a run."""

    def __init__(self, task: str, steps: int, seed: int) -> None:
        super().__init__()
        self.every = steps / POINTS
        self.envs = environments(task, EPISODES, 10_000 + seed)
        self.returns: list[float] = []
        self.steps: list[int] = []

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.every * (len(self.steps) + 1) and len(self.steps) < POINTS - 1:
            self.evaluate()
        return True

    def evaluate(self) -> None:
        """One episode in each of the environments."""
        own = self.model.get_vec_normalize_env()
        observation, total = self.envs.reset(), np.zeros(EPISODES)
        alive = np.ones(EPISODES, bool)
        while alive.any():
            seen = observation if own is None else own.normalize_obs(observation)
            action, _ = self.model.predict(seen, deterministic=True)
            observation, reward, done, _ = self.envs.step(action)
            total += np.where(alive, reward, 0.0)
            alive &= ~done
        self.returns.append(float(f"{total.mean():.4g}"))
        self.steps.append(self.num_timesteps)


def environments(task: str, count: int, seed: int) -> VecEnv:
    """So many copies of a task's environment."""
    envs = DummyVecEnv([lambda: gymnasium.make(TASKS[task].env)] * count)
    envs.seed(seed)
    return envs


def train(name: str, seed: int) -> dict[str, Any]:
    """One run: its returns and steps."""
    task, method = name.split("-")
    settings = dict(SETTINGS[name])
    steps = settings.pop("steps", TASKS[task].total_steps)
    envs = environments(task, settings.pop("num_envs", 1), seed)
    if settings.pop("normalize", False):
        envs = VecNormalize(envs, gamma=settings["gamma"])
    kind = {"ppo": sb3.PPO, "dqn": sb3.DQN, "sac": sb3.SAC}[method]
    curve, began = Curve(task, steps, seed), time.perf_counter()
    kind("MlpPolicy", envs, seed=seed, device="cpu", **settings).learn(steps, callback=curve)
    curve.evaluate()
    return {"eval_return": curve.returns, "env_steps": curve.steps, "seconds": round(time.perf_counter() - began, 1)}


def main(names: list[str]) -> int:
    """Trains what is missing, a seed of all before the next."""
    if unknown := set(names) - SETTINGS.keys():
        print(f"error: {', '.join(unknown)}: choose from {', '.join(SETTINGS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for seed in SEEDS:
        for name in names or SETTINGS:
            run = f"{name}-{seed}"
            if run not in storage.runs_of(RESULTS):
                print(f"{name}, seed {seed}", flush=True)
                versions = {module.__name__: module.__version__ for module in (sb3, torch, gymnasium)}
                storage.add(RESULTS, {run: train(name, seed)}, "python experiments/baselines/run.py", versions)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
