"""From demonstrations to a policy, and from that policy to another training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.algorithms.state import InitialPolicy
from haepo_jax.algorithms.trajectory import EpisodeBatch
from haepo_jax.envs.base import TimeStep
from haepo_jax.runner.commands import train
from haepo_jax.spaces import Box, MultiDiscrete
from tests.toy_envs import Drift, trees_equal

TASK = hx.make_env("haepo/reverse", letters=2, length=2)
SMALL: dict[str, Any] = {"network": "gru", "hidden_sizes": (8,), "num_envs": 8, "eval_episodes": 0}
GROUPED: dict[str, Any] = {**SMALL, "group_size": 4, "num_minibatches": 1, "num_epochs": 1}


def test_only_decisions_count_for_the_supervised_loss() -> None:
    algo = hx.Supervised(TASK, **SMALL)

    @jax.jit
    def run(key: jax.Array) -> Any:
        state = algo.init(key)
        steps, returns, lengths, _ = algo.collect(state, key)
        log_probs = algo.sequence_distribution(state.params, steps.observation, steps).log_prob(steps.action)
        return steps, returns, lengths, log_probs, algo.loss(state.params, EpisodeBatch(steps, steps.observation, None))

    steps, returns, lengths, log_probs, (loss, metrics) = jax.tree.map(np.asarray, run(jax.random.key(0)))
    assert np.all(returns == 1)
    said = (lengths - 1) // 2  # of "ab=ba": two letters, "=", two letters and the end, and the last is not acted on
    expected = []
    for member, letters in enumerate(said):
        found = log_probs[:, member, 0][: lengths[member]]
        np.testing.assert_allclose(found[:letters], 0, atol=1e-6, err_msg="the prompt is not of probability one")
        expected += found[letters:].tolist()
    assert len(expected) == np.sum(said + 1)
    np.testing.assert_allclose(loss, -np.mean(expected), rtol=1e-5)
    assert 0 <= metrics["accuracy"] <= 1


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Pays the action that it receives, twice."""

    name, horizon = "scaled", 2
    observation_space = Box(-1.0, 1.0, (1,))
    action_space = Box(-2.0, 2.0, (1,))

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> TimeStep:
        return TimeStep(state + 1, jnp.zeros(1), action[0], False, state + 1 >= 2)

    def demonstration(self, state: jax.Array) -> jax.Array:
        return jnp.full((2, 1), 0.5)


def test_a_demonstration_is_in_the_units_of_the_policy() -> None:
    algo = hx.Supervised(Scaled(), num_envs=1, eval_episodes=0)
    steps, returns, lengths, _ = algo.collect(algo.init(jax.random.key(0)), jax.random.key(1))
    assert returns.tolist() == [2.0] and lengths.tolist() == [2]  # 0.5 of the way from 0 to 2, twice
    np.testing.assert_array_equal(steps.action.ravel(), 0.5)


@dataclasses.dataclass(frozen=True)
class Noisy:
    """Observes noise, and has two actions at once."""

    name, horizon = "noisy", 4
    observation_space = Box(-np.inf, np.inf, (1,))
    action_space = MultiDiscrete((2, 3))

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> TimeStep:
        return TimeStep(state + 1, jax.random.normal(key, (1,)), 1.0, False, state + 1 >= 4)

    def demonstration(self, state: jax.Array) -> jax.Array:
        return jnp.tile(jnp.array([1, 2]), (4, 1))


def test_a_demonstration_draws_noise_anew_and_may_have_several_actions() -> None:
    algo = hx.Supervised(Noisy(), num_envs=2, eval_episodes=0, learning_rate=0.03, total_steps=800, log_points=1)
    seen = algo.collect(algo.init(jax.random.key(0)), jax.random.key(1))[0].observation[1:]
    assert len(np.unique(seen)) == seen.size
    metrics = jax.jit(algo.train)(jax.random.key(0))[1]
    assert metrics["accuracy"][-1] == 1


@dataclasses.dataclass(frozen=True)
class Faulty(Noisy):
    """Observes NaN after every fourth step."""

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> TimeStep:
        following = super().step(key, state, action)
        return following._replace(observation=jnp.where(jax.random.uniform(key) < 0.25, jnp.nan, following.observation))


def test_a_demonstration_that_is_not_finite_is_dropped() -> None:
    algo = hx.Supervised(Faulty(), num_envs=16, eval_episodes=0, total_steps=320, log_points=1)
    metrics = jax.jit(algo.train)(jax.random.key(0))[1]
    assert 0 < metrics["invalid_episodes"][-1] < 16 and np.isfinite(metrics["loss"][-1])


@pytest.mark.parametrize(
    "method",
    [hx.EpisodicHAEPO, *(pytest.param(method, marks=pytest.mark.slow) for method in (hx.PPO, hx.GRPO, hx.DPO))],
)
def test_every_algorithm_plays_and_counts_decisions_alone(method: Any) -> None:
    """A policy whose every token is as likely has the entropy of one, whatever the share of the prompt."""
    options: dict[str, Any] = (
        {**SMALL, "num_steps": 5, "num_minibatches": 1, "num_epochs": 1, "learning_rate": 0.0}
        if method is hx.PPO
        else {**GROUPED, "learning_rate": 0.0}
    )
    algo = method(TASK, **options)

    @jax.jit
    def run(key: jax.Array) -> Any:
        start = algo.init(key)
        even = InitialPolicy(jax.tree.map(jnp.zeros_like, algo.policy_params(start.params)), None)
        return algo.train_step(algo.init(key, even))[1]

    metrics = run(jax.random.key(0))
    np.testing.assert_allclose(metrics["entropy"], np.log(TASK.action_space.n), rtol=1e-5)
    assert np.isfinite(metrics["loss"])


def test_what_a_training_starts_from() -> None:
    source = hx.Supervised(TASK, **SMALL)
    policy = jax.jit(source.init)(jax.random.key(1)).params
    start = InitialPolicy(policy, None)
    haepo = hx.EpisodicHAEPO(TASK, reference="initial", **GROUPED)
    state = jax.jit(haepo.init)(jax.random.key(2), start)
    assert trees_equal(state.params, policy) and trees_equal(state.reference, policy)
    assert trees_equal(jax.jit(hx.DPO(TASK, **GROUPED).init)(jax.random.key(2), start).reference, policy)
    ppo = hx.PPO(TASK, **SMALL)
    params, fresh = (jax.jit(ppo.init)(jax.random.key(2), x).params for x in (start, None))
    assert trees_equal(params["policy"], policy) and trees_equal(params["value"], fresh["value"])
    assert not trees_equal(fresh["policy"], policy)


def test_what_it_cannot_start_from() -> None:
    start = InitialPolicy(hx.Supervised(TASK, **SMALL).init(jax.random.key(0)).params, None)
    for options, message in (
        ({"hidden_sizes": (16,)}, r"different network: .*kernel.* is \(8, 4\), but must be \(16, 4\)"),
        ({"network": "lstm"}, "different network: .* missing"),
        ({"normalize_observations": True}, "trained on unnormalised observations: set normalize_observations=False"),
    ):
        with pytest.raises(ValueError, match=message):
            hx.EpisodicHAEPO(TASK, **{**GROUPED, **options}).init(jax.random.key(0), start)
    with pytest.raises(ValueError, match="has no demonstrations"):
        hx.Supervised(Drift())


NETWORK = ["algo.network=gru", "algo.hidden_sizes=[16]"]
FEW = ["algo.log_points=2", "algo.eval_episodes=8", "final_eval_episodes=64", "tensorboard=false"]
LONG = ["total_steps=40_000", "algo.num_envs=32", "algo.learning_rate=0.01"]
ENV = ["env=haepo/reverse", "env_kwargs.letters=2", "env_kwargs.length=2"]


def test_from_demonstrations_to_another_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line; the second run goes on after an end, without the first."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert train.main(["algo=supervised", *ENV, *NETWORK, *FEW, *LONG, f"run_dir={first}"]) == 0
    learnt = json.loads((first / "summary.json").read_text())["final_return_mean"]
    assert learnt > 0.9, "little was learnt from the demonstrations"

    grouped = [
        "algo=haepo_episodic",
        "algo.num_envs=16",
        "algo.num_minibatches=1",
        "algo.num_epochs=1",
        "algo.reference=initial",
    ]
    arguments = [*ENV, *NETWORK, *FEW, *grouped, f"init_from={first}", f"run_dir={second}"]
    assert train.main([*arguments, "total_steps=100"]) == 0
    rows = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["episode_return"] > 0.6
    assert trees_equal(hx.load(second)[1].state.reference, hx.load(first)[1].state.params)
    first.rename(tmp_path / "gone")
    for last in ("dry_run=true", "dry_run=false"):
        assert train.main([f"run_dir={second}", "resume=true", "total_steps=400", last]) == 0

    capsys.readouterr()
    for wrong, message in (
        ([*grouped, f"init_from={first}"], "is not a directory"),
        (["algo.network=lstm", f"init_from={tmp_path / 'gone'}"], "has a different network"),
        (["algo=supervised", f"init_from={tmp_path}"], "init_from="),
    ):
        assert train.main([*ENV, *NETWORK, *FEW, *wrong, f"run_dir={tmp_path / 'wrong'}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "wrong").exists()
