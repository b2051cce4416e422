from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.envs import make_env
from haepo_jax.rollout import (
    RolloutState,
    Segment,
    Trajectory,
    collect_episodes,
    collect_segment,
    environment_keys,
    start_environments,
)
from haepo_jax.rollout.stepping import all_finite
from tests.toy_envs import Count, Drift, Start, equations

NUM_ENVS = 6
RESET_KEYS, STEP_KEYS = (environment_keys(jax.random.key(seed), NUM_ENVS) for seed in (0, 1))


def act(
    carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
) -> tuple[Any, jax.Array, Any]:
    """A sampled action that depends on the observation; the carry counts decisions since the episode began."""
    count = jnp.where(is_first, 0, carry) + 1
    action = jax.random.categorical(key, observation[0] * jnp.arange(3.0)).astype(jnp.int32)
    return count, action, {"count": count, "mark": 10.0 + observation[0]}


def episodes(env: Any, reset_keys: jax.Array, step_keys: jax.Array, record: bool = True) -> Any:
    return collect_episodes(make_env(env), act, jnp.int32(7), reset_keys, step_keys, record=record)


def play(env: Any, carry: Any, start: Any, is_first: bool, key: jax.Array, times: range) -> Any:
    """The same by a plain loop over one environment: rows of (observation, action, reward, extras, step), the carry."""
    act_once, step_once = jax.jit(act), jax.jit(env.step)
    state, observation = start
    rows = []
    for t in times:
        action_key, env_key = jax.random.split(jax.random.fold_in(key, t))
        carry, action, extras = act_once(carry, observation, jnp.bool_(is_first), None, action_key)
        after = step_once(env_key, state, action)
        rows.append((observation, action, after.reward, extras, after))
        state, observation, is_first = after.state, after.observation, False
        if after.terminated or after.truncated:
            break
    return rows, carry


@pytest.fixture(scope="module")
def collected() -> tuple[Drift, Trajectory, np.ndarray, np.ndarray]:
    env = Drift()
    return env, *jax.jit(functools.partial(episodes, env))(RESET_KEYS, STEP_KEYS)


class TestEpisodes:
    def test_equal_a_plain_loop_over_one_environment(self, collected: Any) -> None:
        env, steps, returns, lengths = collected
        wrapped = make_env(env)
        for index in range(NUM_ENVS):
            start = jax.jit(wrapped.reset)(RESET_KEYS[index])
            rows, _ = play(wrapped, jnp.int32(7), start, True, STEP_KEYS[index], range(env.horizon))
            assert int(lengths[index]) == len(rows)
            np.testing.assert_allclose(returns[index], sum(float(row[2]) for row in rows), rtol=1e-5)
            for t, (observation, action, reward, extras, _) in enumerate(rows):
                np.testing.assert_allclose(steps.observation[t, index], observation, rtol=1e-5)
                assert int(steps.action[t, index]) == int(action)
                np.testing.assert_allclose(steps.reward[t, index], reward, rtol=1e-5)
                assert int(steps.extras["count"][t, index]) == int(extras["count"]) == t + 1

    def test_lengths_differ_and_some_are_truncated(self, collected: Any) -> None:
        env, _, _, lengths = collected
        assert len(np.unique(lengths)) > 2
        assert lengths.max() == env.horizon

    def test_the_mask_holds_the_last_step_and_everything_else_is_zero_behind_it(self, collected: Any) -> None:
        env, steps, _, lengths = collected
        np.testing.assert_array_equal(steps.mask, np.arange(env.horizon)[:, None] < np.asarray(lengths))
        dead = ~np.asarray(steps.mask)
        assert dead.any()
        for leaf in jax.tree.leaves((steps.observation, steps.action, steps.reward, steps.extras)):
            assert leaf.shape[:2] == (env.horizon, NUM_ENVS)
            assert not np.asarray(leaf)[dead].any()
        assert np.asarray(steps.extras["mark"])[~dead].all()
        assert steps.action_mask is None
        assert steps.reward.dtype == np.float32

    def test_an_environment_does_not_depend_on_the_others(self, collected: Any) -> None:
        env, steps, returns, lengths = collected
        fewer = jax.jit(functools.partial(episodes, env))(RESET_KEYS[2:4], STEP_KEYS[2:4])
        expected = jax.tree.map(lambda x: x[:, 2:4], steps), returns[2:4], lengths[2:4]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), fewer, expected)

    def test_environments_with_the_same_reset_key_start_alike_and_then_part(self) -> None:
        keys = jnp.repeat(RESET_KEYS[:2], 3)
        steps, _, _ = jax.jit(functools.partial(episodes, Drift()))(keys, STEP_KEYS)
        first = np.asarray(steps.observation[0])
        np.testing.assert_array_equal(first, np.repeat(first[::3], 3, axis=0))
        assert not np.array_equal(first[0], first[3])
        both = np.asarray(steps.mask[1, :3]).all() or np.asarray(steps.mask[1, 3:]).all()
        assert both and len(np.unique(np.asarray(steps.observation[1, :, 0]))) > 2

    def test_without_a_record_returns_and_lengths_are_the_same(self, collected: Any) -> None:
        env, _, returns, lengths = collected
        nothing, own_returns, own_lengths = jax.jit(functools.partial(episodes, env, record=False))(
            RESET_KEYS, STEP_KEYS
        )
        assert nothing is None
        np.testing.assert_allclose(own_returns, returns, rtol=1e-6)
        np.testing.assert_array_equal(own_lengths, lengths)

    def test_what_an_episode_yields_once_it_is_over_is_never_seen(self, collected: Any) -> None:
        env = Drift(nan_after_end=True)
        found = jax.jit(functools.partial(episodes, env))(RESET_KEYS, STEP_KEYS)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, collected[1:])

    def test_the_horizon_ends_an_episode_that_has_no_end(self) -> None:
        class Endless(Drift):
            def step(self, key: jax.Array, state: Any, action: jax.Array) -> Any:
                return (
                    super().step(key, state, action)._replace(terminated=jnp.bool_(False), truncated=jnp.bool_(False))
                )

        steps, _, lengths = jax.jit(functools.partial(episodes, Endless(horizon=3)))(RESET_KEYS, STEP_KEYS)
        assert lengths.tolist() == [3] * NUM_ENVS
        assert steps.mask.shape == (3, NUM_ENVS)

    @pytest.mark.parametrize("seeds", [0, 2])
    def test_stops_when_the_last_episode_ends(self, seeds: int) -> None:
        """Also under vmap: then when the last one of all seeds ends."""
        times: list[int] = []

        class Short(Drift):
            def reset(self, key: jax.Array) -> Any:
                state, observation = super().reset(key)
                return {**state, "length": 1 + state["length"] % 4}, observation

        env = Short(horizon=40, on_step=lambda time: times.append(int(time)))
        collect = functools.partial(episodes, env)
        keys = jax.random.split(jax.random.key(5), max(seeds, 1))
        env_keys = jax.vmap(lambda key: environment_keys(key, NUM_ENVS))(keys)
        if seeds:
            _, _, lengths = jax.jit(jax.vmap(collect))(env_keys, env_keys)
        else:
            _, _, lengths = jax.jit(collect)(env_keys[0], env_keys[0])
        jax.effects_barrier()
        longest = int(lengths.max())
        assert longest <= 4
        assert max(times) == longest - 1

    def test_vmapped_over_seeds_it_is_the_same_and_keeps_one_predicate(self, collected: Any) -> None:
        env, *expected = collected
        collect = jax.vmap(functools.partial(episodes, env))
        keys = jnp.stack([RESET_KEYS, RESET_KEYS[::-1]]), jnp.stack([STEP_KEYS, STEP_KEYS[::-1]])
        found = jax.tree.map(lambda x: x[0], jax.jit(collect)(*keys))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, tuple(expected))
        loops = [e for e in equations(jax.make_jaxpr(collect)(*keys)) if e.primitive.name == "while"]
        rollouts = [e for e in loops if len(e.outvars) > 8]
        assert rollouts, "there is no loop"
        for loop in rollouts:
            assert [aval.shape for aval in loop.params["cond_jaxpr"].out_avals] == [()]

    def test_continuous_actions_are_scaled_at_the_door_only(self) -> None:
        """The record holds what the policy did; the environment gets it clipped and in its own units."""
        env = hx.make_env("Pendulum-v1", max_steps_in_episode=2)
        done = jnp.array([[3.0], [-0.5]])

        def steady(carry: Any, observation: Any, is_first: jax.Array, mask: Any, key: jax.Array) -> Any:
            return carry, jnp.where(is_first, done[0], done[1]), None

        steps, returns, _ = collect_episodes(env, steady, (), RESET_KEYS[:1], STEP_KEYS[:1])
        np.testing.assert_array_equal(steps.action[:, 0], done)
        state, _ = env.reset(RESET_KEYS[0])
        total = 0.0
        for torque in (2.0, -1.0):
            after = env.step(jax.random.key(0), state, jnp.array([torque]))
            state, total = after.state, total + float(after.reward)
        np.testing.assert_allclose(returns[0], total, rtol=1e-5)


# Segments.

NUM_STEPS = 9
START_KEY = jax.random.key(3)


def value(carry: Any, observation: jax.Array) -> jax.Array:
    return 100.0 * carry + observation[0]


def segments(
    env: Any, count: int, num_envs: int = NUM_ENVS, num_steps: int = NUM_STEPS
) -> tuple[RolloutState, list[Segment], RolloutState]:
    """The rollout state at the start, `count` segments one after the other, and the state after them."""
    wrapped = make_env(env)
    first = now = jax.jit(lambda: start_environments(wrapped, jnp.int32(7), START_KEY, num_envs))()
    collect = jax.jit(lambda now, keys: collect_segment(wrapped, act, value, now, START_KEY, keys, num_steps))
    found = []
    for number in range(count):
        segment, now = collect(now, environment_keys(jax.random.key(10 + number), num_envs))
        found.append(segment)
    return first, found, now


@pytest.fixture(scope="module")
def two_segments() -> tuple[Drift, list[Segment], RolloutState]:
    env = Drift(horizon=4)
    return env, *segments(env, 2)[1:]


class TestSegments:
    def test_equal_a_plain_loop_over_one_environment(self, two_segments: Any) -> None:
        """Episodes run on from one segment to the next; episode e of environment i starts from its own key."""
        drift, found, end = two_segments
        env = make_env(drift)
        reset = jax.jit(env.reset)
        for index in range(NUM_ENVS):
            start_key = jax.random.fold_in(START_KEY, index)
            episode, carry, is_first, total, length = 0, jnp.int32(7), True, 0.0, 0
            start = reset(jax.random.fold_in(start_key, episode))
            for number, segment in enumerate(found):
                step_key = jax.random.fold_in(jax.random.key(10 + number), index)
                t = 0
                while t < NUM_STEPS:
                    rows, carry = play(env, carry, start, is_first, step_key, range(t, NUM_STEPS))
                    for observation, action, reward, extras, after in rows:
                        steps = jax.tree.map(lambda x: x[t, index], segment)  # noqa: B023
                        total, length = total + float(reward), length + 1
                        np.testing.assert_allclose(steps.steps.observation, observation, rtol=1e-5)
                        assert int(steps.steps.action) == int(action)
                        np.testing.assert_allclose(steps.steps.reward, reward, rtol=1e-5)
                        assert int(steps.steps.extras["count"]) == int(extras["count"]) == length
                        assert bool(steps.is_first) == is_first == (length == 1)
                        assert bool(steps.terminated) == bool(after.terminated)
                        assert bool(steps.truncated) == bool(after.truncated)
                        expected = float(value(carry, after.observation)) if after.truncated else 0.0
                        if not after.truncated or after is rows[-1][-1]:
                            np.testing.assert_allclose(steps.final_value, expected, rtol=1e-5)
                        done = bool(after.terminated or after.truncated)
                        np.testing.assert_allclose(steps.episode_return, total if done else 0.0, rtol=1e-4, atol=1e-6)
                        assert int(steps.episode_length) == (length if done else 0)
                        start, is_first, t = (after.state, after.observation), done, t + 1
                        if done:
                            episode, total, length = episode + 1, 0.0, 0
                            start = reset(jax.random.fold_in(start_key, episode))
            np.testing.assert_allclose(end.observation[index], start[1], rtol=1e-5)
            assert int(end.episodes[index]) == episode
            assert bool(end.is_first[index]) == is_first

    def test_every_step_is_alive_and_there_were_ends_of_both_kinds(self, two_segments: Any) -> None:
        _, found, _ = two_segments
        assert all(np.asarray(segment.steps.mask).all() for segment in found)
        assert any(np.asarray(segment.terminated).any() for segment in found)
        assert any(np.asarray(segment.truncated).any() for segment in found)
        assert not any(np.asarray(segment.terminated & segment.truncated).any() for segment in found)

    @pytest.mark.parametrize("horizon", [1, 2, 5])
    def test_every_episode_starts_from_a_fresh_draw(self, horizon: int) -> None:
        """As many starts as episodes, also where every environment ends an episode at every step, so that spares run out at once."""
        _, found, end = segments(Start(horizon=horizon), 2, num_envs=3, num_steps=7)
        starts = np.concatenate([np.asarray(s.steps.observation[..., 0])[np.asarray(s.is_first)] for s in found])
        episodes_begun = 3 * -(-14 // horizon)
        assert len(starts) == episodes_begun
        assert len(np.unique(starts)) == episodes_begun
        np.testing.assert_array_equal(end.episodes, 14 // horizon)

    def test_a_truncated_step_is_worth_its_final_observation_and_a_terminated_one_nothing(self) -> None:
        """Observations count up from 100 and start there again: the reset's value is 100, the final one's above it."""
        env = make_env(Count())

        def always(action: int) -> Any:
            return lambda carry, observation, is_first, mask, key: (carry, jnp.int32(action), None)

        for action, terminated_at, truncated_at, final in ((0, [1, 3, 5], [], 0.0), (1, [], [2, 5], 103.0)):
            envs = start_environments(env, (), START_KEY, 2)
            segment, _ = collect_segment(env, always(action), lambda carry, x: x[0], envs, START_KEY, STEP_KEYS[:2], 7)
            for index in range(2):
                assert np.flatnonzero(segment.terminated[:, index]).tolist() == terminated_at
                assert np.flatnonzero(segment.truncated[:, index]).tolist() == truncated_at
                expected = np.where(np.isin(np.arange(7), truncated_at), final, 0.0)
                np.testing.assert_array_equal(segment.final_value[:, index], expected)

    def test_an_episode_that_outlasts_the_horizon_is_truncated_there(self) -> None:
        """As in evaluation, where `collect_episodes` stops at the horizon."""

        class Endless(Start):
            def step(self, key: Any, state: Any, action: Any) -> Any:
                return super().step(key, state, action)._replace(truncated=jnp.array(False))

        env = make_env(Endless(horizon=3))
        envs = start_environments(env, jnp.int32(0), START_KEY, 2)
        segment, _ = collect_segment(
            env, lambda c, o, f, m, k: (c, jnp.int32(0), None), value, envs, START_KEY, STEP_KEYS[:2], 7
        )
        for index in range(2):
            assert np.flatnonzero(segment.truncated[:, index]).tolist() == [2, 5]
            assert not np.any(segment.terminated) and np.max(segment.episode_length) == 3
            assert np.all(segment.final_value[[2, 5], index] != 0)

    def test_values_are_computed_and_starts_drawn_only_on_the_steps_that_need_them(self) -> None:
        """Under vmap over seeds too: the two branches stay branches."""
        env = make_env(Start(horizon=3))
        keys = jax.random.split(START_KEY, 2)

        def one_seed(key: jax.Array) -> Any:
            envs = start_environments(env, jnp.int32(0), key, 3)
            return collect_segment(
                env, lambda c, o, f, m, k: (c, jnp.int32(0), None), value, envs, key, environment_keys(key, 3), 4
            )

        branches = [e for e in equations(jax.make_jaxpr(jax.vmap(one_seed))(keys)) if e.primitive.name == "cond"]
        # Two of them choose by the platform, which is known when the program is lowered.
        assert len(branches) == 4
        assert all(branch.invars[0].aval.shape == () for branch in branches)

    def test_vmapped_over_seeds_it_is_the_same(self) -> None:
        env = make_env(Drift(horizon=4))

        def one_seed(key: jax.Array) -> Any:
            envs = start_environments(env, jnp.int32(7), key, 3)
            segment, envs = collect_segment(env, act, value, envs, key, environment_keys(key, 3), 8)
            # Spares are drawn again for all seeds at once: when that happens differs, but not what an environment starts from.
            return segment, dataclasses.replace(envs, spare=None, spare_used=None)

        keys = jax.random.split(jax.random.key(8), 3)
        together = jax.jit(jax.vmap(one_seed))(keys)
        alone = jax.jit(one_seed)
        for seed in range(3):
            expected = alone(keys[seed])
            found = jax.tree.map(lambda x: x[seed], together)  # noqa: B023
            chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_numbers_of_every_dtype_are_compared_with_the_largest_allowed(dtype: str) -> None:
    values = jnp.array([[65504.0, -65504.0], [1.0, jnp.inf], [1.0, -jnp.inf], [jnp.nan, 1.0]], dtype)
    np.testing.assert_array_equal(all_finite({"x": values}, 1), [True, False, False, False])


@pytest.mark.slow
def test_a_brax_task_starts_every_episode_from_a_fresh_draw() -> None:
    """Its own automatic reset would replay the first start."""
    env = hx.make_env("brax/inverted_pendulum", backend="spring", episode_length=4)

    def idle(carry: Any, observation: Any, is_first: jax.Array, mask: Any, key: jax.Array) -> Any:
        return carry, jnp.zeros(1), None

    envs = start_environments(env, (), START_KEY, 3)
    collect = jax.jit(lambda envs, keys: collect_segment(env, idle, lambda c, o: o[0], envs, START_KEY, keys, 13))
    segment, _ = collect(envs, STEP_KEYS[:3])
    assert np.asarray(segment.truncated).sum() == 9
    starts = np.asarray(segment.steps.observation)[np.asarray(segment.is_first)]
    assert len(np.unique(starts, axis=0)) == len(starts) == 12
