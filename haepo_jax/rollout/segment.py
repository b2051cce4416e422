"""Rollouts of fixed-length segments with auto-reset, for PPO and HAEPO."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from haepo_jax.rollout.packing import packed_scan
from haepo_jax.rollout.stepping import Act, Trajectory, all_finite, environment_keys, step_environment
from haepo_jax.sharding import shard_environments
from haepo_jax.unbatched import any_in_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutState:
    """B running environments, with leading axis B.

    Each environment keeps one spare initial state, drawn from its own key and episode number, and uses it when its
    episode ends. Used spares are redrawn, all at once, only when an episode ends without one. So every episode starts
    from a fresh initial state, but few steps pay for a reset.
    """

    state: Any
    observation: Any
    carry: Any
    is_first: jax.Array
    spare: tuple[Any, Any]
    spare_used: jax.Array
    episodes: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """A `Trajectory` (T, B) with episode boundaries.

    Attributes:
      steps: the trajectory; its mask is false only for steps with a non-finite reward, observation or next
        observation, which terminate their episode. Where the observation was not finite, all is zero.
      is_first: (T, B), true at the first step of an episode.
      terminated, truncated: (T, B), whether the episode terminated or was truncated after this step; never both.
      final_value: (T, B), value of the final observation of a truncated episode; 0 elsewhere.
      episode_return, episode_length: (T, B), of the episode that ended after this step; 0 elsewhere. None in a replay
        buffer.
    """

    steps: Trajectory
    is_first: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_value: jax.Array
    episode_return: Any
    episode_length: Any


def start_environments(env: Any, initial_carry: Any, reset_key: jax.Array, num_envs: int) -> RolloutState:
    """Resets `num_envs` environments for their first episode; pass the same `reset_key` to every `collect_segment`.

    Args:
      env: an `Environment`.
      initial_carry: the policy carry of one environment at the start of an episode.
      reset_key: key of the initial states.
      num_envs: B.

    Returns:
      The state of the rollout, whose arrays have a leading axis of B.
    """
    state, observation = _draw_starts(env, reset_key, jnp.zeros(num_envs, jnp.int32))
    spare = _draw_starts(env, reset_key, jnp.ones(num_envs, jnp.int32))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), initial_carry)
    return RolloutState(
        state=state, observation=observation, carry=carry, is_first=jnp.ones(num_envs, bool), spare=spare,
        spare_used=jnp.zeros(num_envs, bool), episodes=jnp.zeros(num_envs, jnp.int32),
        episode_return=jnp.zeros(num_envs, jnp.float32), episode_length=jnp.zeros(num_envs, jnp.int32),
    )  # fmt: skip


def collect_segment(
    env: Any,
    act: Act,
    value: Callable[[Any, Any], jax.Array],
    state: RolloutState,
    reset_key: jax.Array,
    step_keys: jax.Array,
    num_steps: int,
) -> tuple[Segment, RolloutState]:
    """Steps every environment `num_steps` times; resets it when an episode ends or reaches `env.horizon`.

    Args:
      env: an `Environment`.
      act: the policy.
      value: (carry, observation) -> (), the value function of one environment; used only where an episode is truncated.
      state: from `start_environments` or the previous segment.
      reset_key: key of the initial states.
      step_keys: (B,), for actions and transitions; new for every segment.
      num_steps: T.

    Returns:
      The segment, with leading axes (T, B), and the state that the next one starts from. Every step is valid
      but those with a reward, an observation or a next observation that is not finite, or not below 1e12.
    """
    chex.assert_shape([state.is_first, step_keys], state.episodes.shape)
    one_step = jax.vmap(lambda *args: step_environment(env, act, *args))
    state = shard_environments(state)
    horizon = min(int(env.horizon), 2**31 - 1)

    def step(before: RolloutState, time: jax.Array) -> tuple[RolloutState, Segment]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(step_keys, time)
        # False only for what a reset gave; any other such observation has ended its episode.
        finite = jnp.broadcast_to(all_finite(before.observation, 1), before.is_first.shape)
        # A carry that had seen NaN would keep it, even where its weight is 0.
        observation = _select(finite, before.observation, jax.tree.map(jnp.zeros_like, before.observation))
        stepped = one_step(before.state, observation, before.carry, before.is_first, finite, keys)
        invalid = ~(finite & all_finite((stepped.transition.reward, stepped.observation), 1))
        transition = dataclasses.replace(
            stepped.transition, reward=jnp.where(invalid, 0, stepped.transition.reward), mask=~invalid
        )
        episode_length = before.episode_length + 1
        terminated = stepped.terminated | invalid
        truncated = (stepped.truncated | (episode_length >= horizon)) & ~terminated
        done = terminated | truncated

        def final_values() -> jax.Array:
            values = jax.vmap(value)(stepped.carry, stepped.observation)
            chex.assert_equal_shape([values, truncated])
            return jnp.where(truncated, values, 0.0).astype(jnp.float32)

        # On an accelerator a branch would make the host wait for the flags in every step.
        final_value = jax.lax.platform_dependent(
            cpu=lambda: jax.lax.cond(any_in_batch(truncated), final_values, lambda: jnp.zeros(done.shape, jnp.float32)),
            default=final_values,
        )
        start, spare, spare_used = _next_starts(env, reset_key, before, done)
        env_state, observation = _select(done, start, (stepped.state, stepped.observation))
        episode_return = before.episode_return + transition.reward
        segment = Segment(
            steps=transition, is_first=before.is_first, terminated=terminated, truncated=truncated,
            final_value=final_value, episode_return=jnp.where(done, episode_return, 0),
            episode_length=jnp.where(done, episode_length, 0),
        )  # fmt: skip
        after = RolloutState(
            state=env_state, observation=observation, carry=stepped.carry, is_first=done, spare=spare,
            spare_used=spare_used | done, episodes=before.episodes + done.astype(jnp.int32),
            episode_return=jnp.where(done, 0, episode_return), episode_length=jnp.where(done, 0, episode_length),
        )  # fmt: skip
        return after, segment

    state, segment = packed_scan(step, state, jnp.arange(num_steps, dtype=jnp.int32), len(step_keys))
    return segment, state


def _next_starts(env: Any, reset_key: jax.Array, before: RolloutState, done: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Initial states and observations for the environments that are `done` (B,), and the updated spares with their
    flags, before those taken now are marked as used; see `RolloutState`.

    On an accelerator every step draws a new initial state for every environment, and the spares are unused: a reset
    costs a kernel or two, while a branch would make the host wait. The initial states are the same.
    """

    def draw() -> Any:
        return _draw_starts(env, reset_key, before.episodes + 1)

    def from_spares() -> tuple[Any, Any, jax.Array]:
        spare, spare_used = jax.lax.cond(
            any_in_batch(done & before.spare_used),
            lambda: (_select(before.spare_used, draw(), before.spare), jnp.zeros_like(done)),
            lambda: (before.spare, before.spare_used),
        )
        return spare, spare, spare_used

    return jax.lax.platform_dependent(cpu=from_spares, default=lambda: (draw(), before.spare, before.spare_used))


def _draw_starts(env: Any, reset_key: jax.Array, episodes: jax.Array) -> tuple[Any, Any]:
    keys = jax.vmap(jax.random.fold_in)(environment_keys(reset_key, episodes.shape[0]), episodes)
    return jax.vmap(env.reset)(keys)


def _select(flags: jax.Array, on_true: Any, on_false: Any) -> Any:
    """`jnp.where` along the leading axis of two pytrees."""
    return jax.tree.map(
        lambda x, y: jnp.where(jnp.expand_dims(flags, tuple(range(1, x.ndim))), x, y), on_true, on_false
    )
