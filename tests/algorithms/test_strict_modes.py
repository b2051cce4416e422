"""Updates under jax's strict modes: no implicit promotion of dtypes or ranks, no NaN, and no jit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from tests.toy_envs import Drift, Start

SMALL: dict[str, Any] = {
    "num_envs": 4, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (4,), "total_steps": 64, "log_points": 2,
    "eval_episodes": 2,
}  # fmt: skip
SEGMENTS: dict[str, Any] = {**SMALL, "num_steps": 2}
GROUPS: dict[str, Any] = {**SMALL, "group_size": 2}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "haepo": ("HAEPO", {**SEGMENTS, "replay_batches": 2, "group_size": 2, "advantage_estimator": "vtrace"}),
    "ppo": ("PPO", SEGMENTS),
    "ppo_replay": (
        "PPO",
        {**SEGMENTS, "replay_batches": 2, "clip_around": "current", "target_kl": 0.1, "value_clip_eps": 0.2,
         "advantage_estimator": "vtrace", "surprisal_bonus": 0.1, "network": "gru", "normalize_observations": True},
    ),
    "haepo_episodic": ("EpisodicHAEPO", {**GROUPS, "kl": "weights", "entropy": "weights"}),
    "haepo_paper": ("EpisodicHAEPO", {**GROUPS, "credit": "trajectory", "score": "likelihood", "temperature": "auto"}),
    "grpo": ("GRPO", {**GROUPS, "on_nan": "skip"}),
    "dpo": ("DPO", GROUPS),
}  # fmt: skip


def made(name: str, env: Any = None) -> Any:
    cls, settings = SETTINGS[name]
    return getattr(hx, cls)(Drift(horizon=3) if env is None else env, **settings)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("mode", "env"),
    [
        ("dtypes", "Pendulum-v1"),
        ("ranks", "haepo/bandit"),
        pytest.param("dtypes", "haepo/bandit", marks=pytest.mark.slow),
        pytest.param("ranks", "Pendulum-v1", marks=pytest.mark.slow),
    ],
)
def test_no_dtype_and_no_rank_is_promoted(mode: str, name: str, env: str) -> None:
    """Both are seen when a run is traced."""
    algo = made(name, env)
    strict = jax.numpy_dtype_promotion("strict") if mode == "dtypes" else jax.numpy_rank_promotion("raise")
    with strict:
        jax.eval_shape(algo.train, jax.eval_shape(lambda: jax.random.key(0)))


WITHOUT_JIT = ("grpo",)
"""The quickest; operation by operation an update of the others takes minutes."""


@pytest.mark.parametrize("name", [n if n in WITHOUT_JIT else pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS])
def test_an_update_needs_no_jit(name: str) -> None:
    algo = made(name)
    key = jax.random.key(0)
    with jax.disable_jit():
        _, metrics = algo.train_step(algo.init(key))
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", ["haepo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_no_nan_leaves_a_healthy_run(name: str) -> None:
    """Whose first update ends no episode; a NaN would raise FloatingPointError."""
    algo = made(name, Start(horizon=5))
    with jax.debug_nans(True):
        state, metrics = jax.jit(algo.train_step)(jax.jit(algo.init)(jax.random.key(0)))
        _, rows = jax.jit(algo.train)(jax.random.key(0))
    assert metrics["episodes"] == metrics["episode_return"] == metrics["episode_length"] == 0
    assert (rows["episodes"] > 0).any() and (rows["episode_return"] > 0).any()
    assert jnp.isfinite(state.params["policy"]["params"]["MLP_0"]["Dense_0"]["kernel"]).all()
