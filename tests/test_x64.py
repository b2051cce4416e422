"""Under jax_enable_x64 training is what it is without: every environment, every network, all in 32 bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import haepo_jax as hx
from haepo_jax.envs import Box, Discrete, TimeStep, list_envs

SMALL: dict[str, Any] = {"total_steps": 64, "num_envs": 4, "log_points": 2, "eval_episodes": 2, "num_epochs": 1}
SEGMENTS: dict[str, Any] = {**SMALL, "num_steps": 4, "num_minibatches": 2, "hidden_sizes": (8,)}
# One of each kind; the others are slow to trace.
QUICK = ("CartPole-v1", "Pendulum-v1", "FrozenLake-misc", "haepo/bandit", "haepo/reverse", "haepo/random_walk")
OFFLINE = [name for name in list_envs() if not name.startswith("playground/")]


class Careless:
    """A custom environment that names no dtype."""

    name, horizon = "careless", 5
    observation_space = {"x": Box(-1.0, 1.0, (2,)), "n": Discrete(9)}
    action_space = Box([0.0, -jnp.inf], [10.0, jnp.inf], (2,))

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        x, time = jax.random.uniform(key, (2,)), jnp.array(0)
        return (x, time), {"x": x, "n": time}

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        x, time = state[0] + 0.1 * action, state[1] + 1
        return TimeStep((x, time), {"x": x, "n": time}, jnp.sum(x), jnp.array(False), jnp.array(False))


def shapes(algorithm: Any) -> Any:
    """Shapes and dtypes of a state, and of state and metrics after an update."""
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    after = jax.eval_shape(algorithm.train_step, state)
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), (state, after))


def assert_same_under_x64(make: Any) -> None:
    narrow = shapes(make())
    with jax.enable_x64(True):
        wide = shapes(make())
    assert jax.tree.leaves(wide) == jax.tree.leaves(narrow)
    assert not {"float64", "int64", "uint64"} & set(jax.tree.leaves(wide))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OFFLINE])
def test_every_environment(name: str) -> None:
    assert_same_under_x64(lambda: hx.PPO(name, **SEGMENTS))


NETWORKS = [(method, network) for method in ("HAEPO", "PPO", "GRPO") for network in ("gru", "lstm", "transformer")]
PAIRS = (("HAEPO", "gru"), ("PPO", "lstm"), ("GRPO", "transformer"))


@pytest.mark.parametrize(
    ("method", "network"), [n if n in PAIRS else pytest.param(*n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_every_network(network: str, method: str) -> None:
    options = {**SMALL, "hidden_sizes": (8,), "network": network, "num_minibatches": 1, "num_heads": 2}
    options |= {"group_size": 2} if method != "PPO" else {}
    options |= {"num_steps": 4} if method != "GRPO" else {}
    if network != "transformer":
        del options["num_heads"]
    assert_same_under_x64(lambda: getattr(hx, method)("CartPole-v1", **options))


@pytest.mark.parametrize(("method", "options"), [("DPO", {}), ("EpisodicHAEPO", {"credit": "trajectory"})])
def test_every_loss(method: str, options: dict[str, Any]) -> None:
    groups = {**SMALL, "hidden_sizes": (8,), "group_size": 2, "num_minibatches": 1}
    assert_same_under_x64(lambda: getattr(hx, method)("CartPole-v1", **groups, **options))


def test_a_hyperparameter_in_64_bits() -> None:
    with jax.enable_x64(True):
        algorithm = hx.PPO("CartPole-v1", **SEGMENTS, max_grad_norm=jnp.linspace(0.5, 1.0, 2)[0])
        after, _ = jax.eval_shape(algorithm.train_step, jax.eval_shape(algorithm.init, jax.random.key(0)))
    assert not {"float64"} & {str(x.dtype) for x in jax.tree.leaves(after)}


def test_a_custom_environment_that_names_no_dtype() -> None:
    """Its own state is as wide as it makes it; all else is in 32 bits, what it observes and pays included."""

    def without_its_state() -> Any:
        state, (after, metrics) = shapes(hx.PPO(Careless(), **SEGMENTS))
        drop = lambda extra: dataclasses.replace(extra, envs=dataclasses.replace(extra.envs, state=None, spare=None))  # noqa: E731
        return [dataclasses.replace(x, extra=drop(x.extra)) for x in (state, after)], metrics

    narrow = without_its_state()
    with jax.enable_x64(True):
        wide = without_its_state()
    assert jax.tree.leaves(wide) == jax.tree.leaves(narrow)


def test_a_policy_trained_in_32_bits_plays_alike_under_x64() -> None:
    algorithm = hx.PPO("CartPole-v1", **SEGMENTS)
    state, _ = jax.jit(algorithm.train_step)(algorithm.init(jax.random.key(0)))
    narrow = algorithm.evaluate(state, episodes=4, greedy=True)
    with jax.enable_x64(True):
        wide = dataclasses.replace(algorithm).evaluate(state, episodes=4, greedy=True)
    assert narrow["return"].tolist() == wide["return"].tolist() and wide["return"].dtype == jnp.float32
