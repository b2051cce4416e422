"""The exercise of the README: a fifth algorithm, as short as it says and as able."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

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


def test_it_solves_the_bandit_and_its_learning_rate_vmaps(reinforce: ModuleType) -> None:
    algo = reinforce.REINFORCE("haepo/bandit", total_steps=40_000, log_points=1, eval_episodes=0, hidden_sizes=(16,))

    def greedy_return(learning_rate: jax.Array) -> jax.Array:
        state, _ = algo.replace(learning_rate=learning_rate).train(jax.random.key(0))
        return jnp.mean(algo.evaluate(state, episodes=256, greedy=True)["return"])

    frozen, trained = jax.jit(jax.vmap(greedy_return))(jnp.array([0.0, 1e-2]))
    best = float(jnp.max(algo.env.params.means)) * algo.env.horizon
    assert trained > best - 1.0, "ten pulls with noise of 1: the mean of 256 is within 0.2"
    assert frozen < best - 2.0
