"""The two tasks of the paper's own experiments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.envs import check_environment, make_env


def test_bandit_rewards_have_the_arms_means():
    env = make_env("haepo/bandit", num_arms=4, num_pulls=3, noise_std=0.5)
    check_environment(env)
    state, observation = env.reset(jax.random.key(0))
    assert observation.tolist() == [0, 0, 0, 0, 0, 1]
    pulls = jax.jit(jax.vmap(jax.vmap(env.step, (0, None, None)), (None, None, 0)))
    rewards = pulls(jax.random.split(jax.random.key(1), 4000), state, jnp.arange(4)).reward
    np.testing.assert_allclose(rewards.mean(1), env.params.means, atol=4 * 0.5 / np.sqrt(4000))
    np.testing.assert_allclose(rewards.std(1), 0.5, rtol=0.05)


def test_bandit_episode():
    env = make_env("haepo/bandit", num_arms=3, num_pulls=2, noise_std=0.0, seed=7)
    same, other = make_env("haepo/bandit", num_arms=3, seed=7), make_env("haepo/bandit", num_arms=3, seed=8)
    assert env.params.means.tolist() == same.params.means.tolist() != other.params.means.tolist()
    state, _ = env.reset(jax.random.key(0))
    first = env.step(jax.random.key(1), state, jnp.int32(2))
    np.testing.assert_allclose(first.observation, [0, 0, 1, env.params.means[2], 0.5])
    second = env.step(jax.random.key(1), first.state, jnp.int32(0))
    assert (bool(first.terminated), bool(second.terminated), bool(second.truncated)) == (False, True, False)

    def reward(means):
        return env.replace(params=env.params._replace(means=means)).step(jax.random.key(0), state, jnp.int32(1)).reward

    assert jax.vmap(reward)(jnp.arange(6.0).reshape(2, 3)).tolist() == [1, 4]


def walk(env, action, steps):
    def body(state, key):
        step = env.step(key, state, jnp.int32(action))
        return step.state, step

    return jax.lax.scan(body, env.reset(jax.random.key(0))[0], jax.random.split(jax.random.key(1), steps))[1]


def test_random_walk():
    env = make_env("haepo/random_walk", length=5, horizon=6, reward=2.0)
    check_environment(env)
    right = walk(env, 1, 4)
    assert right.reward.tolist() == [0, 0, 0, 2] and right.terminated.tolist() == [False, False, False, True]
    assert right.observation.argmax(-1).tolist() == [1, 2, 3, 4] and not right.truncated.any()
    left = walk(env, 0, 6)
    assert left.reward.sum() == 0 and left.truncated.tolist() == [False] * 5 + [True] and not left.terminated.any()


def test_random_walk_slips():
    env = make_env("haepo/random_walk", length=4, slip=1.0)
    assert walk(env, 0, 3).terminated.tolist() == [False, False, True]
    slips = jnp.asarray([0.0, 1.0])
    ends = jax.vmap(lambda slip: walk(env.replace(params=env.params._replace(slip=slip)), 1, 3).reward.sum())(slips)
    assert ends.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("haepo/bandit", {"arms": 3}, ValueError, "no setting 'arms'; did you mean 'num_arms'"),
        ("haepo/bandit", {"num_arms": 0}, ValueError, "num_arms must be at least 1"),
        ("haepo/bandit", {"num_arms": 10**9}, ValueError, "num_arms must be at most 1,000,000"),
        ("haepo/random_walk", {"length": 10**9, "horizon": 10**9}, ValueError, "length must be at most 1,000,000"),
        ("haepo/bandit", {"noise_std": -1.0}, ValueError, "noise_std must be at least 0"),
        ("haepo/bandit", {"noise_std": float("nan")}, ValueError, "noise_std must be a number, got nan"),
        ("haepo/bandit", {"num_pulls": "many"}, TypeError, "num_pulls must be an integer"),
        ("haepo/random_walk", {"length": 1}, ValueError, "length must be at least 2"),
        ("haepo/random_walk", {"length": 50, "horizon": 10}, ValueError, "cannot be reached"),
        ("haepo/random_walk", {"slip": 1.5}, ValueError, "slip must be at most 1"),
    ],
)
def test_wrong_settings(name: str, settings: dict, error: type, message: str):
    with pytest.raises(error, match=message) as raised:
        make_env(name, **settings)
    assert "\n" not in str(raised.value)
