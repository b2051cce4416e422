"""The exercise of the README: a fifth algorithm, as short as it says and as able."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.algorithms.state import TrainState

FILE = Path(__file__).parents[1] / "examples" / "reinforce.py"


@pytest.fixture(scope="module")
def reinforce() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reinforce", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reinforce"] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_under_60_lines() -> None:
    assert len(FILE.read_text().splitlines()) < 60


def test_it_solves_the_bandit(reinforce: ModuleType) -> None:
    algo = reinforce.REINFORCE(
        "haepo/bandit", total_steps=40_000, learning_rate=1e-2, log_points=1, eval_episodes=0, hidden_sizes=(16,)
    )
    state, _ = jax.jit(algo.train)(jax.random.key(0))
    best = float(jnp.max(algo.env.params.means)) * algo.env.horizon
    greedy = algo.evaluate(state, episodes=256, greedy=True)["return"]
    assert float(jnp.mean(greedy)) > best - 1.0, "ten pulls with noise of 1: the mean of 256 is within 0.2"


def test_it_improves_on_cartpole_with_any_learning_rate_as_a_lane(reinforce: ModuleType) -> None:
    algo = reinforce.REINFORCE(
        "CartPole-v1", total_steps=20_000, anneal_learning_rate=False, log_points=1, eval_episodes=16
    )

    def train(learning_rate: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return algo.replace(learning_rate=learning_rate).train(jax.random.key(0))

    _, history = jax.jit(jax.vmap(train))(jnp.array([0.0, 1e-2]))
    frozen, trained = np.asarray(history["eval_return"][:, -1])
    assert frozen < 40 and trained > 2 * frozen, history["eval_return"]
