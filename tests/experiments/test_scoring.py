"""The scores of episodes in `experiments/claims`, against a plain loop over one environment and arithmetic in NumPy."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import haepo_jax as hx
from haepo_jax.rollout import environment_keys, to_env_action
from tests.toy_envs import Controls

FILE = Path(__file__).parents[2] / "experiments" / "claims" / "scoring.py"
spec: Any = importlib.util.spec_from_file_location("scoring", FILE)
scoring: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)

KEY, EPISODES = jax.random.key(11), 6

CASES: dict[str, Any] = {
    "actions in parts": lambda: hx.GRPO(Controls(), hidden_sizes=(8,), num_envs=8, group_size=4, num_minibatches=1),
    "normaliser, tanh": lambda: hx.PPO(
        hx.make_env("Pendulum-v1", max_steps_in_episode=5), squash_actions=True, hidden_sizes=(8,),
        num_envs=4, num_steps=8, num_minibatches=1,
    ),
    "memory, masks, forced steps": lambda: hx.GRPO(
        hx.make_env("haepo/reverse", letters=2, length=2), network="gru", hidden_sizes=(8,), num_envs=8, group_size=4,
        num_minibatches=1,
    ),
}  # fmt: skip


def states(algo: hx.Algorithm) -> tuple[Any, Any]:
    """Two policies that differ in every number, their normalisers included."""

    @jax.jit
    def state(key: jax.Array) -> Any:
        made = algo.init(key)
        params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), made.params)
        normalizer = made.normalizer
        if normalizer is not None:
            seen = jax.tree.map(lambda x: 2 * jax.random.normal(key, (3, *x.shape)), normalizer.mean)
            normalizer = normalizer.update(seen, jnp.ones(3, bool))
        return dataclasses.replace(made, params=params, normalizer=normalizer)

    return state(jax.random.key(0)), state(jax.random.key(1))


class Scored(NamedTuple):
    scores: jax.Array
    log_likelihoods: jax.Array
    returns: jax.Array


def score(algo: hx.Algorithm, before: Any, after: Any, key: jax.Array = KEY, episodes: int = EPISODES) -> Scored:
    reset_keys, step_keys = (environment_keys(one, episodes) for one in jax.random.split(key))
    return Scored(*jax.jit(scoring.play_and_score)(algo, before, after, reset_keys, step_keys)[1:])


@pytest.mark.parametrize("case", CASES)
def test_equal_a_plain_loop(case: str) -> None:
    algo = CASES[case]()
    before, after = states(algo)
    found = score(algo, before, after)
    reset_key, step_key = jax.random.split(KEY)
    policy = jax.jit(algo.act_distribution)
    env, step = algo.env, jax.jit(lambda *x: algo.env.step(*x))
    forced = 0
    for index in range(EPISODES):
        state, observation = env.reset(jax.random.fold_in(reset_key, index))
        carries = [algo.initial_carry()] * 2
        ratio = likelihood = total = 0.0
        for time in range(env.horizon):
            action_key, env_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(step_key, index), time))
            mask = env.action_mask(state) if hasattr(env, "action_mask") else None
            heads = [policy(s, c, observation, time == 0, mask) for s, c in zip((before, after), carries, strict=True)]
            carries = [carry for carry, _ in heads]
            action = heads[0][1].sample(action_key)
            old, new = (float(distribution.log_prob(action)) for _, distribution in heads)
            following = step(env_key, state, to_env_action(env, action))
            reward = float(following.reward)
            if "forced" in case and int(np.sum(mask)) == 1 and reward == 0:
                forced += 1
            else:
                ratio, likelihood = ratio + new - old, likelihood + new
            total += reward
            state, observation = following.state, following.observation
            if following.terminated or following.truncated:
                break
        np.testing.assert_allclose(found.scores[index], ratio, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.log_likelihoods[index], likelihood, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.returns[index], total, rtol=1e-5, atol=1e-6)
    assert forced > 0 or "forced" not in case
    assert np.unique(found.scores).size > 2 and np.all(np.isfinite(found.scores))


def test_the_log_ratio_of_a_linear_softmax_by_hand() -> None:
    """One pull of a bandit whose logits are the parameters: nothing of the library's own distributions is asked."""

    class Logits:
        def init(self, key: jax.Array, observation: Any) -> Any:
            return jax.random.normal(key, (10,)), ()

        def apply(self, params: Any, carry: Any, observation: Any, is_first: Any) -> Any:
            return carry, jnp.broadcast_to(params, (*jnp.shape(is_first), 10))

    bandit = hx.make_env("haepo/bandit", num_pulls=1)
    algo = hx.EpisodicHAEPO(bandit, policy=Logits(), num_envs=8, group_size=4, num_minibatches=1)
    state = algo.init(jax.random.key(0))
    other = algo.init(jax.random.key(1))
    found = score(algo, state, other, episodes=200)
    old, new = (log_softmax(np.asarray(s.params, np.float64)) for s in (state, other))
    arms = np.array([np.argmin(np.abs(new - x)) for x in found.log_likelihoods])
    np.testing.assert_allclose(found.log_likelihoods, new[arms], rtol=1e-5)
    np.testing.assert_allclose(found.scores, new[arms] - old[arms], rtol=1e-4, atol=1e-5)
    # Played by the policy before: its probabilities, not the other's.
    shares = np.bincount(arms, minlength=10) / 200
    assert np.abs(shares - np.exp(old)).max() < 0.12 < np.abs(np.exp(new) - np.exp(old)).max()
