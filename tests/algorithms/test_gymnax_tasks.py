"""One update on real tasks, with few environments."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import haepo_jax as hx

FEW: dict[str, Any] = {"num_envs": 4, "num_minibatches": 1, "num_epochs": 1, "hidden_sizes": (8,), "eval_episodes": 0}
TASKS = [name for name in hx.list_envs() if "/" not in name or name.startswith("gymnax/")]


def update(method: str, task: str) -> None:
    own = {"group_size": 2} if "HAEPO" in method else {}
    own |= {} if method == "EpisodicHAEPO" else {"num_steps": 16}
    algo = getattr(hx, method)(hx.make_env(task), **FEW, **own)
    run = jax.jit(lambda key: jax.lax.scan(lambda state, _: algo.train_step(state), algo.init(key), length=1))
    state, metrics = run(jax.random.key(0))
    finite = {name: bool(np.isfinite(value).all()) for name, value in metrics.items()}
    if method != "EpisodicHAEPO":  # No episode need have ended.
        finite = {name: fine for name, fine in finite.items() if not name.startswith("episode_")}
    assert all(finite.values()), metrics
    assert int(state.status.diverged_at) == -1
    assert state.env_steps.to_int() > 0
    if method == "EpisodicHAEPO":
        assert metrics["episodes"] == 4 and metrics["invalid_episodes"] == 0


@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("HAEPO", "CartPole-v1"),
        ("EpisodicHAEPO", "CartPole-v1"),
        ("PPO", "Pendulum-v1"),
        pytest.param("PPO", "Breakout-MinAtar", marks=pytest.mark.slow),
    ],
)
def test_an_update(method: str, task: str) -> None:
    update(method, task)


def test_the_list_is_whole() -> None:
    assert len(TASKS) == 25


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["HAEPO", "EpisodicHAEPO", "PPO"])
def test_an_update_on_every_task(method: str, task: str) -> None:
    update(method, task)
